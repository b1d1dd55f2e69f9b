//! Snapshots as archives: tar with the holes of memory and disk left out.
//!
//! The first entry is `snapshot.json`, then come `state` and `memory`, unless it is one of disks alone, and each disk with its checksum:
//! `root.img` and `root.img.crc32c`, in decimal. The image is not in it: where the snapshot is used it has to be in the library.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use zmachine_flist::Digest;
use zmachine_spec::{Class, Failure, MachineSpec, Origin, VolumeRequest};
use zmachine_store::snapshot::{MEMORY, SNAPSHOT_VERSION, STATE, Snapshot, SnapshotName, memory};
use zmachine_sys::file::FileError;

use crate::Engine;

/// The description of a snapshot in its folder.
const DESCRIPTION: &str = "snapshot.json";
/// How the name of the checksum of a disk ends in an archive.
const SUM: &str = ".crc32c";
/// The longest description in bytes.
const DESCRIPTION_LIMIT: u64 = 16 << 20;

impl Engine {
    /// Writes a snapshot to `archive`.
    ///
    /// # Errors
    /// When there is none, or it cannot be read or written.
    pub fn export_snapshot(&self, name: &SnapshotName, archive: impl Write) -> Result<(), Failure> {
        let snapshot = self.snapshots().get(name)?;
        let folder = self.snapshots().folder(&snapshot);
        let mut tar = tar::Builder::new(archive);
        tar.sparse(true);
        let mut add = |file: &str| -> Result<(), Failure> {
            let path = folder.join(file);
            let mut opened = File::open(&path).map_err(|e| FileError::io("open", &path, e))?;
            Ok(tar.append_file(file, &mut opened)?)
        };
        add(DESCRIPTION)?;
        if snapshot.saved.is_some() {
            add(STATE)?;
            add(MEMORY)?;
        }
        for (disk, _) in snapshot.disk_files() {
            let path = folder.join(&disk);
            let mut opened = File::open(&path).map_err(|e| FileError::io("open", &path, e))?;
            tar.append_file(&disk, &mut opened)?;
            let sum = memory::mark(&opened)?.crc32c.to_string();
            let mut header = tar::Header::new_gnu();
            header.set_size(sum.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, format!("{disk}{SUM}"), sum.as_bytes())?;
        }
        Ok(tar.into_inner()?.flush()?)
    }

    /// Takes a snapshot from `archive`, under the name that it has or another one.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the name is taken; else when it is no archive of a snapshot, or damaged. Nothing is left then.
    pub fn import_snapshot(&self, archive: impl Read, name: Option<&SnapshotName>) -> Result<Snapshot, Failure> {
        let draft = self.snapshots().begin()?;
        let imported = unpacked(archive, &draft.folder).and_then(|mut snapshot| {
            if let Some(SnapshotName { machine, tag }) = name {
                snapshot.machine.clone_from(machine);
                tag.iter().for_each(|tag| snapshot.tag.clone_from(tag));
            }
            // What is in it may be anybody's.
            SnapshotName::parse(&snapshot.name())?;
            check(&snapshot, &draft.folder)?;
            snapshot.spec = of_anybody(&snapshot.spec);
            Ok(snapshot)
        });
        let snapshot = imported?;
        self.snapshots().publish(draft, &snapshot)?;
        Ok(snapshot)
    }
}

/// What a snapshot's machine was asked to be, without what an archive must not decide on this host: its files and sockets, where logs are
/// sent and blocks come from, ports, who may log in, and whether its processes are locked in.
fn of_anybody(spec: &MachineSpec) -> MachineSpec {
    MachineSpec {
        version: spec.version,
        pinned: spec.pinned.clone(),
        cpus: spec.cpus,
        memory_bytes: spec.memory_bytes,
        size_bytes: spec.size_bytes,
        env: spec.env.clone(),
        entrypoint: spec.entrypoint.clone(),
        command: spec.command.clone(),
        workdir: spec.workdir.clone(),
        user: spec.user.clone(),
        networks: spec.networks.clone(),
        // Those that it wrote to are in the archive. What it only read is whatever has that name here.
        volumes: spec.volumes.iter().filter(|volume| is_own(volume)).cloned().collect(),
        read_only: spec.read_only,
        mode: spec.mode,
        terminal: spec.terminal,
        stdin: spec.stdin,
        init: spec.init,
        idle: spec.idle,
        accel: spec.accel,
        stop_signal: spec.stop_signal,
        stop_timeout_s: spec.stop_timeout_s,
        guest: spec.guest.clone(),
        snapshots: spec.snapshots,
        warm: spec.warm,
        warm_ready: spec.warm_ready,
        idle_timeout_ms: spec.idle_timeout_ms,
        ..MachineSpec::new(&spec.name, &spec.flist)
    }
}

/// Whether a machine has a volume for itself.
fn is_own(volume: &VolumeRequest) -> bool {
    !volume.read_only && !matches!(volume.origin, Origin::Directory(_))
}

