//! Plans of VMs.

use super::super::fixture::{Around, attachment, planned};
use super::super::{self as plan, Plan};
use super::*;
use zmachine_spec::volume::Fs;
use zmachine_spec::{Class, Failure};

fn volume(name: &str) -> ResolvedVolume {
    ResolvedVolume {
        name: name.into(),
        target: "/".into(),
        path: format!("/v/{name}/data.img").into(),
        serial: name.into(),
        size_bytes: 2 << 30,
        fs: Fs::Ext4,
        content: Content::Empty,
        read_only: false,
        no_copy: false,
        new: None,
    }
}

fn facts() -> VmFacts {
    VmFacts {
        start: VmStart::Kernel {
            kernel: "/i/kernel".into(),
            initrd: Some("/i/initrd".into()),
        },
        source: DiskSource::Flist {
            image: "ab".into(),
            file: "/image.raw".into(),
            stores: vec![],
        },
        digest: "ab".into(),
        bytes: 300 << 20,
        unbootable: None,
        appliance: None,
        volumes: vec![volume("boot"), volume("data")],
    }
}

fn plan(change: impl FnOnce(&mut MachineSpec, &mut VmFacts)) -> Result<VmPlan, PlanError> {
    let mut spec = MachineSpec::new("box", "/x.fl");
    spec.networks.clear();
    let mut facts = facts();
    change(&mut spec, &mut facts);
    match planned(&spec, plan::Content::Vm(&facts), &Around::default())? {
        Plan::Vm(plan) => Ok(*plan),
        Plan::Container(_) => panic!("a container"),
    }
}

fn firmware(facts: &mut VmFacts, there: bool) {
    facts.start = VmStart::Firmware {
        firmware: there.then(|| zmachine_hypervisor::qemu::Firmware {
            code: "/fw/code".into(),
            variables: "/fw/vars".into(),
        }),
    };
}

#[test]
fn the_volumes_are_the_first_disks_and_the_seed_is_the_last() {
    let plan = plan(|spec, _| spec.env = vec![("A".into(), "b".into())]).unwrap();
    let ids: Vec<_> = plan.vm.disks.iter().map(Disk::id).collect();
    assert_eq!(ids, ["volume0", "volume1", "seed"]);
    assert!(matches!(&plan.vm.disks[2], Disk::File { read_only: true, .. }));
    assert!(matches!(&plan.vm.boot, Boot::Kernel { cmdline, .. } if cmdline.ends_with("root=/dev/vda A=b")));
    assert_eq!(plan.vm.platform, Platform::Pc);
    assert_eq!(plan.stop_grace_ms, 90_000);
}

#[test]
fn a_disk_with_a_boot_loader_gets_variables_of_its_own_and_no_command_line() {
    let plan = plan(|spec, facts| {
        firmware(facts, true);
        // Nothing of it is on a command line, so everything goes.
        spec.env = vec![("init".into(), "a\"b\nc".into())];
    })
    .unwrap();
    assert!(
        matches!(&plan.vm.boot, Boot::Firmware { variables: Some(variables), .. } if variables.ends_with("firmware.vars"))
    );
    assert_eq!(plan.install().unwrap().firmware_variables, Some("/fw/vars".into()));
    assert_eq!(plan.seed.env, [("init".to_owned(), "a\"b\nc".to_owned())]);
}

#[test]
fn everything_that_can_be_known_to_fail_is_refused_with_a_hint() {
    type Change = fn(&mut MachineSpec, &mut VmFacts);
    let cases: [(&str, Class, Change); 16] = [
        ("needs a volume", Class::Usage, |_, f| f.volumes.clear()),
        ("'boot' can only be read", Class::Usage, |_, f| {
            f.volumes[0].read_only = true
        }),
        ("smaller than the image", Class::Usage, |_, f| {
            f.volumes[0].size_bytes = 1 << 20
        }),
        ("holds a file system (ext4)", Class::Conflict, |_, f| {
            f.volumes[0].content = Content::Formatted;
        }),
        ("holds another image", Class::Conflict, |_, f| {
            f.volumes[0].content = Content::Installed { digest: "cd".into() };
        }),
        ("no partition table", Class::Usage, |_, f| {
            firmware(f, true);
            f.unbootable = Some("no partition table".into());
        }),
        ("firmware", Class::Unsupported, |_, f| firmware(f, false)),
        ("no user", Class::Usage, |s, _| {
            s.user = Some(zmachine_spec::User::parse("web"))
        }),
        ("no working directory", Class::Usage, |s, _| {
            s.workdir = Some("/".into())
        }),
        ("no read-only root", Class::Usage, |s, _| s.read_only = true),
        ("no guest kernel", Class::Usage, |s, _| s.kernel = Some("k".into())),
        ("no root size", Class::Usage, |s, _| s.size_bytes = 1 << 30),
        ("'init'", Class::Usage, |s, _| s.env = vec![("init".into(), "x".into())]),
        ("'K'", Class::Usage, |s, _| s.env = vec![("K".into(), "a\nb".into())]),
        ("command line has", Class::Usage, |s, _| {
            s.env = vec![("K".into(), "x".repeat(2048))]
        }),
        ("memory", Class::Usage, |s, _| s.memory_bytes = 1),
    ];
    for (words, class, change) in cases {
        let failure = Failure::from(plan(change).expect_err(words));
        assert!(failure.message.contains(words), "{words}: {}", failure.message);
        assert_eq!(failure.class, class, "{words}");
        assert!(failure.hint.is_some_and(|hint| !hint.is_empty()), "{words}");
    }
}

