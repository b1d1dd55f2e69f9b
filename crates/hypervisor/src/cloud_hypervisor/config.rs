//! The description of a machine as `vm.create` takes it: typed, so that no name is mistyped, and compared with what the
//! hypervisor says it understood, since it drops what it does not know without a word. Pure.
//!
//! Field names and values: `cloud-hypervisor.yaml` of v53, and the recorded conversations in `tests/ch-api`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::{Boot, Disk, Nic, Share, VmSpec};

/// The guest's address on its virtual socket bus; 0 to 2 are special. The host's side is a socket of the run folder, so all
/// machines can have the same.
pub(crate) const GUEST_CID: u64 = 3;

/// The body of `vm.create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VmConfig {
    payload: Payload,
    cpus: Cpus,
    memory: Memory,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    disks: Vec<DiskConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fs: Vec<FsConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vsock: Option<Vsock>,
    serial: Serial,
    console: Console,
    pvpanic: bool,
    platform: PlatformConfig,
    landlock_enable: bool,
    landlock_rules: Vec<LandlockRule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Payload {
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initramfs: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmdline: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    firmware: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Cpus {
    boot_vcpus: u32,
    max_vcpus: u32,
    /// Whether the guest may run machines of its own. No: it would reach more of the host's kernel.
    nested: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Memory {
    size: u64,
    /// Other processes can read it: those that serve devices over vhost-user.
    shared: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct DiskConfig {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    readonly: Option<bool>,
    /// Given, not guessed: a guest that writes a qcow2 header into its raw disk must not change what it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    /// The guest's discards free the file's space.
    #[serde(skip_serializing_if = "Option::is_none")]
    sparse: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vhost_user: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vhost_socket: Option<PathBuf>,
    num_queues: u16,
    queue_size: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct FsConfig {
    id: String,
    tag: String,
    socket: PathBuf,
    num_queues: u16,
    queue_size: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Vsock {
    id: &'static str,
    cid: u64,
    socket: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Serial {
    mode: &'static str,
    socket: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Console {
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct PlatformConfig {
    uuid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct LandlockRule {
    path: PathBuf,
    access: &'static str,
}

/// The body of `vm.add-net`; the tap comes with it as a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetConfig {
    id: String,
    mac: String,
    num_queues: u16,
    queue_size: u16,
}

/// The body of `vm.resize-disk`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResizeDisk {
    /// The disk's id.
    pub id: String,
    /// Its new length in bytes.
    pub desired_size: u64,
}

/// The body of `vm.snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct SnapshotConfig {
    /// The folder.
    pub(super) destination_url: String,
}

/// The body of `vm.restore`; the taps come with it as descriptors, in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct RestoreConfig {
    /// The folder.
    pub(super) source_url: String,
    /// The interfaces.
    pub(super) net_fds: Vec<RestoredNet>,
    /// Whether the guest runs at once.
    pub(super) resume: bool,
}

/// An interface that finds another tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct RestoredNet {
    pub(super) id: String,
    pub(super) num_fds: u32,
}

/// The body of `vm.remove-device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct RemoveDevice {
    /// The device's id.
    pub(super) id: String,
}

/// Where a machine's sockets are.
#[derive(Clone, Debug)]
pub struct Sockets {
    /// The API.
    pub api: PathBuf,
    /// The events, a pipe.
    pub events: PathBuf,
    /// The serial console.
    pub serial: PathBuf,
    /// The hybrid vsock: the hypervisor listens here, and connects a guest that calls port N of the host to `<this>_N`.
    pub vsock: PathBuf,
}

impl Sockets {
    /// Those in `folder`, which is `ch` in that of a run. With that no name is longer than `rootfs.sock`.
    pub fn of(folder: &Path) -> Self {
        Self {
            api: folder.join("api"),
            events: folder.join("events"),
            serial: folder.join("com1"),
            vsock: folder.join("vs"),
        }
    }

    /// The socket at which calls of the guest to `port` of the host arrive.
    pub fn port(&self, port: u32) -> PathBuf {
        let mut path = self.vsock.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }
}

impl VmConfig {
    /// The description of `vm`, whose sockets are in `folder`.
    pub fn new(vm: &VmSpec, folder: &Path, sockets: &Sockets) -> Self {
        let payload = match &vm.boot {
            Boot::Kernel {
                kernel,
                initrd,
                cmdline,
            } => Payload {
                kernel: Some(kernel.clone()),
                initramfs: initrd.clone(),
                cmdline: Some(cmdline.clone()),
                firmware: None,
            },
            Boot::Firmware { code, .. } => Payload {
                kernel: None,
                initramfs: None,
                cmdline: None,
                firmware: Some(code.clone()),
            },
        };
        let is_served = |disk: &Disk| matches!(disk, Disk::VhostUser { .. });
        Self {
            cpus: Cpus {
                boot_vcpus: vm.cpus,
                max_vcpus: vm.cpus,
                nested: false,
            },
            memory: Memory {
                size: vm.memory_bytes,
                // Only of memory in a file, which shared memory is, zeros are left out when it is saved.
                shared: vm.is_saveable || !vm.shares.is_empty() || vm.disks.iter().any(is_served),
            },
            disks: vm.disks.iter().map(disk_config).collect(),
            fs: vm.shares.iter().map(fs_config).collect(),
            vsock: vm.agent.then(|| Vsock {
                id: "vsock0",
                cid: GUEST_CID,
                socket: sockets.vsock.clone(),
            }),
            serial: Serial {
                mode: "Socket",
                socket: sockets.serial.clone(),
            },
            console: Console { mode: "Off" },
            pvpanic: true,
            platform: PlatformConfig { uuid: vm.uuid.clone() },
            // Harmless where the kernel has none. All named files get rules of their own.
            landlock_enable: true,
            landlock_rules: landlock_rules(vm, folder),
            payload,
        }
    }
}

impl VmConfig {
    /// The same of a machine that is saved into `folder`.
    pub(super) fn with_saves(mut self, folder: &Path) -> Self {
        self.landlock_rules.push(LandlockRule {
            path: folder.to_owned(),
            access: "rw",
        });
        self
    }
}

fn disk_config(disk: &Disk) -> DiskConfig {
    let (served, queues, socket) = match disk {
        Disk::VhostUser { socket, queues, .. } => (Some(true), *queues, Some(socket.clone())),
        Disk::File { .. } | Disk::Nbd { .. } => (None, 1, None),
    };
    let mut config = DiskConfig {
        id: disk.id().to_owned(),
        path: None,
        readonly: None,
        image_type: None,
        serial: None,
        sparse: None,
        vhost_user: served,
        vhost_socket: socket,
        num_queues: queues,
        queue_size: 128,
    };
    if let Disk::File {
        path,
        serial,
        read_only,
        discard,
        ..
    } = disk
    {
        config.path = Some(path.clone());
        config.readonly = Some(*read_only);
        config.image_type = Some("Raw");
        config.serial = Some(serial.clone());
        config.sparse = Some(*discard);
    }
    config
}

fn fs_config(share: &Share) -> FsConfig {
    FsConfig {
        id: share.id.clone(),
        tag: share.tag.clone(),
        socket: share.socket.clone(),
        num_queues: 1,
        queue_size: 1024,
    }
}

/// What the hypervisor may touch: the folder of its sockets, and the files it is given.
fn landlock_rules(vm: &VmSpec, folder: &Path) -> Vec<LandlockRule> {
    let rule = |path: &Path, access| LandlockRule {
        path: path.to_owned(),
        access,
    };
    let mut rules = vec![rule(folder, "rw")];
    match &vm.boot {
        Boot::Kernel { kernel, initrd, .. } => {
            rules.push(rule(kernel, "r"));
            rules.extend(initrd.as_deref().map(|initrd| rule(initrd, "r")));
        }
        Boot::Firmware { code, .. } => rules.push(rule(code, "r")),
    }
    for disk in &vm.disks {
        if let Disk::File { path, read_only, .. } = disk {
            rules.push(rule(path, if *read_only { "r" } else { "rw" }));
        }
    }
    rules
}

impl NetConfig {
    /// The same as the hypervisor writes it down, with a place for the descriptor that comes with `vm.restore`.
    pub(super) fn with_descriptor(&self) -> serde_json::Result<Value> {
        let mut described = serde_json::to_value(self)?;
        described["fds"] = serde_json::json!([-1]);
        Ok(described)
    }

    /// The interface's id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// One pair of queues, which is what one descriptor of a tap makes.
    pub fn new(nic: &Nic) -> Self {
        Self {
            id: nic.id.clone(),
            mac: nic.mac.clone(),
            num_queues: 2,
            queue_size: 256,
        }
    }
}

/// What of `sent` is not in `understood`, as a path (`disks[0].serial`); `None` when everything is.
///
/// The hypervisor adds its defaults, and calls the numbers of the platform by other names than it takes them.
pub fn difference(sent: &Value, understood: &Value) -> Option<String> {
    compare(sent, understood, "")
}

fn compare(sent: &Value, understood: &Value, at: &str) -> Option<String> {
    match (sent, understood) {
        (Value::Object(sent), Value::Object(understood)) => sent.iter().find_map(|(key, value)| {
            let at = match at {
                "" => key.clone(),
                at => format!("{at}.{key}"),
            };
            let renamed = format!("system_{key}");
            match understood.get(key).or_else(|| understood.get(&renamed)) {
                Some(other) => compare(value, other, &at),
                None => Some(at),
            }
        }),
        (Value::Array(sent), Value::Array(understood)) if sent.len() == understood.len() => sent
            .iter()
            .zip(understood)
            .enumerate()
            .find_map(|(index, (sent, understood))| compare(sent, understood, &format!("{at}[{index}]"))),
        (sent, understood) => (sent != understood).then(|| at.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vm() -> VmSpec {
        serde_json::from_str(include_str!("../../tests/golden/vmspec-v1.json")).unwrap()
    }

    fn config(vm: &VmSpec) -> Value {
        let folder = Path::new("/run/m/ch");
        serde_json::to_value(VmConfig::new(vm, folder, &Sockets::of(folder))).unwrap()
    }

    #[test]
    fn the_description_of_a_container_machine() {
        let wanted: Value = serde_json::from_str(include_str!("../../tests/golden/ch-create.json")).unwrap();
        let made = config(&vm());
        assert_eq!(made, wanted, "{made:#}");
    }

    #[test]
    fn memory_is_shared_only_with_those_who_serve_devices() {
        let mut vm = vm();
        assert_eq!(config(&vm)["memory"]["shared"], true);
        vm.disks.retain(|disk| matches!(disk, Disk::File { .. }));
        assert_eq!(config(&vm)["memory"]["shared"], false);
    }

    #[test]
    fn firmware_comes_without_a_kernel() {
        let mut vm = vm();
        vm.boot = Boot::Firmware {
            code: "/fw/CLOUDHV.fd".into(),
            variables: None,
            sha256: None,
        };
        let config = config(&vm);
        assert_eq!(config["payload"], json!({"firmware": "/fw/CLOUDHV.fd"}));
        let rules = config["landlock_rules"].as_array().unwrap();
        assert!(
            rules.contains(&json!({"path": "/fw/CLOUDHV.fd", "access": "r"})),
            "{rules:?}"
        );
    }

    #[test]
    fn a_port_of_the_vsock_has_a_socket_of_its_own() {
        assert_eq!(
            Sockets::of(Path::new("/run/m/ch")).port(1024),
            PathBuf::from("/run/m/ch/vs_1024")
        );
    }

    #[test]
    fn what_was_not_understood_is_named() {
        let sent = json!({"a": {"b": 1}, "list": [{"c": true}], "platform": {"uuid": "u"}});
        let same = json!({"a": {"b": 1, "more": 2}, "list": [{"c": true}], "platform": {"system_uuid": "u"}, "x": 1});
        assert_eq!(difference(&sent, &same), None);
        let gone = json!({"a": {}, "list": [{"c": true}], "platform": {"system_uuid": "u"}});
        assert_eq!(difference(&sent, &gone).as_deref(), Some("a.b"));
        let other = json!({"a": {"b": 1}, "list": [{"c": false}], "platform": {"system_uuid": "u"}});
        assert_eq!(difference(&sent, &other).as_deref(), Some("list[0].c"));
        let fewer = json!({"a": {"b": 1}, "list": [], "platform": {"system_uuid": "u"}});
        assert_eq!(difference(&sent, &fewer).as_deref(), Some("list"));
    }
}
