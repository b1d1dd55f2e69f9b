//! A machine that nobody has to do with is saved, and its hypervisor ends. Its monitor stays, with its networks, and brings it back when
//! somebody comes.
//!
//! ```text
//! running ─ quiet for so long ─> frozen ─> saved to machines/<id>/idle ─> hypervisor ends ─> asleep ─ a client, a packet ─> restored
//! ```
//! # Invariants
//! Memory and devices lie in `idle/` of the machine's folder, with what its disks were then in `disks.json`, written last. They are used
//! once: before the guest's first instruction, or when it is started in another way, they are gone. A waking that fails before leaves them for
//! the next start, which is the last one that tries (`tried`). A disk that was written to since makes them worth nothing, and the machine
//! boots.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use zmachine_plan::Plan;
use zmachine_spec::{Class, Exit, Failure, Phase};
use zmachine_store::catalog::Machine;
use zmachine_store::log::Source;
use zmachine_store::snapshot::{DISK, MEMORY, SNAPSHOT_VERSION, Snapshot, memory};
use zmachine_store::volume::Volumes;
use zmachine_sys::file::{self, FileError};

use super::clock::GuestClock;
use super::context::Monitor;
use super::follow::Follow;
use super::frozen::{Frozen, Restore};
use super::guest::within;
use super::inbox::Event;
use super::saving::{Saving, freeze, save_still, thaw};

const FOLDER: &str = "idle";
const DISKS: &str = "disks.json";
const TRIED: &str = "tried";

impl Follow<'_> {
    /// Looks whether anybody has had to do with the machine.
    pub(super) fn look_for_quiet(&mut self) {
        let received = self.received();
        // What runs without a client is somebody's as well, and is found by its id.
        let execs = self.execs.all().iter().any(|record| record.ended.is_none());
        let is_busy = execs
            || self.is_saving
            || self.is_rewired
            || self.changing.is_some()
            || self.monitor.machine.state.phase != Phase::Running
            || self.ending.deadline.is_some();
        let clients = self.monitor.activity.quiet_since().filter(|_| !is_busy);
        let Some(quiet) = &mut self.quiet else { return };
        if !quiet.look(Instant::now(), received, clients) {
            return;
        }
        let Ok(session) = self.awake_agent() else { return };
        self.is_saving = true;
        let events = self.monitor.events.clone();
        tokio::spawn(async move {
            let result = freeze(&session).await;
            let frozen = Frozen {
                folder: PathBuf::new(),
                // Nobody waits for it.
                client: oneshot::channel().0,
                result,
                to_sleep: true,
            };
            let _ = events.send(Event::Frozen(Box::new(frozen))).await;
        });
    }

    /// Bytes that its networks have sent to it.
    fn received(&self) -> u64 {
        let taps = self.plan.attachments().iter().map(|attachment| &attachment.tap);
        let sent = taps.filter_map(|tap| {
            let text = std::fs::read_to_string(format!("/sys/class/net/{tap}/statistics/tx_bytes")).ok()?;
            text.trim().parse::<u64>().ok()
        });
        sent.sum()
    }

    /// The guest stands still, and is saved to be ended, unless somebody has come meanwhile.
    pub(super) async fn go_to_sleep(&mut self, result: Result<Option<GuestClock>, Failure>) {
        self.is_saving = false;
        if let Some(quiet) = &mut self.quiet {
            quiet.begin_anew();
        }
        let log = self.monitor.log.clone();
        let clock = match result {
            Ok(clock) => clock,
            Err(failure) => return log.note(Source::Monitor, &format!("it is idle, and not saved: {failure}")),
        };
        self.monitor.kill.pass("idle: guest frozen");
        let folder = self.monitor.machine.dir.join(FOLDER);
        let saved = self.save_to_sleep(&folder, clock);
        // Otherwise the machine is about to end.
        let Ok(saved) = saved.await else { return };
        self.monitor.kill.pass("idle: machine saved");
        match saved {
            // From here on nobody is served until it runs again.
            Ok(()) if self.monitor.activity.fall_asleep() => self.monitor.is_asleep = true,
            Ok(()) => self.stay_awake().await,
            Err(failure) => {
                log.note(Source::Monitor, &format!("it is idle, and not saved: {failure}"));
                self.stay_awake().await;
            }
        }
    }

    async fn save_to_sleep(
        &mut self,
        folder: &Path,
        clock: Option<GuestClock>,
    ) -> Result<Result<(), Failure>, super::inbox::Cut> {
        let Plan::Container(plan) = &*self.plan else {
            return Ok(Err(Failure::new(Class::Unsupported, "only containers can be saved")));
        };
        let saving = Saving {
            // Its disks stay where they are.
            own: Vec::new(),
            volumes: Vec::new(),
            accel: plan.vm.accel,
            memory_bytes: plan.vm.memory_bytes,
            has_entrypoint: !plan.is_idle(),
            clock,
        };
        let machine = &self.monitor.machine;
        let (id, spec, guest_kernel) = (
            machine.id.clone(),
            machine.spec.clone(),
            machine.state.guest_kernel.clone(),
        );
        let plan = self.plan.clone();
        let vm = &mut *self.running.vm;
        let work = async {
            make(folder)?;
            let saved = save_still(vm, &saving, folder).await?;
            let snapshot = Snapshot {
                version: SNAPSHOT_VERSION,
                machine: spec.name.clone(),
                machine_id: id,
                tag: FOLDER.to_owned(),
                automatic: true,
                created_at: Timestamp::now(),
                spec,
                plan,
                guest_kernel,
                saved: Some(saved),
                disks: None,
            };
            for name in snapshot.files() {
                let path = folder.join(name);
                let synced = File::open(&path).and_then(|file| file.sync_all());
                synced.map_err(|e| FileError::io("write", &path, e))?;
            }
            Ok(file::replace_json(&folder.join("snapshot.json"), &snapshot)?)
        };
        self.inbox.unless_ended(work).await
    }

    async fn stay_awake(&mut self) {
        if let Err(failure) = forget(&self.monitor.machine.dir) {
            self.monitor.log.note(Source::Monitor, &failure.to_string());
        }
        let goes_on = within("resume", self.running.vm.go_on());
        if let Ok(Err(failure)) = self.inbox.unless_ended(goes_on).await {
            let text = format!("the guest cannot be let go on: {failure}");
            self.monitor.log.note(Source::Monitor, &text);
        }
        let Some(session) = self.session() else { return };
        let log = self.monitor.log.clone();
        tokio::spawn(async move {
            if let Err(failure) = thaw(&session).await {
                log.note(Source::Monitor, &format!("the guest does not go on: {failure}"));
            }
        });
    }
}

