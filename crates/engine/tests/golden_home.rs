//! A home of an earlier program (`golden-home`): everything in it is read, and means what it meant.

use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use zmachine_hypervisor::{Accel, accel};
use zmachine_network::{HostDns, Networks, Publish, PublishRequest};
use zmachine_plan::common::{ImageFacts, Inputs};
use zmachine_plan::{Content, Plan, VmRoot};
use zmachine_spec::volume::SharedDirectory;
use zmachine_spec::{
    Home, Kind, LogTarget, MachineSpec, NetworkRequest, Origin, Phase, RestartPolicy, SPEC_VERSION, User, VolumeRequest,
};
use zmachine_store::attempt::{Attempt, explain};
use zmachine_store::catalog::{Machine, VolumeUse};
use zmachine_store::events::EventReader;
use zmachine_store::journal::Journal;
use zmachine_store::volume::Volumes;
use zmachine_store::{catalog, tombstones};
use zmachine_sys::host::HostFacts;

/// The machines, with their ids.
const MACHINES: [(&str, &str); 6] = [
    ("web", "b8b05814621c"),
    ("job", "f189f8795ace"),
    ("every", "c94bd8c214c4"),
    ("vm", "4eabfc52d94b"),
    ("own", "b0132dfbc9cc"),
    ("disk", "01bc9ca42d60"),
];

/// The volumes, with their sizes in bytes.
const VOLUMES: [(&str, u64); 9] = [
    ("b8b05814621c-1", 32 << 20),
    ("bare", 2 << 20),
    ("boot", 64 << 20),
    ("c94bd8c214c4-1", 16 << 20),
    ("data", 64 << 20),
    ("keep", 16 << 20),
    ("odata", 32 << 20),
    ("uefi", 64 << 20),
    ("xfs", 10 << 30),
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-home")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

/// A copy of it, with the disks and links that the repository does not hold.
fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().unwrap();
    copy(&golden(), dir.path());
    let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
    for (name, id) in MACHINES {
        symlink(Path::new("..").join(id), home.by_name().join(name)).unwrap();
    }
    for (name, bytes) in VOLUMES {
        let disk = std::fs::File::create(dir.path().join("volumes").join(name).join("data.img")).unwrap();
        disk.set_len(bytes).unwrap();
    }
    (dir, home)
}

fn machine(home: &Home, name: &str) -> Machine {
    Machine::load(home, &catalog::find(home, name).unwrap()).unwrap()
}

fn volumes(texts: &[&str]) -> Vec<VolumeRequest> {
    let parse = |text: &&str| VolumeRequest::parse(text, Path::new("/")).unwrap();
    texts.iter().map(parse).collect()
}

#[test]
fn every_machine_is_read_and_its_spec_has_the_values_of_its_texts() {
    let (_dir, home) = home();
    let mut ids = catalog::ids(&home).unwrap();
    ids.sort();
    let mut known = MACHINES.map(|(_, id)| id);
    known.sort_unstable();
    assert_eq!(ids, known);

    let web = machine(&home, "web").spec;
    let publish = ["18080:80", "127.0.0.1:15353:53/udp", "19000-19001:9000-9001"];
    let wanted = MachineSpec {
        cpus: 1,
        memory_bytes: 256 << 20,
        size_bytes: 600 << 20,
        env: vec![("MODE".into(), "golden".into())],
        command: ["sh", "-c", "echo up; exec sleep 1000"].map(str::to_owned).into(),
        workdir: Some("/tmp".into()),
        user: Some(User {
            name: "web".into(),
            group: Some("web".into()),
        }),
        networks: vec![
            NetworkRequest::new("default"),
            NetworkRequest::parse(
                "inner:ip=10.77.0.7,ip=fd77::7,alias=db,allow=10.0.0.0/8:443,allow=[fd00::/8]:53/udp,rate=50mbit",
            )
            .unwrap(),
        ],
        publish: publish.map(|text| PublishRequest::parse(text).unwrap()).into(),
        dns: vec![IpAddr::from([9, 9, 9, 9])],
        accel: accel::Requested::Tcg,
        hypervisor: zmachine_hypervisor::choice::Requested::Qemu,
        stop_signal: Some("SIGRTMIN+3".parse().unwrap()),
        stop_timeout_s: Some(7),
        stores: vec!["dir:///srv/store".into()],
        labels: [("tier".to_owned(), "front".to_owned())].into(),
        volumes: volumes(&[
            "data:/data:size=64M,fs=ext4",
            "/cache:size=32M",
            "/srv/share:/shared:ro",
        ]),
        prefetch: zmachine_rootfs::Prefetch::All,
        network_aliases: vec!["www".into()],
        restart: "on-failure:3".parse().unwrap(),
        log_limits: zmachine_spec::LogLimits {
            file_bytes: 2 << 20,
            files: 3,
            ..Default::default()
        },
        log_to: Some(LogTarget::Tcp("127.0.0.1:9".into())),
        secrets: vec![("db".into(), "/srv/pw".into())],
        jail: zmachine_spec::JailChoice::Off,
        ..MachineSpec::new("web", "/srv/images/box.fl")
    };
    assert_eq!(web, wanted);
    assert_eq!(web.volumes[2].origin, Origin::Directory("/srv/share".into()));
    assert_eq!(web.networks[1].policy.allow.len(), 2);

    let vm = machine(&home, "vm").spec;
    assert_eq!(vm.volumes, volumes(&["boot:/:size=64M", "bare:/bare:fs=none,size=2M"]));
    assert_eq!(
        (vm.restart, vm.networks[0].aliases.as_slice()),
        (RestartPolicy::Always, &["machine".to_owned()][..])
    );
    let every = machine(&home, "every").spec;
    assert_eq!(every.restart, RestartPolicy::UnlessStopped);
    assert_eq!(every.entrypoint.unwrap(), ["/bin/echo", "a b"]);
}

