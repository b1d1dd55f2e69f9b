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

/// An overlay of directories below `dir`, as an agent mounts it, while `change` works in it; for root in a mount namespace of its own.
fn changed(dir: &Path, change: impl FnOnce(&Path) + Send) -> Result<(), String> {
    let failed = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    let [upper, work, merged] = ["layer/upper", "layer/work", "merged"].map(|name| dir.join(name));
    let inside = || {
        // SAFETY: only this thread, which ends with the test, has another namespace then.
        #[allow(unsafe_code)]
        let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
        unshared.map_err(failed("unshare"))?;
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).map_err(failed("make private"))?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.join("layer"), "tmpfs", flags, None).map_err(failed("tmpfs"))?;
        for made in [&upper, &work] {
            fs::create_dir(made).map_err(|error| error.to_string())?;
        }
        let layers = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on",
            dir.join("lower").display(),
            upper.display(),
            work.display()
        );
        let layers = std::ffi::CString::new(layers).unwrap();
        rustix::mount::mount("overlay", &merged, "overlay", flags, layers.as_c_str()).map_err(failed("overlay"))?;
        change(&merged);
        Ok(())
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
}

#[test]
fn changes_are_told_as_docker_tells_them_and_make_a_layer() {
    if !rustix::process::geteuid().is_root() {
        // An overlay with whiteouts takes root.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let lower = dir.path().join("lower");
    for made in [
        "lower/etc/sub",
        "lower/gone/deep",
        "lower/moved/in",
        "lower/same",
        "lower/opaque",
        "layer",
        "merged",
    ] {
        fs::create_dir_all(dir.path().join(made)).unwrap();
    }
    for file in [
        "etc/passwd",
        "etc/hosts",
        "etc/sub/x",
        "gone/deep/y",
        "moved/in/file",
        "same/z",
        "opaque/old",
        "to-link",
        "removed",
    ] {
        fs::write(lower.join(file), file).unwrap();
    }
    let (mut list, mut layer) = (Vec::new(), Vec::new());
    let outcome = changed(dir.path(), |root| {
        fs::write(root.join("etc/passwd"), "other").unwrap();
        fs::write(root.join("etc/hosts"), "the machine's own").unwrap();
        fs::write(root.join("new"), "n").unwrap();
        fs::hard_link(root.join("new"), root.join("new-link")).unwrap();
        fs::remove_dir_all(root.join("gone")).unwrap();
        fs::remove_file(root.join("removed")).unwrap();
        fs::rename(root.join("moved"), root.join("elsewhere")).unwrap();
        // A file that came and went leaves a directory that was copied up, and no change.
        fs::write(root.join("same/tmp"), "").unwrap();
        fs::remove_file(root.join("same/tmp")).unwrap();
        fs::remove_dir_all(root.join("opaque")).unwrap();
        fs::create_dir(root.join("opaque")).unwrap();
        fs::write(root.join("opaque/new"), "").unwrap();
        fs::create_dir_all(root.join("mnt/empty")).unwrap();
        fs::set_permissions(root.join("etc/sub"), fs::Permissions::from_mode(0o700)).unwrap();
        let user = rustix::fs::lsetxattr(
            root.join("new"),
            "trusted.kept",
            b"value",
            rustix::fs::XattrFlags::empty(),
        );
        user.unwrap();
        let layers = Layers {
            upper: &dir.path().join("layer/upper"),
            lower: &lower,
            merged: root,
            is_mount_point: &|name| name == Path::new("mnt/empty"),
        };
        send_list(&layers, &mut list).unwrap();
        send_changes(&layers, &mut layer, |warning| panic!("{warning}")).unwrap();
    });
    outcome.unwrap();
    let list: Vec<String> = read_list(&list)
        .unwrap()
        .into_iter()
        .map(|(change, path)| format!("{} {}", change.letter(), path.display()))
        .collect();
    let expected = [
        "A /elsewhere",
        "A /elsewhere/in",
        "A /elsewhere/in/file",
        "C /etc",
        "C /etc/passwd",
        "C /etc/sub",
        "D /gone",
        "A /mnt",
        "D /moved",
        "A /new",
        "A /new-link",
        "C /opaque",
        "A /opaque/new",
        "D /opaque/old",
        "D /removed",
    ];
    let (mut told, mut wanted) = (list.clone(), expected.map(str::to_owned).to_vec());
    told.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(told, wanted);
    let place = |line: &str| list.iter().position(|told| told == line).unwrap();
    assert!(place("C /etc") < place("C /etc/passwd") && place("C /opaque") < place("A /opaque/new"));

    let mut archive = tar::Archive::new(layer.as_slice());
    let mut members = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        if path == "new" {
            let extensions: Vec<_> = entry.pax_extensions().unwrap().unwrap().map(Result::unwrap).collect();
            let kept = extensions.iter().find(|e| e.key() == Ok("SCHILY.xattr.trusted.kept"));
            assert_eq!(kept.unwrap().value_bytes(), b"value");
        }
        members.push((path, entry.header().entry_type()));
    }
    let kind = |name: &str| members.iter().find(|(path, _)| path == name).map(|(_, kind)| *kind);
    assert_eq!(kind("new-link"), Some(tar::EntryType::Link));
    assert_eq!(kind("elsewhere/in/file"), Some(tar::EntryType::Regular));
    for whiteout in [".wh.gone", ".wh.moved", ".wh.removed", "opaque/.wh..wh..opq"] {
        assert_eq!(kind(whiteout), Some(tar::EntryType::Regular), "{members:?}");
    }
    for absent in ["etc/hosts", "same", "opaque/.wh.old", "mnt/empty"] {
        assert_eq!(kind(absent), None, "{members:?}");
    }
}

#[test]
fn a_list_that_is_none_is_refused() {
    assert_eq!(read_list(b""), Some(Vec::new()));
    assert_eq!(read_list(b"A/x\0"), Some(vec![(Change::Added, "/x".into())]));
    for broken in [&b"A/x"[..], b"X/x\0", b"\0"] {
        assert_eq!(read_list(broken), None);
    }
}
