//! Tables of contents of layers: eStargz and zstd:chunked, whose entries are alike.
//!
//! An eStargz layer is a gzip file of many members. Its last 51 bytes are an empty member whose extra field says where the member with
//! the table is: a tar archive with one file of JSON. The manifest has the table's digest as an annotation.
//!
//! A zstd:chunked layer is a zstd file of many frames, the last of them skippable ones with the table; annotations say where it is, how long, and
//! the digest of its compressed bytes.

use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use zmachine_image::lazy::{Chunk, ChunkCompression, MOST_PLAIN};

use super::super::manifest::Descriptor;
use super::super::source::{Part, Source};
use super::super::{Problem, layer, manifest};
use super::TIME_LIMIT;
use crate::compression::Decompressed;
use crate::tar::{Member, MemberKind};

const ESTARGZ: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Where the annotations of zstd:chunked begin, and how the first programs that wrote them had it (skopeo 1.9, which Debian 12 has).
const CHUNKED: [&str; 2] = ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."];

/// The longest table that is read, in bytes, compressed and not: some hundred thousand files.
const TABLE_BYTES: u64 = 64 << 20;
/// Bytes from the end of an eStargz layer that are asked for first: most tables are in them.
const TAIL: u64 = 512 << 10;
const FOOTER: usize = 51;

/// A member of a layer, and the chunks of its content.
pub(super) struct Listed {
    pub(super) member: Member,
    pub(super) chunks: Vec<Chunk>,
}

/// An entry as both formats have it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Entry {
    #[serde(rename = "type", deserialize_with = "manifest::nullable")]
    kind: String,
    #[serde(deserialize_with = "manifest::nullable")]
    name: String,
    #[serde(deserialize_with = "manifest::nullable")]
    link_name: String,
    size: u64,
    #[serde(alias = "modtime")]
    mod_time: Option<String>,
    mode: i64,
    uid: i64,
    gid: i64,
    dev_major: u32,
    dev_minor: u32,
    #[serde(deserialize_with = "manifest::nullable")]
    xattrs: std::collections::BTreeMap<String, String>,
    /// Of the whole content.
    digest: Option<String>,
    offset: u64,
    end_offset: u64,
    inner_offset: u64,
    chunk_size: u64,
    chunk_offset: u64,
    chunk_digest: Option<String>,
    chunk_type: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Table {
    version: u32,
    #[serde(default, deserialize_with = "manifest::nullable")]
    entries: Vec<Entry>,
}

/// How the chunks of a layer are compressed, when its manifest says that it has a table of contents.
pub(super) fn format_of(layer: &Descriptor) -> Option<ChunkCompression> {
    if layer.annotation(ESTARGZ).is_some() {
        return Some(ChunkCompression::Gzip);
    }
    chunked_annotations(layer).map(|_| ChunkCompression::Zstd)
}

/// Where the table of a zstd:chunked layer is, and its digest.
fn chunked_annotations(layer: &Descriptor) -> Option<(&str, &str)> {
    CHUNKED.iter().find_map(|prefix| {
        let position = layer.annotation(&format!("{prefix}manifest-position"))?;
        Some((position, layer.annotation(&format!("{prefix}manifest-checksum"))?))
    })
}

fn broken(what: impl Into<String>) -> Problem {
    Problem::Broken(what.into())
}

/// Where the table of contents is said not to be usable, the layer comes as a whole; a table that is not what its digest says is an error.
pub(super) fn read(
    source: &dyn Source,
    layer: &Descriptor,
    number: u16,
    compression: ChunkCompression,
) -> Result<Option<Vec<Listed>>, Problem> {
    let found = match compression {
        ChunkCompression::Gzip => estargz(source, layer)?,
        ChunkCompression::Zstd => chunked(source, layer)?,
    };
    let Some((json, end)) = found else { return Ok(None) };
    let Ok(table) = serde_json::from_slice::<Table>(&json) else {
        return Ok(None);
    };
    Ok((table.version == 1)
        .then(|| listed(table.entries, number, end))
        .flatten())
}

