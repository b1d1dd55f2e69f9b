//! Where the shim of a pod listens.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// Where containerd has the sockets of shims, whichever its own folders are.
const FOLDER: &str = "/run/containerd/s";

/// A scheme in front of a path.
const SCHEME: &str = "unix://";

/// What tells a pod from every other one of this host: its sandbox `group`, in the namespace `namespace` of the containerd at
/// `containerd`.
pub(crate) fn key(containerd: &str, namespace: &str, group: &str) -> String {
    let mut hash = Sha256::new();
    for part in [containerd, namespace, group] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The socket of the shim of the pod `key`.
pub(crate) fn socket(key: &str) -> PathBuf {
    PathBuf::from(FOLDER).join(key)
}

/// A socket as containerd is told of it.
pub(crate) fn to_text(socket: &std::path::Path) -> String {
    format!("{SCHEME}{}", socket.display())
}

/// The path in what [`to_text`] wrote, or containerd.
pub(crate) fn path(address: &str) -> PathBuf {
    address.strip_prefix(SCHEME).unwrap_or(address).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_other_namespaces_and_containerds_are_others() {
        let own = key("/run/a.sock", "k8s.io", "x");
        assert_eq!(own, key("/run/a.sock", "k8s.io", "x"));
        for other in [
            key("/run/b.sock", "k8s.io", "x"),
            key("/run/a.sock", "k8s", ".iox"),
            key("/run/a.sock", "k8s.io", "y"),
        ] {
            assert_ne!(own, other);
        }
        let address = to_text(&socket(&own));
        assert_eq!(path(&address), socket(&own));
        // It has to fit into an address of 108 bytes.
        assert!(socket(&own).as_os_str().len() < 100);
    }
}
