//! A container that goes on from what was saved of another one: what has to be the same, and what becomes different.

use zmachine_agent_protocol::{Identity, Renewed, Secret};
use zmachine_hypervisor::{Disk, Nic, VmSpec};

use super::ContainerPlan;
use super::common::VOLUME_DISK;

impl ContainerPlan {
    /// What of this machine does not fit the memory and the devices of `saved`. Names, paths, addresses and what it boots may differ.
    pub fn misfit(&self, saved: &ContainerPlan) -> Option<String> {
        let differs = |what: &str, here: &dyn std::fmt::Display, there: &dyn std::fmt::Display| {
            Some(format!("it was saved with {what} {there}, and this machine has {here}"))
        };
        let (here, there) = (&self.vm, &saved.vm);
        if !there.is_saveable || !here.is_saveable {
            return Some("it was not built to be saved".to_owned());
        }
        if self.image != saved.image {
            return differs("image", &self.image, &saved.image);
        }
        if here.memory_bytes != there.memory_bytes {
            return differs("bytes of memory:", &here.memory_bytes, &there.memory_bytes);
        }
        if here.cpus != there.cpus {
            return differs("CPUs:", &here.cpus, &there.cpus);
        }
        if here.accel != there.accel {
            return differs("accelerator", &here.accel, &there.accel);
        }
        if self.hypervisor.driver != saved.hypervisor.driver {
            return differs(
                "hypervisor",
                &self.hypervisor.driver.name(),
                &saved.hypervisor.driver.name(),
            );
        }
        let (devices_here, devices_there) = (devices(here), devices(there));
        (devices_here != devices_there).then(|| {
            format!(
                "it was saved with the devices {}, and this machine has {}",
                devices_there.join(", "),
                devices_here.join(", ")
            )
        })
    }

    /// The devices in their order, as far as a guest and a saved state know them.
    pub fn device_list(&self) -> Vec<String> {
        devices(&self.vm)
    }

    /// Who a guest that was saved as `saved` becomes.
    pub fn identity(&self, saved: &ContainerPlan, secrets: Vec<Secret>) -> Identity {
        let (was, is) = (&saved.boot, &self.boot);
        let interfaces = was.interfaces.iter().zip(&is.interfaces);
        Identity {
            hostname: is.hostname.clone(),
            machine_id: self.vm.uuid.replace('-', ""),
            interfaces: interfaces
                .map(|(was, is)| Renewed {
                    was: was.clone(),
                    is: is.clone(),
                })
                .collect(),
            routes: is.routes.clone(),
            nameservers: is.nameservers.clone(),
            search: is.search.clone(),
            hosts: is.hosts.clone(),
            secrets,
        }
    }
}

/// The devices in their order, as far as a guest and a saved state know them. The serial number of a volume's disk is its name, which is
/// another one in a copy: a guest asks the device for it whenever it wants to know.
fn devices(vm: &VmSpec) -> Vec<String> {
    let disk = |disk: &Disk| match disk {
        Disk::File {
            id, read_only, discard, ..
        } if id.starts_with(VOLUME_DISK) => format!("disk {id} (read-only {read_only}, discard {discard})"),
        Disk::File {
            id,
            serial,
            read_only,
            discard,
            ..
        } => format!("disk {id} ({serial}, read-only {read_only}, discard {discard})"),
        Disk::Nbd { id, serial, queues, .. } => format!("disk {id} ({serial}, {queues} queues)"),
        Disk::VhostUser { id, .. } => format!("served disk {id}"),
    };
    let nic = |nic: &Nic| {
        let mtu = nic.mtu.map_or_else(|| "default".to_owned(), |mtu| mtu.to_string());
        format!("interface {} (MTU {mtu})", nic.id)
    };
    let shares = vm.shares.iter().map(|share| format!("directory {}", share.id));
    vm.disks
        .iter()
        .map(disk)
        .chain(vm.nics.iter().map(nic))
        .chain(shares)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::*;

    fn plan() -> ContainerPlan {
        let plan = serde_json::from_str(include_str!("../tests/golden/plan-v1.json")).unwrap();
        let Plan::Container(mut plan) = plan else {
            panic!("it is a container's");
        };
        plan.vm.is_saveable = true;
        *plan
    }

    fn misfit(change: impl Fn(&mut ContainerPlan)) -> Option<String> {
        let mut other = plan();
        change(&mut other);
        other.misfit(&plan())
    }

    #[test]
    fn what_a_copy_may_have_of_its_own_fits() {
        let fits = misfit(|plan| {
            plan.id = "other".into();
            plan.vm.name = "other".into();
            plan.vm.uuid = "u".into();
            plan.vm
                .nics
                .iter_mut()
                .for_each(|nic| nic.mac = "02:00:00:00:00:99".into());
        });
        assert_eq!(fits, None);
    }

    fn volume(name: &str) -> Disk {
        Disk::File {
            id: "volume0".into(),
            path: name.into(),
            serial: name.into(),
            read_only: false,
            discard: true,
        }
    }

    #[test]
    fn a_copy_has_volumes_of_other_names() {
        let with = |name: &str| {
            let mut plan = plan();
            plan.vm.disks.push(volume(name));
            plan
        };
        assert_eq!(with("0123456789ab-0").misfit(&with("data")), None);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let named = |part: &str, change: &dyn Fn(&mut ContainerPlan)| {
            let why = misfit(change).unwrap_or_default();
            assert!(why.contains(part), "{part}: {why}");
        };
        named("not built to be saved", &|plan| plan.vm.is_saveable = false);
        named("image", &|plan| plan.image = "other".into());
        named("bytes of memory: ", &|plan| plan.vm.memory_bytes *= 2);
        named("CPUs: ", &|plan| plan.vm.cpus += 1);
        named("interface net9", &|plan| {
            plan.vm.nics.push(zmachine_hypervisor::Nic {
                id: "net9".into(),
                mac: "02:00:00:00:00:09".into(),
                mtu: None,
                kind: Default::default(),
            })
        });
        named("disk", &|plan| drop(plan.vm.disks.pop()));
        named("disk volume0 (read-only false", &|plan| {
            plan.vm.disks.push(volume("data"))
        });
        named("directory", &|plan| {
            plan.vm.shares.push(zmachine_hypervisor::Share {
                id: "fs0".into(),
                tag: "t".into(),
                socket: "/s".into(),
            });
        });
    }
}
