//! Reading format 2, from files that nobody vouches for (see [`crate::database`]).
//!
//! Memory grows with rows that were read, never with a number that a row claims. What our own extensions say is held
//! against what readers of old see: no file can show the two different trees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::types::ValueRef;

use super::mode::{TYPE_MASK, empty_kind};
use crate::Flist;
use crate::block::{BlockId, BlockKey, BlockRef};
use crate::database::{Cells, Source};
use crate::error::OpenError;
use crate::route::{Route, RouteTable};
use crate::tree::{Metadata, Node, NodeId, NodeKind, Tree, TreeError, show};

/// Longest text or blob that is taken from a row, in bytes.
const VALUE_BYTES: i32 = 1 << 20;

/// The tables and columns of the format; `true`: must exist.
const TABLES: [(&str, bool, &[&str]); 9] = [
    (
        "inode",
        true,
        &[
            "ino", "parent", "name", "size", "uid", "gid", "mode", "rdev", "ctime", "mtime",
        ],
    ),
    ("extra", true, &["ino", "data"]),
    ("block", true, &["ino", "id", "key"]),
    ("tag", true, &["key", "value"]),
    ("route", true, &["start", "end", "url"]),
    ("name_bytes", false, &["ino", "name"]),
    ("hard_link", false, &["ino", "target"]),
    ("nsec", false, &["ino", "mtime"]),
    ("xattr", false, &["ino", "name", "value"]),
];

/// Reads the whole flist.
pub(crate) fn read(path: &Path) -> Result<Flist, OpenError> {
    let source = Source::open(path, path, VALUE_BYTES)?;
    let mut tables = BTreeSet::new();
    for (table, required, columns) in TABLES {
        if source.check_table(table, required, columns)? {
            tables.insert(table);
        }
    }
    let mut inodes = source.inodes()?;
    if tables.contains("name_bytes") {
        source.names(&mut inodes)?;
    }
    source.targets(&mut inodes)?;
    source.blocks(&mut inodes)?;
    if tables.contains("hard_link") {
        source.hard_links(&mut inodes)?;
    }
    if tables.contains("nsec") {
        source.nanoseconds(&mut inodes)?;
    }
    if tables.contains("xattr") {
        source.xattrs(&mut inodes)?;
    }
    let routes = source.routes()?;
    let tags = source.tags()?;
    Ok(Flist {
        tree: source.tree(inodes)?,
        routes,
        tags,
    })
}

/// The rows of `inode` in rising order of `ino`; index = node id.
struct Inodes {
    inos: Vec<i64>,
    parents: Vec<i64>,
    names: Vec<Vec<u8>>,
    nodes: Vec<Node>,
    /// Rows that are a further name of an earlier row, with that row.
    links: BTreeMap<usize, usize>,
}

impl Inodes {
    fn index(&self, ino: i64) -> Option<usize> {
        self.inos.binary_search(&ino).ok()
    }
}

