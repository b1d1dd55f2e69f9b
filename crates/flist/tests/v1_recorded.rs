//! Format 1 against files made by the original tool.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::Digest as _;
use zmachine_flist::{BlockRef, Flist, ImageConfig, Node, NodeKind, Route};

const TREES: [&str; 3] = ["kinds", "sizes", "rootfs-mini"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/v1")
        .join(name)
}

fn open(tree: &str) -> Flist {
    Flist::open(&fixture(&format!("{tree}.flist"))).unwrap_or_else(|error| panic!("{tree}: {error:?}"))
}

fn decoded(tree: &str) -> serde_json::Value {
    let file = std::fs::File::open(fixture(&format!("{tree}.decoded.json.gz"))).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What the decoder calls a kind; the original writer calls every special file a socket.
fn kind(node: &Node) -> &'static str {
    match node.kind {
        NodeKind::Directory(_) => "dir",
        NodeKind::Regular { .. } => "file",
        NodeKind::Symlink(_) => "link",
        _ => "special",
    }
}

fn plaintext(block: &BlockRef) -> Vec<u8> {
    match std::fs::read(fixture("blocks").join(block.id.to_string())) {
        Ok(sealed) => block.open(&sealed).unwrap(),
        Err(_) => {
            assert!(block.is_zeros(), "block {} is not recorded", block.id);
            vec![0; block.len as usize]
        }
    }
}

#[test]
fn every_recorded_flist_decodes_as_the_independent_decoder_says() {
    for tree in TREES {
        let (flist, decoded) = (open(tree), decoded(tree));
        let mut expected: BTreeMap<Vec<u8>, &serde_json::Value> = BTreeMap::new();
        for entry in decoded["entries"].as_array().unwrap() {
            expected.insert(entry["path"].as_str().unwrap().into(), entry);
        }
        let mut unknown = BTreeSet::new();
        for (path, id) in flist.tree.walk() {
            let (node, meta) = (flist.tree.get(id), &flist.tree.get(id).metadata);
            // The decoder's JSON has names as text.
            let Some(entry) = expected.remove(&path) else {
                assert!(
                    std::str::from_utf8(&path).is_err(),
                    "{tree}: {path:?} is not in the decoded file"
                );
                unknown.insert(path);
                continue;
            };
            let mode = u16::from_str_radix(entry["mode"].as_str().unwrap(), 8).unwrap();
            assert_eq!(meta.mode, mode & 0o7777, "{path:?}");
            assert_eq!(entry["kind"], kind(node), "{path:?}");
            assert_eq!(entry["uid"], meta.uid, "{path:?}");
            assert_eq!(entry["gid"], meta.gid, "{path:?}");
            assert_eq!(entry["mtime"], meta.mtime, "{path:?}");
            match &node.kind {
                NodeKind::Regular { size, blocks } => {
                    assert_eq!(entry["size"], *size, "{path:?}");
                    let listed = entry.get("blocks").and_then(|blocks| blocks.as_array());
                    let listed = listed.map_or(0, Vec::len);
                    let found: Vec<_> = blocks
                        .iter()
                        .take(listed)
                        .map(|block| (block.id.to_string(), block.key.to_string(), block.len))
                        .collect();
                    assert_eq!(
                        serde_json::json!(found),
                        *entry.get("blocks").unwrap_or(&serde_json::json!([]))
                    );
                    let recorded = entry["data_len"].as_u64().unwrap();
                    let mut hash = sha2::Sha256::new();
                    let content: Vec<u8> = blocks.iter().flat_map(plaintext).collect();
                    assert_eq!(content.len() as u64, *size);
                    assert!(content[recorded as usize..].iter().all(|byte| *byte == 0));
                    hash.update(&content[..recorded as usize]);
                    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                    assert_eq!(entry["sha256"], hex, "{path:?}");
                }
                NodeKind::Symlink(target) => assert_eq!(entry["target"].as_str().unwrap().as_bytes(), target),
                NodeKind::BlockDevice { major, minor } | NodeKind::CharDevice { major, minor } => {
                    assert_eq!(entry["data"], format!("{major},{minor}"));
                }
                _ => {}
            }
        }
        assert_eq!(expected.len(), unknown.len(), "{tree}: missing {:?}", expected.keys());
    }
}

#[test]
fn the_file_whose_end_the_original_writer_lost_is_named() {
    let flist = open("sizes");
    let file = flist.tree.lookup(b"sparse-64M").unwrap();
    let (size, blocks) = flist.tree.get(file).content().unwrap();
    assert_eq!((size, blocks.len(), blocks[128].len), (67_108_865, 129, 1));
    assert_eq!(
        flist.tags["zmachine.lost-tails"],
        "/sparse-64M: its last 1 bytes were lost by its packer"
    );
}