fn part(source: &dyn Source, layer: &Descriptor, at: u64, length: u64) -> Result<Option<Vec<u8>>, Problem> {
    let part = Part {
        at,
        length,
        deadline: std::time::Instant::now() + TIME_LIMIT,
    };
    source.part(&layer.digest, &part)
}

/// The JSON of an eStargz layer, and where its contents end.
fn estargz(source: &dyn Source, layer: &Descriptor) -> Result<Option<(Vec<u8>, u64)>, Problem> {
    let tail = TAIL.min(layer.size);
    let start = layer.size - tail;
    let Some(end) = part(source, layer, start, tail)? else {
        return Ok(None);
    };
    let at = end
        .len()
        .checked_sub(FOOTER)
        .and_then(|footer| table_offset(&end[footer..]));
    let Some(at) = at.filter(|at| *at < layer.size && layer.size - at <= TABLE_BYTES) else {
        return Ok(None);
    };
    let compressed = match at.checked_sub(start) {
        Some(within) => end[within as usize..].to_vec(),
        None => match part(source, layer, at, start - at)? {
            Some(mut head) => {
                head.extend_from_slice(&end);
                head
            }
            None => return Ok(None),
        },
    };
    let mut member = flate2::bufread::GzDecoder::new(&compressed[..]).take(TABLE_BYTES);
    let mut header = [0; 512];
    member.read_exact(&mut header)?;
    let length = std::str::from_utf8(&header[124..136]).ok();
    let length = length.and_then(|text| u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok());
    let length = length.ok_or_else(|| broken(format!("the table of contents of layer {}", layer.digest)))?;
    let mut json = Vec::new();
    member.take(length).read_to_end(&mut json)?;
    layer::check_digest(&json, layer.annotation(ESTARGZ).unwrap_or_default())?;
    Ok(Some((json, at)))
}

