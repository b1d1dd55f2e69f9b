//! Plans of containers.

use zmachine_hypervisor::Accel;

use super::super::fixture::{Around, planned};
use super::super::{Content, Plan};
use super::*;
use zmachine_agent_protocol::Mount;
use zmachine_spec::volume::SharedDirectory;
use zmachine_spec::{Class, Failure};

fn plan_of(spec: &MachineSpec, image: &ImageFacts) -> Result<ContainerPlan, PlanError> {
    plan_with(spec, image, &[])
}

fn plan_with(spec: &MachineSpec, image: &ImageFacts, shares: &[SharedDirectory]) -> Result<ContainerPlan, PlanError> {
    let kernel = KernelChoice {
        name: "k".into(),
        vmlinux: "/k/vmlinux".into(),
        initramfs: "/k/initramfs".into(),
    };
    let content = Content::Container {
        image,
        kernel: &kernel,
        volumes: &[],
    };
    let around = Around {
        accel: Accel::Tcg,
        shares,
        ..Around::default()
    };
    match planned(spec, content, &around)? {
        Plan::Container(plan) => Ok(*plan),
        Plan::Vm(_) => panic!("a VM"),
    }
}

fn plan(change: impl FnOnce(&mut MachineSpec)) -> Result<ContainerPlan, PlanError> {
    let mut spec = MachineSpec::new("web", "/x.fl");
    spec.networks.clear();
    change(&mut spec);
    plan_of(&spec, &ImageFacts::default())
}

fn image() -> ImageFacts {
    ImageFacts {
        digest: "d".into(),
        command: vec!["/bin/server".into(), "-v".into()],
        env: vec![("LANG".into(), "C".into()), ("MODE".into(), "image".into())],
        workdir: Some("/srv".into()),
        ..ImageFacts::default()
    }
}

#[test]
fn the_root_is_sized_by_the_rule_of_zero_os() {
    assert_eq!(root_size(1, 512 << 20, 0), 500 << 20);
    assert_eq!(root_size(4, 2 << 30, 0), 2 << 30);
    assert_eq!(root_size(1, 512 << 20, 10 << 30), 10 << 30);
    assert_eq!(
        root_size(1, 512 << 20, 100 << 20),
        500 << 20,
        "a smaller wish gives the minimum"
    );
}

#[test]
fn the_images_entrypoint_environment_and_directory_are_used() {
    let mut spec = MachineSpec::new("web", "/x.fl");
    spec.networks.clear();
    spec.env.push(("MODE".into(), "mine".into()));
    let process = plan_of(&spec, &image()).unwrap().process;
    assert_eq!(process.args, ["/bin/server", "-v"]);
    assert_eq!(process.cwd.as_deref(), Some("/srv"));
    let get = |key: &str| process.env.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    assert_eq!(
        (get("LANG"), get("MODE"), get("PATH")),
        (Some("C"), Some("mine"), Some(DEFAULT_PATH))
    );
}

#[test]
fn a_command_replaces_the_images_and_follows_a_given_entrypoint() {
    let mut spec = MachineSpec::new("web", "/x.fl");
    spec.networks.clear();
    spec.command = vec!["ls".into(), "/".into()];
    assert_eq!(plan_of(&spec, &image()).unwrap().process.args, ["ls", "/"]);
    spec.entrypoint = Some(vec!["env".into(), "-i".into()]);
    assert_eq!(plan_of(&spec, &image()).unwrap().process.args, ["env", "-i", "ls", "/"]);
    let image = ImageFacts {
        entrypoint: vec!["/entry".into()],
        ..image()
    };
    spec.entrypoint = Some(Vec::new());
    assert_eq!(plan_of(&spec, &image).unwrap().process.args, ["ls", "/"]);
    spec.command.clear();
    assert_eq!(plan_of(&spec, &image).unwrap_err(), PlanError::NothingToRun);
}

#[test]
fn what_an_oci_image_says_is_followed_as_docker_does() {
    let image = ImageFacts {
        entrypoint: vec!["/entry".into()],
        command: vec!["serve".into()],
        user: Some("web:www".into()),
        stop_signal: Some("SIGINT".into()),
        ..image()
    };
    let planned = |change: fn(&mut MachineSpec)| {
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.networks.clear();
        change(&mut spec);
        plan_of(&spec, &image).unwrap()
    };
    let plan = planned(|_| ());
    assert_eq!(plan.process.args, ["/entry", "serve"]);
    assert_eq!((plan.process.user.as_deref(), plan.stop_signal), (Some("web:www"), 2));
    assert_eq!(planned(|s| s.command = vec!["x".into()]).process.args, ["/entry", "x"]);
    assert_eq!(planned(|s| s.entrypoint = Some(vec!["e".into()])).process.args, ["e"]);
    let mine = planned(|s| (s.user, s.stop_signal) = (Some(User::parse("0")), Some(Signal::TERM)));
    assert_eq!((mine.process.user.as_deref(), mine.stop_signal), (Some("0"), 15));
}

