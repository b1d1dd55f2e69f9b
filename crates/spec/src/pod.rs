//! What makes a machine the host of a pod: containers that are brought into it while it runs.

use std::collections::BTreeMap;
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
    /// So many images may be brought to it while it runs, each as a disk that is read as it is needed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub images: u16,
    /// So many files and block devices of this host may be brought to it as disks.
    #[serde(default, skip_serializing_if = "is_none")]
    pub files: u16,
    /// The control group (version 2) of the machine's processes on this host, made and removed by the monitor; one of its home where it is
    /// missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<PathBuf>,
    /// Its network; `None`: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<PodNetwork>,
}

/// The option of a mount by which our snapshotter says which image it is of: this, and the image's digest in hex. Whoever mounts it on the
/// host sees the image, and nobody looks at the option.
pub const IMAGE_OPTION: &str = "x-zmachine.image=";

/// The name by which our snapshotter keeps an image that is used before it is here as a whole, by the digest that it has until then, in hex: it
/// leads to the whole one as soon as that is here.
pub fn begun_image_name(digest: &str) -> String {
    format!("containerd/{digest:.24}")
}

fn is_none(number: &u16) -> bool {
    *number == 0
}

/// The serial number of the disk by which a pod's guest has the image with this digest, in hex: 19 bytes.
pub fn image_serial(digest: &str) -> String {
    format!("zm-{digest:.16}")
}

/// The serial number of the disk by which a pod's guest has the block device with these numbers: at most 19 bytes.
pub fn device_serial(major: u32, minor: u32) -> String {
    format!("zm-dev-{major}-{minor}")
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

/// Labels of a pod's machine, as kubelets write them.
pub const NAME_LABEL: &str = "io.kubernetes.pod.name";
/// The pod's namespace.
pub const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// What tells it from another one of the same name.
pub const UID_LABEL: &str = "io.kubernetes.pod.uid";

/// Namespace and name of the pod whose machine has these labels.
pub fn name_of(labels: &BTreeMap<String, String>) -> Option<(&str, &str)> {
    let name = labels.get(NAME_LABEL)?;
    let namespace = labels.get(NAMESPACE_LABEL).map_or("default", String::as_str);
    Some((namespace, name))
}

/// Whether a user means the pod with these labels by `text`: `NAME`, or `NAMESPACE/NAME`.
pub fn is_meant(labels: &BTreeMap<String, String>, text: &str) -> bool {
    name_of(labels).is_some_and(|(namespace, name)| match text.split_once('/') {
        Some(both) => both == (namespace, name),
        None => text == name,
    })
}

/// Containers of a pod: their ids in its machine, by their names.
pub type ContainerNames = BTreeMap<String, String>;

impl PodSettings {
    /// Where whoever brings containers to the pod keeps their names: a JSON object, [`ContainerNames`].
    pub fn names_file(&self) -> PathBuf {
        self.share.with_file_name("containers.json")
    }
}

/// The least memory of a pod's machine, in bytes: the guest's own, and a little for a container.
pub const LEAST_MEMORY: u64 = 192 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_goes_by_its_name_with_or_without_its_namespace() {
        let labels = BTreeMap::from([
            (NAME_LABEL.to_owned(), "web-1".to_owned()),
            (NAMESPACE_LABEL.to_owned(), "shop".to_owned()),
        ]);
        assert!(is_meant(&labels, "web-1") && is_meant(&labels, "shop/web-1"));
        for other in ["web", "other/web-1", "shop/", ""] {
            assert!(!is_meant(&labels, other), "{other}");
        }
        assert!(!is_meant(&BTreeMap::new(), ""));
    }
}
