//! From the objects of the database to a tree. Layouts: struct field numbers as `D<byte>` (data) and `P<index>` (pointer).
//!
//! A directory is entered once; the same key at a second place is refused, so there are no cycles and the tree is not larger
//! than the database. Rows that nothing leads to are normal and ignored. Deviations of the known writers that are
//! tolerated: modes with type bits, absent access lists, specials without a type, a lost last block.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde_json::Value;

use super::capnp::{Message, Problem, Struct};
use super::container;
use super::routes;
use crate::Flist;
use crate::block::{BlockId, BlockKey, BlockRef, Digest};
use crate::config::ImageConfig;
use crate::database::Source;
use crate::error::OpenError;
use crate::tree::{Metadata, Node, NodeId, NodeKind, TreeBuilder, show};

/// Longest value: the original writer ends at 4 MiB per directory, others need not.
const VALUE_BYTES: i32 = 64 << 20;

/// Unit of a file's block size, in bytes.
const BLOCK_UNIT: u64 = 4096;

/// Owner of files whose owner the image does not tell, as the original reader has it.
const UNKNOWN_OWNER: u32 = 1000;

/// The original writer lost the last block of files beyond this many, by counting in 32-bit floats.
const FLOAT_EXACT_BLOCKS: usize = 32;

/// Tag that lists the files whose end was lost.
const LOST_TAG: &str = "zmachine.lost-tails";

/// Reads the whole flist.
pub(crate) fn read(path: &Path) -> Result<Flist, OpenError> {
    let members = container::members(path)?;
    let source = Source::open(path, members.database.path(), VALUE_BYTES)?;
    source.check_table("entries", true, &["key", "value"])?;
    let has_metadata = source.check_table("metadata", false, &["key", "value"])?;
    let metadata = if has_metadata { texts(&source)? } else { BTreeMap::new() };
    let mut reader = Reader {
        rows: rows(&source)?,
        source,
        access: HashMap::new(),
        entered: HashSet::new(),
        lost: Vec::new(),
        todo: Vec::new(),
    };
    let builder = reader.tree()?;
    let tree = builder.finish().map_err(|source| OpenError::Tree {
        path: path.into(),
        source,
    })?;
    let mut tags = tags(&metadata);
    if !reader.lost.is_empty() {
        tags.insert(LOST_TAG.into(), reader.lost.join("\n"));
    }
    let routes = routes::table(members.router.as_deref(), metadata.get("backend").map(String::as_str));
    let routes = routes.map_err(|problem| OpenError::Object {
        path: path.into(),
        object: "its list of stores".into(),
        problem,
    })?;
    Ok(Flist { tree, routes, tags })
}

/// The texts of the table `metadata`.
fn texts(source: &Source<'_>) -> Result<BTreeMap<String, String>, OpenError> {
    let mut texts = BTreeMap::new();
    source.each("metadata", "key, value", |cells| {
        texts.insert(cells.string(1)?, cells.string(2)?);
        Ok(())
    })?;
    Ok(texts)
}

/// The row of every object.
fn rows(source: &Source<'_>) -> Result<HashMap<Vec<u8>, i64>, OpenError> {
    let mut rows = HashMap::new();
    source.each("entries", "key", |cells| {
        match rows.insert(cells.text(1)?.to_vec(), cells.rowid) {
            None => Ok(()),
            Some(_) => Err(cells.error("its key exists twice")),
        }
    })?;
    Ok(rows)
}

