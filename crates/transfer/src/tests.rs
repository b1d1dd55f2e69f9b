use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::*;

const KEEP: Keep = Keep {
    owner: false,
    special_bits: true,
    devices: true,
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
    let mut reported = Vec::new();
    send(dir.path(), Vec::new(), |text| reported.push(text)).unwrap();
    assert!(reported.len() == 1 && reported[0].contains("left out"), "{reported:?}");
    let alone = send(&dir.path().join("s"), Vec::new(), |_| ());
    assert!(matches!(alone, Err(TransferError::NotCopied { .. })));
}

#[test]
fn files_that_do_not_say_how_long_they_are_come_whole() {
    let dir = tempfile::tempdir().unwrap();
    // One says that it has no bytes, the other that it has a page.
    for file in ["/proc/self/limits", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        let Ok(content) = fs::read(file) else { continue };
        put(Path::new(file), &dir.path().join("copy"), false).unwrap();
        assert_eq!(fs::read(dir.path().join("copy")).unwrap(), content, "{file}");
    }
}

#[test]
fn hard_links_stay_links_and_pipes_pipes() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("a");
    fs::create_dir_all(source.join("deep")).unwrap();
    fs::write(source.join("one"), vec![1; 100_000]).unwrap();
    fs::hard_link(source.join("one"), source.join("deep/two")).unwrap();
    let fifo = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        source.join("pipe"),
        rustix::fs::FileType::Fifo,
        fifo,
        0,
    )
    .unwrap();
    assert!(stream(&source).len() < 150_000);
    put(&source, &dir.path().join("b"), false).unwrap();
    let inode = |name: &str| fs::metadata(dir.path().join("b").join(name)).unwrap().ino();
    assert_eq!(inode("one"), inode("deep/two"));
    let pipe = fs::symlink_metadata(dir.path().join("b/pipe")).unwrap();
    assert!(pipe.file_type().is_fifo());
}

#[test]
fn devices_come_where_they_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("null");
    let keep = |devices| Keep { devices, ..KEEP };
    let bytes = stream(Path::new("/dev/null"));
    let refused = receive(
        bytes.as_slice(),
        &target,
        OsStr::new("null"),
        false,
        keep(false),
        |_| (),
    );
    assert!(matches!(refused, Err(TransferError::NotCopied { .. })));
    match receive(bytes.as_slice(), &target, OsStr::new("null"), false, keep(true), |_| ()) {
        Ok(()) => assert_eq!(
            fs::metadata(&target).unwrap().rdev(),
            fs::metadata("/dev/null").unwrap().rdev()
        ),
        // Only root makes devices.
        Err(error) => assert!(!rustix::process::geteuid().is_root(), "{error}"),
    }
}

#[test]
fn a_name_of_any_length_takes_no_memory() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let endless = std::io::Read::chain(header.as_bytes().as_slice(), std::io::repeat(b'x'));
    let dir = tempfile::tempdir().unwrap();
    let error = receive(endless, &dir.path().join("t"), OsStr::new("x"), false, KEEP, |_| ()).unwrap_err();
    assert!(error.to_string().contains("a name of"), "{error}");
}

#[test]
fn contents_need_no_directory_of_their_own() {
    use tar::EntryType::Regular;
    let dir = tempfile::tempdir().unwrap();
    let bytes = hostile(&[("tree/x", Regular, ""), ("tree/y", Regular, "")]);
    receive(bytes.as_slice(), dir.path(), OsStr::new("x"), true, KEEP, |_| ()).unwrap();
    assert!(dir.path().join("x").is_file() && dir.path().join("y").is_file());
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

#[test]
fn a_users_archive_goes_in_and_comes_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("a");
    fs::create_dir_all(source.join("deep")).unwrap();
    fs::write(source.join("deep/x"), "hello").unwrap();
    fs::hard_link(source.join("deep/x"), source.join("y")).unwrap();
    symlink("deep/x", source.join("link")).unwrap();
    // As `cp NAME:/a -` writes it.
    let mut archive = Vec::new();
    to_archive(stream(&source).as_slice(), &mut archive, Path::new("a")).unwrap();
    let listed = |bytes: &[u8]| -> Vec<String> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string());
        entries.collect()
    };
    assert_eq!(listed(&archive), ["a", "a/deep", "a/deep/x", "a/link", "a/y"]);
    // As `cp - NAME:/b` takes it.
    let mut sent = Vec::new();
    from_archive(archive.as_slice(), &mut sent, |text| panic!("{text}")).unwrap();
    let target = dir.path().join("b");
    fs::create_dir(&target).unwrap();
    receive(sent.as_slice(), &target, OsStr::new("archive"), true, KEEP, |_| ()).unwrap();
    assert_eq!(fs::read_to_string(target.join("a/link")).unwrap(), "hello");
    assert_eq!(fs::metadata(target.join("a/y")).unwrap().nlink(), 2);
    // What leads out of the directory is refused, and what is no archive too.
    let out = hostile(&[("../x", tar::EntryType::Regular, "")]);
    assert!(matches!(
        from_archive(out.as_slice(), Vec::new(), |_| ()),
        Err(TransferError::Escape { .. })
    ));
    assert!(from_archive(vec![7; 2048].as_slice(), Vec::new(), |_| ()).is_err());
}
