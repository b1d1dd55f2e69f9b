//! The parts of a plan that make a machine the host of a pod.

use std::path::Path;

use zmachine_agent_protocol::{Interface, Mount};
use zmachine_hypervisor::{LaterDisk, Nic, NicKind};
use zmachine_spec::pod::SHARE_TARGET;
use zmachine_spec::{MachineSpec, PodNetwork, PodSettings};

use super::share::POD_TAG;

/// Whether it has no use for an image: a pod that none of our images is meant for, which is the one whose root is read-only. Its own is empty
/// then, and the disk, its server and what the guest needs to read it are a good part of what such a pod costs.
pub(super) fn is_without_image(spec: &MachineSpec) -> bool {
    spec.pod.is_some() && spec.read_only
}

/// One for each link, which the guest knows by the link's own address.
pub(super) fn nics(network: &PodNetwork) -> Vec<Nic> {
    let nic = |interface: Interface| Nic {
        id: interface.name,
        mac: interface.mac,
        mtu: interface.mtu,
        kind: NicKind::Tap,
    };
    interfaces(network).into_iter().map(nic).collect()
}

/// Places for the images that may be brought to it.
pub(super) fn later_disks(pod: &PodSettings, run: &Path, queues: u16) -> Vec<LaterDisk> {
    let disk = |number| LaterDisk {
        id: format!("image{number}"),
        socket: run.join(format!("image{number}.sock")),
        queues,
    };
    (1..=pod.images).map(disk).collect()
}

/// What the guest's agent is told of the links.
pub(super) fn interfaces(network: &PodNetwork) -> Vec<Interface> {
    network.links.iter().map(|link| link.interface.clone()).collect()
}

/// Where the guest finds what is shared with it.
pub(super) fn mount(_: &PodSettings) -> Mount {
    Mount {
        serial: POD_TAG.to_owned(),
        fstype: "virtiofs".to_owned(),
        target: SHARE_TARGET.to_owned(),
        read_only: false,
        populate: false,
    }
}
