//! A volume that is made larger while a guest has it: its file, the disk that the guest sees, the file system on it.

use tokio::sync::oneshot;
use zmachine_agent_protocol::Request as AgentRequest;
use zmachine_disk::{Content as OnDisk, RawFile, identify};
use zmachine_plan::{Plan, VolumeUse, volume_disk};
use zmachine_spec::control::Reply;
use zmachine_spec::{Class, Failure};
use zmachine_store::log::Source;
use zmachine_store::volume::{Volume, Volumes};

use super::follow::Follow;
use super::guest::{self, within};
use super::inbox::Cut;

/// What a guest does that could not be told now.
const LATER: &str = "the volume is larger; the machine sees it at its next start";

impl Follow<'_> {
    /// Makes a volume larger, and has the guest's agent grow the file system on it.
    pub(super) async fn grow_volume(&mut self, name: &str, size_bytes: u64, answer: oneshot::Sender<Reply>) {
        let (disk, volume) = match self.grow_file(name, size_bytes) {
            Ok(grown) => grown,
            Err(failure) => return guest::reply(answer, Err(failure)),
        };
        let reported = within("resize disk", self.running.vm.resize_disk(&disk, volume.size_bytes));
        match self.inbox.unless_ended(reported).await {
            Err(Cut) => return,
            Ok(Err(failure)) => {
                let failure = failure.context("the guest was not told").hint(LATER);
                return guest::reply(answer, Err(failure));
            }
            Ok(Ok(())) => {}
        }
        let Some(fstype) = self.file_system_on(&volume) else {
            return guest::reply(answer, Ok(()));
        };
        let request = AgentRequest::Grow {
            serial: zmachine_spec::volume::serial(name),
            partition: None,
            fstype,
            disk_bytes: volume.size_bytes,
        };
        let must_succeed = self.init.mounts_volumes();
        match self.awake_agent() {
            Ok(session) if must_succeed => {
                guest::answer(&session, request, guest::GROW_TIMEOUT, answer, |failure| {
                    failure.hint(LATER)
                });
            }
            Ok(session) => {
                let log = self.monitor.log.clone();
                tokio::spawn(async move {
                    // It grows at the next start, then.
                    if let Err(failure) = guest::ask(&session, &request, guest::GROW_TIMEOUT).await {
                        log.note(Source::Monitor, &format!("the file system did not grow: {failure}"));
                    }
                    guest::reply(answer, Ok(()));
                });
            }
            Err(failure) if must_succeed => guest::reply(answer, Err(failure.hint(LATER))),
            Err(_) => guest::reply(answer, Ok(())),
        }
    }

    /// Makes the volume's file larger, when that can be used: the disk's id, and the volume.
    fn grow_file(&self, name: &str, size_bytes: u64) -> Result<(String, Volume), Failure> {
        let writable = |volume: &VolumeUse| volume.name == name && !volume.read_only;
        let Some(index) = self.plan.volumes().iter().position(writable) else {
            let message = format!("the machine does not write to a volume '{name}'");
            return Err(Failure::new(Class::Conflict, message));
        };
        if self.init.mounts_volumes() {
            self.monitor.require_awake()?;
        }
        let volume = Volumes::new(&self.monitor.home).grow(name, size_bytes)?;
        Ok((volume_disk(index), volume))
    }

    /// The type of the file system that the guest has mounted from the volume, as far as that is known: what we had mounted in
    /// a container; in a VM a bare one. One on a partition needs the table changed first, which only its guest may do while it
    /// runs.
    fn file_system_on(&self, volume: &Volume) -> Option<String> {
        match &*self.plan {
            Plan::Container(plan) => {
                let serial = zmachine_spec::volume::serial(&volume.name);
                let mount = plan.boot.mounts.iter().find(|mount| mount.serial == serial)?;
                Some(mount.fstype.clone())
            }
            Plan::Vm(_) => {
                let mut raw = RawFile::new(std::fs::File::open(volume.data()).ok()?).ok()?;
                match identify(&mut raw, 0) {
                    Ok(OnDisk::Filesystem(filesystem)) => Some(filesystem.kind.name().to_owned()),
                    _ => None,
                }
            }
        }
    }
}
