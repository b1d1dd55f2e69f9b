//! Makes the first inputs of every target from the recorded flists: `fuzz-seeds FIXTURES CORPUS`.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use zmachine_flist::{BlockRef, Flist};
use zmachine_fuzz::{TARGETS, block_seed, v1_seed};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(fixtures), Some(corpus)) = (args.next(), args.next()) else {
        return Err("usage: fuzz-seeds FIXTURES CORPUS".into());
    };
    for (name, _) in TARGETS {
        fs::create_dir_all(corpus.join(name))?;
    }
    let seed = |target: &str, name: &str, bytes: &[u8]| fs::write(corpus.join(target).join(name), bytes);

    // Format 1: the recorded files, and their objects.
    let old = fs::read(fixtures.join("v1/kinds.flist"))?;
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&old[..]).read_to_end(&mut tar)?;
    let size = usize::from_str_radix(
        std::str::from_utf8(&tar[512 + 124..512 + 136])?.trim_matches(['\0', ' ']),
        8,
    )?;
    let folder = tempfile::tempdir()?;
    let database = folder.path().join("db");
    fs::write(&database, &tar[1024..1024 + size])?;
    let db = Connection::open(&database)?;
    seed("v1_objects", "kinds", &v1_seed(&db))?;
    smaller(&db)?;
    let mut small = tar[..1024].to_vec();
    let bytes = fs::read(&database)?;
    small[512 + 124..512 + 135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
    small[512 + 148..512 + 156].fill(b' ');
    let sum: u32 = small[512..].iter().map(|byte| u32::from(*byte)).sum();
    small[512 + 148..512 + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    small.extend(bytes);
    small.resize(small.len().next_multiple_of(512) + 1024, 0);
    seed("v1_file", "kinds-tar", &small)?;
    seed("v1_file", "kinds-gzip", &gzip(&small)?)?;

    // Format 2: the recorded ones, as small as their tables allow, and one with all our extensions.
    for name in ["kinds", "kinds-sharded"] {
        seed(
            "v2_file",
            name,
            &small_flist(&fixtures.join(format!("v2/{name}.fl")), folder.path())?,
        )?;
    }
    let mut flist = Flist::open(&fixtures.join("v2/kinds.fl"))?;
    flist.tags.insert("version".into(), "1".into());
    let ours = folder.path().join("ours.fl");
    flist.write(&ours)?;
    seed("v2_file", "ours", &small_flist(&ours, folder.path())?)?;
    seed("v2_rows", "bytes", &(0..=255).cycle().take(2000).collect::<Vec<u8>>())?;

    let plain = b"some text, some text, some text, and something else".repeat(20);
    seed("block_codec", "plain", &[&[0, 0, 0, 0, 0][..], &plain].concat())?;
    for kind in [1, 2] {
        // A literal of twelve bytes, and copies of it.
        let compressed = [&[kind, 36, 0, 0, 0][..], b"\x24\x2chello flist\n\x5a\x0c\x00"].concat();
        seed("block_codec", &format!("compressed-{kind}"), &compressed)?;
    }
    let sealed = BlockRef::seal(&plain).1;
    seed("block_codec", "sealed", &[&[3, 0, 4, 0, 0][..], &sealed].concat())?;

    for (name, layer) in layers()? {
        seed("oci_layers", name, &layer)?;
    }
    let documents = [
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}"#,
        r#"{"schemaVersion":2,"config":{"digest":"sha256:","size":1},"layers":[{"digest":"sha256:","size":1}]}"#,
        r#"{"config":{"Entrypoint":["/a"],"Cmd":null,"Env":["A=b"],"User":"1","Volumes":{"/d":{}}},"rootfs":{"diff_ids":["sha256:"]}}"#,
    ];
    for (number, document) in (0u8..).zip(documents) {
        seed(
            "oci_documents",
            &number.to_string(),
            &[&[number], document.as_bytes()].concat(),
        )?;
    }
    let noise: Vec<u8> = (0..3000u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    seed("erofs", "noise", &noise)?;
    seed("block_requests", "two", &block_seed())?;
    seed("v2_rows", "noise", &noise)?;
    Ok(())
}

/// Rewrites a database with the smallest pages.
fn smaller(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA page_size = 512; VACUUM")
}

fn small_flist(file: &Path, folder: &Path) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let copy = folder.join("copy.fl");
    fs::copy(file, &copy)?;
    let db = Connection::open_with_flags(&copy, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // A few files of every kind are as good as many, and mutations hit them more often.
    db.execute_batch(
        "DELETE FROM inode WHERE ino > 24; DELETE FROM block WHERE ino > 24; DELETE FROM extra WHERE ino > 24",
    )?;
    smaller(&db)?;
    db.close().map_err(|(_, error)| error)?;
    Flist::open(&copy)?;
    Ok(fs::read(&copy)?)
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// One layer with everything, plain and compressed; two on top of each other.
fn layers() -> std::io::Result<Vec<(&'static str, Vec<u8>)>> {
    let lower = [
        entry(b'5', "etc/", "", b""),
        entry(b'0', "etc/a", "", b"text"),
        entry(b'1', "etc/b", "etc/a", b""),
        entry(b'2', "lib", "usr/lib", b""),
        entry(b'0', "lib/c", "", b"below a link"),
        entry(
            b'x',
            "x",
            "",
            b"30 mtime=1234567890.123456789\n25 SCHILY.xattr.user.a=b\n\n",
        ),
        entry(b'0', "d", "", b""),
        entry(b'L', "././@LongLink", "", &[b'n'; 120]),
        entry(b'0', "short", "", b""),
        entry(b'3', "dev/null", "", b""),
        vec![0; 1024],
    ]
    .concat();
    let upper = [
        entry(b'0', "etc/.wh.a", "", b""),
        entry(b'0', "lib/.wh..wh..opq", "", b""),
        entry(b'0', "etc/new", "", b"upper"),
        vec![0; 1024],
    ]
    .concat();
    let mut two = vec![1];
    two.extend((lower.len() as u16).to_le_bytes());
    two.extend(&lower);
    two.extend(&upper);
    Ok(vec![
        ("plain", [&[0][..], &lower].concat()),
        ("gzip", [&[0][..], &gzip(&lower)?].concat()),
        ("two", two),
    ])
}

/// A member of a tar.
fn entry(kind: u8, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.extend(content);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}
