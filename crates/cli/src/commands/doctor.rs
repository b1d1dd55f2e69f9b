//! `zmachine doctor`: what this host offers, what is lost where it does not, and what mends it.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;
use zmachine_engine::{Programs, node};
use zmachine_hypervisor::accel::{self, AccelFacts, Requested};
use zmachine_hypervisor::choice::{self, Hypervisor};
use zmachine_hypervisor::{Accel, qemu};
use zmachine_image::Library;
use zmachine_kernel::KernelLibrary;
use zmachine_spec::{Class, Failure};
use zmachine_store::user::UserLease;
use zmachine_store::{cgroup, user};
use zmachine_sys::jail::status::{self, SandboxStatus};
use zmachine_sys::jail::{self, Jail, Jailed};
use zmachine_sys::process::ChildSetup;

use crate::args::{DoctorArgs, Format};
use crate::{context, output};

#[derive(Serialize)]
struct Check {
    requirement: String,
    met: bool,
    /// Nothing can run without it.
    required: bool,
    found: String,
    lost: String,
    mend: String,
}

/// Checks this host; fails when something is missing without which no machine runs.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<u8, Failure> {
    if args.repair {
        for line in context::quiet_engine()?.repair_names()? {
            eprintln!("repaired: {line}");
        }
    }
    let mut checks = vec![
        state(),
        machines(),
        block_cache(),
        qemu(),
        acceleration(),
        cloud_hypervisor(),
        cloud_firmware(),
        cloud_jail(),
        kernel(),
        agent(),
        mkfs(),
        virtiofsd(),
        jail(),
        cgroups(),
    ];
    checks.extend(networks()?);
    if args.kubernetes {
        let programs = Programs::own();
        let folder = programs.host().parent().unwrap_or(Path::new("/"));
        let each = |f: node::NodeFinding| check(f.requirement, f.required, f.found, f.lost, f.mend);
        checks.extend(node::findings(folder).into_iter().map(each));
    }
    let works = checks.iter().all(|check| check.met || !check.required);
    if args.output == Format::Json {
        output::json(&checks)?;
    } else {
        let cells = |check: &Check| {
            let mark = match (check.met, check.required) {
                (true, _) => "ok",
                (false, true) => "MISSING",
                (false, false) => "without",
            };
            let detail = if check.met {
                check.found.clone()
            } else {
                format!("{} -- {}", check.lost, check.mend)
            };
            vec![check.requirement.clone(), mark.to_owned(), detail]
        };
        output::table(
            &["REQUIREMENT", "STATE", "FOUND, OR WHAT IS LOST -- HOW TO MEND IT"],
            &checks.iter().map(cells).collect::<Vec<_>>(),
        )?;
    }
    Ok(if works { 0 } else { 6 })
}

fn check(requirement: &str, required: bool, found: Result<String, String>, lost: &str, mend: &str) -> Check {
    let met = found.is_ok();
    let reason = found.as_ref().err().filter(|reason| !reason.is_empty());
    Check {
        requirement: requirement.to_owned(),
        met,
        required,
        lost: reason.map_or_else(|| lost.to_owned(), |reason| format!("{lost} ({reason})")),
        found: found.unwrap_or_default(),
        mend: mend.to_owned(),
    }
}

fn state() -> Check {
    let found = context::home()
        .map(|home| home.data().display().to_string())
        .map_err(|e| e.to_string());
    check(
        "writable state folder",
        true,
        found,
        "nothing can be kept",
        "run as root, or set ZMACHINE_HOME",
    )
}

/// Whether all machines can be read and have their names.
fn machines() -> Check {
    let found = context::quiet_engine().and_then(|engine| {
        let mut wrong = engine.name_findings()?;
        let unreadable = engine.machines()?.into_iter().filter_map(Result::err);
        let unreadable: Vec<String> = unreadable.map(|(_, failure)| failure.to_string()).collect();
        let mend = match wrong.is_empty() {
            true => "put the files right, or remove the machine: zmachine rm -f ID",
            false => "zmachine doctor --repair",
        };
        wrong.extend(unreadable);
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(Failure::new(Class::Failed, wrong.join("; ")).hint(mend)),
        }
    });
    let mend = found.as_ref().err().and_then(|failure| failure.hint.clone());
    check(
        "machines that can be read",
        false,
        found
            .map(|()| "all of them, by their names".to_owned())
            .map_err(|failure| failure.to_string()),
        "those go by their ids alone, or not at all",
        mend.as_deref().unwrap_or_default(),
    )
}

