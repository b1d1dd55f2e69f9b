//! The plan of a container with a kernel of its own: that kernel, and the image's tree as its root over virtio-fs.
//!
//! It lives like a VM (power button, console, restarts), since nothing of ours is in it: what starts in it is up to the
//! image, which is told by the seed. Its root is the unpacked image, which all machines of the image share and none writes,
//! with a layer of the machine's own above it.

use std::path::PathBuf;

use zmachine_hypervisor::Boot;
use zmachine_spec::volume::ResolvedVolume;
use zmachine_spec::{MachineSpec, RootfsChoice, Setting};

use super::cmdline::{self, RootDevice};
use super::common::{ImageFacts, Inputs, ROOT_TAG, arguments, first_used, health, merged_env, mounts};
use super::error::PlanError;
use super::share::{self, ShareUse, SharedTree};
use super::vm::{Own, Seed, VmPlan, VmRoot};

/// What the planner is told about a container with a kernel of its own.
#[derive(Debug, Clone)]
pub struct TreeFacts {
    /// `/boot/vmlinuz`, on this host.
    pub kernel: PathBuf,
    /// `/boot/initrd.img`, on this host.
    pub initrd: Option<PathBuf>,
    /// The unpacked image.
    pub tree: PathBuf,
    /// What else the image says.
    pub image: ImageFacts,
    /// Its volumes.
    pub volumes: Vec<ResolvedVolume>,
}

impl VmPlan {
    /// Plans a container with a kernel of its own.
    ///
    /// # Errors
    /// Everything about the request that can be refused without trying.
    pub(super) fn of_tree(spec: &MachineSpec, facts: &TreeFacts, inputs: Inputs<'_>) -> Result<VmPlan, PlanError> {
        refuse_settings(spec)?;
        share::require_server(&inputs)?;
        let layer = inputs.home.machine(inputs.id).join("layer");
        let mut shares = vec![ShareUse {
            id: ROOT_TAG.to_owned(),
            tag: ROOT_TAG.to_owned(),
            tree: SharedTree::Image {
                image: facts.tree.clone(),
                layer: (!spec.read_only).then_some(layer),
            },
        }];
        shares.extend(share::directories(&inputs)?);
        let env = merged_env(facts.image.env.clone(), &spec.env)?;
        let mounts = mounts(&facts.volumes, inputs.shares);
        let seed = Seed::new(spec, &inputs, mounts, env, arguments(spec, &facts.image));
        let (networks, nameservers, env) = match spec.legacy_cmdline {
            true => (&inputs.attachments[..], &seed.nameservers[..], &seed.env[..]),
            false => Default::default(),
        };
        let root = RootDevice::Shared {
            writable: !spec.read_only,
        };
        let cmdline = cmdline::command_line(inputs.accel, root, networks, nameservers, env)?;
        let (health, mut warnings) = health(spec, &facts.image);
        if spec.size_bytes != 0 {
            warnings.push("its root is a directory of this host, which its root size does not limit".to_owned());
        }
        let own = Own {
            root: VmRoot::Tree(facts.image.digest.clone()),
            appliance: None,
            boot: Boot::Kernel {
                kernel: facts.kernel.clone(),
                initrd: facts.initrd.clone(),
                cmdline,
            },
            volumes: &facts.volumes,
            is_saveable: false,
            shares,
            seed,
            health,
            warnings,
        };
        Ok(VmPlan::of(spec, inputs, own))
    }
}

