//! What makes a machine the host of a pod: containers that are brought into it while it runs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zmachine_agent_protocol::{Interface, Route};

/// Where the guest finds what is shared with it.
pub const SHARE_TARGET: &str = "/run/zmachine/pod";

/// What a machine has beyond an idle container, to be a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSettings {
    /// A directory of this host that the guest has at [`SHARE_TARGET`]: what is mounted in it while the machine runs, the guest
    /// sees as well. It is a mount point, with shared propagation; the guest can only change what is mounted in it.
    pub share: PathBuf,
    /// Its network; `None`: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<PodNetwork>,
}

/// A network namespace of this host, whose links the guest takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodNetwork {
    /// A path that stands for the namespace.
    pub namespace: PathBuf,
    /// The links that the guest has in place of the namespace.
    pub links: Vec<PodLink>,
    /// Routes of all links.
    pub routes: Vec<Route>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodLink {
    /// Its name in the namespace.
    pub link: String,
    /// The guest's interface, with the link's own address: what comes to the link goes there, and the other way round.
    pub interface: Interface,
}

/// The least memory of a pod's machine, in bytes: the guest's own, and a little for a container.
pub const LEAST_MEMORY: u64 = 192 << 20;
