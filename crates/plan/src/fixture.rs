//! What the tests of all plans are made from.

use zmachine_hypervisor::Accel;
use zmachine_hypervisor::choice::Choice;
use zmachine_network::{Attachment, HostDns};
use zmachine_spec::volume::SharedDirectory;
use zmachine_spec::{Home, MachineSpec};
use zmachine_sys::host::HostFacts;

use super::common::Inputs;
use super::{Content, Plan, PlanError};

/// What is around a machine.
pub(super) struct Around<'a> {
    pub(super) host: HostFacts,
    pub(super) accel: Accel,
    pub(super) hypervisor: Choice,
    pub(super) shares: &'a [SharedDirectory],
    pub(super) has_share_server: bool,
    pub(super) attachments: Vec<Attachment>,
}

/// A machine's place in `network`.
pub(super) fn attachment(network: &str) -> Attachment {
    let value = serde_json::json!({
        "network": network, "machine": "5c28ffaff6fe", "interface": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500,
        "tap": "zm0", "addresses": [], "gateway4": "10.9.0.1", "gateway6": null, "routes": [], "nameservers": [],
        "search": [], "publish": [],
    });
    serde_json::from_value(value).unwrap()
}

impl Default for Around<'_> {
    /// A host that can do everything, and nothing to share.
    fn default() -> Self {
        Around {
            host: HostFacts {
                cpus: 4,
                cpu_numbers: vec![0, 1, 2, 3],
                memory_total_bytes: 8 << 30,
                memory_available_bytes: 4 << 30,
                boot_id: "boot".into(),
                kernel: "6.1".into(),
                is_root: true,
                may_change_user: true,
                cgroup_v2: true,
            },
            accel: Accel::Kvm,
            hypervisor: Choice::default(),
            shares: &[],
            has_share_server: true,
            attachments: vec![],
        }
    }
}

/// The plan of `spec`.
pub(super) fn planned(spec: &MachineSpec, content: Content<'_>, around: &Around<'_>) -> Result<Plan, PlanError> {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
    let host_dns = HostDns {
        nameservers: vec![],
        search: vec![],
    };
    let inputs = Inputs {
        id: "0123456789ab",
        home: &home,
        host: &around.host,
        accel: around.accel,
        hypervisor: around.hypervisor.clone(),
        cloud_firmware: None,
        attachments: around.attachments.clone(),
        host_dns: &host_dns,
        shares: around.shares,
        has_share_server: around.has_share_server,
    };
    Plan::new(spec, content, inputs)
}
