//! Files made to harm who reads them, given to the real program: it ends with 1 or 5 and says of what file and why, in bounded
//! memory, and leaves nothing behind.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use rusqlite::Connection;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zmachine_flist::{BlockRef, Digest, Flist};

/// Address space of the program in KiB: its threads' stacks and its text are most of it.
const MEMORY_KIB: u32 = 1_000_000;

/// A folder for one bad file and everything that must not come of it.
struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Room {
        let room = Room(tempfile::tempdir().unwrap());
        fs::create_dir(room.path("in")).unwrap();
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn input(&self, name: &str) -> String {
        self.path("in").join(name).display().to_string()
    }

    /// What the program says, and its exit code.
    fn run(&self, args: &[&str], input: &[u8]) -> (Option<i32>, String) {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("ulimit -v {MEMORY_KIB}; exec \"$@\""))
            .args(["sh", env!("CARGO_BIN_EXE_zmachine")])
            .args(args)
            .env("ZMACHINE_HOME", self.path("home"))
            .current_dir(self.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // Who refuses a file early does not read the rest of it.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let done = child.wait_with_output().unwrap();
        writer.join().unwrap();
        (
            done.status.code(),
            format!(
                "{}{}",
                String::from_utf8_lossy(&done.stderr),
                String::from_utf8_lossy(&done.stdout)
            ),
        )
    }

    /// Why the program's answer to a bad file is not the right one.
    fn refused(&self, args: &[&str], input: &[u8], named: &str) -> Result<(), String> {
        let (code, output) = self.run(args, input);
        let reported = || format!("{args:?}: exit {code:?}: {output}");
        if !matches!(code, Some(1 | 5)) {
            return Err(format!("wrong exit: {}", reported()));
        }
        if output.contains("panicked") || !output.contains(named) {
            return Err(format!("not an error that names {named}: {}", reported()));
        }
        // Blocks that nothing names may be in a store, as after any pack that failed.
        let mut left: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !["in", "home", "store"].contains(&name.as_str()))
            .collect();
        left.sort();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("left {left:?}: {}", reported()))
        }
    }
}

fn fixtures(format: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../flist/tests/fixtures")
        .canonicalize()
        .unwrap()
        .join(format)
}

/// All of them at once: the complaints of all are worth more than that of the first.
#[track_caller]
fn all_refused(results: impl IntoIterator<Item = Result<(), String>>) {
    let results: Vec<_> = results.into_iter().collect();
    let wrong: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), results.len());
}