/// Where the blocks are, and that they can be removed when it is time.
fn block_cache() -> Check {
    let found = context::home().and_then(|home| zmachine_store::cache::describe_cache(&home));
    let mend = found.as_ref().err().and_then(|failure| failure.hint.clone());
    let usable = context::home().and_then(|home| Ok(Library::open(home.data())?));
    let lost = match usable.is_ok() {
        true => "blocks that nobody needs are not removed",
        false => "no machine starts from a flist",
    };
    check(
        "the block cache",
        usable.is_err(),
        found.map_err(|e| e.to_string()),
        lost,
        mend.as_deref().unwrap_or("zmachine image cache --shared none"),
    )
}

fn qemu() -> Check {
    let probed = qemu::probe(None);
    let mend = probed.as_ref().err().map_or("", |e| e.hint());
    let found = probed
        .map(|q| format!("{} {}.{}", q.binary.display(), q.version.0, q.version.1))
        .map_err(|e| e.to_string());
    check("QEMU 7.2 or later", true, found, "no machine runs", mend)
}

fn acceleration() -> Check {
    let facts = AccelFacts::gather();
    let is_forbidden = facts.kvm_device_error.as_ref().is_some_and(|e| e.contains("denied"));
    let mend = match is_forbidden {
        true => "sudo usermod -aG kvm $USER, and a new login",
        false => "enable virtualisation in the firmware, load kvm_intel or kvm_amd",
    };
    let choice = accel::choose(Requested::Auto, &facts);
    let found = match choice {
        Ok(choice) if choice.accel == Accel::Kvm => Ok(choice.why),
        Ok(choice) => Err(choice.why),
        Err(error) => Err(error.to_string()),
    };
    check("KVM", false, found, "guests are emulated, several times slower", mend)
}

/// Which hypervisor machines get by default, and why not the other one.
fn cloud_hypervisor() -> Check {
    let mend = "a host whose KVM works, and the static binary of Cloud Hypervisor v53 or later in the search path";
    let found = accel::choose(Requested::Auto, &AccelFacts::gather())
        .map_err(|e| e.to_string())
        .and_then(|accel| {
            let choice = choice::choose(choice::Requested::Auto, &accel, &choice::Found::gather(), None);
            choice.map_err(|e| e.to_string())
        });
    let found = found.and_then(|choice| match choice.driver {
        Hypervisor::CloudHypervisor => Ok(choice.why),
        Hypervisor::Qemu => Err(choice.why),
    });
    check("Cloud Hypervisor", false, found, "machines run on QEMU", mend)
}

/// Whether Cloud Hypervisor, which opens disks by their paths, can have a user of its own with the disks of this home.
fn cloud_jail() -> Check {
    let user = user::FIRST;
    let found = context::home().map_err(|e| e.to_string()).and_then(|home| {
        let mounted = zmachine_sys::mount::owned_by(user, home.data(), true);
        mounted.map_err(|e| format!("no mount of {} can have another owner: {e}", home.data().display()))
    });
    check(
        "a user of its own for Cloud Hypervisor",
        false,
        found.map(|_| "disks of this home are shown to it as its own".to_owned()),
        "its process stays root, without root's powers",
        "run as root on Linux 5.12 or later, with the home on ext4, XFS or Btrfs (docs/security.md)",
    )
}

fn cloud_firmware() -> Check {
    let configured = context::home().and_then(|home| zmachine_store::firmware::configured(&home));
    let found = match configured {
        Ok(Some(pinned)) => Ok(format!("{} ({}...)", pinned.path.display(), &pinned.sha256[..12])),
        Ok(None) => Err(String::new()),
        Err(error) => Err(error.to_string()),
    };
    let lost = "machines with a boot loader run on QEMU even where Cloud Hypervisor is";
    check(
        "firmware for Cloud Hypervisor",
        false,
        found,
        lost,
        "zmachine firmware set FILE",
    )
}

fn kernel() -> Check {
    let library = context::home().and_then(|home| Ok(KernelLibrary::open(home.data())?));
    let found = library
        .and_then(|library| Ok(library.default()?))
        .map(|k| format!("{} ({})", k.name(), k.description.release));
    check(
        "a guest kernel",
        true,
        found.map_err(|e| e.to_string()),
        "no container runs",
        "zmachine kernel install",
    )
}

