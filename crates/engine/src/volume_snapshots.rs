//! Snapshots of volumes, also of those that a machine is writing to.

use std::path::PathBuf;
use std::time::Duration;

use zmachine_agent_protocol::Reply as AgentReply;
use zmachine_spec::control::Request;
use zmachine_spec::keep::Keep;
use zmachine_spec::volume::serial;
use zmachine_spec::{Class, Failure};
use zmachine_store::catalog::Machine;
use zmachine_store::volume::{Held, Volume, VolumeName, VolumeSnapshot};

use crate::Engine;
use crate::attach::{ProcessInput, ProcessOutput};

/// How long a guest may take to write what it has.
const PATIENCE: Duration = Duration::from_secs(90);

/// A volume that nobody writes to as long as this is there.
#[derive(Debug)]
pub(super) enum Quiet {
    /// No machine uses it.
    Unused { _held: Held },
    /// The machine that does lets nobody in its guest write.
    Guest(Box<GuestHold>),
}

/// Disks to which a machine's guest does not write as long as this is there.
#[derive(Debug)]
pub(super) struct GuestHold {
    machine: String,
    /// What is held still, for people.
    what: String,
    /// Its end lets the guest write again.
    _input: ProcessInput,
    output: ProcessOutput,
}

impl Quiet {
    /// That nobody wrote until now.
    pub(super) fn confirm(&mut self) -> Result<(), Failure> {
        match self {
            Quiet::Unused { .. } => Ok(()),
            Quiet::Guest(hold) => hold.confirm(),
        }
    }
}

impl GuestHold {
    /// That the guest did not write until now.
    pub(super) fn confirm(&mut self) -> Result<(), Failure> {
        // Nothing comes as long as it holds still.
        if let Ok(None) = self.output.next_frame_within(Duration::from_millis(1)) {
            let message = format!("the machine '{}' ended while {} was copied", self.machine, self.what);
            return Err(Failure::new(Class::Conflict, message).hint("try again"));
        }
        Ok(())
    }
}

/// A snapshot, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct VolumeSnapshotView {
    /// `VOLUME@TAG`.
    pub name: String,
    /// The volume.
    pub volume: String,
    /// The tag.
    pub tag: String,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// The size of the disk in bytes.
    pub size_bytes: u64,
    /// What it takes on this host in bytes, with what it shares with the volume.
    pub used_bytes: u64,
    /// What it holds.
    pub state: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Engine {
    pub(super) fn quiet(&self, name: &str) -> Result<Quiet, Failure> {
        let volumes = self.volumes();
        match volumes.writer(name)? {
            None => Ok(Quiet::Unused {
                _held: volumes.hold(name, true, "")?,
            }),
            Some(machine) => {
                let hold = self.hold_in_guest(&machine, vec![serial(name)], &format!("its volume '{name}'"))?;
                Ok(Quiet::Guest(Box::new(hold)))
            }
        }
    }

    /// Has the guest of `machine` write what it has to `disks`, and write no more. `what` they are, for people.
    pub(super) fn hold_in_guest(
        &self,
        machine: &Machine,
        disks: Vec<String>,
        what: &str,
    ) -> Result<GuestHold, Failure> {
        let name = &machine.spec.name;
        let (input, mut output) = self.stream(machine, &Request::Hold { disks })?;
        let refused = |why: String| {
            Failure::new(
                Class::Conflict,
                format!("the machine '{name}' does not hold {what} still: {why}"),
            )
            .hint(format!("stop it first: zmachine stop {name}"))
        };
        let frame = output
            .next_frame_within(PATIENCE)
            .map_err(|failure| refused(failure.to_string()))?;
        match frame.map(|frame| frame.parse::<AgentReply>()) {
            Some(Ok(AgentReply::Done)) => Ok(GuestHold {
                machine: name.clone(),
                what: what.to_owned(),
                _input: input,
                output,
            }),
            Some(Ok(AgentReply::Error(error))) => Err(refused(error.message)),
            Some(_) => Err(refused("its answer does not fit".to_owned())),
            None => Err(refused("it has ended".to_owned())),
        }
    }

    /// Makes a snapshot of a volume. The guest that writes to it has everything on the disk then, and waits to write until it is copied. With
    /// `keep`, older ones whose tags were not chosen are removed.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the tag is taken, or the guest does not stand still. Nothing is left then.
    pub fn snapshot_volume(&self, name: &VolumeName, keep: Option<&Keep>) -> Result<VolumeSnapshot, Failure> {
        let volumes = self.volumes();
        let mut quiet = self.quiet(&name.volume)?;
        let made = volumes.snapshot(&name.volume, name.tag.as_deref())?;
        if let Err(failure) = quiet.confirm() {
            let _ = volumes.remove_snapshot(&made.volume, &made.tag);
            return Err(failure);
        }
        drop(quiet);
        if let Some(keep) = keep {
            self.keep_snapshots(&name.volume, keep)?;
        }
        Ok(made)
    }

    /// Removes the snapshots of a volume that `keep` has no place for; those whose tags a user chose stay.
    fn keep_snapshots(&self, volume: &str, keep: &Keep) -> Result<(), Failure> {
        let volumes = self.volumes();
        let mut automatic = volumes
            .snapshots(Some(volume))?
            .into_iter()
            .flatten()
            .collect::<Vec<_>>();
        automatic.retain(|snapshot| snapshot.automatic);
        let times: Vec<_> = automatic.iter().map(|snapshot| snapshot.created_at).collect();
        for at in keep.superfluous(&times) {
            volumes.remove_snapshot(volume, &automatic[at].tag)?;
        }
        Ok(())
    }

    /// The snapshots of one volume, or of all, oldest first, and why others cannot be read.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn volume_snapshots(&self, of: Option<&str>) -> Result<(Vec<VolumeSnapshotView>, Vec<Failure>), Failure> {
        let volumes = self.volumes();
        let (mut views, mut failures) = (Vec::new(), Vec::new());
        for listed in volumes.snapshots(of)? {
            match listed {
                Ok(snapshot) => views.push(self.volume_snapshot_view(snapshot)),
                Err(failure) => failures.push(failure),
            }
        }
        Ok((views, failures))
    }

    /// A snapshot, as it is listed.
    pub fn volume_snapshot_view(&self, snapshot: VolumeSnapshot) -> VolumeSnapshotView {
        let volumes = self.volumes();
        VolumeSnapshotView {
            name: snapshot.name(),
            used_bytes: volumes.snapshot_bytes(&snapshot),
            path: volumes.snapshot_folder(&snapshot),
            state: snapshot.record.content.to_string(),
            created_at: snapshot.created_at,
            size_bytes: snapshot.size_bytes,
            volume: snapshot.volume,
            tag: snapshot.tag,
        }
    }

    /// Makes the volume `new` a copy of a snapshot; or of a volume as it is now, whose guest waits to write until it is copied.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the name is taken, or the guest does not stand still. Nothing is left then.
    pub fn clone_volume(&self, of: &VolumeName, new: &str) -> Result<Volume, Failure> {
        let volumes = self.volumes();
        if of.tag.is_some() {
            let snapshot = volumes.find_snapshot(of)?;
            return volumes.create_from(new, &snapshot);
        }
        let mut quiet = self.quiet(&of.volume)?;
        let made = volumes.create_copy(new, &of.volume)?;
        if let Err(failure) = quiet.confirm() {
            let _ = volumes.remove(&made.name);
            return Err(failure);
        }
        Ok(made)
    }
}