#[test]
fn without_any_entrypoint_the_images_init_runs_and_ours_only_when_asked_for() {
    let process = plan(|_| ()).unwrap().process;
    assert_eq!((process.args, process.init), (vec!["/sbin/init".to_owned()], false));
    assert!(plan(|spec| spec.init = true).unwrap().process.init);
}

#[test]
fn the_images_volumes_are_directories_that_the_container_finds() {
    let image = ImageFacts {
        volumes: vec!["/data".into()],
        ..image()
    };
    let mut spec = MachineSpec::new("web", "/x.fl");
    spec.networks.clear();
    assert_eq!(plan_of(&spec, &image).unwrap().boot.directories, ["/data"]);
}

#[test]
fn what_this_host_or_nobody_can_give_is_refused() {
    type Change = fn(&mut MachineSpec);
    let cases: [(Change, Class); 10] = [
        (|s| s.user_data = Some("x".into()), Class::Usage),
        (|s| s.reinstall = true, Class::Usage),
        (|s| s.cpus = 0, Class::Usage),
        (|s| s.cpus = 5, Class::Unsupported),
        (|s| s.memory_bytes = 1, Class::Usage),
        (|s| s.memory_bytes = 9 << 30, Class::Unsupported),
        (|s| s.size_bytes = 4096, Class::Usage),
        (|s| s.hostname = Some("a b".into()), Class::Usage),
        (|s| s.workdir = Some("relative".into()), Class::Usage),
        (|s| s.publish = vec!["80:80".parse().unwrap()], Class::Usage),
    ];
    for (index, (change, class)) in cases.into_iter().enumerate() {
        let failure = Failure::from(plan(change).unwrap_err());
        assert_eq!(failure.class, class, "case {index}");
        assert!(failure.hint.is_some(), "case {index}");
    }
}

#[test]
fn memory_is_rounded_up_to_what_a_hypervisor_counts_in() {
    assert_eq!(
        plan(|s| s.memory_bytes = (200 << 20) + 1).unwrap().vm.memory_bytes,
        201 << 20
    );
}

#[test]
fn a_read_only_machine_has_no_writable_disk() {
    let plan = plan(|s| s.read_only = true).unwrap();
    assert_eq!(
        (plan.upper_bytes, plan.boot.root.upper, plan.vm.disks.len()),
        (None, Upper::ReadOnly, 1)
    );
}

#[test]
fn a_volume_for_containers_brings_what_containers_need() {
    let drivers = |target: &str| {
        let mut plan = plan(|_| ()).unwrap();
        plan.boot.mounts.push(Mount {
            serial: "v".to_owned(),
            fstype: "ext4".to_owned(),
            target: target.to_owned(),
            read_only: false,
            populate: false,
        });
        plan.fs_drivers()
    };
    assert_eq!(drivers("/var/lib/docker"), [FsDriver::Nested]);
    assert_eq!(drivers("/var/lib/containers/storage"), [FsDriver::Nested]);
    assert_eq!(drivers("/var/lib/docker-registry"), []);
}

#[test]
fn the_images_disk_has_a_queue_per_cpu_up_to_four() {
    let queues = |cpus| plan(|s| s.cpus = cpus).unwrap().image_queues();
    assert_eq!([1, 2, 4].map(queues), [Some(1), Some(2), Some(4)]);
    assert_eq!((root_queues(0), root_queues(64)), (1, 4));
}

#[test]
fn another_kernel_is_booted_once_it_is_chosen() {
    let mut plan = plan(|_| ()).unwrap();
    let kernel = KernelChoice {
        name: "k".into(),
        vmlinux: "/k/vmlinux".into(),
        initramfs: "/k/newer".into(),
    };
    plan.use_kernel(kernel.clone());
    assert_eq!(plan.kernel, kernel);
    assert!(matches!(plan.vm.boot, Boot::Kernel { initrd: Some(path), .. } if path == kernel.initramfs));
}

#[test]
fn ssh_keys_are_split_and_each_is_kept_once() {
    let mut spec = MachineSpec::new("web", "/x.fl");
    spec.env = vec![("SSH_KEY".to_owned(), "a k1\n\n b k2 ,a k1".to_owned())];
    spec.ssh_keys = vec!["c k3\nb k2".to_owned()];
    assert_eq!(ssh_keys(&spec), ["a k1", "b k2", "c k3"]);
}

