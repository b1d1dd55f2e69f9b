//! QEMU's command line for a machine: a pure function. Every device and flag is here with its reason.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::RawFd;
use std::path::Path;

use serde_json::{Value, json};

use crate::spec::later_file_id;
use crate::{Accel, Boot, Disk, LaterDisk, LaterFile, Nic, NicKind, Platform, Share, VmSpec};

use super::Qemu;

/// The name of the guest's port to its agent: `/dev/virtio-ports/<name>`.
pub const AGENT_PORT: &str = "org.zmachine.agent.0";

/// Where a [`Platform::Pc`]'s agent is connected to, in the folder of its run.
pub const AGENT_SOCKET: &str = "agent.sock";

/// The device of the agent's port, as events name it.
pub(super) const AGENT_DEVICE: &str = "agent-port";

/// Slots for interfaces that come while the machine runs. Each is one more bridge that a guest finds at boot.
pub(super) const HOTPLUG_SLOTS: [&str; 2] = ["later0", "later1"];

/// The numbers of the descriptors that QEMU inherits.
#[derive(Clone, Debug, Default)]
pub struct Channels {
    /// The control channel.
    pub qmp: RawFd,
    /// The serial console.
    pub console: RawFd,
    /// The agent's byte stream on a [`Platform::Lean`].
    pub agent: Option<RawFd>,
    /// The listening socket for the agent's streams on a [`Platform::Pc`].
    pub agent_listener: Option<RawFd>,
    /// The tap of every interface, by the interface's id.
    pub taps: HashMap<String, RawFd>,
    /// `/dev/vhost-net`, opened once for every interface, by its id; none: packets go through QEMU.
    pub vhost: HashMap<String, RawFd>,
    /// The file that is the guest's memory, of a machine that can be saved.
    pub memory: Option<Memory>,
    /// It begins with a state that is given on the control channel, and not with firmware and kernel.
    pub is_restored: bool,
    /// The open files of disks by the disks' ids, and those of [`FIRMWARE_CODE`] and [`FIRMWARE_VARIABLES`].
    pub files: BTreeMap<String, RawFd>,
}

/// The file that is the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Its descriptor.
    pub fd: RawFd,
    /// What the guest writes stays in its process: the file is that of many.
    pub is_private: bool,
}

/// The firmware's code in [`Channels::files`].
pub const FIRMWARE_CODE: &str = "firmware-code";
/// The firmware's variables in [`Channels::files`].
pub const FIRMWARE_VARIABLES: &str = "firmware-variables";

impl Channels {
    /// The path by which QEMU opens a file that it was given as a descriptor.
    fn path(&self, id: &str) -> String {
        let set = self
            .files
            .keys()
            .position(|key| key == id)
            .map_or(-1, |at| at as i64 + 1);
        format!("/dev/fdset/{set}")
    }
}

/// The arguments for `vm`, without the program's name.
pub fn arguments(vm: &VmSpec, host: &Qemu, channels: &Channels) -> Vec<String> {
    let mut args = Args::default();
    machine(&mut args, vm, channels);
    control(&mut args, vm, channels);
    for (index, fd) in channels.files.values().enumerate() {
        args.add("-add-fd", format!("fd={fd},set={}", index + 1));
    }
    boot(&mut args, vm, channels);
    let starts_from_disk = matches!(vm.boot, Boot::Firmware { .. });
    for (index, disk) in vm.disks.iter().enumerate() {
        args.disk(disk, host, channels, starts_from_disk && index == 0);
    }
    for share in &vm.shares {
        args.share(share);
    }
    for nic in &vm.nics {
        let fd = channels.taps.get(&nic.id).copied().unwrap_or(-1);
        let id = &nic.id;
        let netdev = match nic.kind {
            NicKind::Tap => {
                let vhost = match channels.vhost.get(id) {
                    Some(fd) => format!("on,vhostfd={fd}"),
                    None => "off".to_owned(),
                };
                format!("tap,id={id},fd={fd},vhost={vhost}")
            }
            NicKind::Stream => format!("stream,id={id},server=off,addr.type=fd,addr.str={fd}"),
        };
        args.add("-netdev", netdev);
        args.device(nic_device(nic, vm.is_saveable));
    }
    // The root bus takes nothing while the machine runs.
    let nic_slots = nic_slots(vm).iter();
    let files = (0..vm.later_files).map(later_file_id);
    let disk_slots = vm.later_disks.iter().map(|disk| disk.id.clone()).chain(files);
    let disk_slots = disk_slots.map(|id| disk_slot(&id));
    for (index, slot) in nic_slots.map(ToString::to_string).chain(disk_slots).enumerate() {
        args.device(format!("pcie-root-port,id={slot},chassis={}", index + 1));
    }
    args.0
}