impl Source<'_> {
    fn inodes(&self) -> Result<Inodes, OpenError> {
        let mut inodes = Inodes {
            inos: Vec::new(),
            parents: Vec::new(),
            names: Vec::new(),
            nodes: Vec::new(),
            links: BTreeMap::new(),
        };
        self.each(
            "inode",
            "ino, parent, name, size, uid, gid, mode, rdev, ctime, mtime",
            |cells| {
                if cells.number::<i64>(1)? != cells.rowid {
                    return Err(cells.error("ino is not the key of its row"));
                }
                inodes.inos.push(cells.rowid);
                inodes.parents.push(cells.number(2)?);
                inodes.names.push(cells.text(3)?.to_vec());
                inodes.nodes.push(node(cells)?);
                Ok(())
            },
        )?;
        Ok(inodes)
    }

    /// Replaces lossy names by the raw ones that our own writer keeps.
    fn names(&self, inodes: &mut Inodes) -> Result<(), OpenError> {
        self.each("name_bytes", "ino, name", |cells| {
            let index = inodes
                .index(cells.number(1)?)
                .ok_or_else(|| cells.error("its inode does not exist"))?;
            let (raw, name) = (cells.blob(2)?, &mut inodes.names[index]);
            // Readers of old see the text: the raw name must not be able to show them another tree than ours.
            if String::from_utf8_lossy(raw).as_bytes() != name.as_slice() {
                return Err(cells.error(format!("raw name {:?} is not that of {:?}", show(raw), show(name))));
            }
            *name = raw.to_vec();
            Ok(())
        })
    }

    fn targets(&self, inodes: &mut Inodes) -> Result<(), OpenError> {
        self.each("extra", "ino, data", |cells| {
            let index = inodes
                .index(cells.number(1)?)
                .ok_or_else(|| cells.error("its inode does not exist"))?;
            let data = match cells.value(2)? {
                ValueRef::Blob(data) | ValueRef::Text(data) => data,
                other => return Err(cells.wrong_type(2, "a blob", other)),
            };
            match &mut inodes.nodes[index].kind {
                NodeKind::Symlink(target) if target.is_empty() => *target = data.to_vec(),
                NodeKind::Symlink(_) => return Err(cells.error("its symbolic link has two targets")),
                _ => return Err(cells.error("its inode is not a symbolic link")),
            }
            Ok(())
        })
    }

    /// Appends the blocks to their files and gives each its length by the size of the file.
    fn blocks(&self, inodes: &mut Inodes) -> Result<(), OpenError> {
        self.each("block", "ino, id, key", |cells| {
            let index = inodes
                .index(cells.number(1)?)
                .ok_or_else(|| cells.error("its inode does not exist"))?;
            let (id, key) = (BlockId(cells.digest(2)?), BlockKey(cells.digest(3)?));
            match &mut inodes.nodes[index].kind {
                NodeKind::Regular { blocks, .. } => {
                    // Most files have one block: the usual first growth would make room for four.
                    if blocks.is_empty() {
                        blocks.reserve_exact(1);
                    }
                    blocks.push(BlockRef {
                        id,
                        key,
                        len: BlockRef::SIZE as u32,
                    });
                }
                _ => return Err(cells.error("its inode is not a regular file")),
            }
            Ok(())
        })?;
        for (node, ino) in inodes.nodes.iter_mut().zip(&inodes.inos) {
            if let NodeKind::Regular { size, blocks } = &mut node.kind {
                fit(*size, blocks).map_err(|problem| self.inode_error(*ino, problem))?;
            }
        }
        Ok(())
    }

    /// Makes rows further names of others. Readers of old see two files there, so both rows must say the same.
    fn hard_links(&self, inodes: &mut Inodes) -> Result<(), OpenError> {
        self.each("hard_link", "ino, target", |cells| {
            let find = |column| Ok::<_, OpenError>(inodes.index(cells.number(column)?));
            let (Some(index), Some(target)) = (find(1)?, find(2)?) else {
                return Err(cells.error("its inode does not exist"));
            };
            if target >= index || inodes.links.contains_key(&target) {
                return Err(cells.error("it does not lead to the first name of a file"));
            }
            let (node, first) = (&inodes.nodes[index], &inodes.nodes[target]);
            if node.entries().is_some() || node != first {
                return Err(cells.error("its inode is another one than that of the first name"));
            }
            match inodes.links.insert(index, target) {
                None => Ok(()),
                Some(_) => Err(cells.error("its inode is linked twice")),
            }
        })
    }

    /// The node that a row of an extension is about: an existing one, and the first of its names.
    fn first_name(&self, cells: &Cells<'_>, inodes: &Inodes) -> Result<usize, OpenError> {
        let index = inodes.index(cells.number(1)?);
        let index = index.ok_or_else(|| cells.error("its inode does not exist"))?;
        if inodes.links.contains_key(&index) {
            return Err(cells.error("its inode is a further name of another one"));
        }
        Ok(index)
    }

    fn nanoseconds(&self, inodes: &mut Inodes) -> Result<(), OpenError> {
        self.each("nsec", "ino, mtime", |cells| {
            let index = self.first_name(cells, inodes)?;
            inodes.nodes[index].metadata.mtime_nsec = cells.number(2)?;
            Ok(())
        })
    }

    fn xattrs(&self, inodes: &mut Inodes) -> Result<(), OpenError> {
        self.each("xattr", "ino, name, value", |cells| {
            let index = self.first_name(cells, inodes)?;
            let xattr = (cells.blob(2)?.to_vec(), cells.blob(3)?.to_vec());
            inodes.nodes[index].metadata.xattrs.push(xattr);
            Ok(())
        })
    }

    fn routes(&self) -> Result<RouteTable, OpenError> {
        let mut routes = Vec::new();
        self.each("route", "start, \"end\", url", |cells| {
            let (first, last) = (cells.number(1)?, cells.number(2)?);
            if first > last {
                return Err(cells.error(format!("its range {first}-{last} is empty")));
            }
            routes.push(Route {
                first,
                last,
                url: cells.string(3)?,
            });
            Ok(())
        })?;
        Ok(RouteTable(routes))
    }

    fn tags(&self) -> Result<BTreeMap<String, String>, OpenError> {
        let mut tags = BTreeMap::new();
        self.each("tag", "key, value", |cells| {
            match tags.insert(cells.string(1)?, cells.string(2)?) {
                None => Ok(()),
                Some(_) => Err(cells.error("its key exists twice")),
            }
        })?;
        Ok(tags)
    }

    fn inode_error(&self, ino: i64, problem: impl Into<String>) -> OpenError {
        OpenError::Row {
            path: self.path.into(),
            table: "inode",
            row: ino,
            problem: problem.into(),
        }
    }

    /// Hangs every node under its parent.
    fn tree(&self, inodes: Inodes) -> Result<Tree, OpenError> {
        let root = inodes
            .inos
            .first()
            .zip(inodes.parents.first())
            .zip(inodes.names.first());
        if root.is_none_or(|((ino, parent), name)| (*ino, *parent, name.as_slice()) != (1, 0, b"/")) {
            let ino = inodes.inos.first().copied().unwrap_or(1);
            return Err(self.inode_error(ino, "the first inode is not the root: ino 1, parent 0, name \"/\""));
        }
        let parents: Vec<Option<usize>> = inodes.parents.iter().map(|ino| inodes.index(*ino)).collect();
        let Inodes {
            inos,
            names,
            mut nodes,
            links,
            ..
        } = inodes;
        // Further names have no node of their own, so the nodes behind them move up.
        let too_many = || self.tree_error(TreeError::TooManyNodes, &inos);
        let mut ids = Vec::with_capacity(nodes.len());
        let mut next = 0u32;
        for index in 0..nodes.len() {
            if let Some(target) = links.get(&index) {
                ids.push(ids[*target]);
                continue;
            }
            ids.push(NodeId(next));
            next = next.checked_add(1).ok_or_else(too_many)?;
        }
        for (index, (name, parent)) in names.into_iter().zip(parents).enumerate().skip(1) {
            match parent.map(|parent| &mut nodes[parent].kind) {
                Some(NodeKind::Directory(entries)) => entries.push((name, ids[index])),
                Some(_) => return Err(self.inode_error(inos[index], "its parent is not a directory")),
                None => return Err(self.inode_error(inos[index], "its parent does not exist")),
            }
        }
        let mut inos = inos;
        if !links.is_empty() {
            let mut index = 0;
            nodes.retain(|_| (!links.contains_key(&index), index += 1).0);
            index = 0;
            inos.retain(|_| (!links.contains_key(&index), index += 1).0);
        }
        Tree::from_nodes(nodes).map_err(|source| self.tree_error(source, &inos))
    }

    /// Says it by inode number where the tree can only say it by node.
    fn tree_error(&self, source: TreeError, inos: &[i64]) -> OpenError {
        match source {
            TreeError::Unreachable { node, .. } => {
                self.inode_error(inos[node as usize], "it cannot be reached from the root")
            }
            source => OpenError::Tree {
                path: self.path.into(),
                source,
            },
        }
    }
}

