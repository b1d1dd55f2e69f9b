//! What is around Cloud Hypervisor in its jail, and what comes through: from outside by `/proc`, from inside by what the program that
//! answers as recorded can open.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde_json::Value;
use zmachine_hypervisor::{Disk, Nic, NicKind, Resources, VmSpec};
use zmachine_sys::jail::status;

use super::{Bench, USER};

/// A root disk whose socket was given to the machine's user, as the monitor does.
fn serve(bench: &Bench) -> (Disk, UnixListener) {
    let socket = bench.path("rootfs.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::chown(&socket, Some(USER), Some(USER)).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    let disk = Disk::VhostUser {
        id: "root".into(),
        socket,
        queues: 1,
    };
    (disk, listener)
}

/// Whom the process runs as, and what a host could have around it and this one has not.
fn user_and_missing_protections(pid: u32) -> (u32, Vec<&'static str>) {
    let standing = status::of(pid).unwrap();
    let mut missing = standing.missing(false);
    missing.retain(|wall| *wall != "landlock" || status::kernel_has_landlock());
    (standing.user, missing)
}

#[tokio::test]
async fn in_its_jail_it_has_what_its_machine_needs_and_nothing_else() {
    let Some(bench) = Bench::jailed_by_root() else { return };
    fs::write(bench.path("other.sock"), "").unwrap();
    let (root_disk, served) = serve(&bench);
    let mut spec = bench.spec();
    let image = bench.path("shared.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    for path in [&image, &bench.path("data.img")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    spec.disks.push(Disk::File {
        id: "shared".into(),
        path: image.clone(),
        serial: "zm-shared".into(),
        read_only: true,
        discard: false,
    });
    spec.disks.push(root_disk);
    // It boots only when it could open and connect to all of that.
    let mut running = bench.launched(&spec).await;
    let root = PathBuf::from(format!("/proc/{}/root", running.vm.pid()));
    let seen = |path: &Path| root.join(path.strip_prefix("/").unwrap());
    let owner = |path: &Path| [path, &seen(path)].map(|path| fs::metadata(path).unwrap().uid());
    assert_eq!(
        owner(&bench.path("data.img")),
        [0, USER],
        "the host's file stays root's"
    );
    assert_eq!(owner(&image), [0, USER]);
    let refused = File::options().write(true).open(seen(&image)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let names = |path: &Path| -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.into_string().unwrap()).collect()
    };
    assert_eq!(
        names(&seen(bench.folder.path())),
        ["ch", "data.img", "rootfs.sock", "shared.img"]
    );
    assert_eq!(
        names(&seen(&bench.path("ch"))),
        ["api", "com1", "events", "requests.jsonl", "vs", "vs_1024"]
    );
    assert!(seen(Path::new("/dev/kvm")).exists() == Path::new("/dev/kvm").exists());
    for path in [
        "/etc/passwd",
        "/root",
        "/sys/class",
        "/dev/net",
        "/proc/meminfo",
        "/bin/sh",
        "/tmp/x",
    ] {
        assert!(!seen(Path::new(path)).exists(), "{path}");
    }
    assert_eq!(user_and_missing_protections(running.vm.pid()), (USER, Vec::new()));
    assert_eq!(fs::read(format!("/proc/{}/environ", running.vm.pid())).unwrap(), b"");
    running.vm.kill();
    drop(served);
}

#[tokio::test]
async fn a_volume_grows_past_the_limit_that_its_jail_began_with() {
    let Some(bench) = Bench::jailed_by_root() else { return };
    let mut running = bench.launched(&bench.spec()).await;
    // The smallest limit there is has 64 MiB.
    running.vm.resize_disk("data", 1 << 30).await.unwrap();
    assert_eq!(fs::metadata(bench.path("data.img")).unwrap().len(), 1 << 30);
    running.vm.kill();
}

#[tokio::test]
async fn a_tap_and_a_call_of_the_guest_come_through_the_jail() {
    let Some(bench) = Bench::jailed_by_root() else { return };
    let spec = VmSpec {
        nics: vec![Nic {
            id: "net0".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: None,
            kind: NicKind::Tap,
        }],
        ..bench.spec()
    };
    let resources = Resources {
        taps: [("net0".to_owned(), File::open("/dev/null").unwrap().into())].into(),
        ..Resources::default()
    };
    let mut running = bench.launch(&spec, resources).await.unwrap();
    running.until("TICK").await;
    let _stream = running.called_by_the_agent().await;
    let log = format!(
        "/proc/{}/root{}",
        running.vm.pid(),
        bench.path("ch/requests.jsonl").display()
    );
    let asked = fs::read_to_string(log).unwrap();
    let asked = asked
        .lines()
        .find(|line| line.contains("vm.add-net"))
        .expect("the request");
    assert_eq!(serde_json::from_str::<Value>(asked).unwrap()["fds"], 1);
    running.vm.kill();
}

#[tokio::test]
async fn where_files_can_not_be_anothers_it_stays_their_owner_without_powers() {
    let Some(bench) = Bench::jailed_by_root() else { return };
    let mut spec = bench.spec();
    // A file system without mounts that change owners.
    spec.disks.push(Disk::File {
        id: "notes".into(),
        path: "/sys/kernel/notes".into(),
        serial: "zm-notes".into(),
        read_only: true,
        discard: false,
    });
    let (root_disk, _served) = serve(&bench);
    spec.disks.push(root_disk);
    let mut running = bench.launched(&spec).await;
    assert_eq!(user_and_missing_protections(running.vm.pid()), (0, vec!["own user"]));
    running.vm.kill();
}
