//! What the tests of format 2 share: where the recorded files are, and how to read what is said about them.

#![allow(unreachable_pub)] // a module of a test program

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use zmachine_flist::{BlockRef, Flist, Node, NodeKind};

/// A file recorded from the original tool.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/v2")
        .join(name)
}

/// A recorded flist.
pub fn open(name: &str) -> Flist {
    Flist::open(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error:?}"))
}

/// What an independent decoder found in a recorded flist.
pub fn decoded(tree: &str) -> serde_json::Value {
    let file = std::fs::File::open(fixture(&format!("{tree}.decoded.json.gz"))).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The lines of a manifest of a source tree: path without leading slash, then its other columns.
pub fn manifest(tree: &str) -> BTreeMap<Vec<u8>, Vec<String>> {
    let text = std::fs::read_to_string(fixture(&format!("MANIFEST-{tree}.tsv"))).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut columns = line.split('\t').map(str::to_owned);
            (unescape(&columns.next().unwrap())[1..].to_vec(), columns.collect())
        })
        .collect()
}

/// Undoes `\xNN`.
pub fn unescape(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"\\x") {
            out.push(u8::from_str_radix(&text[at + 2..at + 4], 16).unwrap());
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    out
}

/// The name that manifests and decoders give a kind, and what they show of it.
pub fn kind_and_detail(node: &Node) -> (&'static str, String) {
    match &node.kind {
        NodeKind::Directory(_) => ("dir", "-".into()),
        NodeKind::Regular { .. } => ("file", "-".into()),
        NodeKind::Symlink(target) => ("link", String::from_utf8(target.clone()).unwrap()),
        NodeKind::CharDevice { major, minor } => ("chr", format!("{major},{minor}")),
        NodeKind::BlockDevice { major, minor } => ("blk", format!("{major},{minor}")),
        NodeKind::Fifo => ("fifo", "-".into()),
        NodeKind::Socket => ("sock", "-".into()),
    }
}

/// `st_size` of a node on the file system of the recordings.
pub fn size(node: &Node) -> u64 {
    match &node.kind {
        NodeKind::Directory(_) => 4096,
        NodeKind::Regular { size, .. } => *size,
        NodeKind::Symlink(target) => target.len() as u64,
        _ => 0,
    }
}

/// The stored bytes of a block in a recorded store.
pub fn stored(store: &str, block: &BlockRef) -> std::io::Result<Vec<u8>> {
    let hex = block.id.to_string();
    std::fs::read(fixture(store).join(&hex[..2]).join(hex))
}
