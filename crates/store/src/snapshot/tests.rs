use std::os::unix::fs::FileExt;

use zmachine_sys::process::ProcessId;

use super::holders::Holders;
use super::*;

fn plan() -> Plan {
    serde_json::from_str(include_str!("../../../plan/tests/golden/plan-v1.json")).unwrap()
}

fn snapshot(machine: &str, tag: &str, seconds: i64) -> Snapshot {
    use zmachine_spec::saved::{FileMark, HostMark, MemoryMark};
    Snapshot {
        version: SNAPSHOT_VERSION,
        machine: machine.into(),
        machine_id: "0123456789ab".into(),
        tag: tag.into(),
        automatic: false,
        created_at: Timestamp::from_second(seconds).unwrap(),
        spec: MachineSpec::new(machine, "/x.fl"),
        plan: plan(),
        guest_kernel: None,
        saved: Some(Saved {
            hypervisor: "qemu 7.2.22".into(),
            host: HostMark {
                cpu: None,
                tsc_khz: None,
            },
            has_entrypoint: true,
            state: FileMark { bytes: 0, crc32c: 0 },
            memory: MemoryMark {
                bytes: 0,
                chunks: Vec::new(),
            },
            is_memory_in_state: false,
            disk_bytes: None,
            firmware_bytes: None,
            volumes: Vec::new(),
            guest_monotonic: None,
            is_thawed_first: false,
            paused_us: 1,
        }),
        disks: None,
    }
}

fn volume(name: &str, written_at: Option<u64>) -> SavedVolume {
    SavedVolume {
        name: name.into(),
        fs: zmachine_spec::volume::Fs::Ext4,
        content: zmachine_spec::volume::Content::Formatted,
        bytes: 7,
        written_at,
    }
}

fn home(dir: &tempfile::TempDir) -> Home {
    Home::open(&dir.path().join("data"), &dir.path().join("run")).unwrap()
}

fn make(snapshots: &Snapshots, snapshot: &Snapshot) -> Result<(), Failure> {
    let draft = snapshots.begin().unwrap();
    for name in [STATE, MEMORY] {
        File::create(draft.folder.join(name)).unwrap();
    }
    snapshots.publish(draft, snapshot)
}

#[test]
fn a_snapshot_is_found_by_its_tag_and_the_newest_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::of(&home(&dir));
    assert_eq!(snapshots.list().unwrap().len(), 0);
    assert_eq!(snapshots.free_tag("web").unwrap(), "snap0");
    for (machine, tag, at) in [
        ("web", "b", 20),
        ("web", "snap0", 30),
        ("db", "x", 40),
        ("web", "a", 10),
    ] {
        make(&snapshots, &snapshot(machine, tag, at)).unwrap();
    }
    assert_eq!(snapshots.free_tag("web").unwrap(), "snap1");
    let tag = |text: &str| snapshots.get(&SnapshotName::parse(text).unwrap()).map(|s| s.tag);
    assert_eq!(tag("web").unwrap(), "snap0");
    assert_eq!(tag("web@b").unwrap(), "b");
    for missing in ["web@c", "other"] {
        assert_eq!(tag(missing).unwrap_err().class, Class::NotFound);
    }
    let taken = make(&snapshots, &snapshot("web", "a", 50)).unwrap_err();
    assert_eq!(taken.class, Class::Conflict);
    assert!(taken.message.contains("web@a"), "{}", taken.message);
    snapshots.remove("web@snap0").unwrap();
    assert_eq!(tag("web").unwrap(), "b");
}

#[test]
fn what_was_not_finished_is_never_offered_and_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::of(&home(&dir));
    let draft = snapshots.begin().unwrap();
    std::fs::write(draft.folder.join(MEMORY), "x").unwrap();
    assert_eq!(snapshots.list().unwrap().len(), 0);
    // Somebody is at it.
    snapshots.sweep().unwrap();
    assert!(draft.folder.exists());
    let folder = draft.folder.clone();
    drop(draft);
    assert!(!folder.exists());
    // What a killed process left.
    std::fs::create_dir(&folder).unwrap();
    snapshots.sweep().unwrap();
    assert!(!folder.exists());
}