#[test]
fn metadata_becomes_configuration_routes_and_tags() {
    let flist = open("kinds");
    let config = ImageConfig::from_tags(&flist.tags).unwrap();
    assert_eq!(config.cmd, ["/bin/sh", "-c", "echo hi"]);
    assert_eq!(config.env, ["FOO=bar"]);
    assert_eq!(config.ports, ["80/tcp"]);
    assert_eq!(flist.tags["mykey"], "myvalue");
    assert!(!flist.tags.contains_key("backend"));
    assert_eq!(flist.routes.0, [Route::all("zdb://127.0.0.1:19900")]);
}

#[test]
fn a_plain_tar_with_a_router_and_other_members_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let packed = std::fs::File::open(fixture("busybox.flist")).unwrap();
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut tar).unwrap();
    let router = b"pools: {p: {'00:ff': 'redis://h:1'}}\nlookup: [p]\n";
    let mut with_router = member("../../etc/evil", b"no");
    with_router.extend(member("a/router.yaml", router));
    with_router.extend(&tar);
    let path = directory.path().join("x.flist");
    std::fs::write(&path, with_router).unwrap();
    let flist = Flist::open(&path).unwrap();
    assert_eq!(flist.routes.0[0], Route::all("zdb://h:1"));
    assert_eq!(flist.tree, open("busybox").tree);
    assert!(flist.tree.lookup(b"work/hello.txt").is_some());
}

/// A regular member of a tar.
fn member(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[257..265].copy_from_slice(b"ustar  \0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.extend(content);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}

/// A format 1 file with the objects of `tree` after `change` to its database.
fn changed(tree: &str, change: impl FnOnce(&rusqlite::Connection)) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let mut tar = Vec::new();
    let packed = std::fs::File::open(fixture(&format!("{tree}.flist"))).unwrap();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut tar).unwrap();
    let database = directory.path().join("db");
    let size = usize::from_str_radix(
        std::str::from_utf8(&tar[512 + 124..512 + 136])
            .unwrap()
            .trim_matches(['\0', ' ']),
        8,
    )
    .unwrap();
    std::fs::write(&database, &tar[1024..1024 + size]).unwrap();
    let db = rusqlite::Connection::open(&database).unwrap();
    change(&db);
    db.close().unwrap();
    let path = directory.path().join("x.flist");
    std::fs::write(&path, member("flistdb.sqlite3", &std::fs::read(&database).unwrap())).unwrap();
    (directory, path)
}

#[test]
fn a_database_without_the_metadata_table_is_read() {
    let (_directory, path) = changed("kinds", |db| db.execute_batch("DROP TABLE metadata").unwrap());
    let flist = Flist::open(&path).unwrap();
    assert!(flist.tags.is_empty());
    assert_eq!(flist.tree, open("kinds").tree);
}

#[test]
fn objects_that_can_not_be_are_refused() {
    let root = "cae66941d9efbd404e4d88758ea67670";
    for (sql, expected) in [
        (format!("DELETE FROM entries WHERE key = '{root}'"), "object is missing"),
        (
            format!("UPDATE entries SET value = x'00' WHERE key = '{root}'"),
            "cut short",
        ),
        (
            format!("UPDATE entries SET value = x'00000000010000000100000002000000' WHERE key = '{root}'"),
            "list is where a struct",
        ),
        (
            format!("UPDATE entries SET value = x'00000000010000000000000000000000' WHERE key = '{root}'"),
            "empty",
        ),
        (
            format!(
                "UPDATE entries SET value = (SELECT value FROM entries WHERE key = '{root}') WHERE length(key) = 32"
            ),
            "",
        ),
        ("UPDATE entries SET value = 7".to_owned(), ""),
        ("UPDATE entries SET value = zeroblob(80000000)".to_owned(), ""),
        (
            "CREATE TABLE t AS SELECT * FROM entries; DROP TABLE entries; CREATE VIEW entries AS SELECT * FROM t"
                .to_owned(),
            "not an ordinary table",
        ),
        ("DROP TABLE entries".to_owned(), "no table entries"),
    ] {
        let (_directory, path) = changed("busybox", |db| db.execute_batch(&sql).unwrap());
        let error = Flist::open(&path).expect_err(&sql);
        let text = format!("{error}: {:?}", std::error::Error::source(&error));
        assert!(text.contains(expected) && text.contains("x.flist"), "{sql}: {text}");
    }
}

#[test]
fn damage_anywhere_is_an_error_or_a_tree_and_never_a_panic() {
    let (_directory, path) = changed("kinds", |_| ());
    let good = std::fs::read(&path).unwrap();
    for step in 0..1500 {
        let mut bad = good.clone();
        // Spread over the file by a prime, so that every structure is hit.
        for change in 0..3 {
            let at = (step * 7919 + change * 104_729) % bad.len();
            bad[at] = (step * 31 + change * 17) as u8;
        }
        std::fs::write(&path, &bad).unwrap();
        if let Ok(flist) = Flist::open(&path) {
            assert_eq!(flist.tree.check(), Ok(()));
        }
    }
}
