//! The plan: everything a start needs, decided once from spec, image and host. A pure function; it makes every refusal.
//!
//! `plan.json` is this value. A start executes it; nothing after this module decides anything about the machine.
//!
//! | module | owns |
//! |---|---|
//! | [`common`] | what all plans are made from, and what looks the same in each |
//! | [`container`] | the plan of a container: root disk, what the guest's agent is told, the entrypoint |
//! | [`vm`] | the plan of a VM: volumes, boot, seed |
//! | [`tree`] | the plan of a container with a kernel of its own, which lives like a VM |
//! | `change` | a machine that is something else by now |
//! | `networks` | a machine that joins or leaves a network |
//! | `pod` | a machine that containers are brought into |
//! | [`share`] | what is served to either over virtio-fs |
//! | [`error`] | every refusal |
//!
//! # Format
//! The object of a container has no `kind`, that of a VM has `"kind": "vm"`.

mod change;
mod cmdline;
pub mod common;
pub mod container;
mod copied;
pub mod error;
#[cfg(test)]
mod fixture;
mod networks;
mod pod;
pub mod share;
pub mod tree;
pub mod vm;

use std::net::IpAddr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use zmachine_hypervisor::VmSpec;
use zmachine_hypervisor::choice::Choice;
use zmachine_network::Attachment;
use zmachine_spec::volume::ResolvedVolume;
use zmachine_spec::{HealthCheck, Kind, MachineSpec};
use zmachine_sys::host::HostFacts;

pub use self::common::{
    ImageFacts, Inputs, KernelChoice, MIN_MEMORY, PLAN_VERSION, VolumeUse, interface, resolvers, routes, share_tag,
    volume_disk,
};
use self::common::{check_capacity, check_hostname, hostname};
pub use self::container::{ContainerPlan, ROOT_SERIAL, UPPER_SERIAL, root_size};
pub use self::error::PlanError;
pub use self::networks::check_step;
pub use self::share::{ShareUse, SharedTree};
pub use self::tree::TreeFacts;
use self::vm::DiskSource;
pub use self::vm::{VmFacts, VmPlan, VmRoot};

/// Everything a start needs, by the kind of machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Plan {
    /// A container.
    Container(Box<ContainerPlan>),
    /// A VM, or a container with a kernel of its own.
    Vm(Box<VmPlan>),
}

impl<'de> Deserialize<'de> for Plan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Plan, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let plan = match value.get("kind").map(|kind| kind.as_str().unwrap_or_default()) {
            None => serde_json::from_value(value).map(Plan::Container),
            Some("vm") => serde_json::from_value(value).map(Plan::Vm),
            Some(other) => return Err(D::Error::custom(format!("'{other}' is no kind of machine"))),
        };
        plan.map_err(D::Error::custom)
    }
}

impl Plan {
    /// Plans a machine.
    ///
    /// # Errors
    /// Everything about the request that can be refused without trying.
    pub fn new(spec: &MachineSpec, content: Content<'_>, inputs: Inputs<'_>) -> Result<Plan, PlanError> {
        Plan::check_request(spec, inputs.host)?;
        match content {
            Content::Container { image, kernel, volumes } => {
                ContainerPlan::new(spec, image, kernel, volumes, inputs).map(|plan| Plan::Container(Box::new(plan)))
            }
            Content::Tree(facts) => VmPlan::of_tree(spec, facts, inputs).map(|plan| Plan::Vm(Box::new(plan))),
            Content::Vm(facts) => VmPlan::new(spec, facts, inputs).map(|plan| Plan::Vm(Box::new(plan))),
        }
    }

    /// The refusals for which spec and host are enough; made before an image is fetched.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn check_request(spec: &MachineSpec, host: &HostFacts) -> Result<(), PlanError> {
        check_capacity(spec, host)?;
        check_hostname(&hostname(spec))?;
        if spec.networks.is_empty() && !spec.publish.is_empty() {
            return Err(PlanError::PublishWithoutNetwork);
        }
        Ok(())
    }

    /// Hex digest of the image that it needs at a start; `None` when that is a file of the host.
    pub fn image(&self) -> Option<&str> {
        match self {
            Plan::Container(plan) => Some(&plan.image),
            Plan::Vm(plan) => match &plan.root {
                VmRoot::Tree(image) => Some(image),
                VmRoot::Installed(install) => match &install.source {
                    DiskSource::Flist { image, .. } => Some(image),
                    DiskSource::Host { .. } => None,
                },
            },
        }
    }

    /// Whether the machine is in the network `name`.
    pub fn is_in(&self, name: &str) -> bool {
        self.attachments().iter().any(|attachment| attachment.network == name)
    }

    /// Its networks.
    pub fn attachments(&self) -> &[Attachment] {
        match self {
            Plan::Container(plan) => &plan.attachments,
            Plan::Vm(plan) => &plan.attachments,
        }
    }

    /// The addresses of the machine in all its networks.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let all = self.attachments().iter().flat_map(|a| &a.addresses);
        all.map(|net| net.addr()).collect()
    }

    /// The virtual machine.
    pub fn vm(&self) -> &VmSpec {
        match self {
            Plan::Container(plan) => &plan.vm,
            Plan::Vm(plan) => &plan.vm,
        }
    }

    /// Its volumes, in the order of their disks.
    pub fn volumes(&self) -> &[VolumeUse] {
        match self {
            Plan::Container(plan) => &plan.volumes,
            Plan::Vm(plan) => &plan.volumes,
        }
    }

    /// What is served to it over virtio-fs.
    pub fn shares(&self) -> &[ShareUse] {
        match self {
            Plan::Container(plan) => &plan.shares,
            Plan::Vm(plan) => &plan.shares,
        }
    }

    /// Milliseconds that it has for an orderly end, when it is asked to stop.
    pub fn stop_grace_ms(&self) -> u64 {
        match self {
            Plan::Container(plan) => plan.stop_grace_ms,
            Plan::Vm(plan) => plan.stop_grace_ms,
        }
    }

    /// What the user asked for and does not get in full.
    pub fn warnings(&self) -> &[String] {
        match self {
            Plan::Container(plan) => &plan.warnings,
            Plan::Vm(plan) => &plan.warnings,
        }
    }

    /// How its monitor tells whether it does its work.
    pub fn health(&self) -> Option<&HealthCheck> {
        match self {
            Plan::Container(plan) => plan.health.as_ref(),
            Plan::Vm(plan) => plan.health.as_ref(),
        }
    }

    /// What runs it, and why that.
    pub fn hypervisor(&self) -> &Choice {
        match self {
            Plan::Container(plan) => &plan.hypervisor,
            Plan::Vm(plan) => &plan.hypervisor,
        }
    }

    /// What kind of machine it is.
    pub fn kind(&self) -> Kind {
        match self {
            Plan::Container(_) => Kind::Container,
            Plan::Vm(plan) => match plan.root {
                // One with a kernel of its own lives like a VM, and is a container all the same.
                VmRoot::Tree(_) => Kind::Container,
                VmRoot::Installed(_) => Kind::Vm,
            },
        }
    }
}

/// What the image makes of the machine.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// A container, with the guest kernel that was chosen.
    Container {
        /// The image.
        image: &'a ImageFacts,
        /// The guest kernel.
        kernel: &'a KernelChoice,
        /// Its volumes.
        volumes: &'a [ResolvedVolume],
    },
    /// A container with a kernel of its own.
    Tree(&'a TreeFacts),
    /// A VM.
    Vm(&'a VmFacts),
}
