//! From references to images: what is admitted, what is refused and why, and that nothing is left behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use crate::support::*;
use zmachine_flist::{BlockRef, Digest, Flist, Metadata, Node, NodeId, NodeKind, Route, RouteTable, TreeBuilder};
use zmachine_image::library::{Mended, PruneReport};
use zmachine_image::{
    FetchOptions, Image, ImageKind, ImageName, Library, Mode, PullPolicy, Reference, ResolveError, Silent,
};

/// A home and a folder for files beside it.
struct Rooms {
    dir: tempfile::TempDir,
    library: Library,
}

impl Rooms {
    fn new() -> Rooms {
        Rooms::with_stores(&[dir_url("store")])
    }

    fn with_stores(stores: &[String]) -> Rooms {
        let dir = tempfile::tempdir().unwrap();
        let options = FetchOptions {
            stores: stores.to_vec(),
            ..quick()
        };
        let library = Library::open(&dir.path().join("home"))
            .unwrap()
            .with_fetch_options(options);
        Rooms { dir, library }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn resolve(&self, reference: &str) -> Result<Image, ResolveError> {
        self.resolve_as(reference, PullPolicy::Missing, Mode::Auto)
    }

    fn resolve_as(&self, reference: &str, policy: PullPolicy, mode: Mode) -> Result<Image, ResolveError> {
        let reference = Reference::parse(reference, self.dir.path()).unwrap();
        self.library.resolve_as(&reference, policy, mode, &Silent)
    }

    /// Resolves a file and gives the refusal, after checking that nothing was left behind and that there is advice.
    fn refusal(&self, path: &Path) -> String {
        let error = self.resolve(path.to_str().unwrap()).unwrap_err();
        assert!(error.hint().is_some(), "no hint: {error}");
        self.left_nothing();
        let source = std::error::Error::source(&error)
            .map(|e| format!(": {e}"))
            .unwrap_or_default();
        format!("{error}{source}")
    }

    fn left_nothing(&self) {
        let mut left = contents(&self.dir.path().join("home/images"));
        // A lock, made at its first use.
        left.retain(|name| name != ".use");
        assert_eq!(left, [".lock", "refs"]);
    }
}

fn fixture(name: &str) -> String {
    fixtures().canonicalize().unwrap().join(name).display().to_string()
}

fn name(text: &str) -> ImageName {
    ImageName::new(text).unwrap()
}

/// A node of the kinds that decide what an image is.
fn node(kind: NodeKind) -> Node {
    Node {
        metadata: Metadata {
            mode: 0o755,
            ..Metadata::default()
        },
        kind,
    }
}

fn regular(blocks: Vec<BlockRef>) -> Node {
    let size = blocks.iter().map(|b| u64::from(b.len)).sum();
    node(NodeKind::Regular { size, blocks })
}

fn link(target: &str) -> Node {
    node(NodeKind::Symlink(target.into()))
}

/// Writes a flist of these entries; a name with one `/` goes into a directory made for it.
fn write_flist(path: &Path, entries: Vec<(&str, Node)>) {
    let mut tree = TreeBuilder::new(Metadata {
        mode: 0o755,
        ..Metadata::default()
    });
    for (name, node_of) in entries {
        let (dir, name) = match name.split_once('/') {
            Some((dir, name)) => {
                let dir = tree
                    .add(NodeId::ROOT, dir.into(), node(NodeKind::Directory(Vec::new())))
                    .unwrap();
                (dir, name)
            }
            None => (NodeId::ROOT, name),
        };
        tree.add(dir, name.into(), node_of).unwrap();
    }
    let flist = Flist {
        tree: tree.finish().unwrap(),
        routes: RouteTable(vec![Route::all("dir:///nonexistent")]),
        tags: Default::default(),
    };
    flist.write(path).unwrap();
}

#[test]
fn a_recorded_flist_becomes_a_container_with_its_startup() {
    let rooms = Rooms::new();
    let image = rooms.resolve(&fixture("busybox.fl")).unwrap();
    assert_eq!(image.facts.kind, ImageKind::Container);
    let startup = image.facts.startup.as_ref().unwrap();
    assert_eq!(startup.program.as_deref(), Some("/bin/sh"));
    assert_eq!(startup.dir.as_deref(), Some("/work"));
    assert_eq!(startup.env["GREETING"], "hi");
    assert_eq!(image.facts.sizes.blocks, blocks().len() as u64);
    assert_eq!(image.open_flist().unwrap(), flist("busybox.fl"));
    assert_eq!(
        std::fs::read(image.flist_path()).unwrap(),
        std::fs::read(fixture("busybox.fl")).unwrap()
    );
}

#[test]
fn a_second_resolve_needs_neither_the_store_nor_a_copy() {
    let rooms = Rooms::new();
    let first = rooms.resolve(&fixture("busybox.fl")).unwrap();
    let gone = Library::open(&rooms.dir.path().join("home")).unwrap();
    let reference = Reference::parse(&fixture("busybox.fl"), Path::new("/")).unwrap();
    let again = gone.resolve(&reference, PullPolicy::Missing, &Silent).unwrap();
    assert_eq!(again, first);
}

#[test]
fn a_startup_file_that_is_cached_needs_no_store_for_a_new_image() {
    let rooms = Rooms::new();
    let image = rooms.resolve(&fixture("busybox.fl")).unwrap();
    rooms.library.remove(&image.digest).unwrap();
    let offline = Library::open(&rooms.dir.path().join("home")).unwrap();
    let reference = Reference::parse(&fixture("busybox.fl"), Path::new("/")).unwrap();
    assert_eq!(
        offline.resolve(&reference, PullPolicy::Missing, &Silent).unwrap(),
        image
    );
}

#[test]
fn a_startup_file_that_can_not_be_fetched_is_named() {
    let rooms = Rooms::with_stores(&["dir:///nonexistent/store".into()]);
    let text = rooms.refusal(Path::new(&fixture("busybox.fl")));
    assert!(
        text.contains("/.startup.toml of ") && text.contains("/nonexistent/store does not exist"),
        "{text}"
    );
    assert!(rooms.resolve(&fixture("busybox.fl")).unwrap_err().is_fetch_failure());
}

#[test]
fn what_is_no_flist_is_told_by_name_and_leaves_nothing() {
    let rooms = Rooms::new();
    let mut disk = vec![0; 1 << 16];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    for (name, content, found) in [
        ("empty.fl", &b""[..], "is an empty file"),
        ("old.flist", b"\x1f\x8b\x08\0\0", "is not a usable flist"),
        ("disk.qcow2", b"QFI\xfb\0\0\0\x03", "is a qcow2 disk image"),
        ("disk.raw", &disk, "is a raw disk image"),
        ("text.fl", b"hello", "is of no kind that is known here"),
    ] {
        let text = rooms.refusal(&rooms.file(name, content));
        assert!(text.contains(name) && text.contains(found), "{text}");
    }
    let directory = rooms.dir.path().to_owned();
    assert!(rooms.refusal(&directory).contains("is a directory"));
    assert!(rooms.refusal(Path::new("/dev/null")).contains("is a device"));
}

#[test]
fn a_missing_file_is_not_found_and_says_its_path() {
    let rooms = Rooms::new();
    let error = rooms.resolve("./nothing.fl").unwrap_err();
    assert!(error.is_not_found() && error.to_string().ends_with("nothing.fl does not exist"));
    rooms.left_nothing();
}

#[test]
fn a_truncated_flist_is_refused_at_every_length() {
    let rooms = Rooms::new();
    let whole = std::fs::read(fixture("busybox.fl")).unwrap();
    for len in [16, 100, 4096, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        let path = rooms.file("cut.fl", &whole[..len]);
        let text = rooms.refusal(&path);
        assert!(text.contains("cut.fl"), "{text}");
        assert!(!text.contains(".new-"), "the error names our copy: {text}");
    }
}

#[test]
fn garbage_behind_a_good_beginning_is_refused() {
    let rooms = Rooms::new();
    let mut bytes = std::fs::read(fixture("busybox.fl")).unwrap();
    bytes[100..].fill(0xa5);
    assert!(
        rooms
            .refusal(&rooms.file("garbage.fl", &bytes))
            .contains("is not a usable flist")
    );
}

#[test]
fn the_kind_follows_the_files_with_links_resolved_inside_the_image() {
    let rooms = Rooms::new();
    let path = rooms.dir.path().join("vm.fl");
    let block = a_block();
    write_flist(
        &path,
        vec![
            ("kernel", link("boot/linux")),
            ("boot/linux", regular(vec![block])),
            ("image.raw", link("/disk")),
            ("disk", regular(vec![])),
        ],
    );
    let image = rooms.resolve("./vm.fl").unwrap();
    let ImageKind::KernelDisk { kernel, initrd, image } = image.facts.kind else {
        panic!("{:?}", image.facts.kind);
    };
    assert_eq!((kernel.path.as_str(), kernel.size), ("/kernel", u64::from(block.len)));
    assert_eq!((initrd, image.size), (None, 0));
}

#[test]
fn images_that_make_no_machine_are_refused_with_the_path() {
    let rooms = Rooms::new();
    let path = rooms.dir.path().join("odd.fl");
    let file = || regular(vec![]);
    for (entries, text) in [
        (vec![("kernel", file())], "/kernel and no /image.raw"),
        (
            vec![("kernel", node(NodeKind::Directory(vec![]))), ("image.raw", file())],
            "/kernel of the image is a directory",
        ),
        (
            vec![("image.raw", node(NodeKind::Fifo))],
            "/image.raw of the image is a named pipe",
        ),
        (vec![("image.raw", link("image.raw"))], "leads back to itself"),
        (
            vec![("kernel", link("/etc/passwd"))],
            "/kernel of the image is a link that leads nowhere",
        ),
        (
            vec![("boot/vmlinuz", node(NodeKind::CharDevice { major: 1, minor: 3 }))],
            "/boot/vmlinuz of the image is a device",
        ),
    ] {
        write_flist(&path, entries);
        let refusal = rooms.refusal(&path);
        assert!(refusal.contains(text), "{refusal}");
    }
}

#[test]
fn an_explicit_mode_overrides_what_was_found() {
    let rooms = Rooms::new();
    write_flist(&rooms.dir.path().join("k.fl"), vec![("kernel", regular(vec![]))]);
    assert!(rooms.resolve("./k.fl").is_err());
    let image = rooms
        .resolve_as("./k.fl", PullPolicy::Missing, Mode::Container)
        .unwrap();
    assert_eq!(image.facts.kind, ImageKind::Container);
    assert!(rooms.resolve_as("./k.fl", PullPolicy::Missing, Mode::Vm).is_err());
    assert!(
        rooms.resolve("./k.fl").is_err(),
        "the mode of one resolve must not stick"
    );
}

#[test]
fn a_broken_startup_file_is_an_error_of_a_container() {
    let store = tempfile::tempdir().unwrap();
    let (block, sealed) = BlockRef::seal(b"[startup.entry\n");
    std::fs::write(store.path().join(block.id.to_string()), sealed).unwrap();
    let rooms = Rooms::with_stores(&[format!("dir://{}", store.path().display())]);
    let path = rooms.dir.path().join("broken.fl");
    write_flist(&path, vec![(".startup.toml", regular(vec![block]))]);
    assert!(rooms.refusal(&path).contains("broken /.startup.toml"));
    write_flist(
        &path,
        vec![(".startup.toml", regular(vec![block])), ("image.raw", regular(vec![]))],
    );
    assert!(rooms.resolve("./broken.fl").is_ok(), "a VM does not read it");
}

#[test]
fn a_url_is_downloaded_once_and_then_starts_offline() {
    let server = Server::of(&fixtures());
    let rooms = Rooms::new();
    let url = format!("{}/busybox.fl", server.url());
    let first = rooms.resolve(&url).unwrap();
    server.set(Behaviour::Close);
    for policy in [PullPolicy::Missing, PullPolicy::Never] {
        assert_eq!(rooms.resolve_as(&url, policy, Mode::Auto).unwrap(), first);
    }
    assert_eq!(server.requests().len(), 1);
    let error = rooms.resolve_as(&url, PullPolicy::Always, Mode::Auto).unwrap_err();
    assert!(error.is_fetch_failure(), "{error}");
}

#[test]
fn always_asks_the_server_but_does_not_load_an_unchanged_flist_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("busybox.fl"), dir.path().join("a.fl")).unwrap();
    let server = Server::of(dir.path());
    let rooms = Rooms::new();
    let url = format!("{}/a.fl", server.url());
    let always = || rooms.resolve_as(&url, PullPolicy::Always, Mode::Auto).unwrap();
    let first = always();
    assert_eq!(always(), first);
    assert!(server.requests()[1].ends_with("[conditional]"));
    std::fs::copy(fixture("kinds.fl"), dir.path().join("a.fl")).unwrap();
    assert_ne!(always().digest, first.digest);
}

