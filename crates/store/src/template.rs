//! Templates: guests that were set up and whose entrypoint had not been started, or was ready, in `templates/<key>/`, for later starts of the same.
//!
//! The files are those of a snapshot. The key is a digest of all that such a guest knows of its machine and cannot be told anew, so what
//! does not fit is never found. Nobody misses a template: a start without one boots.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::json;
use sha2::{Digest, Sha256};
use zmachine_agent_protocol::BootConfig;
use zmachine_plan::ContainerPlan;
use zmachine_spec::saved::HostMark;
use zmachine_spec::{Failure, Home};
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use crate::snapshot::{Snapshot, publish_files};

/// Templates of a home; the least recently used ones go when there is one more.
const MOST: usize = 16;

/// What they take at the most, in bytes of the host's disk; the last one is kept whatever it takes.
const MOST_BYTES: u64 = 4 << 30;

/// The templates of a home.
#[derive(Debug, Clone)]
pub struct Templates {
    folder: PathBuf,
}

/// The templates of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TemplateUse {
    /// How many there are.
    pub count: usize,
    /// What they take of the host's disk, in bytes; blocks that they share with other files are counted.
    pub bytes: u64,
}

/// A template that is being made. It is nobody's until it is published.
#[derive(Debug)]
pub struct TemplateDraft {
    /// Where its files go.
    pub folder: PathBuf,
    _lock: FileLock,
}

impl Drop for TemplateDraft {
    /// One that was published has another name by now.
    fn drop(&mut self) {
        let _ = file::remove_dir_all(&self.folder);
    }
}