/// What the metadata says about running the image, and its free texts. The backend may hold a password, so it is no tag.
fn tags(metadata: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut config = ImageConfig::default();
    let mut tags = BTreeMap::new();
    for (key, text) in metadata {
        let value: Option<Value> = serde_json::from_str(text).ok();
        let understood = match (key.as_str(), value) {
            ("backend", _) => true,
            ("entrypoint", Some(Value::Array(words))) => {
                // The whole command, which another one replaces; not a part that stays, as the entrypoint of OCI is.
                config.cmd = words.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                config.cmd.len() == words.len()
            }
            ("environ", Some(Value::Object(map))) => {
                let texts = map.iter().filter_map(|(name, value)| Some((name, value.as_str()?)));
                config.env = texts.map(|(name, value)| format!("{name}={value}")).collect();
                config.env.len() == map.len()
            }
            ("port", Some(Value::Object(map))) => {
                let ports = map.keys().filter_map(|port| port.split_once('/'));
                config.ports = ports.map(|(protocol, number)| format!("{number}/{protocol}")).collect();
                config.ports.len() == map.len()
            }
            ("volume", Some(Value::Object(map))) => {
                config.volumes = map.keys().cloned().collect();
                true
            }
            _ => false,
        };
        if !understood {
            tags.insert(key.clone(), text.clone());
        }
    }
    config.store(&mut tags);
    tags
}

/// Mode and owner of an access list.
#[derive(Clone, Copy)]
struct Access {
    mode: u16,
    uid: u32,
    gid: u32,
}

/// A directory that is still to be read.
struct Pending {
    node: NodeId,
    path: Vec<u8>,
    key: Vec<u8>,
}

struct Reader<'a> {
    source: Source<'a>,
    rows: HashMap<Vec<u8>, i64>,
    access: HashMap<Vec<u8>, Access>,
    entered: HashSet<Vec<u8>>,
    lost: Vec<String>,
    todo: Vec<Pending>,
}