#[test]
fn a_url_that_was_never_pulled_is_refused_when_pulling_is_forbidden() {
    let server = Server::of(&fixtures());
    let rooms = Rooms::new();
    let url = format!("{}/busybox.fl", server.url());
    let error = rooms.resolve_as(&url, PullPolicy::Never, Mode::Auto).unwrap_err();
    assert!(error.is_not_found() && server.requests().is_empty());
    rooms.left_nothing();
}

#[test]
fn a_download_that_fails_in_any_way_leaves_nothing() {
    for behaviour in [
        Behaviour::CutShort,
        Behaviour::Half,
        Behaviour::Close,
        Behaviour::Stall,
        Behaviour::Drip,
        Behaviour::Endless,
        Behaviour::Status(404),
        Behaviour::Status(500),
    ] {
        let server = Server::of(&fixtures());
        server.set(behaviour);
        let rooms = Rooms::new();
        let error = rooms.resolve(&format!("{}/busybox.fl", server.url())).unwrap_err();
        assert!(
            error.hint().is_some() && error.to_string().contains("/busybox.fl"),
            "{behaviour:?}: {error}"
        );
        rooms.left_nothing();
    }
}

#[test]
fn a_download_that_takes_its_time_does_not_hold_up_who_prunes() {
    let server = Server::of(&fixtures());
    server.set(Behaviour::Stall);
    let rooms = Rooms::new();
    let reference = Reference::parse(&format!("{}/busybox.fl", server.url()), Path::new("/")).unwrap();
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| rooms.library.pull(&reference, &name("web"), &Silent));
        while server.requests().is_empty() {
            std::thread::yield_now();
        }
        let prune = rooms.library.begin_prune().unwrap();
        assert!(prune.is_some() && !pull.is_finished());
        drop(prune);
        assert!(pull.join().unwrap().is_err());
    });
}