#[test]
fn a_volume_with_this_image_or_one_that_may_be_overwritten_is_taken() {
    plan(|_, f| f.volumes[0].content = Content::Installing { digest: "ab".into() }).unwrap();
    let over = plan(|spec, f| {
        spec.reinstall = true;
        f.volumes[0].content = Content::Raw;
    });
    assert!(over.unwrap().install().unwrap().reinstall);
}

#[test]
fn ssh_keys_with_line_ends_go_on_the_command_line_with_commas() {
    let plan = plan(|spec, _| spec.env = vec![("SSH_KEY".into(), "a\nb\n".into())]).unwrap();
    assert!(matches!(&plan.vm.boot, Boot::Kernel { cmdline, .. } if cmdline.ends_with(" SSH_KEY=a,b")));
    assert_eq!(plan.seed.ssh_keys, ["a", "b"]);
}

#[test]
fn a_plan_survives_its_file_and_keeps_its_kind() {
    let plan = Plan::Vm(Box::new(plan(|_, _| ()).unwrap()));
    let text = serde_json::to_string(&plan).unwrap();
    assert!(text.contains(r#""kind":"vm""#));
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    assert!(
        serde_json::from_str::<Plan>(r#"{"kind":"cloud"}"#)
            .unwrap_err()
            .to_string()
            .contains("cloud")
    );
}

#[test]
fn a_vm_looks_for_names_in_its_networks() {
    let around = Around {
        attachments: vec![attachment("front"), attachment("back")],
        ..Around::default()
    };
    let spec = MachineSpec::new("box", "/x.fl");
    let Ok(Plan::Vm(plan)) = planned(&spec, plan::Content::Vm(&facts()), &around) else {
        panic!("no plan of a VM")
    };
    assert_eq!(plan.seed.search, ["front", "back"]);
}

#[test]
fn one_that_is_to_be_saved_runs_on_qemu_and_shares_nothing_with_its_host() {
    assert!(!plan(|_, _| ()).unwrap().vm.is_saveable);
    assert!(plan(|spec, _| spec.snapshots = true).unwrap().vm.is_saveable);
    let refused = |change: &dyn Fn(&mut Around<'_>)| {
        let mut spec = MachineSpec::new("box", "/x.fl");
        spec.networks.clear();
        spec.snapshots = true;
        let mut around = Around::default();
        change(&mut around);
        let refusal = planned(&spec, plan::Content::Vm(&facts()), &around).unwrap_err();
        assert!(matches!(refusal, PlanError::NotSaveable { .. }), "{refusal}");
        refusal.to_string()
    };
    let on_cloud_hypervisor =
        refused(&|around| around.hypervisor.driver = zmachine_hypervisor::choice::Hypervisor::CloudHypervisor);
    assert!(
        on_cloud_hypervisor.contains("Cloud Hypervisor"),
        "{on_cloud_hypervisor}"
    );
    assert!(refused(&|around| around.host.is_root = false).contains("ordinary user"));
    // What only waits to be idle is refused by the setting's name: nobody could stop its init.
    let idle = plan(|spec, _| spec.idle_timeout_ms = Some(1000)).unwrap_err();
    assert!(
        matches!(
            idle,
            PlanError::NotForVms {
                setting: Setting::IdleTimeout
            }
        ),
        "{idle}"
    );
}

#[test]
fn a_vm_goes_on_from_one_that_was_started_alike() {
    let saveable = |change: &dyn Fn(&mut VmFacts)| {
        let plan = plan(|spec, facts| {
            spec.snapshots = true;
            change(facts);
        });
        Plan::Vm(Box::new(plan.unwrap()))
    };
    let saved = saveable(&|_| ());
    assert_eq!(saved.misfit(&saved), None);
    let of_firmware = saveable(&|facts| firmware(facts, true));
    let why = of_firmware.misfit(&saved).unwrap();
    assert!(
        why.contains("a kernel that the hypervisor loads") && why.contains("a firmware with variables"),
        "{why}"
    );
    let other = saveable(&|facts| facts.digest = "cd".into());
    assert!(other.misfit(&saved).unwrap().contains("image ab"));
    let fewer = saveable(&|facts| drop(facts.volumes.pop()));
    assert!(fewer.misfit(&saved).unwrap().contains("volume1"));
    let container = serde_json::from_str(include_str!("../../tests/golden/plan-v1.json")).unwrap();
    assert!(
        saved
            .misfit(&container)
            .unwrap()
            .contains("a container and the other one a VM")
    );
}
