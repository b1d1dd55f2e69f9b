//! Devices of containers. Those of a machine are its own: of the host's, a container has the block devices that it was given by name, which are
//! the pod's volumes without a file system.

use std::path::{Path, PathBuf};

use zmachine_agent_protocol::DeviceNode;
use zmachine_spec::pod::device_serial;

use crate::error::ShimError;
use crate::oci::{Capabilities, Device, DeviceRule, Linux, Spec};
use crate::translate::HostPaths;

/// Devices of a guest that are worth having: the others that a privileged container is given are the host's. Type, major, minor.
const OF_GUEST: [(&str, u32, u32); 3] = [("c", 10, 229), ("c", 10, 200), ("c", 10, 232)];

/// Whether a container may open every device of its guest: it is privileged. A node where privileged containers have no devices of the host
/// (`privileged_without_host_devices`) says so by what its processes may do alone.
pub(crate) fn may_use_all(spec: &Spec) -> bool {
    let is_raw = |capabilities: &Capabilities| capabilities.bounding.iter().any(|name| name == "CAP_SYS_RAWIO");
    let capabilities = spec.process.as_ref().and_then(|process| process.capabilities.as_ref());
    are_all_allowed(&spec.linux) || capabilities.is_some_and(is_raw)
}

/// Whether the rules allow a container all devices, and so those of the host.
fn are_all_allowed(linux: &Linux) -> bool {
    let is_any = |rule: &DeviceRule| {
        let is_all = rule.kind.as_deref().is_none_or(|kind| kind.is_empty() || kind == "a");
        is_all && rule.major.is_none_or(|number| number < 0) && rule.minor.is_none_or(|number| number < 0)
    };
    let rules = linux.resources.as_ref().map(|resources| resources.devices.as_slice());
    rules
        .unwrap_or_default()
        .iter()
        .rfind(|rule| is_any(rule))
        .is_some_and(|rule| rule.allow)
}

/// The devices of a container, as its guest makes them.
pub(crate) fn nodes(linux: &Linux, host: &dyn HostPaths) -> Vec<DeviceNode> {
    linux
        .devices
        .iter()
        .filter_map(|device| node(linux, device, host))
        .collect()
}

fn node(linux: &Linux, device: &Device, host: &dyn HostPaths) -> Option<DeviceNode> {
    let is_volume = device.kind == "b" && is_given(linux, device, host);
    let is_guests = OF_GUEST.contains(&(device.kind.as_str(), device.major, device.minor));
    (is_volume || is_guests).then(|| DeviceNode {
        path: device.path.clone(),
        block: is_volume,
        major: device.major,
        minor: device.minor,
        mode: device.file_mode.unwrap_or(0o600),
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
        serial: is_volume.then(|| device_serial(device.major, device.minor)),
        read_only: is_volume && rule_of(linux, device).is_some_and(|rule| !allows(rule, 'w')),
    })
}

/// Whether a container was given a block device by name. A privileged one is given all of the host's as well, at the places that they have
/// there.
fn is_given(linux: &Linux, device: &Device, host: &dyn HostPaths) -> bool {
    match are_all_allowed(linux) {
        true => !host.is_node_of(Path::new(&device.path), device.major, device.minor),
        false => rule_of(linux, device).is_some(),
    }
}

/// The rule that is of this device alone.
fn rule_of<'a>(linux: &'a Linux, device: &Device) -> Option<&'a DeviceRule> {
    let rules = linux.resources.as_ref().map(|resources| resources.devices.as_slice());
    let is_of = |rule: &&DeviceRule| {
        let numbers = (Some(i64::from(device.major)), Some(i64::from(device.minor)));
        rule.allow && rule.kind.as_deref() == Some(device.kind.as_str()) && (rule.major, rule.minor) == numbers
    };
    rules.unwrap_or_default().iter().rfind(is_of)
}

fn allows(rule: &DeviceRule, what: char) -> bool {
    rule.access.as_deref().is_none_or(|access| access.contains(what))
}

/// Where the host has the block device with these numbers.
///
/// # Errors
/// [`ShimError::Invalid`] when it has none.
pub(crate) fn path_of(major: u32, minor: u32) -> Result<PathBuf, ShimError> {
    let missing = |error: &dyn std::fmt::Display| {
        ShimError::Invalid(format!("this host has no block device {major}:{minor}: {error}"))
    };
    let described = format!("/sys/dev/block/{major}:{minor}/uevent");
    let text = std::fs::read_to_string(&described).map_err(|error| missing(&error))?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| missing(&"it has no name"))?;
    Ok(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::tests::Paths;

    fn linux(json: serde_json::Value) -> Linux {
        let spec: Spec = serde_json::from_value(serde_json::json!({ "linux": json })).unwrap();
        spec.linux
    }

    /// A volume at a path of its own, and the host's disk.
    fn devices() -> serde_json::Value {
        serde_json::json!([
            {"path": "/dev/data", "type": "b", "major": 7, "minor": 3, "fileMode": 432, "uid": 0, "gid": 6},
            {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
            {"path": "/dev/mem", "type": "c", "major": 1, "minor": 1},
        ])
    }

    #[test]
    fn a_volume_is_a_disk_of_the_guest_and_what_it_may_be_used_for_counts() {
        let rule = |access| serde_json::json!({"allow": true, "type": "b", "major": 7, "minor": 3, "access": access});
        let all = serde_json::json!({"allow": false, "access": "rwm"});
        for (access, read_only) in [("rwm", false), ("rm", true)] {
            let resources = serde_json::json!({"devices": [all, rule(access)]});
            let linux = linux(serde_json::json!({"devices": devices(), "resources": resources}));
            assert!(!are_all_allowed(&linux));
            let nodes = nodes(&linux, &Paths);
            let paths: Vec<_> = nodes.iter().map(|node| node.path.as_str()).collect();
            assert_eq!(paths, ["/dev/data", "/dev/fuse"]);
            assert_eq!(
                (
                    nodes[0].serial.as_deref(),
                    nodes[0].read_only,
                    nodes[0].mode,
                    nodes[0].gid
                ),
                (Some("zm-dev-7-3"), read_only, 0o660, 6)
            );
        }
    }

    #[test]
    fn a_privileged_container_has_its_volumes_and_none_of_the_hosts_disks() {
        let resources =
            serde_json::json!({"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]});
        let linux = linux(serde_json::json!({"devices": devices(), "resources": resources}));
        assert!(are_all_allowed(&linux));
        let nodes = nodes(&linux, &Paths);
        let paths: Vec<_> = nodes.iter().map(|node| node.path.as_str()).collect();
        assert_eq!(paths, ["/dev/data", "/dev/fuse"]);
    }

    #[test]
    fn a_privileged_container_without_devices_of_the_host_may_open_those_of_its_guest() {
        let with = |capability: &str| {
            let capabilities = serde_json::json!({"bounding": ["CAP_CHOWN", capability]});
            let spec: Spec =
                serde_json::from_value(serde_json::json!({"process": {"capabilities": capabilities}})).unwrap();
            may_use_all(&spec)
        };
        assert!(with("CAP_SYS_RAWIO") && !with("CAP_MKNOD"));
    }

    #[test]
    fn a_device_that_the_host_has_not_is_named() {
        let missing = path_of(0, 4095).unwrap_err().to_string();
        assert!(missing.contains("0:4095"), "{missing}");
    }
}