/// The node of an inode row, without entries, target or blocks.
fn node(cells: &Cells<'_>) -> Result<Node, OpenError> {
    let size = cells.number::<u64>(4)?;
    let mode = cells.number::<u16>(7)?;
    let type_bits = u32::from(mode) & TYPE_MASK;
    let rdev = cells.number::<i64>(8)? as u64;
    let mut kind = empty_kind(type_bits, rdev).ok_or_else(|| cells.error(format!("mode {mode:o} is no file type")))?;
    if let NodeKind::Regular { size: file_size, .. } = &mut kind {
        *file_size = size;
    }
    let metadata = Metadata {
        mode: mode & 0o7777,
        uid: cells.number(5)?,
        gid: cells.number(6)?,
        mtime: cells.number(10)?,
        ctime: cells.number(9)?,
        ..Metadata::default()
    };
    Ok(Node { metadata, kind })
}

/// Holds the number of blocks against the size and cuts the last one.
fn fit(size: u64, blocks: &mut Vec<BlockRef>) -> Result<(), String> {
    let wanted = size.div_ceil(BlockRef::SIZE as u64);
    if wanted != blocks.len() as u64 {
        return Err(format!(
            "it has {} blocks instead of {wanted} for {size} bytes",
            blocks.len()
        ));
    }
    blocks.shrink_to_fit();
    if let Some(last) = blocks.last_mut() {
        last.len = (size - (wanted - 1) * BlockRef::SIZE as u64) as u32;
    }
    Ok(())
}
