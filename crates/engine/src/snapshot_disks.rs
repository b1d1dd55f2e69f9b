//! Disks in snapshots: those of a machine that are saved without its memory, and how a machine gets the disks of then.

use std::path::Path;
use std::time::Instant;

use zmachine_plan::{Plan, UPPER_SERIAL};
use zmachine_spec::saved::{SavedDisks, SavedVolume};
use zmachine_spec::volume::serial;
use zmachine_spec::{Class, Failure, Origin, VolumeRequest};
use zmachine_store::catalog::Machine;
use zmachine_store::restoring::Restoring;
use zmachine_store::snapshot::{DISK, FIRMWARE, Snapshot, volume_file};
use zmachine_sys::file::FileError;

use crate::Engine;
use crate::root::copy_file;
use crate::volume_snapshots::{GuestHold, Quiet};

/// The disks of a machine to which nobody writes as long as this is there.
enum QuietDisks {
    /// The machine does not run.
    Stopped {
        _machine: zmachine_sys::lock::FileLock,
        volumes: Vec<Quiet>,
    },
    /// Its guest does not write.
    Held(Box<GuestHold>),
}

impl QuietDisks {
    fn confirm(&mut self) -> Result<(), Failure> {
        match self {
            QuietDisks::Stopped { volumes, .. } => volumes.iter_mut().try_for_each(Quiet::confirm),
            QuietDisks::Held(hold) => hold.confirm(),
        }
    }
}

impl Engine {
    fn quiet_disks(&self, machine: &Machine, plan: &Plan) -> Result<QuietDisks, Failure> {
        let written = plan.volumes().iter().filter(|volume| !volume.read_only);
        if !machine.state.phase.is_active() {
            return Ok(QuietDisks::Stopped {
                _machine: self.held(machine)?,
                volumes: written
                    .map(|volume| self.quiet(&volume.name))
                    .collect::<Result<_, _>>()?,
            });
        }
        let own = match plan {
            Plan::Container(plan) => plan.upper_bytes.map(|_| UPPER_SERIAL.to_owned()),
            Plan::Vm(_) => None,
        };
        let disks = own.into_iter().chain(written.map(|volume| serial(&volume.name)));
        let hold = self.hold_in_guest(machine, disks.collect(), "its disk")?;
        Ok(QuietDisks::Held(Box::new(hold)))
    }

    /// Copies the disks of a machine into `folder`. When it runs, its guest has everything on them then, and waits to write until they are
    /// copied.
    pub(super) fn save_disks(&self, machine: &Machine, folder: &Path) -> Result<SavedDisks, Failure> {
        let plan = machine.plan()?;
        let mut quiet = self.quiet_disks(machine, &plan)?;
        let begun = Instant::now();
        let own = |name: &str| -> Result<Option<u64>, Failure> {
            copy_file(&machine.dir.join(name), &folder.join(name))?;
            length(&folder.join(name))
        };
        let (disk_bytes, firmware_bytes) = (own(DISK)?, own(FIRMWARE)?);
        let mut volumes = Vec::new();
        for (index, volume) in plan.volumes().iter().enumerate() {
            let found = self.volumes().get(&volume.name)?;
            if !volume.read_only {
                copy_file(&found.data(), &folder.join(volume_file(index)))?;
            }
            volumes.push(found.saved(volume.read_only)?);
        }
        quiet.confirm()?;
        let was_running = matches!(quiet, QuietDisks::Held(_));
        drop(quiet);
        Ok(SavedDisks {
            disk_bytes,
            firmware_bytes,
            volumes,
            was_running,
            paused_us: match was_running {
                true => begun.elapsed().as_micros() as u64,
                false => 0,
            },
        })
    }

    /// That machine and files are those of a snapshot of disks, before anything is changed.
    pub(super) fn require_disks(&self, machine: &Machine, snapshot: &Snapshot, folder: &Path) -> Result<(), Failure> {
        let plan = machine.plan()?;
        if plan.image() != snapshot.plan.image() {
            let image = |plan: &Plan| plan.image().unwrap_or("a disk of its host").to_owned();
            let message = format!(
                "the snapshot '{}' does not fit the machine '{}': it was saved with image {}, and this machine has {}",
                snapshot.name(),
                machine.spec.name,
                image(&snapshot.plan),
                image(&plan)
            );
            return Err(Failure::new(Class::Unsupported, message));
        }
        require_lengths(snapshot, folder)
    }