fn changed(room: &Room, sql: &str) {
    let file = room.input("bad.fl");
    fs::copy(fixtures("v2/kinds.fl"), &file).unwrap();
    let db = Connection::open(&file).unwrap();
    db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

#[test]
fn flists_whose_tables_lie_are_refused() {
    let store = format!("dir://{}", fixtures("v2/store").display());
    all_refused(
        [
            // Escapes.
            "UPDATE inode SET name = '../x' WHERE ino = 24",
            "UPDATE inode SET name = '/etc' WHERE ino = 24",
            "UPDATE inode SET name = '..' WHERE ino = 24",
            "UPDATE inode SET name = '.' WHERE ino = 24",
            "UPDATE inode SET name = 'a/b' WHERE ino = 24",
            "UPDATE inode SET name = '' WHERE ino = 24",
            "UPDATE inode SET name = CAST(x'610062' AS TEXT) WHERE ino = 24",
            "UPDATE inode SET name = printf('%.300c', 'n') WHERE ino = 24",
            "UPDATE inode SET parent = 33 WHERE ino = 24", // a file below a link to /etc
            "CREATE TABLE name_bytes (ino INTEGER PRIMARY KEY, name BLOB); INSERT INTO name_bytes VALUES (24, CAST('../../x' AS BLOB))",
            // Cycles and duplicates.
            "UPDATE inode SET parent = 47 WHERE ino = 40",
            "UPDATE inode SET parent = ino WHERE ino = 38",
            "UPDATE inode SET name = 'hello.txt' WHERE ino = 21",
            // Sizes that lie.
            "UPDATE inode SET size = 9223372036854775807 WHERE ino = 24",
            "UPDATE inode SET size = 2199023255552 WHERE ino = 24",
            "UPDATE inode SET size = -1 WHERE ino = 24",
            "UPDATE inode SET size = 11 WHERE ino = 24",
            "UPDATE inode SET size = 13 WHERE ino = 24",
            "UPDATE extra SET data = zeroblob(2000000) WHERE ino = 34",
            "UPDATE inode SET uid = 99999999999 WHERE ino = 24",
            // Blocks that are others.
            "UPDATE block SET id = (SELECT id FROM block WHERE ino = 2) WHERE ino = 24",
            "UPDATE block SET key = (SELECT key FROM block WHERE ino = 2) WHERE ino = 24",
            "UPDATE block SET id = zeroblob(32), key = zeroblob(32) WHERE ino = 24",
            "DELETE FROM tag; UPDATE block SET id = x'00' WHERE ino = 24",
            // SQLite's own means.
            "ALTER TABLE block RENAME TO b; CREATE VIEW block AS SELECT * FROM b",
            "ALTER TABLE inode RENAME TO i; CREATE VIEW inode AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS ino, 1 AS parent, x AS name, 0 AS size, 0 AS uid, 0 AS gid, 33188 AS mode, 0 AS rdev, 0 AS ctime, 0 AS mtime FROM n",
            "ALTER TABLE tag ADD COLUMN x AS (zeroblob(1000000000))",
            "DROP TABLE extra; CREATE VIRTUAL TABLE extra USING fts5(ino, data)",
            "DROP TABLE inode",
            "DELETE FROM inode",
        ]
        .map(|sql| {
            let room = Room::new();
            changed(&room, sql);
            let answer = room.refused(
                &["flist", "unpack", &room.input("bad.fl"), "out", "--store", &store],
                b"",
                if sql.starts_with("UPDATE block") || sql.contains("size = 1") { "hello.txt" } else { "bad.fl" },
            );
            answer.map_err(|why| format!("{sql}: {why}"))
        }),
    );
}

#[test]
fn a_trigger_is_not_run_and_a_million_names_are_not_too_many() {
    let room = Room::new();
    changed(
        &room,
        "CREATE TRIGGER t AFTER INSERT ON inode BEGIN DELETE FROM block; END;
         CREATE VIEW v AS SELECT * FROM inode",
    );
    let before = fs::read(room.input("bad.fl")).unwrap();
    let (code, output) = room.run(&["flist", "inspect", &room.input("bad.fl")], b"");
    assert_eq!(code, Some(0), "{output}");
    assert_eq!(fs::read(room.input("bad.fl")).unwrap(), before);

    let room = Room::new();
    changed(
        &room,
        "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 1001000)
         INSERT INTO inode SELECT i, 1, 'n' || i, 0, 0, 0, 33188, 0, 0, 0 FROM n;
         UPDATE inode SET name = 'n5000' WHERE ino = 1001000",
    );
    let answer = room.refused(&["flist", "ls", &room.input("bad.fl")], b"", "n5000");
    answer.unwrap();
}

/// A flist of one file whose block is `sealed`, opened by `key`.
fn one_block(room: &Room, key: &Digest, sealed: &[u8], len: u64) {
    let id = Digest::blake2b_32(sealed);
    let store = room.path("in/blocks").join(&id.to_string()[..2]);
    fs::create_dir_all(&store).unwrap();
    fs::write(store.join(id.to_string()), sealed).unwrap();
    changed(
        room,
        &format!(
            "UPDATE block SET id = x'{id}', key = x'{key}' WHERE ino = 24; UPDATE inode SET size = {len} WHERE ino = 24;
             DELETE FROM block WHERE ino <> 24; DELETE FROM inode WHERE mode & 61440 = 32768 AND ino <> 24 OR ino IN (21);
             DELETE FROM inode WHERE parent NOT IN (SELECT ino FROM inode) AND ino <> 1;
             UPDATE route SET url = 'dir://{}'",
            room.path("in/blocks").display()
        ),
    );
}

/// Encrypts what is said to be a compressed block.
fn encrypted(key: &Digest, compressed: &[u8]) -> Vec<u8> {
    let cipher = Aes256Gcm::new_from_slice(key.as_bytes()).unwrap();
    let mut sealed = compressed.to_vec();
    let nonce = Nonce::from_slice(&key.as_bytes()[..12]);
    let tag = cipher.encrypt_in_place_detached(nonce, &[], &mut sealed).unwrap();
    sealed.extend_from_slice(&tag);
    sealed
}

#[test]
fn blocks_that_are_not_what_their_names_say_are_refused() {
    let plain = b"hello flist\n";
    let (good, sealed) = BlockRef::seal(plain);
    let key = good.key.0;
    // A length of 4 GiB, of 2 GiB and of one more than there is, in the head of a snappy block; then nothing, half, and bytes.
    let snappy: [&[u8]; 6] = [
        b"\xff\xff\xff\xff\x0f",
        b"\x80\x80\x80\x80\x08\x00\x61",
        b"\x0d\x2chello flist\n",
        b"",
        b"\x0c\x2chello",
        b"\x0c\xfe\xff\xff\xff\xff",
    ];
    let mut cases: Vec<(Vec<u8>, u64)> = snappy.map(|bytes| (encrypted(&key, bytes), 12)).into();
    cases.push((encrypted(&key, b"\x0c\x2cHELLO FLIST\n"), 12)); // opens, but is another plaintext
    cases.push((sealed.clone(), 500_000)); // shorter than the flist says
    cases.push((sealed[..sealed.len() - 1].to_vec(), 12));
    cases.push((vec![0; 700_000], 12));
    cases.push((Vec::new(), 12));
    all_refused(cases.iter().enumerate().flat_map(|(number, (sealed, len))| {
        let room = Room::new();
        one_block(&room, &key, sealed, *len);
        let file = room.input("bad.fl");
        ["unpack", "verify"].map(|command| {
            let words = ["flist", command, &file, "out"];
            let words = if command == "unpack" { &words[..] } else { &words[..3] };
            let answer = room.refused(words, b"", "hello.txt");
            answer.map_err(|why| format!("block {number}: {why}"))
        })
    }));
    // The same with nothing wrong, or the cases would prove little.
    let room = Room::new();
    one_block(&room, &key, &sealed, 12);
    let (code, output) = room.run(&["flist", "verify", &room.input("bad.fl")], b"");
    assert_eq!(code, Some(0), "{output}");
    let (code, output) = room.run(&["flist", "unpack", &room.input("bad.fl"), "out"], b"");
    assert_eq!(
        (code, fs::read(room.path("out/hello.txt")).unwrap()),
        (Some(0), plain.to_vec()),
        "{output}"
    );
}

/// One entry of a tar archive, with a name that no library would write.
fn entry(kind: u8, name: &[u8], link: &[u8], size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.as_old_mut().linkflag = [kind];
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Archives that lead out of their tree or contradict themselves.
fn archives() -> Vec<(&'static str, Vec<u8>)> {
    let file = |name: &[u8]| entry(b'0', name, b"", 1, b"x");
    let mut damaged = file(b"x");
    damaged[0] = b'y';
    vec![
        ("a way up", file(b"../x")),
        ("a way up from within", file(b"a/../../x")),
        ("hard link out", entry(b'1', b"x", b"../../etc/passwd", 0, b"")),
        ("hard link to nothing", entry(b'1', b"x", b"absent", 0, b"")),
        ("hard link to itself", entry(b'1', b"x", b"x", 0, b"")),
        (
            "below a loop of links",
            [
                entry(b'2', b"x", b"y", 0, b""),
                entry(b'2', b"y", b"x", 0, b""),
                file(b"x/z"),
            ]
            .concat(),
        ),
        ("cut", entry(b'0', b"x", b"", 4096, b"short")),
        ("a size that lies", entry(b'0', b"x", b"", 1 << 60, b"short")),
        ("a header that is damaged", damaged),
        ("no archive", vec![b'n'; 5000]),
    ]
}

/// A link is followed inside of the tree, as extraction in a root of its own would (layers of merged `/usr` need it).
#[test]
fn what_is_below_a_file_or_a_link_stays_in_the_tree() {
    let cases = [
        (b'0', &b""[..], "x/y"),
        (b'2', b"/etc", "etc/y"),
        (b'2', b"../../etc", "etc/y"),
    ];
    for (below, link, at) in cases {
        let room = Room::new();
        let store = format!("dir://{}", room.path("store").display());
        let bytes = [
            entry(below, b"x", link, 0, b""),
            entry(b'0', b"x/y", b"", 1, b"x"),
            vec![0; 1024],
        ]
        .concat();
        let (code, output) = room.run(&["flist", "pack", "-", "-o", "x.fl", "--store", &store], &bytes);
        assert_eq!(code, Some(0), "{output}");
        let (code, output) = room.run(&["flist", "unpack", "x.fl", "out"], b"");
        assert_eq!(code, Some(0), "{output}");
        assert_eq!(fs::read(room.path("out").join(at)).unwrap(), b"x");
        assert!(!Path::new("/etc/y").exists());
    }
}

#[test]
fn archives_that_lie_are_refused() {
    let nothing = ("nothing at all", Vec::new());
    all_refused(archives().into_iter().chain([nothing]).map(|(what, bytes)| {
        let room = Room::new();
        let store = format!("dir://{}", room.path("store").display());
        let answer = room.refused(
            &["flist", "pack", "-", "-o", "x.fl", "--store", &store],
            &bytes,
            "error",
        );
        answer.map_err(|why| format!("{what}: {why}"))
    }));
}

/// A directory with an OCI image of one layer; `change` may spoil its documents, in order index, manifest, configuration.
fn layout(room: &Room, layer: &[u8], change: impl FnOnce(&mut [Value; 3])) {
    let dir = room.path("in/oci");
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let digest = |bytes: &[u8]| {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(dir.join("blobs/sha256").join(&hex), bytes).unwrap();
        format!("sha256:{hex}")
    };
    let kind = |name| format!("application/vnd.oci.image.{name}");
    let descriptor =
        |name, digest: String, size: usize| json!({"mediaType": kind(name), "digest": digest, "size": size});
    let layer_id = digest(layer);
    let mut documents = [
        json!({}),
        json!({}),
        json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer_id]}}),
    ];
    let config = documents[2].to_string();
    documents[1] = json!({"schemaVersion": 2, "mediaType": kind("manifest.v1+json"),
        "config": descriptor("config.v1+json", digest(config.as_bytes()), config.len()),
        "layers": [descriptor("layer.v1.tar", layer_id, layer.len())]});
    let manifest = documents[1].to_string();
    documents[0] = json!({"schemaVersion": 2,
        "manifests": [descriptor("manifest.v1+json", digest(manifest.as_bytes()), manifest.len())]});
    let before = documents.clone();
    change(&mut documents);
    if documents[1..] != before[1..] {
        // Below a change everything is named anew, unless the change is in the index itself.
        let config = documents[2].to_string();
        if documents[2] != before[2] {
            documents[1]["config"] = descriptor("config.v1+json", digest(config.as_bytes()), config.len());
        }
        let manifest = documents[1].to_string();
        documents[0]["manifests"][0] = descriptor("manifest.v1+json", digest(manifest.as_bytes()), manifest.len());
    }
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    fs::write(dir.join("index.json"), documents[0].to_string()).unwrap();
}