impl Reader<'_> {
    fn tree(&mut self) -> Result<TreeBuilder, OpenError> {
        let mut builder = TreeBuilder::new(Metadata::default());
        self.todo.push(Pending {
            node: NodeId::ROOT,
            path: Vec::new(),
            key: path_key(b""),
        });
        while let Some(directory) = self.todo.pop() {
            self.directory(&mut builder, directory)?;
        }
        Ok(builder)
    }

    fn broken(&self, path: &[u8], problem: impl Into<String>) -> OpenError {
        broken(self.source.path, path, problem)
    }

    /// The bytes of an object.
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, OpenError> {
        let Some(row) = self.rows.get(key) else {
            return Ok(None);
        };
        let failed = self.source.damaged("entries");
        let mut query = self
            .source
            .db
            .prepare_cached("SELECT value FROM entries NOT INDEXED WHERE rowid = ?");
        let query = query.as_mut().map_err(|_| failed(rusqlite::Error::InvalidQuery))?;
        query.query_row([row], |row| row.get(0)).map(Some).map_err(&failed)
    }

    /// Dir: P0 name, P1 location, P2 contents, P3 parent, P4 access list, D0 size, D8 modified, D12 created.
    fn directory(&mut self, builder: &mut TreeBuilder, this: Pending) -> Result<(), OpenError> {
        let Pending { node, path, key } = this;
        let fallback = path_key(&path);
        let key = if self.rows.contains_key(&key) { key } else { fallback };
        if !self.entered.insert(key.clone()) {
            return Err(self.broken(&path, "it is also at another place"));
        }
        let value = self.value(&key)?;
        let value = value.ok_or_else(|| self.broken(&path, "its object is missing"))?;
        let message = Message::parse(&value).map_err(|problem| self.broken(&path, problem))?;
        let read = || -> Result<_, Problem> {
            let directory = message.root()?;
            Ok((directory, directory.text(4)?, directory.structs(2)?))
        };
        let (directory, access, entries) = read().map_err(|problem| self.broken(&path, problem))?;
        let metadata = self.metadata(access, directory.u32(8), directory.u32(12), &path)?;
        builder.set_metadata(node, metadata);
        for entry in entries {
            self.entry(builder, node, &path, &entry)?;
        }
        Ok(())
    }

    /// Inode: P0 name, D0 size, D8 kind, P1 what the kind has, P2 access list, D12 modified, D16 created.
    fn entry(
        &mut self,
        builder: &mut TreeBuilder,
        directory: NodeId,
        path: &[u8],
        entry: &Struct<'_>,
    ) -> Result<(), OpenError> {
        let file = self.source.path;
        let broken = |problem: Problem| broken(file, path, problem);
        let name = entry.text(0).map_err(broken)?.to_vec();
        let access = entry.text(2).map_err(broken)?;
        let mut child_path = path.to_vec();
        if !child_path.is_empty() {
            child_path.push(b'/');
        }
        child_path.extend_from_slice(&name);
        let what = entry.structure(1).map_err(broken)?;
        let what = what.ok_or_else(|| broken("an entry has no kind"))?;
        let kind = match entry.u16(8) {
            0 => NodeKind::Directory(Vec::new()),
            1 => self
                .regular(entry.u64(0), &what, &child_path)
                .map_err(|problem| self::broken(file, path, format!("file {:?}: {problem}", show(&name))))?,
            2 => NodeKind::Symlink(what.text(0).map_err(broken)?.to_vec()),
            3 => special(&what).map_err(broken)?,
            _ => return Err(broken("an entry is of an unknown kind")),
        };
        let is_directory = matches!(kind, NodeKind::Directory(_));
        let key = if is_directory {
            what.text(0).map_err(broken)?.to_vec()
        } else {
            Vec::new()
        };
        let metadata = match is_directory {
            // The object of the directory says it again, and is what counts.
            true => Metadata::default(),
            false => self.metadata(access, entry.u32(12), entry.u32(16), path)?,
        };
        let added = builder.add(directory, name, Node { metadata, kind });
        let node = added.map_err(|source| OpenError::Tree {
            path: self.source.path.into(),
            source,
        })?;
        if is_directory {
            self.todo.push(Pending {
                node,
                path: child_path,
                key,
            });
        }
        Ok(())
    }

    /// File: D0 block size in units of 4096, P0 blocks {P0 id, P1 key}.
    fn regular(&mut self, size: u64, file: &Struct<'_>, path: &[u8]) -> Result<NodeKind, String> {
        let unit = u64::from(file.u16(0)) * BLOCK_UNIT;
        let found = file.structs(0)?;
        let block_size = if unit == 0 { BlockRef::SIZE as u64 } else { unit };
        let wanted = size.div_ceil(block_size);
        if !found.is_empty() && block_size > BlockRef::SIZE as u64 {
            return Err(format!("its blocks of {block_size} bytes are larger than 524288"));
        }
        let lost = wanted.checked_sub(found.len() as u64).filter(|lost| *lost <= 1);
        let Some(lost) = lost.filter(|lost| *lost == 0 || found.len() >= FLOAT_EXACT_BLOCKS) else {
            return Err(format!(
                "it has {} blocks instead of {wanted} for {size} bytes",
                found.len()
            ));
        };
        let mut left = size;
        let mut blocks = Vec::with_capacity(found.len() + lost as usize);
        for block in &found {
            let digest = |index| -> Result<Digest, String> {
                let digest = Digest::from_bytes(block.bytes(index)?).ok();
                let digest = digest.filter(|digest| digest.as_bytes().len() == 16);
                digest.ok_or_else(|| "a block has no digest of 16 bytes".into())
            };
            let len = left.min(block_size) as u32;
            left -= u64::from(len);
            blocks.push(BlockRef {
                id: BlockId(digest(0)?),
                key: BlockKey(digest(1)?),
                len,
            });
        }
        if lost == 1 {
            blocks.push(BlockRef::zeros_of_format_1(left as u32));
            self.lost.push(format!(
                "/{}: its last {left} bytes were lost by its packer",
                show(path)
            ));
        }
        Ok(NodeKind::Regular { size, blocks })
    }

    fn metadata(&mut self, access: &[u8], modified: u32, created: u32, path: &[u8]) -> Result<Metadata, OpenError> {
        let access = self.access(access, path)?;
        Ok(Metadata {
            mode: access.mode,
            uid: access.uid,
            gid: access.gid,
            mtime: i64::from(modified),
            ctime: i64::from(created),
            ..Metadata::default()
        })
    }

    /// ACI: P0 user, P1 group, D0 mode, D8 uid, D16 gid, both with all bits flipped; -1 is unknown.
    fn access(&mut self, key: &[u8], path: &[u8]) -> Result<Access, OpenError> {
        if let Some(access) = self.access.get(key) {
            return Ok(*access);
        }
        let Some(value) = self.value(key)? else {
            // As the original reader: readable by its owner, who is unknown.
            return Ok(Access {
                mode: 0o400,
                uid: UNKNOWN_OWNER,
                gid: UNKNOWN_OWNER,
            });
        };
        let read = || -> Result<Access, Problem> {
            let message = Message::parse(&value)?;
            let list = message.root()?;
            Ok(Access {
                mode: list.u16(0) & 0o7777,
                uid: owner(!list.u64(8), list.text(0)?),
                gid: owner(!list.u64(16), list.text(1)?),
            })
        };
        let access = read().map_err(|problem| self.broken(path, format!("access list {:?}: {problem}", show(key))))?;
        self.access.insert(key.to_vec(), access);
        Ok(access)
    }
}

