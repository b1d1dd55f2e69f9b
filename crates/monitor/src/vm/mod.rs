//! What a VM has before its hypervisor starts.
//!
//! ```text
//! volumes locked ─> image installed (once) ─> file system grown ─> seed, firmware's variables ─> networks ─> hypervisor
//! ```
//! A container with a kernel of its own goes the same way, with a shared tree in the place of the installed image.

mod fit;
mod install;
mod prepare;

use zmachine_plan::VmPlan;
use zmachine_spec::{Exit, Failure};

use super::context::{Monitor, at};
use super::images::Images;
use super::inbox::{Cut, Inbox};
use super::launch::Backed;

impl Monitor {
    /// Takes the volumes, and has the image on the first one. `Some` when the machine was stopped meanwhile.
    pub(super) async fn install_vm(
        &mut self,
        plan: &VmPlan,
        inbox: &mut Inbox,
    ) -> Result<Option<Exit>, (String, Failure)> {
        // A run before this one had them.
        self.volumes.clear();
        let taken = match inbox.unless_stopped(self.take_volumes(plan)).await {
            Ok(taken) => taken.map_err(at("volumes"))?,
            Err(Cut) => return Ok(Some(self.cut_short(inbox).await)),
        };
        self.volumes = taken;
        if let Some(exit) = self.install(plan, inbox).await.map_err(at("install"))? {
            return Ok(Some(exit));
        }
        self.phase("image");
        Ok(None)
    }

    /// Makes everything that the hypervisor of a VM needs, from a boot volume with the image on it. A guest that goes on has its file systems
    /// mounted: nobody else changes them.
    pub(super) async fn back_vm(&mut self, plan: &VmPlan, goes_on: bool) -> Result<Backed, (String, Failure)> {
        if !goes_on {
            self.fit(plan).await.map_err(at("grow"))?;
        }
        self.make_seed(plan).map_err(at("seed"))?;
        self.make_firmware_variables(plan).map_err(at("firmware"))?;
        self.phase("disks");
        let attached = self.attach(&plan.attachments).await.map_err(at("network"))?;
        self.phase("network");
        let shares = self.start_shares(&plan.shares).map_err(at("shared directories"))?;
        Ok(Backed {
            saved: None,
            rootfs: None,
            images: Images::default(),
            shares,
            attached,
        })
    }
}