#[test]
fn container_images_that_lie_are_refused() {
    let refused = |room: &Room, what: &str| {
        let store = format!("dir://{}", room.path("store").display());
        let answer = room.refused(
            &["flist", "import", "oci:in/oci", "-o", "x.fl", "--store", &store],
            b"",
            "error",
        );
        answer.map_err(|why| format!("{what}: {why}"))
    };
    let good = [entry(b'0', b"x", b"", 1, b"x"), vec![0; 1024]].concat();
    let outside = "sha256:../../../../../../../../../../etc/passwd";
    let mut results: Vec<_> = archives()
        .into_iter()
        .map(|(what, layer)| {
            let room = Room::new();
            layout(&room, &layer, |_| ());
            refused(&room, what)
        })
        .collect();
    type Change = fn(&mut [Value; 3]);
    let changes: [(&str, Change); 8] = [
        ("no manifests", |d| d[0]["manifests"] = json!([])),
        ("an index that is no index", |d| d[0] = json!([[[[]]]])),
        ("a manifest of another size", |d| {
            d[0]["manifests"][0]["size"] = json!(1)
        }),
        ("a layer of another size", |d| d[1]["layers"][0]["size"] = json!(7)),
        ("a layer of the largest size", |d| {
            d[1]["layers"][0]["size"] = json!(u64::MAX)
        }),
        ("another content", |d| {
            d[2]["rootfs"]["diff_ids"][0] = json!(format!("sha256:{}", "0".repeat(64)));
        }),
        ("fewer layers than contents", |d| d[2]["rootfs"]["diff_ids"] = json!([])),
        ("a layer that is not there", |d| {
            d[1]["layers"][0]["digest"] = json!(format!("sha256:{}", "1".repeat(64)));
        }),
    ];
    for (what, change) in changes {
        let room = Room::new();
        layout(&room, &good, change);
        results.push(refused(&room, what));
    }
    for index in [0, 1] {
        let room = Room::new();
        layout(&room, &good, |documents| match index {
            0 => documents[0]["manifests"][0]["digest"] = json!(outside),
            _ => documents[1]["layers"][0]["digest"] = json!(outside),
        });
        results.push(refused(&room, "a digest that is a path"));
    }
    all_refused(results);
    // The same with nothing wrong, or the cases would prove little.
    let room = Room::new();
    layout(&room, &good, |_| ());
    let store = format!("dir://{}", room.path("store").display());
    let (code, output) = room.run(&["flist", "import", "oci:in/oci", "-o", "x.fl", "--store", &store], b"");
    assert_eq!(code, Some(0), "{output}");
    assert!(Flist::open(&room.path("x.fl")).is_ok());
}

