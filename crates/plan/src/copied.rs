//! A machine that goes on from what was saved: what has to be the same, and what becomes different in a copy.

use zmachine_agent_protocol::{Identity, Renewed, Secret};
use zmachine_hypervisor::choice::Hypervisor;
use zmachine_hypervisor::{Boot, Disk, Nic, VmSpec};

use super::common::VOLUME_DISK;
use super::{ContainerPlan, Plan, VmPlan};

impl Plan {
    /// What of this machine does not fit the memory and the devices of `saved`. Names, paths, addresses and what it boots may differ.
    pub fn misfit(&self, saved: &Plan) -> Option<String> {
        match (self, saved) {
            (Plan::Container(here), Plan::Container(there)) => here.misfit(there),
            (Plan::Vm(here), Plan::Vm(there)) => here.misfit(there),
            _ => Some("one of both is a container and the other one a VM".to_owned()),
        }
    }
}

impl VmPlan {
    fn misfit(&self, saved: &VmPlan) -> Option<String> {
        let digest = |plan: &VmPlan| {
            plan.install()
                .map_or_else(String::new, |install| install.digest.clone())
        };
        let drivers = (self.hypervisor.driver, saved.hypervisor.driver);
        let misfit = misfit(&self.vm, &saved.vm, (digest(self), digest(saved)), drivers);
        misfit.or_else(|| {
            (kind(&self.vm.boot) != kind(&saved.vm.boot)).then(|| {
                let (here, there) = (kind(&self.vm.boot), kind(&saved.vm.boot));
                format!("it was saved with {there}, and this machine has {here}")
            })
        })
    }
}

/// What the guest finds beneath it.
fn kind(boot: &Boot) -> &'static str {
    match boot {
        Boot::Kernel { .. } => "a kernel that the hypervisor loads",
        Boot::Firmware { variables: None, .. } => "a firmware without variables",
        _ => "a firmware with variables",
    }
}

/// What of a virtual machine does not fit what was saved of another one. `images` and `drivers`: this one's, and the other one's.
fn misfit(
    here: &VmSpec,
    there: &VmSpec,
    images: (String, String),
    drivers: (Hypervisor, Hypervisor),
) -> Option<String> {
    let differs = |what: &str, here: &dyn std::fmt::Display, there: &dyn std::fmt::Display| {
        Some(format!("it was saved with {what} {there}, and this machine has {here}"))
    };
    if !there.is_saveable || !here.is_saveable {
        return Some("it was not built to be saved".to_owned());
    }
    if images.0 != images.1 {
        return differs("image", &images.0, &images.1);
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
    if drivers.0 != drivers.1 {
        return differs("hypervisor", &drivers.0.name(), &drivers.1.name());
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

impl ContainerPlan {
    /// What of this machine does not fit the memory and the devices of `saved`. Names, paths, addresses and what it boots may differ.
    pub fn misfit(&self, saved: &ContainerPlan) -> Option<String> {
        let images = (self.image.clone(), saved.image.clone());
        let drivers = (self.hypervisor.driver, saved.hypervisor.driver);
        misfit(&self.vm, &saved.vm, images, drivers)
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