fn agent() -> Check {
    let path = Programs::own().agent().to_owned();
    let found = if path.is_file() {
        Ok(path.display().to_string())
    } else {
        Err(format!("{} is not there", path.display()))
    };
    check(
        "the guest agent",
        true,
        found,
        "no container runs",
        "install zmachine again (make install)",
    )
}

fn mkfs() -> Check {
    let found = ["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4", "/usr/local/sbin/mkfs.ext4"]
        .into_iter()
        .find(|p| std::path::Path::new(p).exists());
    check(
        "mkfs.ext4",
        true,
        found.map(str::to_owned).ok_or_else(String::new),
        "no machine gets a writable root",
        "apt-get install e2fsprogs",
    )
}

fn virtiofsd() -> Check {
    let server = zmachine_share::Server::find();
    let mend = server.as_ref().err().map_or("", |missing| missing.hint());
    let found = server.map(|server| server.program().display().to_string());
    check(
        "virtiofsd",
        false,
        found.map_err(|_| String::new()),
        "no directories of this host in guests, no containers with a kernel of their own",
        mend,
    )
}

fn jail() -> Check {
    let found = match try_jail() {
        Ok(protections) if protections.missing(false).is_empty() => Ok(protections.standing().join(", ")),
        Ok(protections) => Err(format!("missing: {}", protections.missing(false).join(", "))),
        Err(failure) => Err(failure.to_string()),
    };
    check(
        "every wall of the jail",
        false,
        found,
        "a guest that takes over its hypervisor meets fewer walls",
        "run as root on Linux 5.13 or later with namespaces, seccomp and Landlock (docs/security.md)",
    )
}

/// Puts a process into a jail as machines' processes are, and looks at it from outside.
fn try_jail() -> Result<SandboxStatus, Failure> {
    let home = context::home()?;
    let folder = home.run().join(format!("doctor-{}", std::process::id()));
    zmachine_sys::file::make_dirs(&folder)?;
    let protections = look_into(&folder);
    let _ = std::fs::remove_dir(&folder);
    protections
}

fn look_into(folder: &Path) -> Result<SandboxStatus, Failure> {
    let is_root = rustix::process::geteuid().is_root();
    let lease = is_root
        .then(|| UserLease::take(Path::new(user::FOLDER), "doctor"))
        .transpose()?;
    let jail = Jail::new(folder, lease.as_ref().map(UserLease::number));
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(jail::ROLE)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let setup = ChildSetup {
        die_with_parent: true,
        ..ChildSetup::default()
    };
    let mut child = Jailed::role(&jail, command)?.spawn(setup, |mut command| command.spawn())?;
    // It says one word when it is inside, and waits for the end of its input.
    let mut reported = [0; 1];
    let inside = child.stdout.take().map(|mut out| out.read_exact(&mut reported));
    let protections = status::of(child.id());
    drop(child.stdin.take());
    let status = child.wait()?;
    match (inside, protections, status.success()) {
        (Some(Ok(())), Some(protections), true) => Ok(protections),
        _ => Err(Failure::new(
            Class::Failed,
            format!("the process in it ended ({status})"),
        )),
    }
}

fn cgroups() -> Check {
    let found = match cgroup::lacking(std::path::Path::new(cgroup::ROOT)) {
        None => Ok("cpu, memory, pids".to_owned()),
        Some(reason) => Err(reason),
    };
    check(
        "cgroup v2 controllers",
        false,
        found,
        "hypervisors run without limits of the host",
        "run as root, on a host booted with systemd.unified_cgroup_hierarchy=1",
    )
}

fn networks() -> Result<Vec<Check>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let requirements = runtime.block_on(zmachine_network::requirements());
    let each = |r: zmachine_network::Requirement| {
        let found = if r.met { Ok(String::new()) } else { Err(String::new()) };
        check(&format!("network: {}", r.name), false, found, r.lost, r.mend)
    };
    let mut checks: Vec<Check> = requirements.into_iter().map(each).collect();
    if rustix::process::geteuid().is_root() {
        let networks = zmachine_network::Networks::open(context::home()?.data())?;
        let found = runtime.block_on(networks.findings());
        let whole = match found {
            Ok(found) if found.is_empty() => Ok("as their machines need them".to_owned()),
            Ok(found) => Err(found.join("; ")),
            Err(error) => Err(error.to_string()),
        };
        let mend = "start any machine of that network: zmachine restart NAME";
        checks.push(check(
            "networks in use",
            false,
            whole,
            "machines lost a part of their network",
            mend,
        ));
    }
    Ok(checks)
}
