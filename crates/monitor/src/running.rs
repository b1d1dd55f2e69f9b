//! What there is of a machine while it runs.

use std::time::Duration;

use tokio::task::JoinHandle;
use zmachine_hypervisor::{Vm, VmEvent};

use super::context::AbortOnDrop;
use super::files::Files;
use super::images::Images;
use super::networks::NetworkHold;
use super::rootfs_child::RootfsServer;
use super::share::Shares;

/// How long a killed hypervisor may take to be gone before its end is left to the journal.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the rest of the console may take after the end of the hypervisor.
const CONSOLE_TIMEOUT: Duration = Duration::from_millis(500);

/// The hypervisor runs the guest; dropping it ends it, and its servers.
pub(super) struct Running {
    pub(super) vm: Box<dyn Vm>,
    /// The server of a container's root disk; `None` when the image is no disk that somebody must serve.
    pub(super) rootfs: Option<RootfsServer>,
    /// The images that were brought to it.
    pub(super) images: Images,
    /// The files of this host that were.
    pub(super) files: Files,
    pub(super) shares: Shares,
    pub(super) networks: NetworkHold,
    /// Who reads the serial console.
    pub(super) console: JoinHandle<()>,
    /// Who reads what the hypervisor itself says.
    pub(super) _hypervisor_log: Option<AbortOnDrop>,
}

impl Running {
    /// Ends the hypervisor, and lets the rest of the console arrive: a panic's text is to be in the log.
    pub(super) async fn halt(&mut self) {
        self.vm.kill();
        // The event loop may have left before the hypervisor was gone; undo needs it gone.
        let gone = async { while !matches!(self.vm.next_event().await, VmEvent::Exited(_)) {} };
        let _ = tokio::time::timeout(END_TIMEOUT, gone).await;
        if tokio::time::timeout(CONSOLE_TIMEOUT, &mut self.console).await.is_err() {
            self.console.abort();
        }
    }

    /// Ends the servers, and waits for them.
    pub(super) async fn end(self) {
        if let Some(rootfs) = self.rootfs {
            rootfs.kill().await;
        }
        self.images.end().await;
        self.shares.end().await;
    }
}