#[test]
fn what_is_named_must_be_a_regular_file_and_nobody_waits_for_a_pipe() {
    let rooms = Rooms::new();
    let fifo = rooms.dir.path().join("fifo.fl");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
    assert!(rooms.refusal(&fifo).contains("a device, pipe or socket"));
    assert!(Flist::open(&fifo).is_err() && Flist::format_of(&fifo).is_err());
}

#[test]
fn nothing_that_is_made_can_be_written_by_others_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    /// Set in the child: the folder it fills.
    const FOLDER: &str = "ZMACHINE_TEST_UMASK_FOLDER";
    if let Some(folder) = std::env::var_os(FOLDER) {
        let folder = Path::new(&folder);
        // This process has no other test to run.
        rustix::process::umask(rustix::fs::Mode::empty());
        let library = Library::open(&folder.join("home")).unwrap();
        let options = FetchOptions {
            stores: vec![dir_url("store")],
            ..quick()
        };
        let library = library.with_fetch_options(options);
        let reference = Reference::parse(&fixture("busybox.fl"), Path::new("/")).unwrap();
        let image = library.pull(&reference, &name("web"), &Silent).unwrap();
        library.fetch_blocks(&image, &Silent).unwrap();
        let (block, sealed) = BlockRef::seal(b"x");
        let store = zmachine_image::open_store(&format!("dir://{}/store/new", folder.display()), quick().timeouts);
        store.unwrap().put(&block.id, &sealed).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child
        .args([
            "--exact",
            "library::nothing_that_is_made_can_be_written_by_others_whatever_the_umask",
        ])
        .env(FOLDER, folder.path());
    assert!(child.output().unwrap().status.success());
    let mut seen = 0;
    for path in contents(folder.path()) {
        let meta = folder.path().join(&path).symlink_metadata().unwrap();
        let mode = meta.permissions().mode();
        assert!(meta.is_symlink() || mode & 0o022 == 0, "{path} has mode {mode:o}");
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
    let home = folder.path().join("home").metadata().unwrap().permissions().mode();
    assert_eq!(home & 0o077, 0, "the home is its owner's alone");
}

#[test]
fn names_lead_to_images_until_they_are_taken_away() {
    let rooms = Rooms::new();
    let reference = Reference::parse(&fixture("busybox.fl"), Path::new("/")).unwrap();
    let image = rooms.library.pull(&reference, &name("web"), &Silent).unwrap();
    assert_eq!(rooms.resolve("web").unwrap(), image);
    let listed = rooms.library.list().unwrap();
    assert_eq!(listed[0].names, [name("web")]);
    assert_eq!(listed[0].facts.as_ref().unwrap(), &image.facts);
    rooms.library.remove_name(&name("web")).unwrap();
    let error = rooms.resolve("web").unwrap_err();
    assert!(error.is_not_found() && error.hint().unwrap().contains("image ls"));
    assert_eq!(rooms.library.list().unwrap().len(), 1);
}

#[test]
fn removing_an_image_takes_its_names_with_it() {
    let rooms = Rooms::new();
    let reference = Reference::parse(&fixture("busybox.fl"), Path::new("/")).unwrap();
    let image = rooms.library.pull(&reference, &name("a"), &Silent).unwrap();
    rooms.library.set_name(&name("b"), &image.digest).unwrap();
    rooms.library.remove(&image.digest).unwrap();
    rooms.left_nothing();
    assert!(rooms.library.remove(&image.digest).unwrap_err().is_not_found());
    assert!(
        rooms
            .library
            .set_name(&name("a"), &image.digest)
            .unwrap_err()
            .is_not_found()
    );
}

#[test]
fn all_blocks_of_an_image_can_be_had_ahead() {
    let rooms = Rooms::new();
    let image = rooms.resolve(&fixture("sizes.fl")).unwrap();
    rooms.library.fetch_blocks(&image, &Silent).unwrap();
    assert_eq!(
        rooms.library.cache().check(false, &Silent).unwrap().good,
        image.facts.sizes.blocks
    );
    rooms
        .library
        .cache()
        .evict(&flist("sizes.fl").tree.unique_blocks()[0])
        .unwrap();
    let offline = rooms.library.clone().with_fetch_options(FetchOptions {
        stores: vec!["dir:///nonexistent".into()],
        ..quick()
    });
    let error = offline.fetch_blocks(&image, &Silent).unwrap_err();
    assert!(
        matches!(&error, ResolveError::Fetch { file, .. } if file.starts_with('/')),
        "{error}"
    );
}

#[test]
fn damaged_blocks_of_the_cache_are_named_and_fetched_again_when_that_is_asked_for() {
    let rooms = Rooms::new();
    let image = rooms.resolve(&fixture("sizes.fl")).unwrap();
    rooms.library.fetch_blocks(&image, &Silent).unwrap();
    let blocks = flist("sizes.fl").tree.unique_blocks();
    let cache = rooms.library.cache();
    let damaged = cache.path_of(blocks.iter().max_by_key(|block| block.len).unwrap());
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[0] ^= 1;
    fs::write(&damaged, &bytes).unwrap();
    // What no image has cannot be fetched.
    let (other, _) = BlockRef::seal(b"nobody's");
    let path = cache.path_of(&other);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "NOBODY'S").unwrap();
    let states = |repairs| rooms.library.check_cache(repairs, &Silent).unwrap();
    let found = states(false);
    assert_eq!((found.damaged.len(), found.left()), (2, 2));
    assert_eq!(fs::read(&damaged).unwrap(), bytes, "nothing was asked for");
    let found = states(true);
    let of = |path: &Path| &found.damaged.iter().find(|block| block.path == path).unwrap().mended;
    assert_eq!(
        (of(&damaged), of(&path), found.left()),
        (&Mended::Fetched, &Mended::Removed, 0)
    );
    assert!(!path.exists());
    assert!(states(true).damaged.is_empty());
}

