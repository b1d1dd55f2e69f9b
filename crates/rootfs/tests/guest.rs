//! The server under a real guest: QEMU boots a kernel that mounts the lazy disk and reads it.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use crate::support::vm::{Guest, Kernel, Server};
use crate::support::{Blocks, builder, directory, flist, metadata, node, noise, stored_path};
use zmachine_flist::{BlockRef, Flist, NodeId, NodeKind};
use zmachine_rootfs::map::ExtentMap;
use zmachine_rootfs::{PrefetchList, files_of_block, prepare};

/// Guests run one after another: each would starve the others.
static ONE_GUEST: Mutex<()> = Mutex::new(());

/// An image of `files` files of 1 MB with a file `sums` of their checksums, its blocks in a store, all below `dir`.
fn image(dir: &Path, files: u64) -> (Flist, Blocks) {
    let (mut tree, mut blocks) = (builder(), Blocks::default());
    let data = tree.add(NodeId::ROOT, b"data".to_vec(), directory()).unwrap();
    let mut sums = String::new();
    for number in 0..files {
        let content = noise(number + 1, 1_000_000 + number as usize);
        let kind = blocks.regular(&content);
        tree.add(data, format!("file{number}").into_bytes(), node(0o644, kind))
            .unwrap();
        sums += &format!("{}  /mnt/data/file{number}\n", checksum(dir, &content));
    }
    let kind = blocks.regular(sums.as_bytes());
    tree.add(NodeId::ROOT, b"sums".to_vec(), node(0o644, kind)).unwrap();
    let lonely = blocks.regular(b"a block that nobody else has\n");
    tree.add(NodeId::ROOT, b"lonely".to_vec(), node(0o644, lonely)).unwrap();
    let store = dir.join("store");
    blocks.store_in(&store);
    let flist = flist(tree.finish().unwrap(), &store);
    fs::create_dir(dir.join("image")).unwrap();
    prepare(&dir.join("image"), "test", &flist).unwrap();
    (flist, blocks)
}