fn refuse_settings(spec: &MachineSpec) -> Result<(), PlanError> {
    let used = [
        (Setting::User, spec.user.is_some()),
        (Setting::Workdir, spec.workdir.is_some()),
        (Setting::Terminal, spec.terminal),
        (Setting::Init, spec.init),
        (Setting::Rootfs, spec.rootfs == RootfsChoice::Block),
        (Setting::Secrets, !spec.secrets.is_empty()),
        (Setting::Volumes, !spec.sockets.is_empty()),
        (Setting::Snapshots, spec.snapshots),
        (Setting::IdleTimeout, spec.idle_timeout_ms.is_some()),
    ];
    match first_used(used).or(spec.guest.used()) {
        Some(setting) => Err(PlanError::NotForOwnKernels { setting }),
        None if spec.reinstall => Err(PlanError::OnlyForVms {
            setting: Setting::Reinstall,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use zmachine_hypervisor::Disk;
    use zmachine_sys::host::HostFacts;

    use super::super::fixture::{Around, planned};
    use super::super::{Content, Plan};
    use super::*;
    use zmachine_spec::{Class, Failure};

    fn plan(change: impl FnOnce(&mut MachineSpec, &mut HostFacts, &mut bool)) -> Result<VmPlan, PlanError> {
        let mut spec = MachineSpec::new("own", "/x.fl");
        spec.networks.clear();
        spec.env = vec![("A".into(), "b".into())];
        let mut around = Around::default();
        change(&mut spec, &mut around.host, &mut around.has_share_server);
        let facts = TreeFacts {
            kernel: "/i/vmlinuz".into(),
            initrd: None,
            tree: "/i/tree".into(),
            image: ImageFacts {
                command: vec!["/bin/server".into()],
                env: vec![("LANG".into(), "C".into())],
                ..ImageFacts::default()
            },
            volumes: vec![],
        };
        match planned(&spec, Content::Tree(&facts), &around)? {
            Plan::Vm(plan) => Ok(*plan),
            Plan::Container(_) => panic!("our kernel"),
        }
    }

    fn cmdline(plan: &VmPlan) -> &str {
        match &plan.vm.boot {
            Boot::Kernel { cmdline, .. } => cmdline,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_kernel_is_told_of_its_root_alone_and_the_seed_of_the_rest() {
        let plan = plan(|_, _, _| ()).unwrap();
        assert_eq!(
            cmdline(&plan),
            "rw console=ttyS0 reboot=k panic=1 root=vroot rootfstype=virtiofs"
        );
        assert_eq!(plan.vm.shares[0].tag, "vroot");
        assert!(
            matches!(&plan.shares[0].tree, SharedTree::Image { layer: Some(layer), .. } if layer.ends_with("layer"))
        );
        assert_eq!(plan.vm.disks.iter().map(Disk::id).collect::<Vec<_>>(), ["seed"]);
        assert_eq!(
            plan.seed.env,
            [("LANG".into(), "C".into()), ("A".into(), "b".to_owned())]
        );
        assert_eq!(plan.seed.command, ["/bin/server"]);
        assert!(plan.install().is_none() && plan.warnings.is_empty());
        let again: Plan =
            serde_json::from_str(&serde_json::to_string(&Plan::Vm(Box::new(plan.clone()))).unwrap()).unwrap();
        assert_eq!(again.kind(), zmachine_spec::Kind::Container);
        assert_eq!(again, Plan::Vm(Box::new(plan)));
    }

    #[test]
    fn the_old_command_line_a_sealed_root_and_a_size_are_what_they_say() {
        let legacy = plan(|spec, _, _| spec.legacy_cmdline = true).unwrap();
        assert!(cmdline(&legacy).ends_with(" LANG=C A=b"), "{}", cmdline(&legacy));
        let sealed = plan(|spec, _, _| spec.read_only = true).unwrap();
        assert!(cmdline(&sealed).starts_with("ro "));
        assert!(matches!(&sealed.shares[0].tree, SharedTree::Image { layer: None, .. }));
        assert_eq!(plan(|spec, _, _| spec.size_bytes = 1 << 30).unwrap().warnings.len(), 1);
    }

    #[test]
    fn what_can_not_be_is_refused_with_a_hint() {
        type Change = fn(&mut MachineSpec, &mut HostFacts, &mut bool);
        let cases: [(&str, Class, Change); 6] = [
            ("virtiofsd", Class::Unsupported, |_, _, there| *there = false),
            ("only root", Class::Unsupported, |_, host, _| host.is_root = false),
            ("no user", Class::Usage, |s, _, _| {
                s.user = Some(zmachine_spec::User::parse("web"))
            }),
            ("no working directory", Class::Usage, |s, _, _| {
                s.workdir = Some("/".into())
            }),
            ("new installation", Class::Usage, |s, _, _| s.reinstall = true),
            ("'init'", Class::Usage, |s, _, _| {
                s.legacy_cmdline = true;
                s.env = vec![("init".into(), "x".into())];
            }),
        ];
        for (words, class, change) in cases {
            let failure = Failure::from(plan(change).expect_err(words));
            assert!(failure.message.contains(words), "{words}: {}", failure.message);
            assert_eq!(failure.class, class, "{words}");
            assert!(failure.hint.is_some(), "{words}");
        }
    }
}
