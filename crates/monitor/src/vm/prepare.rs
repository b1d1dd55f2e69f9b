//! What is there before the hypervisor starts: volumes that are ours, the seed, the firmware's variables.

use std::os::unix::fs::PermissionsExt;

use zmachine_disk::seed::{self, SeedInterface, SeedMount};
use zmachine_plan::vm::Seed;
use zmachine_plan::{VmPlan, VolumeUse};
use zmachine_spec::Failure;
use zmachine_spec::volume::Content;
use zmachine_store::volume::{Held, Volumes};

use super::super::context::Monitor;
use super::super::launch::joined;

impl Monitor {
    /// Takes all volumes, in the order of the disks. Those of a container are formatted at their first use.
    pub(super) async fn take_volumes(&mut self, plan: &VmPlan) -> Result<Vec<Held>, Failure> {
        match plan.install() {
            Some(_) => self.hold_volumes(plan),
            None => {
                let volumes = plan.volumes.clone();
                joined(self.prepare_volumes(volumes)).await
            }
        }
    }

    /// Takes all volumes of a VM. What a guest writes on those after the first is its own business.
    fn hold_volumes(&mut self, plan: &VmPlan) -> Result<Vec<Held>, Failure> {
        let volumes = Volumes::new(&self.home);
        let mut handed = std::mem::take(&mut self.handed);
        let hold = |(index, used): (usize, &VolumeUse)| {
            let mut held = match handed.remove(&used.name) {
                Some(lock) => volumes.hold_handed(&used.name, lock)?,
                None => volumes.hold(&used.name, used.read_only, &self.machine.id)?,
            };
            let is_fresh = matches!(held.volume.record.content, Content::Empty | Content::Formatting);
            if index > 0 && !used.read_only && is_fresh {
                held.set_content(Content::Raw)?;
            }
            Ok(held)
        };
        plan.volumes.iter().enumerate().map(hold).collect()
    }

    /// Writes the seed, when it is not there as it should be.
    pub(super) fn make_seed(&self, plan: &VmPlan) -> Result<(), Failure> {
        let seed = &plan.seed;
        let bytes = seed::image(&reported(seed)).map_err(|e| Failure::from(e).context("the seed cannot be made"))?;
        if std::fs::read(&seed.path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        zmachine_sys::file::replace(&seed.path, &bytes)?;
        // It may hold passwords.
        std::fs::set_permissions(&seed.path, std::fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// Gives the firmware its first variables; what it writes there later stays.
    pub(super) fn make_firmware_variables(&self, plan: &VmPlan) -> Result<(), Failure> {
        let template = plan.install().and_then(|install| install.firmware_variables.as_ref());
        let (
            Some(template),
            zmachine_hypervisor::Boot::Firmware {
                variables: Some(variables),
                ..
            },
        ) = (template, &plan.vm.boot)
        else {
            return Ok(());
        };
        if variables.exists() {
            return Ok(());
        }
        let bytes = std::fs::read(template).map_err(|e| {
            Failure::from(e).context(format!("cannot read the firmware's variables {}", template.display()))
        })?;
        Ok(zmachine_sys::file::replace(variables, &bytes)?)
    }
}

/// The seed's values in the words of the disk.
fn reported(seed: &Seed) -> seed::Seed {
    let mount = |mount: &zmachine_agent_protocol::Mount| SeedMount {
        source: match mount.fstype.as_str() {
            "virtiofs" => mount.serial.clone(),
            _ => format!("/dev/disk/by-id/virtio-{}", mount.serial),
        },
        fstype: mount.fstype.clone(),
        target: mount.target.clone(),
        read_only: mount.read_only,
    };
    let interface = |(index, interface): (usize, &zmachine_agent_protocol::Interface)| SeedInterface {
        name: interface.name.clone(),
        mac: interface.mac.clone(),
        mtu: interface.mtu,
        addresses: interface.addresses.clone(),
        routes: seed
            .routes
            .iter()
            .filter(|route| route.interface == interface.name)
            .filter_map(|route| Some((route.destination.clone(), route.gateway?)))
            .collect(),
        // A resolver asks all of them whichever interface they are written to.
        nameservers: if index == 0 {
            seed.nameservers.clone()
        } else {
            Vec::new()
        },
        search: if index == 0 { seed.search.clone() } else { Vec::new() },
    };
    seed::Seed {
        instance_id: seed.instance_id.clone(),
        hostname: seed.hostname.clone(),
        interfaces: seed.interfaces.iter().enumerate().map(interface).collect(),
        mounts: seed.mounts.iter().map(mount).collect(),
        ssh_keys: seed.ssh_keys.clone(),
        env: seed.env.clone(),
        command: seed.command.clone(),
        user_data: seed.user_data.clone(),
    }
}