/// A disk as it was when its machine fell asleep.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DiskMark {
    path: PathBuf,
    bytes: u64,
    written_at: (i64, i64),
}

impl DiskMark {
    fn of(path: PathBuf) -> std::io::Result<DiskMark> {
        let found = path.metadata()?;
        Ok(DiskMark {
            bytes: found.len(),
            written_at: (found.mtime(), found.mtime_nsec()),
            path,
        })
    }
}

/// What the disks of a machine are.
fn marks(monitor_home: &Volumes, machine: &Machine) -> Result<Vec<DiskMark>, Failure> {
    let plan = machine.plan()?;
    let own = machine.dir.join(DISK);
    let own = own.exists().then_some(own);
    let volumes = plan.volumes().iter().map(|volume| monitor_home.data(&volume.name));
    let mark = |path: PathBuf| {
        let shown = path.clone();
        DiskMark::of(path).map_err(|e| FileError::io("read", &shown, e).into())
    };
    own.into_iter().chain(volumes).map(mark).collect()
}

impl Monitor {
    /// Writes down what the disks are, once nobody writes to them any more: from then on what was saved counts.
    pub(super) fn note_disks(&self) -> Result<(), Failure> {
        let marks = marks(&Volumes::new(&self.home), &self.machine)?;
        let folder = self.machine.dir.join(FOLDER);
        file::replace_json(&folder.join(DISKS), &marks)?;
        self.kill.pass("idle: saved");
        Ok(())
    }