/// An error of the directory at `path` of the flist `file`.
fn broken(file: &Path, path: &[u8], problem: impl Into<String>) -> OpenError {
    OpenError::Object {
        path: file.into(),
        object: format!("directory \"/{}\"", show(path)),
        problem: problem.into(),
    }
}

/// An owner by its number, else by what can be told from its name without asking the host.
fn owner(number: u64, name: &[u8]) -> u32 {
    if let Ok(id) = u32::try_from(number) {
        return id;
    }
    let name = std::str::from_utf8(name).unwrap_or_default();
    match name.parse::<i64>() {
        _ if name == "root" => 0,
        // A number that the packing host had no name for, printed as a signed 32-bit one.
        Ok(id) if i32::try_from(id).is_ok() => id as i32 as u32,
        Ok(id) => u32::try_from(id).unwrap_or(UNKNOWN_OWNER),
        Err(_) => UNKNOWN_OWNER,
    }
}

/// Special: D0 type, P0 device numbers as text. The original writer calls everything a socket; numbers then tell a device,
/// and whether it is a block device is guessed from majors that only disks have.
fn special(special: &Struct<'_>) -> Result<NodeKind, Problem> {
    let numbers = std::str::from_utf8(special.text(0)?).unwrap_or_default();
    let numbers = numbers
        .split_once(',')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    Ok(match (special.u16(0), numbers) {
        (1, Some((major, minor))) => NodeKind::BlockDevice { major, minor },
        (0, Some((major @ (8 | 65..=71 | 259), minor))) => NodeKind::BlockDevice { major, minor },
        (0 | 2, Some((major, minor))) => NodeKind::CharDevice { major, minor },
        (1 | 2, None) => return Err("a device has no number"),
        (3, _) => NodeKind::Fifo,
        _ => NodeKind::Socket,
    })
}

/// The key of the directory at a path.
fn path_key(path: &[u8]) -> Vec<u8> {
    Digest::blake2b_16(path).to_hex().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_keys_are_the_published_ones() {
        assert_eq!(path_key(b""), b"cae66941d9efbd404e4d88758ea67670");
        assert_eq!(path_key(b"a/b"), b"575aa62220a2c597f5def8d269b6acac");
    }

    #[test]
    fn owners_without_a_number_are_told_by_their_name() {
        for (number, name, id) in [
            (33, "www-data", 33),
            (u64::MAX, "root", 0),
            (u64::MAX, "-294967296", 4_000_000_000),
            (u64::MAX, "1001", 1001),
            (u64::MAX, "alice", 1000),
        ] {
            assert_eq!(owner(number, name.as_bytes()), id, "{name}");
        }
    }
}