/// The key of the template that `plan` can begin from. `hypervisor` is the program that runs it. In one that `is_ready` the entrypoint
/// runs, as which it cannot be told anything anew.
pub fn key(plan: &ContainerPlan, host: &HostMark, hypervisor: &Path, is_ready: bool) -> String {
    let program = std::fs::metadata(hypervisor).ok();
    let modified = program.as_ref().and_then(|m| m.modified().ok());
    let modified = modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let all = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "image": plan.image,
        "kernel": plan.kernel,
        "memory": plan.vm.memory_bytes,
        "cpus": plan.vm.cpus,
        "accel": plan.vm.accel,
        "devices": plan.device_list(),
        // Its file is the template's copy.
        "disk": plan.upper_bytes,
        "boot": nameless(&plan.boot),
        "process": is_ready.then_some(&plan.process),
        "cpu": host.cpu,
        "hypervisor": [json!(hypervisor), json!(program.map(|m| m.len())), json!(modified.map(|at| at.as_nanos().to_string()))],
    });
    let digest = Sha256::digest(all.to_string().as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What a guest is told, without what each machine is told anew.
fn nameless(boot: &BootConfig) -> BootConfig {
    let mut boot = boot.clone();
    boot.hostname.clear();
    for interface in &mut boot.interfaces {
        interface.mac.clear();
        interface.addresses.clear();
    }
    boot.routes.clear();
    // With none the image's file stays, which is not the same as another one.
    boot.nameservers.truncate(1);
    boot.nameservers.fill(std::net::Ipv4Addr::UNSPECIFIED.into());
    boot.search.clear();
    boot.hosts.clear();
    boot.secrets.clear();
    boot.first_start = true;
    boot
}

impl Templates {
    /// Those of `home`.
    pub fn of(home: &Home) -> Templates {
        Templates {
            folder: home.data().join("templates"),
        }
    }

    /// Whether a folder is that of one of them.
    pub fn has(&self, folder: &Path) -> bool {
        folder.parent() == Some(&self.folder)
    }

    /// The template with this key, and its folder. One that cannot be read is none.
    pub fn find(&self, key: &str) -> Option<(Snapshot, PathBuf)> {
        let folder = self.folder.join(key);
        let found = file::read_json(&folder.join("snapshot.json")).ok()?;
        // It was used now, which is what decides who stays.
        let _ = std::fs::File::open(&folder).and_then(|folder| folder.set_modified(SystemTime::now()));
        Some((found, folder))
    }

    /// Begins to make one; `None` when there is one by now, or somebody is making one.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn begin(&self, key: &str) -> Result<Option<TemplateDraft>, Failure> {
        crate::snapshot::make_private(&self.folder)?;
        let Some(lock) = FileLock::try_exclusive(&self.folder.join(".lock"))? else {
            return Ok(None);
        };
        self.sweep_unfinished()?;
        if file::is_there(&self.folder.join(key))? {
            return Ok(None);
        }
        let folder = self.folder.join(format!(".new-{key}"));
        crate::snapshot::make_private(&folder)?;
        Ok(Some(TemplateDraft { folder, _lock: lock }))
    }

    /// Lets others find it, and removes the oldest of too many.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn publish(&self, draft: TemplateDraft, snapshot: &Snapshot) -> Result<(), Failure> {
        publish_files(&draft.folder, snapshot, &self.folder.join(&snapshot.tag))?;
        let mut all = self.keys()?;
        all.sort_by_key(|key| {
            let used = std::fs::metadata(self.folder.join(key)).and_then(|m| m.modified());
            std::cmp::Reverse(used.unwrap_or(SystemTime::UNIX_EPOCH))
        });
        let sizes: Vec<u64> = all.iter().map(|key| used(&self.folder.join(key))).collect();
        for key in &all[kept(&sizes)..] {
            self.discard(key)?;
        }
        Ok(())
    }

    /// What there is, by the digest of the image.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn uses(&self) -> Result<BTreeMap<String, TemplateUse>, Failure> {
        let mut uses = BTreeMap::<String, TemplateUse>::new();
        for key in self.keys()? {
            let path = self.folder.join(&key);
            // One that cannot be read is none.
            let Ok(read) = file::read_json::<Snapshot>(&path.join("snapshot.json")) else {
                continue;
            };
            let of_image = uses
                .entry(read.plan.image().unwrap_or_default().to_owned())
                .or_default();
            of_image.count += 1;
            of_image.bytes += used(&path);
        }
        Ok(uses)
    }

    /// Removes one: what it says turned out not to be so.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(&self, key: &str) -> Result<(), Failure> {
        let gone = self.folder.join(format!(".gone-{key}"));
        if std::fs::rename(self.folder.join(key), &gone).is_ok() {
            file::remove_dir_all(&gone)?;
        }
        Ok(())
    }

    /// Removes those that `is_needed` does not hold for; how many bytes that were.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune(&self, is_needed: impl Fn(&Snapshot) -> bool) -> Result<u64, Failure> {
        let mut bytes = 0;
        for key in self.keys()? {
            let path = self.folder.join(&key);
            let read: Option<Snapshot> = file::read_json(&path.join("snapshot.json")).ok();
            if read.is_none_or(|snapshot| !is_needed(&snapshot)) {
                bytes += used(&path);
                self.discard(&key)?;
            }
        }
        Ok(bytes)
    }

    fn keys(&self) -> Result<Vec<String>, Failure> {
        if !file::is_there(&self.folder)? {
            return Ok(Vec::new());
        }
        let names = file::names_in(&self.folder)?.into_iter();
        let names = names.map(|name| name.to_string_lossy().into_owned());
        Ok(names.filter(|name| !name.starts_with('.')).collect())
    }

    fn sweep_unfinished(&self) -> Result<(), Failure> {
        for name in file::names_in(&self.folder)? {
            let text = name.to_string_lossy();
            if text.starts_with(".new-") || text.starts_with(".gone-") {
                file::remove_dir_all(&self.folder.join(&name))?;
            }
        }
        Ok(())
    }
}

/// How many of templates with these sizes in bytes, the most recently used first, are kept.
fn kept(sizes: &[u64]) -> usize {
    let mut bytes = 0_u64;
    let fits = sizes.iter().enumerate().take_while(|(index, size)| {
        bytes = bytes.saturating_add(**size);
        *index == 0 || (*index < MOST && bytes <= MOST_BYTES)
    });
    fits.count()
}

/// The room that a folder's files take, in bytes.
fn used(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|file| Some(file.metadata().ok()?.blocks() * 512))
        .sum()
}

#[cfg(test)]
mod tests {
    use zmachine_plan::Plan;

    use super::*;