#[test]
fn sixteen_resolves_at_once_give_one_image() {
    let rooms = Rooms::new();
    let start = Barrier::new(16);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                start.wait();
                rooms.resolve(&fixture("busybox.fl")).unwrap();
            });
        }
    });
    let images = contents(&rooms.dir.path().join("home/images"));
    assert_eq!(rooms.library.list().unwrap().len(), 1);
    assert!(images.iter().all(|path| !path.contains(".new-")), "{images:?}");
}

#[test]
fn what_a_crash_left_is_cleared_unless_somebody_is_at_work() {
    let rooms = Rooms::new();
    let images = rooms.dir.path().join("home/images");
    std::fs::create_dir(images.join(".new-1-0")).unwrap();
    let lock = std::fs::File::open(images.join(".lock")).unwrap();
    lock.lock_shared().unwrap();
    Library::open(&rooms.dir.path().join("home")).unwrap();
    assert!(images.join(".new-1-0").exists());
    drop(lock);
    Library::open(&rooms.dir.path().join("home")).unwrap();
    rooms.left_nothing();
}

#[test]
fn an_altered_flist_is_noticed_when_it_is_opened() {
    let rooms = Rooms::new();
    let image = rooms.resolve(&fixture("busybox.fl")).unwrap();
    std::fs::copy(fixture("kinds.fl"), image.flist_path()).unwrap();
    let error = image.open_flist().unwrap_err();
    assert!(matches!(error, ResolveError::Altered { .. }) && error.is_fetch_failure());
}