#[test]
fn files_that_are_no_flists_are_refused() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let recorded = fs::read(fixtures("v1/kinds.flist")).unwrap();
    let whole = fs::read(fixtures("v2/kinds.fl")).unwrap();
    let database = |name: &[u8], content: &[u8]| gzip(&entry(b'0', name, b"", content.len() as u64, content));
    let files: [(&str, Vec<u8>); 9] = [
        ("nothing", Vec::new()),
        ("a head alone", b"SQLite format 3\0".to_vec()),
        ("zeros", vec![0; 1 << 20]),
        ("half of one", whole[..whole.len() / 2].to_vec()),
        ("half of an old one", recorded[..recorded.len() / 2].to_vec()),
        ("256 MiB of zeros, compressed", gzip(&vec![0; 256 << 20])),
        ("an old one without its database", database(b"other", b"x")),
        (
            "an old one with a broken database",
            database(b"flistdb.sqlite3", &[7; 5000]),
        ),
        (
            "an old one with a database of the new",
            database(b"flistdb.sqlite3", &whole),
        ),
    ];
    all_refused(files.into_iter().map(|(what, bytes)| {
        let room = Room::new();
        fs::write(room.input("bad.fl"), bytes).unwrap();
        let answer = room.refused(&["flist", "unpack", &room.input("bad.fl"), "out"], b"", "bad.fl");
        answer.map_err(|why| format!("{what}: {why}"))
    }));
}
