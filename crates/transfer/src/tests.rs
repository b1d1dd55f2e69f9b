use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::*;

const KEEP: Keep = Keep {
    owner: false,
    special_bits: true,
};

fn stream(source: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    send(source, &mut bytes, |_| ()).unwrap();
    bytes
}

fn put(source: &Path, target: &Path, contents: bool) -> Result<(), TransferError> {
    receive(
        stream(source).as_slice(),
        target,
        source.file_name().unwrap(),
        contents,
        KEEP,
        |_| (),
    )
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn tree(dir: &Path) -> std::path::PathBuf {
    let tree = dir.join("a");
    fs::create_dir_all(tree.join("locked/deep")).unwrap();
    fs::write(tree.join("x"), vec![7; 300_000]).unwrap();
    fs::write(tree.join("locked/deep/y"), "").unwrap();
    fs::set_permissions(tree.join("x"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(tree.join("locked"), fs::Permissions::from_mode(0o555)).unwrap();
    symlink("../nowhere", tree.join("link")).unwrap();
    let long = "l".repeat(200);
    fs::write(tree.join(&long), "long").unwrap();
    tree
}

#[test]
fn a_tree_arrives_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let source = tree(dir.path());
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    fs::File::options()
        .write(true)
        .open(source.join("x"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    put(&source, &dir.path().join("b"), false).unwrap();
    let copy = dir.path().join("b");
    assert_eq!(fs::read(copy.join("x")).unwrap(), vec![7; 300_000]);
    assert_eq!((mode(&copy.join("x")), mode(&copy.join("locked"))), (0o4751, 0o555));
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("../nowhere"));
    assert_eq!(copy.join("x").metadata().unwrap().modified().unwrap(), old);
    assert!(copy.join("locked/deep/y").exists() && copy.join("l".repeat(200)).exists());
}

#[test]
fn targets_are_chosen_as_cp_does() {
    let dir = tempfile::tempdir().unwrap();
    let source = tree(dir.path());
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("there")).unwrap();
    put(&source, &at("there"), false).unwrap();
    assert!(at("there/a/x").exists());
    put(&source, &at("there"), true).unwrap();
    assert!(at("there/x").exists());
    put(&source.join("x"), &at("there"), false).unwrap();
    put(&source.join("x"), &at("new"), false).unwrap();
    put(&source.join("x"), &at("new"), false).unwrap();
    assert_eq!(fs::read(at("new")).unwrap().len(), 300_000);
    for (source, target) in [
        (source.clone(), at("new")),
        (source.clone(), at("no/where")),
        (source.join("x"), at("no/where")),
        (source.join("x"), at("nodir/")),
    ] {
        assert!(put(&source, &target, false).is_err(), "{target:?}");
    }
    assert!(matches!(
        send(&at("none"), Vec::new(), |_| ()),
        Err(TransferError::NotFound { .. })
    ));
}

#[test]
fn sockets_are_left_out_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = UnixListener::bind(dir.path().join("s")).unwrap();
    let mut told = Vec::new();
    send(dir.path(), Vec::new(), |text| told.push(text)).unwrap();
    assert!(told.len() == 1 && told[0].contains("left out"), "{told:?}");
}

/// A stream of entries as nobody honest makes them.
fn hostile(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, kind, link) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o777);
        header.set_mtime(0);
        header.set_size(if *kind == tar::EntryType::Regular { 4 } else { 0 });
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        if *kind == tar::EntryType::Regular {
            bytes.extend_from_slice(b"evil");
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

#[test]
fn no_stream_leads_out_of_the_target() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let out = outside.to_str().unwrap();
    let kept = outside.join("kept");
    let kept = kept.to_str().unwrap();
    let streams: [&[(&str, tar::EntryType, &str)]; 8] = [
        &[("../outside/kept", Regular, "")],
        &[("/etc/x", Regular, "")],
        &[("tree", Directory, ""), ("tree/../../outside/kept", Regular, "")],
        &[
            ("tree", Directory, ""),
            ("tree/l", Symlink, out),
            ("tree/l/kept", Regular, ""),
        ],
        &[
            ("tree", Directory, ""),
            ("tree/l", Symlink, kept),
            ("tree/l", Regular, ""),
        ],
        &[("tree", Directory, ""), ("tree/l", Link, kept), ("tree/l", Regular, "")],
        &[("tree", Symlink, out), ("tree/kept", Regular, "")],
        &[
            ("tree", Symlink, out),
            ("tree", Directory, ""),
            ("tree/kept", Regular, ""),
        ],
    ];
    for (number, entries) in streams.iter().enumerate() {
        let target = dir.path().join(format!("t{number}"));
        let bytes = hostile(entries);
        let _ = receive(bytes.as_slice(), &target, OsStr::new("x"), false, KEEP, |_| ());
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept", "{entries:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}");
    }
}

#[test]
fn a_link_that_was_there_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let source = tree(dir.path());
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir_all(dir.path().join("b/a")).unwrap();
    symlink(&outside, dir.path().join("b/a/locked")).unwrap();
    assert!(put(&source, &dir.path().join("b"), false).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_broken_stream_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = stream(&tree(dir.path()));
    let cut = &bytes[..bytes.len() / 2];
    assert!(receive(cut, &dir.path().join("c"), OsStr::new("a"), false, KEEP, |_| ()).is_err());
}