    /// What the machine was saved to when nobody had to do with it, for the next run; `None` when there is nothing, or it is worth nothing
    /// any more.
    pub(super) fn saved_idle(&self) -> Option<Restore> {
        self.saved_to_sleep(true)
    }

    /// The same right after it was saved, without a look at the disks.
    pub(super) fn saved_just_now(&self) -> Option<Restore> {
        self.saved_to_sleep(false)
    }

    fn saved_to_sleep(&self, are_disks_compared: bool) -> Option<Restore> {
        let folder = self.machine.dir.join(FOLDER);
        if !folder.exists() {
            return None;
        }
        let restore = || -> Result<Restore, Failure> {
            if are_disks_compared {
                let then: Vec<DiskMark> = file::read_json(&folder.join(DISKS))?;
                if marks(&Volumes::new(&self.home), &self.machine)? != then {
                    let message = "one of its disks has been written to since";
                    return Err(Failure::new(Class::Conflict, message));
                }
            }
            let snapshot: Snapshot = file::read_json(&folder.join("snapshot.json"))?;
            let saved = snapshot.require_memory()?;
            let path = folder.join(MEMORY);
            let file = File::open(&path).map_err(|e| FileError::io("open", &path, e))?;
            let memory = memory::load(&file, &saved.memory, None).map_err(|e| FileError::io("read", &path, e))?;
            Ok(Restore {
                folder: folder.clone(),
                memory,
                is_shared: false,
                is_fork: false,
            })
        };
        restore()
            .inspect_err(|failure| {
                let text =
                    format!("the machine boots: what it was saved to while it was idle cannot be used: {failure}");
                self.log.note(Source::Monitor, &text);
            })
            .ok()
    }

    /// Says that what an idle machine was saved to is still there after it could not be woken.
    pub(super) fn note_kept(&self) {
        if self.machine.dir.join(FOLDER).join(DISKS).exists() {
            let text = "it did not go on: the next start tries again from what it was saved to";
            self.log.note(Source::Monitor, text);
        }
    }

    /// Whether `restore` is what an idle machine was saved to.
    pub(super) fn is_of_idle(&self, restore: &Restore) -> bool {
        restore.folder == self.machine.dir.join(FOLDER)
    }

    /// Ends what is asleep for good: it is not to go on from there.
    pub(super) fn end_of_sleep(&mut self, is_killed: bool) -> Exit {
        if is_killed && let Err(failure) = forget(&self.machine.dir) {
            self.log.note(Source::Monitor, &failure.to_string());
        }
        self.machine.state.idle_since = None;
        Exit::Killed
    }
}

/// Whether nobody has tried to go on from what the machine was saved to while it was idle; from now on somebody has.
pub(super) fn is_first_try(machine: &Path) -> Result<bool, FileError> {
    let mark = machine.join(FOLDER).join(TRIED);
    match File::create_new(&mark) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(FileError::io("make", &mark, e)),
    }
}

/// Removes what a machine was saved to while it was idle: it goes on from elsewhere. After a power cut it is not there either.
pub(super) fn forget(machine: &Path) -> Result<(), FileError> {
    file::remove_dir_all(&machine.join(FOLDER))
}

fn make(folder: &Path) -> Result<(), Failure> {
    file::remove_dir_all(folder)?;
    let made = std::fs::DirBuilder::new().mode(0o700).create(folder);
    Ok(made.map_err(|e| FileError::io("make", folder, e))?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_an_idle_machine_was_saved_to_is_tried_twice() {
        let dir = tempfile::tempdir().unwrap();
        forget(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join(FOLDER)).unwrap();
        std::fs::write(dir.path().join(FOLDER).join(DISKS), "[]").unwrap();
        assert!(is_first_try(dir.path()).unwrap());
        assert!(!is_first_try(dir.path()).unwrap());
        forget(dir.path()).unwrap();
        assert!(!dir.path().join(FOLDER).exists());
    }

    #[test]
    fn a_disk_that_was_written_to_is_not_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, "a").unwrap();
        let mark = || DiskMark::of(path.clone()).unwrap();
        let then = mark();
        assert_eq!(mark(), then);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() + Duration::from_secs(1))
            .unwrap();
        assert_ne!(mark(), then);
    }
}
