//! The appliance: a short-lived machine with one disk, which grows the file system on it.
//!
//! This host never mounts what a guest has written: its kernel would have to trust it. A machine with our kernel and agent
//! does, and what a hostile file system can break there is that machine.

use std::collections::HashMap;
use std::time::Duration;

use zmachine_agent_client::session::Session;
use zmachine_agent_protocol::Request as AgentRequest;
use zmachine_hypervisor::choice::Hypervisor;
use zmachine_hypervisor::{Accel, Boot, Disk, Platform, Vm, VmEvent, VmSpec};
use zmachine_plan::KernelChoice;
use zmachine_spec::{Class, Failure};
use zmachine_store::log::Source;
use zmachine_store::volume::Volume;

use super::console;
use super::context::{AbortOnDrop, Monitor};
use super::launch::not_launched;
use super::output::SharedLog;

/// Memory of the appliance in bytes: a btrfs of many gigabytes is mounted in half of it.
const MEMORY: u64 = 256 << 20;

/// How long it may take: an emulated guest on a loaded host was seen to take two minutes to start alone.
const TIMEOUT: Duration = Duration::from_secs(300);

/// How long the hypervisor may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(20);

impl Monitor {
    /// Grows the file system `fstype` on a volume, or on its partition, to the size of what it is on. The appliance runs `on`
    /// the hypervisor and accelerator of the machine.
    ///
    /// # Errors
    /// When the appliance cannot be started, or its kernel's reason why the file system cannot be grown.
    pub(super) async fn grow_in_appliance(
        &mut self,
        on: (Hypervisor, Accel),
        kernel: &KernelChoice,
        volume: &Volume,
        partition: Option<u32>,
        fstype: &str,
    ) -> Result<(), Failure> {
        let serial = zmachine_spec::volume::serial(&volume.name);
        let spec = spec(&self.machine.id, on.1, kernel, volume, &serial);
        let started = self.start_hypervisor(on.0, &spec, HashMap::new(), None).await;
        let mut vm = started.map_err(|e| not_launched(on.0, &e))?;
        self.claim_hypervisor(vm.pid())?;
        self.kill.pass("grow: appliance started");
        let _log = self.note_hypervisor(vm.as_mut());
        let _console = watch(vm.as_mut(), &self.log);
        let Some(stream) = vm.take_agent() else {
            return Err(Failure::new(
                Class::Failed,
                "the hypervisor gave no channel to the agent",
            ));
        };
        let request = AgentRequest::Grow {
            serial,
            partition,
            fstype: fstype.to_owned(),
            disk_bytes: volume.size_bytes,
        };
        let session = Session::start(stream.connected());
        let result = tokio::select! {
            answer = session.ask(&request) => answer.map(drop).map_err(Failure::from),
            () = gone(vm.as_mut()) => Err(Failure::new(Class::Failed, "the appliance ended early")),
            () = tokio::time::sleep(TIMEOUT) => {
                Err(Failure::new(Class::Failed, format!("the appliance was not done within {} s", TIMEOUT.as_secs())))
            }
        };
        // It is unmounted, so nothing is lost; what the hypervisor still holds, it writes.
        let _ = vm.quit().await;
        if tokio::time::timeout(END_TIMEOUT, gone(vm.as_mut())).await.is_err() {
            vm.kill();
            // One that does not go even so is in the journal, which is undone at the end.
            let _ = tokio::time::timeout(END_TIMEOUT, gone(vm.as_mut())).await;
        }
        self.machine.state.hypervisor = None;
        self.kill.pass("grow: appliance gone");
        result.map_err(|failure| {
            failure.context(format!(
                "the file system on the volume '{}' could not be grown",
                volume.name
            ))
        })
    }
}

async fn gone(vm: &mut dyn Vm) {
    while !matches!(vm.next_event().await, VmEvent::Exited(_)) {}
}

/// Puts its console into the machine's log.
fn watch(vm: &mut dyn Vm, log: &SharedLog) -> Option<AbortOnDrop> {
    log.note(Source::Monitor, "an appliance grows the file system of the volume");
    let (stream, (_, waiting)) = (vm.take_console()?, console::new());
    // Nobody logs in there.
    let (events, _) = tokio::sync::mpsc::channel(1);
    let shown = console::run(waiting, stream, log.clone(), events, false);
    Some(AbortOnDrop(tokio::spawn(shown)))
}

fn spec(id: &str, accel: Accel, kernel: &KernelChoice, volume: &Volume, serial: &str) -> VmSpec {
    VmSpec {
        name: format!("{id}-appliance"),
        uuid: "00000000-0000-8000-8000-000000000001".to_owned(),
        cpus: 1,
        memory_bytes: MEMORY,
        accel,
        boot: Boot::Kernel {
            kernel: kernel.vmlinux.clone(),
            initrd: Some(kernel.initramfs.clone()),
            cmdline: zmachine_hypervisor::kernel_cmdline(accel, 1),
        },
        disks: vec![Disk::File {
            id: "volume0".to_owned(),
            path: volume.data(),
            serial: serial.to_owned(),
            read_only: false,
            discard: true,
        }],
        shares: Vec::new(),
        nics: Vec::new(),
        agent: true,
        platform: Platform::Lean,
        is_saveable: false,
        later_disks: Vec::new(),
        later_files: 0,
    }
}