#[test]
fn a_spec_that_is_written_again_has_todays_version_and_the_same_values() {
    let (_dir, home) = home();
    for (name, _) in MACHINES {
        let machine = machine(&home, name);
        assert_eq!(machine.spec.version, SPEC_VERSION);
        let written = || std::fs::read_to_string(MachineSpec::path(&machine.dir)).unwrap();
        assert!(written().contains("\"version\": 1"), "reading changes no file");
        machine.spec.write(&machine.dir).unwrap();
        assert!(written().contains(&format!("\"version\": {SPEC_VERSION}")));
        assert_eq!(MachineSpec::read(&machine.dir).unwrap(), machine.spec, "{name}");
    }
    let newer = machine(&home, "job").dir;
    std::fs::write(MachineSpec::path(&newer), r#"{"version": 3, "form": "unknown"}"#).unwrap();
    let failure = MachineSpec::read(&newer).unwrap_err();
    assert_eq!(failure.class, zmachine_spec::Class::Unsupported);
    assert!(failure.message.contains("version 3"), "{failure}");
}

#[test]
fn states_plans_and_records_are_read() {
    let (dir, home) = home();
    assert_eq!(machine(&home, "web").state.phase, Phase::Running);
    let exit = zmachine_spec::Exit::Code(3);
    assert_eq!(machine(&home, "job").state.phase, Phase::Stopped { exit });
    for (name, kind) in [
        ("web", Kind::Container),
        ("job", Kind::Container),
        ("every", Kind::Container),
        ("own", Kind::Container),
        ("vm", Kind::Vm),
        ("disk", Kind::Vm),
    ] {
        let machine = machine(&home, name);
        let plan = machine.plan().unwrap();
        assert_eq!((plan.kind(), machine.state.kind), (kind, kind), "{name}");
        assert_eq!(plan.vm().name, name);
        // What it was written as, but for what is new since.
        let again: Plan = serde_json::from_value(serde_json::to_value(&plan).unwrap()).unwrap();
        assert_eq!(again, plan);
    }
    let Plan::Vm(own) = machine(&home, "own").plan().unwrap() else {
        panic!("a container's plan")
    };
    assert!(matches!(&own.root, VmRoot::Tree(image) if image.starts_with("414c38e7")));

    for name in ["web", "job"] {
        let attempts = Attempt::all(&machine(&home, name).dir);
        assert_eq!(attempts.len(), 1, "{name}");
        explain(&attempts[0]);
    }
    let (buried, spec) = tombstones::find(&home, "gone").unwrap();
    assert_eq!(
        (buried.id.as_str(), spec.volumes),
        ("0d842bb5c9de", volumes(&["keep:/k:size=16M"]))
    );
    let mut reader = EventReader::open(&home);
    let events = std::iter::from_fn(|| reader.next_event().unwrap());
    assert!(events.count() > MACHINES.len());
    let journal = Journal::open(&machine(&home, "web").dir).unwrap();
    assert_eq!(journal.claims().count(), 9);

    let networks = Networks::open(dir.path()).unwrap();
    let names: Vec<String> = networks.list().unwrap().iter().map(|n| n.name().to_owned()).collect();
    assert_eq!(names, ["default", "inner"]);
    assert_eq!(networks.leases("inner").unwrap().len(), 6);
}

#[test]
fn volumes_are_known_with_their_users() {
    let (_dir, home) = home();
    let volumes = Volumes::new(&home);
    let listed: Vec<String> = volumes
        .list()
        .unwrap()
        .into_iter()
        .map(|volume| volume.unwrap().name)
        .collect();
    assert_eq!(listed, VOLUMES.map(|(name, _)| name));
    for (name, user) in [
        ("data", "web"),
        ("b8b05814621c-1", "web"),
        ("boot", "vm"),
        ("odata", "own"),
        ("xfs", "every"),
    ] {
        assert_eq!(machine(&home, user).volume_use(name), Some(VolumeUse::Writes), "{name}");
        assert_eq!(volumes.users(name).unwrap(), [user], "{name}");
    }
    for (name, id) in MACHINES {
        let spec = machine(&home, name).spec;
        let wanted = volumes.wanted(&spec.volumes, id).unwrap();
        assert!(
            wanted.iter().all(|volume| volume.new.is_none()),
            "{name}: all are there"
        );
    }
}

/// The specs of containers, planned again with what the plan of then says of image, kernel and networks, give that plan.
#[test]
fn containers_are_planned_as_they_were() {
    let (_dir, home) = home();
    for name in ["web", "job", "every"] {
        let machine = machine(&home, name);
        let Plan::Container(then) = machine.plan().unwrap() else {
            panic!("{name} is a container")
        };
        let spec = &machine.spec;
        let volumes = Volumes::new(&home).wanted(&spec.volumes, &machine.id).unwrap();
        let shares: Vec<SharedDirectory> = spec
            .volumes
            .iter()
            .filter_map(|request| match &request.origin {
                Origin::Directory(path) => Some(SharedDirectory {
                    path: path.clone(),
                    target: request.target.clone(),
                    read_only: request.read_only,
                }),
                _ => None,
            })
            .collect();
        let image = ImageFacts {
            digest: then.image.clone(),
            ..ImageFacts::default()
        };
        let host = HostFacts {
            cpus: 8,
            cpu_numbers: Vec::new(),
            memory_total_bytes: 8 << 30,
            memory_available_bytes: 8 << 30,
            boot_id: "boot".into(),
            kernel: "6.1".into(),
            is_root: true,
            may_change_user: true,
            cgroup_v2: false,
        };
        let dns = HostDns::default();
        let inputs = Inputs {
            id: &machine.id,
            home: &home,
            host: &host,
            accel: Accel::Tcg,
            hypervisor: then.hypervisor.clone(),
            cloud_firmware: None,
            attachments: then.attachments.clone(),
            host_dns: &dns,
            shares: &shares,
            has_share_server: true,
        };
        let content = Content::Container {
            image: &image,
            kernel: &then.kernel,
            volumes: &volumes,
        };
        let Plan::Container(now) = Plan::new(spec, content, inputs).unwrap() else {
            panic!("{name} is a container")
        };
        assert_eq!(now.process.args, then.process.args, "{name}");
        assert_eq!(now.process.user, then.process.user, "{name}");
        assert_eq!(now.process.cwd, then.process.cwd, "{name}");
        assert_eq!(now.process.env, then.process.env, "{name}");
        assert_eq!(now.boot.nameservers, then.boot.nameservers, "{name}");
        assert_eq!(now.boot.interfaces, then.boot.interfaces, "{name}");
        let place =
            |mount: &zmachine_agent_protocol::Mount| (mount.serial.clone(), mount.target.clone(), mount.read_only);
        let [mounts_now, mounts_then] =
            [&now, &then].map(|plan| plan.boot.mounts.iter().map(place).collect::<Vec<_>>());
        assert_eq!(mounts_now, mounts_then, "{name}");
        assert_eq!(now.volumes, then.volumes, "{name}");
        assert_eq!(now.shares, then.shares, "{name}");
        assert_eq!(now.stores, then.stores, "{name}");
        assert_eq!(now.labels, then.labels, "{name}");
        assert_eq!(
            (now.stop_signal, now.stop_grace_ms),
            (then.stop_signal, then.stop_grace_ms),
            "{name}"
        );
        assert_eq!(
            (now.upper_bytes, now.vm.memory_bytes),
            (then.upper_bytes, then.vm.memory_bytes),
            "{name}"
        );
    }
}

#[test]
fn the_ports_of_a_plan_are_those_of_its_spec() {
    let (_dir, home) = home();
    let machine = machine(&home, "web");
    let plan = machine.plan().unwrap();
    let planned: Vec<&Publish> = plan.attachments().iter().flat_map(|a| &a.publish).collect();
    assert_eq!(planned.len(), machine.spec.publish.len());
    for (planned, asked) in planned.into_iter().zip(&machine.spec.publish) {
        assert_eq!(Some(planned.host), asked.host);
        assert_eq!(
            (planned.address, planned.guest, planned.protocol),
            (asked.address, asked.guest, asked.protocol)
        );
    }
}