fn machine(args: &mut Args, vm: &VmSpec, channels: &Channels) {
    args.add("-name", format!("guest={},debug-threads=on", escape(&vm.name)));
    args.add("-uuid", vm.uuid.clone());
    // Nothing that was not asked for: no default devices, no configuration files, no window.
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.add("-display", "none");
    args.add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    args.add(
        "-machine",
        match vm.platform {
            // Without legacy devices that the guest would only spend time probing.
            Platform::Lean => "q35,memory-backend=mem0,vmport=off,i8042=off,sata=off,smbus=off,hpet=off,graphics=off",
            // With the keyboard controller, which is how `reboot=k` resets; without what only a screen or a CD needs.
            Platform::Pc => "q35,memory-backend=mem0,vmport=off,sata=off,graphics=off",
        },
    );
    match vm.accel {
        Accel::Kvm => args.add("-accel", "kvm").add("-cpu", "host"),
        // 1 GiB of translated code per machine is the default; 256 MiB are plenty and boot as fast.
        Accel::Tcg => args.add("-accel", "tcg,tb-size=256").add("-cpu", "max"),
    };
    args.add("-smp", format!("cpus={0},sockets=1,cores={0},threads=1", vm.cpus));
    args.add("-m", format!("size={}M", vm.memory_bytes >> 20));
    // Shared, because a vhost-user process reads the guest's memory; by descriptor, because /dev/shm may be small.
    let size = vm.memory_bytes >> 20;
    let memory = match channels.memory {
        None => format!("memory-backend-memfd,id=mem0,size={size}M,share=on"),
        // By a name: from QEMU 8.1 on, saving leaves out no other memory.
        Some(Memory { fd, is_private }) => format!(
            "memory-backend-file,id=mem0,size={size}M,mem-path=/proc/self/fd/{fd},share={}",
            on_off(!is_private)
        ),
    };
    args.add("-object", memory);
    if channels.is_restored {
        args.add("-incoming", "defer");
    }
    // The process stays when the guest ends, so that the reason can be read and is not lost with it.
    args.flag("-no-shutdown");
    if vm.platform == Platform::Lean {
        args.flag("-no-reboot");
    }
    args.add("-action", "panic=pause");
}

fn control(args: &mut Args, vm: &VmSpec, channels: &Channels) {
    args.add("-chardev", format!("socket,id=qmp,fd={}", channels.qmp));
    args.add("-mon", "chardev=qmp,mode=control");
    args.add("-chardev", format!("socket,id=console,fd={}", channels.console));
    args.add("-serial", "chardev:console");
    args.device("pvpanic-pci".into());
    let (chardev, id) = match (vm.platform, channels.agent) {
        (Platform::Lean, None) => return,
        (Platform::Lean, Some(fd)) => (format!("socket,id=agent,fd={fd}"), String::new()),
        (Platform::Pc, _) if !vm.agent => return,
        // A listening socket, so that each life of the guest's agent gets a connection of its own, and none reads what was meant for
        // the one before it.
        (Platform::Pc, _) => (
            format!(
                "socket,id=agent,fd={},server=on,wait=off",
                channels.agent_listener.unwrap_or(-1)
            ),
            format!(",id={AGENT_DEVICE}"),
        ),
    };
    args.add("-chardev", chardev);
    // One console that virtio always has, and the agent's port; each further one costs queues at boot.
    args.device("virtio-serial-pci-non-transitional,id=serial0,max_ports=2".into());
    args.device(format!(
        "virtserialport,bus=serial0.0,chardev=agent,name={AGENT_PORT}{id}"
    ));
}