#[test]
fn shared_directories_are_devices_and_mounts_and_bring_their_driver() {
    let shared = |path: &str, target: &str, read_only| SharedDirectory {
        path: path.into(),
        target: target.into(),
        read_only,
    };
    let shares = [shared("/srv/a", "/data/inner", true), shared("/srv/b", "/data", false)];
    let mut spec = MachineSpec::new("web", "/x.fl");
    spec.networks.clear();
    let plan = plan_with(&spec, &ImageFacts::default(), &shares).unwrap();
    let mounts: Vec<_> = plan
        .boot
        .mounts
        .iter()
        .map(|m| (m.serial.as_str(), m.target.as_str(), m.read_only))
        .collect();
    assert_eq!(mounts, [("share1", "/data", false), ("share0", "/data/inner", true)]);
    assert_eq!(plan.vm.shares[0].tag, "share0");
    assert!(plan.vm.shares[0].socket.ends_with("fs0.sock"));
    assert!(matches!(
        &plan.shares[0].tree,
        crate::SharedTree::Directory { read_only: true, .. }
    ));
    assert!(plan.fs_drivers().contains(&FsDriver::Virtiofs));
}

#[test]
fn an_unpacked_image_is_a_read_only_share_below_the_writable_disk() {
    let image = ImageFacts {
        tree: Some("/i/tree/root".into()),
        ..ImageFacts::default()
    };
    let mut spec = MachineSpec::new("web", "/x.fl");
    spec.networks.clear();
    let plan = plan_of(&spec, &image).unwrap();
    assert!(plan.image_queues().is_none());
    assert_eq!(plan.vm.disks.iter().map(Disk::id).collect::<Vec<_>>(), ["upper"]);
    assert_eq!(plan.boot.root.lower_fstype, "virtiofs");
    assert_eq!(
        (plan.vm.shares[0].tag.as_str(), plan.boot.mounts.len()),
        (ROOT_SERIAL, 0)
    );
    assert!(matches!(&plan.shares[0].tree, SharedTree::Image { layer: None, .. }));
    assert!(plan.fs_drivers().contains(&FsDriver::Virtiofs));
}

#[test]
fn a_pod_that_has_none_of_our_images_has_no_disk_of_an_image() {
    let planned = |read_only: bool| {
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.networks.clear();
        (spec.read_only, spec.idle) = (read_only, true);
        spec.pod = Some(serde_json::from_str(r#"{"share": "/share", "network": null}"#).unwrap());
        plan_of(&spec, &ImageFacts::default()).unwrap()
    };
    let without = planned(true);
    assert!(without.vm.disks.is_empty() && without.image_queues().is_none());
    assert_eq!(without.boot.root.upper, Upper::WithoutImage);
    let with = planned(false);
    assert_eq!(
        with.vm.disks.iter().map(Disk::id).collect::<Vec<_>>(),
        ["root", "upper"]
    );
}

#[test]
fn a_machine_that_is_to_be_saved_has_a_disk_that_does_not_see_its_memory() {
    let root =
        |change: &dyn Fn(&mut MachineSpec)| plan(change).map(|plan| (plan.vm.is_saveable, plan.is_image_by_nbd()));
    assert_eq!(root(&|_| ()).unwrap(), (false, false));
    assert_eq!(root(&|spec| spec.snapshots = true).unwrap(), (true, true));
    assert_eq!(root(&|spec| spec.warm = true).unwrap(), (true, true));
    // What need not be saved is only not warm.
    let read_only = |spec: &mut MachineSpec| (spec.warm, spec.read_only) = (true, true);
    assert_eq!(root(&read_only).unwrap(), (false, false));
    assert_eq!(
        root(&|spec| (spec.snapshots, spec.read_only) = (true, true)).unwrap(),
        (true, true)
    );
    let refusal = root(&|spec| (spec.snapshots, spec.rootfs) = (true, RootfsChoice::Virtiofs)).unwrap_err();
    assert!(refusal.to_string().contains("an unpacked root"), "{refusal}");
    assert_eq!(Failure::from(refusal).class, Class::Usage);
}

#[test]
fn a_plan_survives_its_file() {
    let plan = Plan::Container(Box::new(plan(|s| s.env.push(("A".into(), "ü\n".into()))).unwrap()));
    assert_eq!(
        serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(),
        plan
    );
}

#[test]
fn a_plan_written_by_the_first_version_is_read() {
    let Plan::Container(plan) = serde_json::from_str(include_str!("../../tests/golden/plan-v1.json")).unwrap() else {
        panic!("not a container");
    };
    assert_eq!((plan.id.as_str(), plan.upper_bytes), ("5c28ffaff6fe", Some(500 << 20)));
    let again = serde_json::to_value(&plan).unwrap();
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../tests/golden/plan-v1.json")).unwrap();
    assert_eq!(again, golden);
}