fn checksum(dir: &Path, content: &[u8]) -> String {
    let path = dir.join("content");
    fs::write(&path, content).unwrap();
    let output = std::process::Command::new("md5sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..32].to_owned()
}

#[test]
fn a_guest_reads_every_file_lazily_and_a_killed_server_is_not_noticed() {
    let Some(kernel) = Kernel::find() else { return };
    let _one = ONE_GUEST.lock().unwrap_or_else(|e| e.into_inner());
    let dir = tempfile::tempdir().unwrap();
    let files = 60;
    image(dir.path(), files);
    let mut server = Server::start(dir.path(), &dir.path().join("image"), 1);
    let mut guest = Guest::boot(&kernel, dir.path(), &server, 1);

    assert!(
        guest
            .run("cat /sys/block/vda/serial /sys/block/vda/ro")
            .starts_with("root-disk1")
    );
    let answer = guest.run("ls /mnt/data | wc -l");
    assert!(answer.contains(&files.to_string()), "{answer}");
    std::thread::sleep(Duration::from_millis(1100));
    let events = server.events();
    let of_stats = || events.lines().filter(|line| line.contains("stats"));
    assert!(
        of_stats().count() > 0 && of_stats().all(|line| line.contains("\"blocks_fetched\":0,")),
        "{events}"
    );

    let check = "md5sum -c /mnt/sums > /sums.out; grep -c OK /sums.out";
    for round in 0..3 {
        guest.send(&format!("echo 3 > /proc/sys/vm/drop_caches; {check}"));
        for _ in 0..round {
            std::thread::sleep(Duration::from_millis(700));
            println!("before kill -9: {}", server.memory());
            server.kill_and_restart();
        }
        let answer = guest.answer();
        assert!(
            answer.starts_with(&files.to_string()),
            "round {round}: {answer}; {}",
            server.events()
        );
    }
    println!("in use: {}", server.memory());
    std::thread::sleep(Duration::from_millis(1100));
    println!("{}", server.events());
}

#[test]
fn a_missing_block_is_an_error_of_its_file_alone_and_passes() {
    let Some(kernel) = Kernel::find() else { return };
    let _one = ONE_GUEST.lock().unwrap_or_else(|e| e.into_inner());
    let dir = tempfile::tempdir().unwrap();
    let (flist, _) = image(dir.path(), 3);
    let (lonely, _) = BlockRef::seal(b"a block that nobody else has\n");
    let stored = stored_path(&dir.path().join("store"), &lonely);
    let away = dir.path().join("away");
    fs::rename(&stored, &away).unwrap();
    let server = Server::start(dir.path(), &dir.path().join("image"), 2);
    let mut guest = Guest::boot(&kernel, dir.path(), &server, 2);

    let answer = guest.run("cat /mnt/lonely");
    assert!(answer.contains("Input/output error"), "{answer}");
    let answer = guest.run("md5sum -c /mnt/sums | grep -c OK");
    assert!(answer.starts_with('3'), "{answer}");
    let events = server.events();
    assert!(
        events.contains("block-failed") && events.contains(&lonely.id.0.to_hex()),
        "{events}"
    );
    assert_eq!(files_of_block(&flist, &lonely.id), [Path::new("/lonely")]);

    fs::rename(&away, &stored).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let answer = guest.run("cat /mnt/lonely");
    assert!(answer.starts_with("a block that nobody else has"), "{answer}");
    let answer = guest.run("dd if=/mnt/lonely of=/dev/vda 2>&1");
    assert!(answer.contains("not permitted"), "{answer}");
}

#[test]
fn a_waiting_server_is_locked_in_and_ends_well_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path(), 1);
    let mut server = Server::start(dir.path(), &dir.path().join("image"), 1);
    for _ in 0..100 {
        if server.events().contains("ready") {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("idle: {}", server.memory());
    let pid = server.process.0.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    if rustix::process::geteuid().is_root() {
        assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
    }
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(server.process.0.wait().unwrap().success());
    assert!(server.events().contains("\"event\":\"stats\""), "{}", server.events());
}

/// Waits for a line of the server's events.
fn reported(server: &Server, text: &str) -> String {
    for _ in 0..400 {
        if let Some(line) = server.events().lines().find(|line| line.contains(text)) {
            return line.to_owned();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no {text:?} in {}", server.events());
}

fn cached(dir: &Path) -> usize {
    let shards = fs::read_dir(dir.join("blocks")).unwrap().flatten();
    let shards = shards.filter(|shard| shard.path().is_dir());
    shards.map(|shard| fs::read_dir(shard.path()).unwrap().count()).sum()
}

#[test]
fn a_server_fetches_what_starts_read_and_when_asked_the_rest_from_within_its_cage() {
    let dir = tempfile::tempdir().unwrap();
    let (flist, blocks) = image(dir.path(), 3);
    let image = dir.path().join("image");
    let names = "/data/file1 1\n/lonely\n/sums\n/gone\n";
    let (listed, lost) = zmachine_flist::Hints::parse(names).unwrap().blocks_in(&flist.tree);
    assert_eq!((listed.len(), lost), (3, 1));
    let map = ExtentMap::open(&image.join("root.map")).unwrap();
    let first = u32::try_from(map.metadata_bytes() / 4096).unwrap();
    let all =
        (first..u32::try_from(map.device_bytes() / 4096).unwrap()).map(|block| map.lookup(block).unwrap().unwrap());
    let mut list = PrefetchList::default();
    let starts: Vec<u32> = all
        .filter(|extent| listed.contains(&extent.block))
        .map(|extent| extent.start)
        .collect();
    // Numbers at which no block begins come from a guest, too.
    list.add_recording(&[&starts[..], &[0, 1, u32::MAX, starts[0] + 1]].concat());
    list.save(&image).unwrap();
    assert_eq!(list.hints(&image, &flist).unwrap().0.len(), 3);

    let server = Server::prefetching(dir.path(), &image, 1, "hints");
    let line = reported(&server, "prefetched");
    assert!(line.contains("\"what\":\"hints\",\"blocks\":3,"), "{line}");
    assert_eq!(cached(dir.path()), 3);
    drop(server);
    fs::remove_file(dir.path().join("rootfs.sock")).unwrap();
    let shard = dir.path().join("store").join(&listed[0].id.0.to_hex()[..2]);
    let lost = fs::read_dir(&shard).unwrap().count();
    fs::remove_dir_all(shard).unwrap();
    fs::remove_dir_all(dir.path().join("blocks")).unwrap();
    let server = Server::prefetching(dir.path(), &image, 1, "all");
    reported(&server, "\"what\":\"all\"");
    assert_eq!(cached(dir.path()), blocks.0.len() - lost, "{}", server.events());
    assert!(!server.events().contains("block-failed"), "nobody has asked for it");
}

#[test]
fn preparing_twice_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (flist, _) = image(dir.path(), 1);
    let image = dir.path().join("image");
    let read = || ["root.erofs", "root.map", "root.json"].map(|name| fs::read(image.join(name)).unwrap());
    let before = read();
    prepare(&image, "test", &flist).unwrap();
    assert!(before == read());
    fs::remove_file(image.join("root.json")).unwrap();
    prepare(&image, "test", &flist).unwrap();
    assert!(before == read(), "the same image was written differently");
    assert_eq!(fs::read_dir(&image).unwrap().count(), 3);
}

#[test]
fn a_tree_that_has_no_representation_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = builder();
    let mut odd = node(0o644, NodeKind::Fifo);
    odd.metadata = metadata(0o644);
    odd.metadata.xattrs = vec![(b"odd.name".to_vec(), vec![])];
    tree.add(NodeId::ROOT, b"odd".to_vec(), odd).unwrap();
    let flist = flist(tree.finish().unwrap(), dir.path());
    let error = prepare(dir.path(), "test", &flist).unwrap_err();
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