fn boot(args: &mut Args, vm: &VmSpec, channels: &Channels) {
    match &vm.boot {
        Boot::Kernel {
            kernel,
            initrd,
            cmdline,
        } => {
            if vm.platform == Platform::Lean {
                // A minimal firmware that enters the kernel through PVH: 0.04 s less than the default one.
                args.add("-bios", super::QBOOT);
            }
            // All of it is in the restored memory.
            if channels.is_restored {
                return;
            }
            args.add("-kernel", kernel.display().to_string());
            if let Some(initrd) = initrd {
                args.add("-initrd", initrd.display().to_string());
            }
            args.add("-append", cmdline.clone());
        }
        Boot::Firmware { variables, .. } => {
            let flash = |unit: u8, read_only: &str, file: &str| {
                let file = channels.path(file);
                // One descriptor for both: by itself QEMU would open what it may write for reading first.
                format!("if=pflash,unit={unit},format=raw,readonly={read_only},auto-read-only=off,file={file}")
            };
            args.add("-drive", flash(0, "on", FIRMWARE_CODE));
            if variables.is_some() {
                args.add("-drive", flash(1, "off", FIRMWARE_VARIABLES));
            }
        }
    }
}

/// The network device of an interface. No option ROM: nothing boots from the network.
///
/// One that is restored must not announce the addresses that it was saved with: by the protocol's own feature its guest would, as its
/// first act. Without the feature nothing has to be told so, which QEMU 7.2 does not survive when the guest resets the device later.
fn nic_device(nic: &Nic, is_saveable: bool) -> String {
    let mtu = nic.mtu.map(|mtu| format!(",host_mtu={mtu}")).unwrap_or_default();
    let announce = if is_saveable { ",guest_announce=off" } else { "" };
    format!(
        "virtio-net-pci-non-transitional,id=dev-{0},netdev={0},mac={1},romfile={mtu}{announce}",
        nic.id, nic.mac
    )
}

/// The slots of a machine for interfaces that come while it runs. One that has places for files is a pod, whose network is what it was at
/// its start.
pub(super) fn nic_slots(vm: &VmSpec) -> &'static [&'static str] {
    match vm.nics.is_empty() || vm.later_files > 0 {
        true => &[],
        false => &HOTPLUG_SLOTS,
    }
}

/// The slot of a disk that comes while the machine runs.
fn disk_slot(id: &str) -> String {
    format!("slot-{id}")
}

/// The channel of a disk that comes while the machine runs, and the disk itself, as the control channel takes them. QEMU connects again
/// when the serving process was restarted.
pub(super) fn later_disk(disk: &LaterDisk) -> (Value, Value) {
    let LaterDisk { id, socket, queues } = disk;
    let address = json!({"type": "unix", "data": {"path": socket}});
    let data = json!({"addr": address, "server": false, "reconnect": 1});
    let channel = json!({"id": format!("chr-{id}"), "backend": {"type": "socket", "data": data}});
    let device = json!({
        "driver": "vhost-user-blk-pci-non-transitional", "id": format!("dev-{id}"), "chardev": format!("chr-{id}"),
        "num-queues": queues, "bus": disk_slot(id),
    });
    (channel, device)
}

/// The block node of a file that comes while the machine runs, and its disk, as the control channel takes them. `set`: by which QEMU
/// has it.
pub(super) fn later_file(file: &LaterFile, set: u64) -> (Value, Value) {
    let (id, sector) = (file.id(), file.sector_bytes);
    // What the host's kernel would keep of a device, the guest's keeps already; layers are read by many machines.
    let (driver, is_direct) = match file.is_device {
        true => ("host_device", true),
        false => ("file", false),
    };
    let node = json!({
        "driver": "raw", "node-name": id, "read-only": file.read_only, "discard": "unmap",
        "file": {
            "driver": driver, "filename": format!("/dev/fdset/{set}"), "read-only": file.read_only, "auto-read-only": false,
            "discard": "unmap", "cache": {"direct": is_direct},
            // Whoever opened it has seen to that.
            "locking": "off",
        },
    });
    let device = json!({
        "driver": "virtio-blk-pci-non-transitional", "id": format!("dev-{id}"), "drive": id, "serial": file.serial,
        "logical_block_size": sector, "physical_block_size": sector, "bus": disk_slot(&id),
    });
    (node, device)
}

