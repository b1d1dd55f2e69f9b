//! What is served to a machine over virtio-fs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zmachine_hypervisor::Share;
use zmachine_spec::volume::SharedDirectory;
use zmachine_spec::{Home, PodSettings};

use super::common::{Inputs, share_tag};
use super::error::PlanError;

/// Tag of the share of a pod.
pub(super) const POD_TAG: &str = "pod";

/// A tree of this host that is served to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareUse {
    /// Tells it from the machine's others; also names its device, its socket and its mount point.
    pub id: String,
    /// The name by which the guest mounts it.
    pub tag: String,
    /// What is served.
    pub tree: SharedTree,
}

/// What is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharedTree {
    /// A directory of this host.
    Directory {
        /// Absolute, without links.
        path: PathBuf,
        /// The guest can only read it.
        read_only: bool,
        /// The guest sees what is mounted in it later, too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        follows_mounts: bool,
    },
    /// An unpacked image, with the machine's own layer above it.
    Image {
        /// The unpacked image, which is never written.
        image: PathBuf,
        /// The layer; `None`: nothing can be written.
        layer: Option<PathBuf>,
    },
}

/// The shared directories of the machine.
///
/// # Errors
/// When this host cannot share any.
pub(super) fn directories(inputs: &Inputs<'_>) -> Result<Vec<ShareUse>, PlanError> {
    if !inputs.shares.is_empty() {
        require_server(inputs)?;
    }
    let share = |(index, shared): (usize, &SharedDirectory)| ShareUse {
        id: format!("fs{index}"),
        tag: share_tag(index),
        tree: SharedTree::Directory {
            path: shared.path.clone(),
            read_only: shared.read_only,
            follows_mounts: false,
        },
    };
    Ok(inputs.shares.iter().enumerate().map(share).collect())
}

/// What a pod's containers are made of.
///
/// # Errors
/// When this host cannot share it.
pub(super) fn of_pod(pod: &PodSettings, inputs: &Inputs<'_>) -> Result<ShareUse, PlanError> {
    require_server(inputs)?;
    Ok(ShareUse {
        id: POD_TAG.to_owned(),
        tag: POD_TAG.to_owned(),
        tree: SharedTree::Directory {
            path: pod.share.clone(),
            read_only: false,
            follows_mounts: true,
        },
    })
}

/// That this host can serve trees.
///
/// # Errors
/// [`PlanError::NoShareServer`], [`PlanError::SharesNeedRoot`].
pub(super) fn require_server(inputs: &Inputs<'_>) -> Result<(), PlanError> {
    match (inputs.has_share_server, inputs.host.is_root) {
        (false, _) => Err(PlanError::NoShareServer),
        (true, false) => Err(PlanError::SharesNeedRoot),
        (true, true) => Ok(()),
    }
}

/// The devices of `shares`.
pub(super) fn devices(shares: &[ShareUse], home: &Home, id: &str) -> Vec<Share> {
    let device = |share: &ShareUse| Share {
        id: share.id.clone(),
        tag: share.tag.clone(),
        socket: home.run_dir(id).join(format!("{}.sock", share.id)),
    };
    shares.iter().map(device).collect()
}
