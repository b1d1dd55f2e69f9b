//! A plan whose machine is to be another one: its name, its labels, its CPUs and memory. Pure.

use zmachine_hypervisor::{Boot, Disk, kernel_cmdline};
use zmachine_network::is_host_name;
use zmachine_spec::MachineSpec;
use zmachine_sys::host::HostFacts;

use super::common::check_capacity;
use super::container::root_queues;
use super::{Plan, PlanError};

impl Plan {
    /// The plan of a machine whose spec was `before` and is `after`. What the guest was made with (its host name, the size of its
    /// root) stays.
    ///
    /// # Errors
    /// When this host has not so much.
    pub fn changed(mut self, before: &MachineSpec, after: &MachineSpec, host: &HostFacts) -> Result<Plan, PlanError> {
        check_capacity(after, host)?;
        let (attachments, vm) = match &mut self {
            Plan::Container(plan) => {
                plan.labels
                    .retain(|label, _| !before.labels.contains_key(label) || after.labels.contains_key(label));
                plan.labels.extend(after.labels.clone());
                (&mut plan.attachments, &mut plan.vm)
            }
            Plan::Vm(plan) => (&mut plan.attachments, &mut plan.vm),
        };
        if before.name != after.name {
            let [old, new] = [before, after].map(|spec| spec.name.to_ascii_lowercase());
            for names in attachments.iter_mut().map(|a| &mut a.membership.names) {
                names.retain(|name| *name != new && (*name != old || after.network_aliases.contains(name)));
                if is_host_name(&new) {
                    names.insert(0, new.clone());
                }
            }
            vm.name.clone_from(&after.name);
        }
        vm.memory_bytes = after.memory_bytes.next_multiple_of(1 << 20);
        if vm.cpus != after.cpus {
            vm.cpus = after.cpus;
            let accel = vm.accel;
            if let Plan::Container(plan) = &mut self {
                if let Boot::Kernel { cmdline, .. } = &mut plan.vm.boot {
                    *cmdline = kernel_cmdline(accel, after.cpus);
                }
                for disk in &mut plan.vm.disks {
                    if let Disk::VhostUser { queues, .. } | Disk::Nbd { queues, .. } = disk {
                        *queues = root_queues(after.cpus);
                    }
                }
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Around, attachment};
    use super::*;
    use zmachine_spec::change::Change;

    fn golden() -> Plan {
        serde_json::from_str(include_str!("../tests/golden/plan-v1.json")).unwrap()
    }

    fn changed(before: &MachineSpec, change: &Change) -> Result<Plan, PlanError> {
        golden().changed(before, &change.applied(before), &Around::default().host)
    }

    #[test]
    fn a_name_is_that_of_its_networks_and_not_of_its_host() {
        let mut before = MachineSpec::new("web", "/x.fl");
        before.network_aliases = vec!["db".into()];
        let Plan::Container(mut plan) = golden() else {
            panic!("a VM")
        };
        plan.attachments = vec![attachment("n")];
        plan.attachments[0].membership.names = vec!["web".into(), "db".into()];
        let (hostname, hosts) = (plan.boot.hostname.clone(), plan.boot.hosts.clone());
        let change = Change {
            name: Some("Front".into()),
            ..Change::default()
        };
        let host = Around::default().host;
        let renamed = Plan::Container(plan).changed(&before, &change.applied(&before), &host);
        let Ok(Plan::Container(renamed)) = renamed else {
            panic!("refused")
        };
        assert_eq!(renamed.attachments[0].membership.names, ["front", "db"]);
        assert_eq!((renamed.boot.hostname, renamed.boot.hosts), (hostname, hosts));
        assert_eq!(renamed.vm.name, "Front");
    }

    #[test]
    fn cpus_and_memory_are_what_the_hypervisor_and_the_kernel_are_told() {
        let before = MachineSpec::new("web", "/x.fl");
        let change = Change {
            cpus: Some("3".parse().unwrap()),
            memory_bytes: Some(1 << 30),
            ..Change::default()
        };
        let Ok(Plan::Container(plan)) = changed(&before, &change) else {
            panic!("refused")
        };
        assert_eq!((plan.vm.cpus, plan.vm.memory_bytes), (3, 1 << 30));
        let Plan::Container(old) = golden() else { panic!("a VM") };
        assert_eq!(plan.upper_bytes, old.upper_bytes);
        let queues = plan.vm.disks.iter().find_map(|disk| match disk {
            Disk::VhostUser { queues, .. } => Some(*queues),
            _ => None,
        });
        assert_eq!(queues, Some(3));
        let too_many = Change {
            cpus: Some("5".parse().unwrap()),
            ..Change::default()
        };
        assert!(matches!(changed(&before, &too_many), Err(PlanError::Cpus { .. })));
    }
}