/// Unpacks the files of a snapshot, and nothing else.
fn unpacked(archive: impl Read, folder: &Path) -> Result<Snapshot, Failure> {
    let unreadable = |e: std::io::Error| {
        Failure::from_error(Class::Usage, &e)
            .context("this is no archive of a snapshot")
            .hint("'zmachine snapshot export' makes one")
    };
    let mut snapshot: Option<(Snapshot, Vec<String>)> = None;
    for entry in tar::Archive::new(archive).entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let name = entry.path().map_err(unreadable)?.to_string_lossy().into_owned();
        match (&snapshot, name.as_str()) {
            (None, DESCRIPTION) => {
                let read: Snapshot = serde_json::from_reader(entry.take(DESCRIPTION_LIMIT)).map_err(|e| {
                    Failure::from_error(Class::Usage, &e).context("the archive's snapshot.json cannot be understood")
                })?;
                if read.version != SNAPSHOT_VERSION {
                    let message = format!(
                        "the snapshot has format version {}, which this zmachine does not know",
                        read.version
                    );
                    return Err(Failure::new(Class::Unsupported, message));
                }
                let files = read.files().into_iter();
                let sums = read.disk_files().into_iter().map(|(disk, _)| format!("{disk}{SUM}"));
                let files = files.chain(sums).collect();
                snapshot = Some((read, files));
            }
            // No link, which would lead out of the folder.
            (Some((_, files)), name) if files.iter().any(|file| file == name) && is_file(&entry) => {
                entry.set_preserve_permissions(false);
                entry.unpack(folder.join(name)).map_err(unreadable)?;
                use std::os::unix::fs::PermissionsExt;
                std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o600))?;
            }
            (_, other) => {
                let message = format!("the archive has '{other}' in it, which is no part of a snapshot");
                return Err(Failure::new(Class::Usage, message).hint("'zmachine snapshot export' makes one"));
            }
        }
    }
    snapshot.map(|(snapshot, _)| snapshot).ok_or_else(|| {
        Failure::new(Class::Usage, "the archive has no snapshot.json").hint("'zmachine snapshot export' makes one")
    })
}

fn is_file(entry: &tar::Entry<'_, impl Read>) -> bool {
    let kind = entry.header().entry_type();
    kind.is_file() || kind.is_gnu_sparse()
}

/// That the files are those that were saved.
fn check(snapshot: &Snapshot, folder: &Path) -> Result<(), Failure> {
    let damaged = |what: &str| {
        Failure::new(
            Class::Failed,
            format!("the archive is damaged: {what} is not what was saved"),
        )
        .hint("export it again")
    };
    if snapshot.memory().is_some() == snapshot.disks.is_some() {
        return Err(damaged("what it says of its kind"));
    }
    match snapshot.plan.image() {
        Some(image) if image.parse::<Digest>().is_err() => return Err(damaged("the name of its image")),
        Some(_) => {}
        None => {
            return Err(Failure::new(
                Class::Unsupported,
                "the archive is that of a VM of a disk image, which only the host that exported it has",
            ));
        }
    }
    let own = snapshot.spec.volumes.iter().filter(|volume| is_own(volume)).count();
    if own != snapshot.volumes().iter().filter(|volume| volume.is_copied()).count() {
        return Err(damaged("what it says of its volumes"));
    }
    let open = |name: &str| File::open(folder.join(name)).map_err(|_| damaged(&format!("'{name}'")));
    if let Some(saved) = snapshot.memory() {
        if memory::mark(&open(STATE)?)? != saved.state {
            return Err(damaged("'state'"));
        }
        memory::check(&open(MEMORY)?, &saved.memory).map_err(|_| damaged("'memory'"))?;
    }
    for (disk, bytes) in snapshot.disk_files() {
        let found = memory::mark(&open(&disk)?)?;
        let sum = folder.join(format!("{disk}{SUM}"));
        if found.bytes != bytes || found.crc32c.to_string() != std::fs::read_to_string(&sum).unwrap_or_default() {
            return Err(damaged(&format!("'{disk}'")));
        }
        zmachine_sys::file::remove_if_there(&sum)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_names_no_file_of_this_host_and_unlocks_nothing() {
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.secrets.push(("s".into(), "/etc/shadow".into()));
        spec.stores.push("dir:///elsewhere".into());
        spec.ssh_keys.push("key".into());
        spec.jail = zmachine_spec::JailChoice::Off;
        spec.command = vec!["sleep".into()];
        spec.snapshots = true;
        let volume = |text: &str| VolumeRequest::parse(text, Path::new("/")).unwrap();
        spec.volumes = ["/etc:/etc", "data:/data", "theirs:/read:ro"].map(volume).to_vec();
        let taken = of_anybody(&spec);
        let wanted = MachineSpec {
            volumes: vec![volume("data:/data")],
            command: vec!["sleep".into()],
            snapshots: true,
            ..MachineSpec::new("web", "/x.fl")
        };
        assert_eq!(taken, wanted);
    }
}