/// The same for an interface that comes while the machine runs, as the control channel takes it.
pub(super) fn later_nic(nic: &Nic, slot: &str) -> Value {
    let mut device = json!({
        "driver": "virtio-net-pci-non-transitional", "id": format!("dev-{}", nic.id), "netdev": nic.id, "mac": nic.mac,
        "romfile": "", "bus": slot,
    });
    if let Some(mtu) = nic.mtu {
        device["host_mtu"] = json!(mtu);
    }
    device
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn add(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.extend([name.to_owned(), value.into()]);
        self
    }

    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn device(&mut self, value: String) {
        self.add("-device", value);
    }

    fn disk(&mut self, disk: &Disk, host: &Qemu, channels: &Channels, is_started_from: bool) {
        // The firmware would try the network before it.
        let order = if is_started_from { ",bootindex=0" } else { "" };
        match disk {
            Disk::File {
                id, serial, discard, ..
            } => {
                self.add("-blockdev", file_node(disk, host, channels).to_string());
                self.device(format!(
                    "virtio-blk-pci-non-transitional,id=dev-{id},drive={id},serial={},discard={}{order}",
                    escape(serial),
                    on_off(*discard)
                ));
            }
            Disk::Nbd {
                id,
                socket,
                serial,
                queues,
            } => {
                self.add("-blockdev", nbd_node(id, socket).to_string());
                self.device(format!(
                    "virtio-blk-pci-non-transitional,id=dev-{id},drive={id},serial={},num-queues={queues}{order}",
                    escape(serial)
                ));
            }
            Disk::VhostUser { id, socket, queues } => {
                // QEMU connects again when the serving process was restarted.
                let path = escape(&socket.display().to_string());
                self.add("-chardev", format!("socket,id=chr-{id},path={path},reconnect=1"));
                self.device(format!(
                    "vhost-user-blk-pci-non-transitional,id=dev-{id},chardev=chr-{id},num-queues={queues}{order}"
                ));
            }
        }
    }
}

impl Args {
    /// Not connected again when its process ends: that has what the guest knows of the files.
    fn share(&mut self, share: &Share) {
        let Share { id, tag, socket } = share;
        let path = escape(&socket.display().to_string());
        self.add("-chardev", format!("socket,id=chr-{id},path={path}"));
        self.device(format!(
            "vhost-user-fs-pci,id=dev-{id},chardev=chr-{id},tag={},queue-size=1024",
            escape(tag)
        ));
    }
}

/// The block node of a disk's file, as `-blockdev` and `blockdev-add` take it.
fn file_node(disk: &Disk, host: &Qemu, channels: &Channels) -> serde_json::Value {
    let Disk::File {
        id, read_only, discard, ..
    } = disk
    else {
        return serde_json::Value::Null;
    };
    serde_json::json!({
        "driver": "raw",
        "node-name": id,
        "read-only": read_only,
        "discard": if *discard { "unmap" } else { "ignore" },
        // Locked, so that no two machines write to one file.
        "file": {
            "driver": "file",
            "filename": channels.path(id),
            "aio": if host.io_uring { "io_uring" } else { "threads" },
            "locking": "on",
        },
    })
}

/// Seconds for which requests wait for a server that is started again.
const NBD_RECONNECT_S: u32 = 60;