/// Where the footer of an eStargz layer says that the table is.
fn table_offset(footer: &[u8]) -> Option<u64> {
    // A gzip header with an extra field, whose one subfield "SG" has sixteen hexadecimal digits and a word.
    let extra = footer.strip_prefix(&[0x1f, 0x8b, 8, 4])?.get(6..)?;
    let text = extra.strip_prefix(&[26, 0, b'S', b'G', 22, 0])?.get(..22)?;
    let digits = text.strip_suffix(b"STARGZ")?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The JSON of a zstd:chunked layer, and where its contents end.
fn chunked(source: &dyn Source, layer: &Descriptor) -> Result<Option<(Vec<u8>, u64)>, Problem> {
    let Some((position, digest)) = chunked_annotations(layer) else {
        return Ok(None);
    };
    let numbers = position.split(':');
    let numbers: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
    let [at, length, plain, 1] = numbers[..] else {
        return Ok(None);
    };
    let fits = at.checked_add(length).is_some_and(|end| end <= layer.size);
    if !fits || length == 0 || length > TABLE_BYTES || plain > TABLE_BYTES {
        return Ok(None);
    }
    let Some(compressed) = part(source, layer, at, length)? else {
        return Ok(None);
    };
    layer::check_digest(&compressed, digest)?;
    let mut json = Vec::new();
    Decompressed::new(&compressed[..])?.take(plain).read_to_end(&mut json)?;
    Ok(Some((json, at)))
}

/// The members of a layer; `None` when something of them cannot be read in parts.
fn listed(entries: Vec<Entry>, number: u16, end: u64) -> Option<Vec<Listed>> {
    // Where things begin in the layer: what begins at one of them ends at the next at the latest.
    let has_content = |entry: &&Entry| entry.kind == "chunk" || entry.kind == "reg" && entry.size > 0;
    let mut starts: Vec<u64> = entries.iter().filter(has_content).map(|entry| entry.offset).collect();
    starts.push(end);
    starts.sort_unstable();
    let mut listed: Vec<Listed> = Vec::new();
    for entry in &entries {
        if entry.kind == "chunk" {
            let file = listed
                .last_mut()
                .filter(|file| file.member.kind == MemberKind::Regular)?;
            file.chunks.push(chunk(entry, file.member.size, number, &starts)?);
            continue;
        }
        let chunks = match entry.kind == "reg" && entry.size > 0 {
            true => vec![chunk(entry, entry.size, number, &starts)?],
            false => Vec::new(),
        };
        listed.push(Listed {
            member: member(entry)?,
            chunks,
        });
    }
    for file in &listed {
        let mut at = 0;
        for (chunk, offset) in file.chunks.iter().zip(offsets(&file.chunks)) {
            if offset != at || chunk.size > MOST_PLAIN {
                return None;
            }
            at += chunk.size;
        }
        if at != file.member.size {
            return None;
        }
    }
    Some(listed)
}

/// Where chunks begin in their file, when they are behind each other.
fn offsets(chunks: &[Chunk]) -> impl Iterator<Item = u64> {
    chunks.iter().scan(0, |at, chunk| {
        let start = *at;
        *at += chunk.size;
        Some(start)
    })
}

fn chunk(entry: &Entry, file_size: u64, layer: u16, starts: &[u64]) -> Option<Chunk> {
    let left = file_size.checked_sub(entry.chunk_offset)?;
    let size = match entry.chunk_size {
        0 => left,
        size => size,
    };
    if size == 0 || size > left {
        return None;
    }
    let is_all = size == file_size;
    if entry.chunk_type.as_deref() == Some("zeros") {
        if size > MOST_PLAIN {
            return None;
        }
        return Some(Chunk {
            layer,
            at: entry.offset,
            stored: 0,
            skip: 0,
            size,
            sha256: Sha256::digest(vec![0; usize::try_from(size).ok()?]).into(),
        });
    }
    let digest = entry.chunk_digest.as_deref().filter(|digest| !digest.is_empty());
    // The only chunk of a file may leave it to the file.
    let digest = digest.or(entry.digest.as_deref().filter(|_| is_all))?;
    let next = starts
        .get(starts.partition_point(|start| *start <= entry.offset))
        .copied()?;
    let stored_end = match entry.end_offset {
        0 => next,
        end => next.min(end.max(entry.offset)),
    };
    Some(Chunk {
        layer,
        at: entry.offset,
        stored: u32::try_from(stored_end.checked_sub(entry.offset)?)
            .ok()
            .filter(|stored| *stored > 0)?,
        skip: u32::try_from(entry.inner_offset).ok()?,
        size,
        sha256: sha256(digest)?,
    })
}

fn sha256(digest: &str) -> Option<[u8; 32]> {
    let hex = layer::hex_of(digest).ok()?;
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

fn member(entry: &Entry) -> Option<Member> {
    let kind = match entry.kind.as_str() {
        "dir" => MemberKind::Directory,
        "reg" => MemberKind::Regular,
        "symlink" => MemberKind::Symlink,
        "hardlink" => MemberKind::HardLink,
        "char" => MemberKind::CharDevice,
        "block" => MemberKind::BlockDevice,
        "fifo" => MemberKind::Fifo,
        _ => return None,
    };
    let time: jiff::Timestamp = match entry.mod_time.as_deref() {
        None | Some("") => jiff::Timestamp::UNIX_EPOCH,
        Some(text) => text.parse().ok()?,
    };
    let mut xattrs = Vec::new();
    for (name, value) in &entry.xattrs {
        xattrs.push((name.clone().into_bytes(), STANDARD.decode(value).ok()?));
    }
    // A time before 1970 counts its fraction from the second before.
    let (seconds, nanoseconds) = (time.as_second(), time.subsec_nanosecond());
    let (mtime, mtime_nsec) = match nanoseconds {
        n if n < 0 => (seconds - 1, n + 1_000_000_000),
        n => (seconds, n),
    };
    Some(Member {
        path: entry.name.clone().into_bytes(),
        size: if kind == MemberKind::Regular { entry.size } else { 0 },
        kind,
        target: entry.link_name.clone().into_bytes(),
        mode: u16::try_from(entry.mode & 0o7777).ok()?,
        uid: u32::try_from(entry.uid).ok()?,
        gid: u32::try_from(entry.gid).ok()?,
        mtime,
        mtime_nsec: u32::try_from(mtime_nsec).ok()?,
        device: (entry.dev_major, entry.dev_minor),
        xattrs,
        lost_acls: 0,
    })
}
