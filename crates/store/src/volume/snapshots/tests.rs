use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use zmachine_spec::Home;
use zmachine_spec::volume::{Content, Fs, NewVolume};

use super::*;

fn volumes() -> (tempfile::TempDir, Volumes) {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
    let volumes = Volumes::new(&home);
    let new = NewVolume {
        name: "data".into(),
        size_bytes: 64 << 20,
        fs: Fs::Ext4,
        anonymous_of: None,
        labels: BTreeMap::from([("tier".into(), "db".into())]),
    };
    volumes.create(&new).unwrap();
    (dir, volumes)
}

fn write(volumes: &Volumes, text: &str) {
    let disk = OpenOptions::new().write(true).open(volumes.data("data")).unwrap();
    disk.write_all_at(text.as_bytes(), 4 << 20).unwrap();
}

fn read_back(path: &Path) -> String {
    let mut bytes = [0; 3];
    File::open(path).unwrap().read_exact_at(&mut bytes, 4 << 20).unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn content(volumes: &Volumes, content: Content) {
    volumes.hold("data", false, "").unwrap().set_content(content).unwrap();
}

fn named(text: &str) -> VolumeName {
    VolumeName::parse(text).unwrap()
}

#[test]
fn a_volume_is_what_it_was_again_and_copies_have_names_of_their_own() {
    let (_dir, volumes) = volumes();
    content(&volumes, Content::Formatted);
    write(&volumes, "one");
    let first = volumes.snapshot("data", None).unwrap();
    assert_eq!((first.name().as_str(), first.automatic), ("data@snap0", true));
    assert!(volumes.snapshot_bytes(&first) < 1 << 20, "its holes are kept");
    write(&volumes, "two");
    volumes.grow("data", 80 << 20).unwrap();
    volumes.snapshot("data", Some("grown")).unwrap();
    assert_eq!(
        volumes.snapshot("data", Some("grown")).unwrap_err().class,
        Class::Conflict
    );
    assert_eq!(
        volumes.find_snapshot(&named("data")).unwrap().tag,
        "grown",
        "the newest"
    );

    let restored = volumes.restore_snapshot(&first).unwrap();
    assert_eq!(
        (read_back(&restored.data()).as_str(), restored.size_bytes),
        ("one", 64 << 20)
    );
    let grown = volumes.find_snapshot(&named("data@grown")).unwrap();
    let copy = volumes.create_from("copy", &grown).unwrap();
    assert_eq!((read_back(&copy.data()).as_str(), copy.size_bytes), ("two", 80 << 20));
    assert_eq!(
        (&copy.record.content, copy.record.labels["tier"].as_str()),
        (&Content::Formatted, "db")
    );
    assert_eq!(volumes.create_from("copy", &grown).unwrap_err().class, Class::Conflict);
    assert_eq!(read_back(&volumes.create_copy("more", "data").unwrap().data()), "one");

    volumes.remove_snapshot("data", "snap0").unwrap();
    assert_eq!(
        volumes.find_snapshot(&named("data@snap0")).unwrap_err().class,
        Class::NotFound
    );
    assert_eq!(volumes.snapshots(None).unwrap().len(), 1);
    // Its own are not copied, and all go with it.
    assert!(volumes.snapshots(Some("copy")).unwrap().is_empty());
    volumes.remove("data").unwrap();
    assert!(volumes.snapshots(None).unwrap().is_empty());
}

#[test]
fn a_machine_that_uses_it_or_a_damaged_snapshot_changes_nothing() {
    let (_dir, volumes) = volumes();
    write(&volumes, "one");
    let snapshot = volumes.snapshot("data", Some("a")).unwrap();
    write(&volumes, "two");
    let held = volumes.hold("data", false, "0123456789ab").unwrap();
    assert_eq!(volumes.restore_snapshot(&snapshot).unwrap_err().class, Class::Conflict);
    drop(held);
    let data = volumes.snapshot_folder(&snapshot).join(DATA);
    OpenOptions::new().write(true).open(&data).unwrap().set_len(7).unwrap();
    let refused = volumes.restore_snapshot(&snapshot).unwrap_err();
    assert!(refused.to_string().contains("has 7 bytes"), "{refused}");
    assert!(volumes.create_from("copy", &snapshot).is_err() && volumes.find("copy").unwrap().is_none());
    assert_eq!(read_back(&volumes.data("data")), "two");
    fs::write(volumes.snapshot_folder(&snapshot).join(DESCRIPTION), r#"{"version":9}"#).unwrap();
    let unknown = volumes.find_snapshot(&named("data@a")).unwrap_err();
    assert_eq!(unknown.class, Class::Unsupported);
    assert!(volumes.snapshots(None).unwrap()[0].is_err());
}

#[test]
fn what_was_interrupted_is_swept_and_never_offered() {
    let (_dir, volumes) = volumes();
    let folder = volumes.folder("data");
    for name in [".new-1", ".gone-1"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    assert!(volumes.snapshots(None).unwrap().is_empty());
    volumes.snapshot("data", None).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "the lock and the snapshot");
    // Numbers are not taken again.
    volumes.snapshot("data", None).unwrap();
    volumes.remove_snapshot("data", "snap0").unwrap();
    assert_eq!(volumes.snapshot("data", None).unwrap().tag, "snap2");

    let arrival = volumes.arrival().unwrap();
    let left = volumes.root().join(format!("{ARRIVING}1"));
    fs::create_dir(&left).unwrap();
    volumes.sweep().unwrap();
    assert!(!left.exists() && arrival.folder.exists());
    assert_eq!(volumes.list().unwrap().len(), 1);
}

#[test]
fn names_that_are_none_are_refused() {
    for text in ["", "@a", "data@", "data@../x", "../x@a", "a/b", "data@a@b"] {
        assert!(VolumeName::parse(text).is_err(), "{text}");
    }
    assert_eq!(named("data").require_tag().unwrap_err().class, Class::Usage);
}