#[test]
fn a_name_that_leads_nowhere_is_unknown() {
    let rooms = Rooms::new();
    symlink("../00", rooms.dir.path().join("home/images/refs/web")).unwrap();
    assert!(rooms.resolve("web").unwrap_err().is_not_found());
}

#[test]
fn pruning_keeps_what_a_name_or_a_machine_needs_and_nothing_else() {
    let rooms = Rooms::new();
    let image = rooms.resolve(&fixture("busybox.fl")).unwrap();
    rooms.library.fetch_blocks(&image, &Silent).unwrap();
    let (nobodys, _) = BlockRef::seal(b"of no image");
    rooms.library.cache().insert(&nobodys, b"of no image").unwrap();
    let prune = |used: &[Digest]| {
        let prune = rooms.library.begin_prune().unwrap().expect("nobody else is here");
        let used = |_: &Path| Ok::<_, ResolveError>(used.iter().copied().collect());
        prune.run(used).unwrap()
    };
    let report = prune(&[image.digest]);
    assert_eq!((report.images, report.blocks), (0, 1));
    rooms.library.set_name(&name("kept"), &image.digest).unwrap();
    assert_eq!(prune(&[]), PruneReport::default());
    // An image that cannot be read might need any block.
    let flist = fs::read(image.flist_path()).unwrap();
    fs::write(image.flist_path(), "damaged").unwrap();
    let none = |_: &Path| Ok::<_, ResolveError>([].into());
    assert!(rooms.library.begin_prune().unwrap().unwrap().run(none).is_err());
    fs::write(image.flist_path(), flist).unwrap();
    // Nor is an image without a name while it cannot be told where a name leads.
    rooms.library.remove_name(&name("kept")).unwrap();
    let refs = rooms.dir.path().join("home/images/refs");
    for stray in ["kept", "Not a name!"] {
        fs::write(refs.join(stray), "").unwrap();
        assert!(rooms.library.begin_prune().unwrap().unwrap().run(none).is_err());
        assert!(rooms.library.remove(&image.digest).is_err());
        let (listed, unreadable) = rooms.library.list_readable().unwrap();
        assert_eq!((listed.len(), unreadable.len()), (1, 1));
        fs::remove_file(refs.join(stray)).unwrap();
    }
    let report = prune(&[]);
    assert!(
        report.images == 1 && report.blocks >= 3 && report.bytes > 1 << 20,
        "{report:?}"
    );
    assert!(!image.directory.exists());
    assert_eq!(rooms.resolve(&fixture("busybox.fl")).unwrap(), image);
}