    fn plan() -> ContainerPlan {
        let golden = include_str!("../../plan/tests/golden/plan-v1.json");
        match serde_json::from_str(golden).unwrap() {
            Plan::Container(plan) => *plan,
            Plan::Vm(_) => panic!("it is a container's"),
        }
    }

    fn key_with(change: impl Fn(&mut ContainerPlan)) -> String {
        let mut plan = plan();
        change(&mut plan);
        let host = HostMark {
            cpu: None,
            tsc_khz: Some(2_000_000),
        };
        key(&plan, &host, Path::new("/bin/sh"), false)
    }

    #[test]
    fn so_many_are_kept_as_have_room() {
        assert_eq!(kept(&[]), 0);
        assert_eq!(kept(&[1; 20]), MOST);
        assert_eq!(kept(&[MOST_BYTES / 4; 20]), 4);
        assert_eq!(kept(&[MOST_BYTES * 2, 1]), 1);
    }

    #[test]
    fn what_there_is_of_an_image_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("data"), &dir.path().join("run")).unwrap();
        let templates = Templates::of(&home);
        assert!(templates.uses().unwrap().is_empty());
        for key in ["a", "b"] {
            let draft = templates.begin(key).unwrap().unwrap();
            std::fs::write(draft.folder.join("root.img"), [7; 8192]).unwrap();
            let snapshot = Snapshot {
                version: 1,
                machine: "m".into(),
                machine_id: "0123456789ab".into(),
                tag: key.into(),
                automatic: true,
                created_at: jiff::Timestamp::UNIX_EPOCH,
                spec: zmachine_spec::MachineSpec::new("m", "/x.fl"),
                plan: Plan::Container(Box::new(plan())),
                guest_kernel: None,
                saved: None,
                disks: None,
            };
            templates.publish(draft, &snapshot).unwrap();
        }
        std::fs::create_dir(dir.path().join("data/templates/broken")).unwrap();
        let uses = templates.uses().unwrap();
        let found = uses[&plan().image];
        assert_eq!((uses.len(), found.count), (1, 2));
        assert!(found.bytes >= 16384, "{found:?}");
    }

    #[test]
    fn what_a_machine_is_told_anew_is_not_in_the_key() {
        let same = key_with(|plan| {
            plan.id = "other".into();
            plan.boot.hostname = "other".into();
            plan.boot.hosts.clear();
            plan.process.args = vec!["other".into()];
            plan.process.env.push(("A".into(), "b".into()));
            for interface in &mut plan.boot.interfaces {
                interface.mac = "02:00:00:00:00:99".into();
                interface.addresses = vec!["10.9.9.9/24".into()];
            }
        });
        assert_eq!(same, key_with(|_| ()));
    }

    #[test]
    fn an_entrypoint_that_runs_is_told_nothing_anew() {
        let host = HostMark {
            cpu: None,
            tsc_khz: None,
        };
        let ready = |plan: &ContainerPlan| key(plan, &host, Path::new("/bin/sh"), true);
        let mut other = plan();
        other.boot.hostname = "other".into();
        assert_eq!(ready(&other), ready(&plan()));
        assert_ne!(ready(&other), key(&other, &host, Path::new("/bin/sh"), false));
        other.process.env.push(("A".into(), "b".into()));
        assert_ne!(ready(&other), ready(&plan()));
    }

    #[test]
    fn what_a_guest_cannot_be_told_anew_is() {
        let keys = [
            key_with(|_| ()),
            key_with(|plan| plan.image = "other".into()),
            key_with(|plan| plan.vm.memory_bytes *= 2),
            key_with(|plan| plan.vm.cpus += 1),
            key_with(|plan| plan.upper_bytes = Some(7 << 30)),
            key_with(|plan| {
                plan.vm.nics.push(zmachine_hypervisor::Nic {
                    id: "net9".into(),
                    mac: "02:00:00:00:00:09".into(),
                    mtu: None,
                    kind: Default::default(),
                })
            }),
            key_with(|plan| plan.boot.sysctls.push(("kernel.x".into(), "1".into()))),
            key_with(|plan| plan.boot.ssh_keys.push("key".into())),
            key_with(|plan| plan.boot.nameservers.push(std::net::Ipv4Addr::LOCALHOST.into())),
            key_with(|plan| plan.boot.shm_bytes = Some(1)),
        ];
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    }
}