/// The block node of a disk that is served over NBD.
fn nbd_node(id: &str, socket: &Path) -> serde_json::Value {
    serde_json::json!({
        "driver": "nbd",
        "node-name": id,
        "read-only": true,
        "reconnect-delay": NBD_RECONNECT_S,
        "server": { "type": "unix", "path": socket },
    })
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// QEMU's options end at a comma unless it is doubled.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> VmSpec {
        serde_json::from_str(include_str!("../../tests/golden/vmspec-v1.json")).unwrap()
    }

    fn line(vm: &VmSpec) -> String {
        let taps = HashMap::from([("net0".to_owned(), 9)]);
        let files = vm.disks.iter().filter(|disk| matches!(disk, Disk::File { .. }));
        let mut files: BTreeMap<String, RawFd> = files.zip(11..).map(|(disk, fd)| (disk.id().to_owned(), fd)).collect();
        if matches!(vm.boot, Boot::Firmware { .. }) {
            files.extend([(FIRMWARE_CODE.to_owned(), 21), (FIRMWARE_VARIABLES.to_owned(), 22)]);
        }
        let channels = Channels {
            qmp: 5,
            console: 6,
            agent: vm.agent.then_some(7),
            agent_listener: Some(8),
            taps,
            vhost: HashMap::new(),
            memory: vm.is_saveable.then_some(Memory {
                fd: 30,
                is_private: false,
            }),
            is_restored: false,
            files,
        };
        arguments(vm, &Qemu::assumed("qemu-system-x86_64"), &channels).join(" ")
    }

    #[test]
    fn the_command_line_of_a_container_machine() {
        let wanted = include_str!("../../tests/golden/qemu-arguments.txt").replace('\n', " ");
        assert_eq!(line(&vm()), wanted.trim_end());
    }

    #[test]
    fn a_disk_that_may_come_later_has_a_slot_and_nothing_else() {
        let mut vm = vm();
        let socket = Path::new("/run/m/root1.sock").to_owned();
        let disk = LaterDisk {
            id: "root1".into(),
            socket,
            queues: 2,
        };
        vm.later_disks = vec![disk.clone()];
        let line = line(&vm);
        assert!(
            line.ends_with("pcie-root-port,id=later1,chassis=2 -device pcie-root-port,id=slot-root1,chassis=3"),
            "{line}"
        );
        assert!(!line.contains("root1.sock"), "{line}");
        let (channel, device) = later_disk(&disk);
        assert_eq!(channel["backend"]["data"]["addr"]["data"]["path"], "/run/m/root1.sock");
        assert_eq!(
            (&device["bus"], &device["chardev"]),
            (&json!("slot-root1"), &channel["id"])
        );
    }

    #[test]
    fn a_device_of_the_host_that_comes_later_has_its_sectors_and_is_opened_by_its_set() {
        let vm = VmSpec { later_files: 1, ..vm() };
        let line = line(&vm);
        assert!(
            line.ends_with("-device pcie-root-port,id=slot-file1,chassis=1"),
            "{line}"
        );
        let file = LaterFile {
            place: 0,
            serial: "zm-dev-7-1".into(),
            read_only: false,
            is_device: true,
            bytes: 1 << 20,
            sector_bytes: 4096,
        };
        let (node, device) = later_file(&file, 9);
        assert_eq!(
            (&node["file"]["driver"], &node["file"]["filename"], &node["read-only"]),
            (&json!("host_device"), &json!("/dev/fdset/9"), &json!(false))
        );
        assert_eq!(
            (&device["bus"], &device["logical_block_size"], &device["serial"]),
            (&json!("slot-file1"), &json!(4096), &json!("zm-dev-7-1"))
        );
    }

    #[test]
    fn an_interface_may_be_a_stream_of_frames() {
        let mut vm = vm();
        vm.nics[0].kind = NicKind::Stream;
        assert!(line(&vm).contains("-netdev stream,id=net0,server=off,addr.type=fd,addr.str=9 -device virtio-net"));
    }

    fn pc() -> VmSpec {
        VmSpec {
            platform: Platform::Pc,
            disks: vec![vm().disks[1].clone()],
            ..vm()
        }
    }

    #[test]
    fn a_shared_directory_is_a_device_of_its_own() {
        let shares = vec![crate::Share {
            id: "share0".into(),
            tag: "zm-share0".into(),
            socket: "/run/a,b/share0.sock".into(),
        }];
        let line = line(&VmSpec { shares, ..vm() });
        assert!(line.contains("-chardev socket,id=chr-share0,path=/run/a,,b/share0.sock -device vhost-user-fs-pci,id=dev-share0,chardev=chr-share0,tag=zm-share0,queue-size=1024"), "{line}");
    }

    #[test]
    fn a_machine_that_can_be_saved_has_memory_with_a_name_and_a_disk_that_does_not_see_it() {
        let mut vm = VmSpec {
            is_saveable: true,
            ..vm()
        };
        vm.disks[0] = Disk::Nbd {
            id: "root".into(),
            socket: "/run/a,b/rootfs.sock".into(),
            serial: "zm-root".into(),
            queues: 2,
        };
        let line = line(&vm);
        assert!(
            line.contains("memory-backend-file,id=mem0,size=512M,mem-path=/proc/self/fd/30,share=on"),
            "{line}"
        );
        assert!(
            line.contains(",guest_announce=off")
                && line.contains(r#""server":{"path":"/run/a,b/rootfs.sock","type":"unix"}"#),
            "{line}"
        );
        assert!(
            line.contains("virtio-blk-pci-non-transitional,id=dev-root,drive=root,serial=zm-root,num-queues=2"),
            "{line}"
        );
    }

    #[test]
    fn a_restored_machine_has_no_kernel_to_start() {
        let channels = Channels {
            memory: Some(Memory {
                fd: 30,
                is_private: true,
            }),
            is_restored: true,
            ..Channels::default()
        };
        let line = arguments(&vm(), &Qemu::assumed("qemu-system-x86_64"), &channels).join(" ");
        assert!(
            line.contains("share=off") && line.contains("-incoming defer") && line.contains("-bios qboot.rom"),
            "{line}"
        );
        assert!(!line.contains("-kernel") && !line.contains("-append"), "{line}");
    }

    #[test]
    fn a_pc_restarts_when_its_guest_resets_and_has_what_that_takes() {
        let line = line(&pc());
        assert!(
            !line.contains("-no-reboot") && !line.contains("i8042=off") && !line.contains("qboot"),
            "{line}"
        );
        assert!(
            line.contains("-no-shutdown") && line.contains("-action panic=pause"),
            "{line}"
        );
        assert!(
            line.contains("fd=8,server=on,wait=off") && line.contains(",id=agent-port"),
            "{line}"
        );
        assert!(line.contains("-kernel /k/vmlinux"), "{line}");
    }

    #[test]
    fn a_disk_with_a_boot_loader_is_started_by_firmware() {
        let boot = Boot::Firmware {
            code: "/fw/CODE.fd".into(),
            variables: Some("/m/a,b.fd".into()),
            sha256: None,
        };
        let line = line(&VmSpec { boot, ..pc() });
        assert!(
            line.contains("-add-fd fd=21,set=2")
                && line.contains("if=pflash,unit=0,format=raw,readonly=on,auto-read-only=off,file=/dev/fdset/2"),
            "{line}"
        );
        assert!(
            line.contains("-add-fd fd=22,set=3")
                && line.contains("if=pflash,unit=1,format=raw,readonly=off,auto-read-only=off,file=/dev/fdset/3"),
            "{line}"
        );
        assert!(
            line.contains("discard=on,bootindex=0") && !line.contains("-kernel"),
            "{line}"
        );
    }

    #[test]
    fn a_comma_in_a_path_or_name_does_not_end_the_option() {
        let mut vm = vm();
        vm.name = "a,b".into();
        vm.disks = vec![Disk::VhostUser {
            id: "root".into(),
            socket: "/run/x,server=on".into(),
            queues: 1,
        }];
        assert!(line(&vm).contains("guest=a,,b,debug"));
        assert!(line(&vm).contains("path=/run/x,,server=on,reconnect=1"));
    }

    #[test]
    fn a_read_only_disk_without_discard_says_so() {
        let mut vm = vm();
        let (id, path, serial) = ("ro".to_owned(), "/a b\"c".into(), "s".to_owned());
        vm.disks = vec![Disk::File {
            id,
            path,
            serial,
            read_only: true,
            discard: false,
        }];
        let line = line(&vm);
        assert!(
            line.contains(r#""read-only":true"#) && line.contains(r#""discard":"ignore""#),
            "{line}"
        );
        assert!(
            line.contains("-add-fd fd=11,set=1") && line.contains(r#""filename":"/dev/fdset/1""#),
            "{line}"
        );
    }

    #[test]
    fn a_machine_without_agent_has_no_serial_ports() {
        let vm = VmSpec { agent: false, ..vm() };
        assert!(!line(&vm).contains("virtio-serial"));
    }

    #[test]
    fn kvm_uses_the_hosts_processor() {
        let vm = VmSpec {
            accel: Accel::Kvm,
            ..vm()
        };
        assert!(line(&vm).contains("-accel kvm -cpu host"));
    }
}