#[test]
fn one_of_another_version_is_named_and_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(&dir);
    let snapshots = Snapshots::of(&home);
    make(&snapshots, &snapshot("web", "good", 1)).unwrap();
    make(&snapshots, &snapshot("web", "new", 2)).unwrap();
    let path = home.data().join("snapshots/web@new").join(DESCRIPTION);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        text.replacen("\"version\": 1", "\"version\": 9", 1)
            .replacen("\"version\":1", "\"version\":9", 1),
    )
    .unwrap();
    let listed = snapshots.list().unwrap();
    assert_eq!(listed.iter().filter(|listed| listed.is_ok()).count(), 1);
    let (name, failure) = listed.into_iter().find_map(Result::err).unwrap();
    assert_eq!((&*name, failure.class), ("web@new", Class::Unsupported));
    // Nobody knows what it needs, so nothing is taken from it.
    assert!(crate::cache::images_of_home(&home, home.data(), |_| true).is_err());
}

#[test]
fn names_are_checked() {
    for wrong in ["", "@a", "a@", "a@b@c", "../x", "a@../b", "a/b"] {
        assert_eq!(SnapshotName::parse(wrong).unwrap_err().class, Class::Usage, "{wrong}");
    }
}

#[test]
fn its_files_are_those_of_its_kind() {
    let mut one = snapshot("web", "a", 1);
    if let Some(saved) = &mut one.saved {
        saved.disk_bytes = Some(5);
        saved.volumes = vec![volume("data", None), volume("read", Some(3)), volume("more", None)];
    }
    assert_eq!(
        one.files(),
        ["state", "memory", "root.img", "volume-0.img", "volume-2.img"]
    );
    let disks = Snapshot {
        saved: None,
        disks: Some(SavedDisks {
            disk_bytes: None,
            firmware_bytes: Some(9),
            volumes: vec![volume("boot", None)],
            was_running: true,
            paused_us: 1,
        }),
        ..snapshot("vm", "a", 1)
    };
    assert_eq!(
        disks.disk_files(),
        [("firmware.vars".to_owned(), 9), ("volume-0.img".to_owned(), 7)]
    );
    let failure = disks.require_memory().unwrap_err();
    assert!(failure.message.contains("vm@a"), "{failure}");
}

#[test]
fn what_an_earlier_version_wrote_is_read() {
    let mut json = serde_json::to_value(snapshot("web", "a", 1)).unwrap();
    assert!(
        json["saved"].get("volumes").is_none() && json.get("disks").is_none(),
        "{json}"
    );
    let read: Snapshot = serde_json::from_value(json.clone()).unwrap();
    assert!(read.memory().is_some() && read.volumes().is_empty());
    // One that says nothing of what was saved is none.
    json.as_object_mut().unwrap().remove("saved");
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::of(&home(&dir));
    make(&snapshots, &snapshot("web", "a", 1)).unwrap();
    let path = dir.path().join("data/snapshots/web@a").join(DESCRIPTION);
    std::fs::write(path, json.to_string()).unwrap();
    assert!(snapshots.get(&SnapshotName::parse("web@a").unwrap()).is_err());
}

#[test]
fn memory_is_found_with_a_process_that_has_it_and_only_if_it_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(&dir);
    let bytes = vec![3; 8192];
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let mark = memory::save(&file, &tempfile::tempfile().unwrap()).unwrap();
    let mut snapshot = snapshot("a", "b", 1);
    if let Some(saved) = &mut snapshot.saved {
        saved.memory = mark.clone();
    }
    let holders = Holders::of(&home, &snapshot);
    holders.add(ProcessId::current()).unwrap();
    assert!(holders.find().is_none());
    let open = rustix::fs::memfd_create(holders.name(), rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&open, 8192).unwrap();
    assert!(holders.find().is_none(), "memory that can still be changed");
    drop(open);
    let loaded = memory::load(&file, &mark, Some(&holders)).unwrap();
    let found = File::from(holders.find().expect("this process has it"));
    let mut read = vec![0; 8192];
    found.read_exact_at(&mut read, 0).unwrap();
    assert!(read == bytes);
    assert!(found.write_all_at(&[1], 0).is_err());
    drop((loaded, found));
    assert!(holders.find().is_none());
    // However many there were: those that have ended are forgotten.
    for _ in 0..40 {
        holders.add(ProcessId { pid: 1, start_ticks: 1 }).unwrap();
        holders.add(ProcessId::current()).unwrap();
    }
    let kept = std::fs::read_to_string(home.run().join("memory").join(holders.name())).unwrap();
    assert!(kept.len() < 4096, "{kept}");
}
