//! A plan whose machine joins or leaves a network. Pure.

use zmachine_hypervisor::Boot;
use zmachine_network::Attachment;
use zmachine_spec::{Class, Failure, MachineSpec};

use super::common::{hosts, interface, nics, resolvers, routes};
use super::{ContainerPlan, Plan, PlanError, VmPlan, cmdline};

impl Plan {
    /// Puts these networks in the place of those it has.
    ///
    /// # Errors
    /// When a kernel that is told of its networks on the command line cannot be told of these; nothing is changed then.
    pub fn set_attachments(&mut self, spec: &MachineSpec, attachments: Vec<Attachment>) -> Result<(), PlanError> {
        match self {
            Plan::Container(plan) => plan.set_attachments(spec, attachments),
            Plan::Vm(plan) => return plan.set_attachments(spec, attachments),
        }
        Ok(())
    }

    /// The plan with these networks in place of those it has.
    ///
    /// # Errors
    /// As [`Plan::set_attachments`].
    pub fn with_attachments(mut self, spec: &MachineSpec, attachments: Vec<Attachment>) -> Result<Plan, PlanError> {
        self.set_attachments(spec, attachments)?;
        Ok(self)
    }
}

/// Refuses a change that is not one network more or one less: somebody else has made one since it was thought of.
///
/// # Errors
/// [`Class::Conflict`].
pub fn check_step(present: &[Attachment], wanted: &[Attachment]) -> Result<(), Failure> {
    let lacking = |from: &[Attachment], these: &[Attachment]| {
        let is_in = |one: &&Attachment| from.iter().any(|a| a.network == one.network);
        these.iter().filter(|one| !is_in(one)).count()
    };
    if lacking(present, wanted) + lacking(wanted, present) == 1 {
        return Ok(());
    }
    Err(Failure::new(Class::Conflict, "the networks of the machine have changed meanwhile").hint("try again"))
}

impl ContainerPlan {
    fn set_attachments(&mut self, spec: &MachineSpec, attachments: Vec<Attachment>) {
        self.vm.nics = nics(&attachments);
        self.boot.interfaces = attachments.iter().map(interface).collect();
        self.boot.routes = routes(&attachments);
        if spec.dns.is_empty() {
            self.boot.nameservers = resolvers(&attachments);
        }
        self.boot.hosts = hosts(&attachments, &self.boot.hostname);
        self.attachments = attachments;
    }
}

impl VmPlan {
    fn set_attachments(&mut self, spec: &MachineSpec, attachments: Vec<Attachment>) -> Result<(), PlanError> {
        let nameservers = match spec.dns.is_empty() {
            true => resolvers(&attachments),
            false => self.seed.nameservers.clone(),
        };
        let is_told = self.install().is_some() || spec.legacy_cmdline;
        if let Boot::Kernel { cmdline, .. } = &mut self.vm.boot
            && is_told
        {
            *cmdline = cmdline::with_network(cmdline, &attachments, &nameservers)?;
        }
        self.seed.nameservers = nameservers;
        self.vm.nics = nics(&attachments);
        self.seed.interfaces = attachments.iter().map(interface).collect();
        self.seed.routes = routes(&attachments);
        self.attachments = attachments;
        Ok(())
    }
}