    /// Copies of a snapshot's disks, ready to take the place of those of its machine, which has its lock held. Whatever is wrong with a
    /// volume is told here; nothing is changed by then.
    pub(super) fn ready_disks(
        &self,
        machine: &Machine,
        snapshot: &Snapshot,
        folder: &Path,
    ) -> Result<Restoring, Failure> {
        let name = snapshot.name();
        let plan = machine.plan()?;
        let named = |all: &mut dyn Iterator<Item = (&str, bool)>| {
            let all: Vec<String> = all
                .map(|(name, is_written)| format!("{name}{}", if is_written { "" } else { " (read-only)" }))
                .collect();
            match all.is_empty() {
                true => "none".to_owned(),
                false => all.join(", "),
            }
        };
        let kept = snapshot.volumes();
        let there = named(&mut kept.iter().map(|volume| (&*volume.name, volume.is_copied())));
        let here = named(&mut plan.volumes().iter().map(|volume| (&*volume.name, !volume.read_only)));
        if there != here {
            let message = format!(
                "the snapshot '{name}' does not fit the machine '{}': it was saved with the volumes {there}, and this machine has {here}",
                machine.spec.name
            );
            return Err(Failure::new(Class::Unsupported, message)
                .hint(format!("make a machine with volumes of its own: zmachine fork {name}")));
        }
        let missing = |failure: Failure, volume: &SavedVolume| match failure.class {
            Class::NotFound => {
                let message = format!("the volume '{}' of the snapshot '{name}' was removed", volume.name);
                Failure::new(Class::NotFound, message)
                    .hint(format!("make a machine with volumes of its own: zmachine fork {name}"))
            }
            _ => failure,
        };
        let written = kept.iter().filter(|volume| volume.is_copied());
        let written = written.map(|volume| volume.name.clone()).collect();
        let mut restoring = Restoring::begin(&self.home, machine, &[DISK, FIRMWARE], written)?;
        for (index, volume) in kept.iter().enumerate() {
            if volume.is_copied() {
                let from = folder.join(volume_file(index));
                let copied = restoring.volume(&volume.name, &from, &volume.content);
                copied.map_err(|failure| missing(failure, volume))?;
            } else if snapshot.memory().is_some() {
                self.volumes()
                    .require_unchanged(volume)
                    .map_err(|failure| missing(failure, volume))?;
            }
        }
        restoring.own(folder)?;
        Ok(restoring)
    }

    /// The volumes of a copy of `of`: those that it writes to become the copy's own, as large as those that are `kept`.
    pub(super) fn volumes_of_copy(of: &[VolumeRequest], kept: &[SavedVolume]) -> Vec<VolumeRequest> {
        let mut kept = kept.iter().filter(|volume| volume.is_copied());
        let own = |request: &VolumeRequest| match &request.origin {
            Origin::Named(_) | Origin::Anonymous if !request.read_only => match kept.next() {
                Some(volume) => VolumeRequest {
                    origin: Origin::Anonymous,
                    size_bytes: Some(volume.bytes),
                    fs: Some(volume.fs),
                    ..request.clone()
                },
                None => request.clone(),
            },
            _ => request.clone(),
        };
        of.iter().map(own).collect()
    }

    /// Fills the volumes of a copy with what was saved.
    pub(super) fn fill_volumes(&self, copy: &Machine, snapshot: &Snapshot, folder: &Path) -> Result<(), Failure> {
        let plan = copy.plan()?;
        let own = plan.volumes().iter().filter(|volume| !volume.read_only);
        let kept = snapshot.volumes().iter().enumerate();
        for (own, (index, volume)) in own.zip(kept.filter(|(_, volume)| volume.is_copied())) {
            let mut held = self.volumes().hold(&own.name, false, &copy.id)?;
            held.fill(&folder.join(volume_file(index)), volume.content.clone())?;
        }
        if snapshot.memory().is_some() {
            for volume in snapshot.volumes() {
                self.volumes().require_unchanged(volume)?;
            }
        }
        Ok(())
    }
}

/// That the disks of a snapshot are as long as they were.
pub(super) fn require_lengths(snapshot: &Snapshot, folder: &Path) -> Result<(), Failure> {
    let name = snapshot.name();
    let damaged = |what: String| {
        Failure::new(Class::Failed, format!("the snapshot '{name}' is damaged: {what}"))
            .hint(format!("remove it: zmachine snapshot rm {name}"))
    };
    for (file, bytes) in snapshot.disk_files() {
        match length(&folder.join(&file))? {
            Some(found) if found == bytes => {}
            Some(_) => {
                return Err(damaged(format!(
                    "its file '{file}' has another length than when it was saved"
                )));
            }
            None => return Err(damaged(format!("its file '{file}' is missing"))),
        }
    }
    Ok(())
}

/// Bytes of a file, where it is there.
fn length(path: &Path) -> Result<Option<u64>, Failure> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found.len())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::io("read", path, error).into()),
    }
}

#[cfg(test)]
mod tests {
    use zmachine_spec::volume::{Content, Fs};

    use super::*;

    #[test]
    fn a_copy_has_volumes_of_its_own_where_it_writes() {
        let parse = |text: &str| VolumeRequest::parse(text, Path::new("/")).unwrap();
        let of = [
            parse("/src:/src"),
            parse("read:/read:ro"),
            parse("data:/data"),
            parse("/more"),
        ];
        let kept = |name: &str, bytes, written_at| SavedVolume {
            name: name.into(),
            fs: Fs::Xfs,
            content: Content::Formatted,
            bytes,
            written_at,
        };
        let all = [
            kept("read", 1, Some(1)),
            kept("data", 7 << 30, None),
            kept("0123456789ab-3", 8 << 30, None),
        ];
        let copy = Engine::volumes_of_copy(&of, &all);
        assert_eq!(copy[..2], of[..2]);
        let own = |index: usize| (&copy[index].origin, copy[index].size_bytes, copy[index].fs);
        assert_eq!(own(2), (&Origin::Anonymous, Some(7 << 30), Some(Fs::Xfs)));
        assert_eq!(own(3), (&Origin::Anonymous, Some(8 << 30), Some(Fs::Xfs)));
        assert_eq!(copy[2].target, "/data");
    }
}
