//! Reading format 2, from files that nobody vouches for.
//!
//! What keeps a hostile file harmless:
//! * It is opened read-only and `immutable`: no locks, no journal, nothing made beside it. A journal that lies there
//!   already means that the file is half-written, and is refused.
//! * A table must be a table with plain columns: views, virtual tables and generated columns would run the author's code.
//! * Rows are read in the order of their key, which must rise; the number of virtual machine steps is limited by the size
//!   of the file, the length of one value by [`VALUE_BYTES`]. So pages that point at each other end in an error.
//! * The database checks its own pages and indexes first, so damage that would only lose rows is found.
//! * Memory grows with rows that were read, never with a number that a row claims.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};

use super::error::OpenError;
use super::mode::{TYPE_MASK, empty_kind};
use crate::Flist;
use crate::block::{BlockId, BlockKey, BlockRef, Digest};
use crate::route::{Route, RouteTable};
use crate::tree::{Metadata, Node, NodeId, NodeKind, Tree, TreeError, show};

/// Longest text or blob that is taken from a row, in bytes.
const VALUE_BYTES: i32 = 1 << 20;

/// Steps of the database's virtual machine between two looks at the budget.
const STEPS: i32 = 1 << 16;

/// Looks at the budget that every file is granted; on top comes one per 4096 bytes, so 16 steps per byte. Checking and
/// reading a row takes under 200 steps, and a row with its index entries has more than 50 bytes.
const BASE_LOOKS: u64 = 64;

/// The tables and columns of the format; `true`: must exist.
const TABLES: [(&str, bool, &[&str]); 6] = [
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
];

/// Reads the whole flist.
pub(crate) fn read(path: &Path) -> Result<Flist, OpenError> {
    check_file(path)?;
    let source = Source {
        path,
        db: connect(path)?,
    };
    let mut has_names = false;
    for (table, required, columns) in TABLES {
        let exists = source.check_table(table, required, columns)?;
        has_names |= exists && table == "name_bytes";
    }
    let mut inodes = source.inodes()?;
    if has_names {
        source.names(&mut inodes)?;
    }
    source.targets(&mut inodes)?;
    source.blocks(&mut inodes)?;
    let routes = source.routes()?;
    let tags = source.tags()?;
    Ok(Flist {
        tree: source.tree(inodes)?,
        routes,
        tags,
    })
}

/// Refuses what is not a complete SQLite file by its first bytes and its neighbours.
fn check_file(path: &Path) -> Result<(), OpenError> {
    let read_error = |source| OpenError::Read {
        path: path.into(),
        source,
    };
    let not_a_flist = |found: &str| OpenError::NotAFlist {
        path: path.into(),
        found: found.into(),
    };
    if !std::fs::metadata(path).map_err(read_error)?.is_file() {
        return Err(not_a_flist("it is not a regular file"));
    }
    let mut start = Vec::new();
    let mut file = File::open(path).map_err(read_error)?;
    file.by_ref().take(100).read_to_end(&mut start).map_err(read_error)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Err(not_a_flist(
            "it is gzip data, as flists of format 1 are, which is not supported yet",
        ));
    }
    if start.len() < 100 || !start.starts_with(b"SQLite format 3\0") {
        return Err(not_a_flist("it is not a SQLite database"));
    }
    let bytes = file.metadata().map_err(read_error)?.len();
    if let Some(problem) = wrong_length(&start, bytes) {
        return Err(OpenError::Damaged {
            path: path.into(),
            reading: "the file header",
            source: problem.into(),
        });
    }
    for suffix in ["-journal", "-wal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let journal = PathBuf::from(name);
        if std::fs::symlink_metadata(&journal).is_ok_and(|journal| journal.len() > 0) {
            return Err(OpenError::Unfinished {
                path: path.into(),
                journal,
            });
        }
    }
    Ok(())
}

/// Holds the length of the file against its header, which the database does only roughly. `header` has 100 bytes
/// (<https://sqlite.org/fileformat2.html>): page size at 16, change counter at 24, pages at 28, the change counter for
/// which that number holds at 92, all big-endian.
fn wrong_length(header: &[u8], bytes: u64) -> Option<String> {
    let number = |at: usize| {
        header[at..at + 4]
            .iter()
            .fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let page = match number(14) & 0xffff {
        1 => 65_536,
        page => page.max(1),
    };
    let expected = page * number(28);
    if !bytes.is_multiple_of(page) || (number(24) == number(92) && expected != bytes) {
        return Some(format!("the file has {bytes} bytes, its header says {expected}"));
    }
    None
}

/// Opens the database so that it can do nothing but answer.
fn connect(path: &Path) -> Result<Connection, OpenError> {
    let read_error = |source| OpenError::Read {
        path: path.into(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(read_error)?.len();
    let uri = immutable_uri(&std::path::absolute(path).map_err(read_error)?);
    let open = || -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Connection::open_with_flags(uri, flags)?;
        db.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
        let mut looks = BASE_LOOKS + bytes / 4096;
        db.progress_handler(
            STEPS,
            Some(move || {
                looks = looks.saturating_sub(1);
                looks == 0
            }),
        )?;
        Ok(db)
    };
    open().map_err(damaged(path, "the database"))
}

/// `file:` URI of an absolute path.
fn immutable_uri(path: &Path) -> String {
    let mut uri = String::from("file://");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => uri.push(char::from(*byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri + "?mode=ro&immutable=1"
}

/// Turns what the database says into an error about the file.
fn damaged(path: &Path, reading: &'static str) -> impl Fn(rusqlite::Error) -> OpenError {
    move |source| OpenError::Damaged {
        path: path.into(),
        reading,
        source: Box::new(source),
    }
}

/// The rows of `inode` in rising order of `ino`; index = node id.
struct Inodes {
    inos: Vec<i64>,
    parents: Vec<i64>,
    names: Vec<Vec<u8>>,
    nodes: Vec<Node>,
}

impl Inodes {
    fn index(&self, ino: i64) -> Option<usize> {
        self.inos.binary_search(&ino).ok()
    }
}

/// An open database with the name for its errors.
struct Source<'a> {
    path: &'a Path,
    db: Connection,
}

/// One row that is being read: makes typed values or errors that name it.
struct Cells<'a> {
    path: &'a Path,
    table: &'static str,
    rowid: i64,
    row: &'a Row<'a>,
}

impl Cells<'_> {
    fn error(&self, problem: impl Into<String>) -> OpenError {
        OpenError::Row {
            path: self.path.into(),
            table: self.table,
            row: self.rowid,
            problem: problem.into(),
        }
    }

    fn value(&self, column: usize) -> Result<ValueRef<'_>, OpenError> {
        self.row.get_ref(column).map_err(damaged(self.path, self.table))
    }

    fn column(&self, column: usize) -> &str {
        self.row.as_ref().column_name(column).unwrap_or("?")
    }

    fn wrong_type(&self, column: usize, wanted: &str, found: ValueRef<'_>) -> OpenError {
        self.error(format!(
            "{} is {} instead of {wanted}",
            self.column(column),
            found.data_type()
        ))
    }

    /// A number of the range of `T`.
    fn number<T: TryFrom<i64>>(&self, column: usize) -> Result<T, OpenError> {
        match self.value(column)? {
            ValueRef::Integer(number) => {
                T::try_from(number).map_err(|_| self.error(format!("{} {number} is out of range", self.column(column))))
            }
            other => Err(self.wrong_type(column, "a number", other)),
        }
    }

    fn text(&self, column: usize) -> Result<&[u8], OpenError> {
        match self.value(column)? {
            ValueRef::Text(bytes) => Ok(bytes),
            other => Err(self.wrong_type(column, "text", other)),
        }
    }

    fn string(&self, column: usize) -> Result<String, OpenError> {
        let bytes = self.text(column)?;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned)
            .map_err(|_| self.error(format!("{} is not UTF-8", self.column(column))))
    }

    fn blob(&self, column: usize) -> Result<&[u8], OpenError> {
        match self.value(column)? {
            ValueRef::Blob(bytes) => Ok(bytes),
            other => Err(self.wrong_type(column, "a blob", other)),
        }
    }

    fn digest(&self, column: usize) -> Result<Digest, OpenError> {
        let bytes = self.blob(column)?;
        match Digest::from_bytes(bytes) {
            Ok(digest) if bytes.len() == 32 => Ok(digest),
            _ => Err(self.error(format!(
                "{} has {} bytes instead of 32",
                self.column(column),
                bytes.len()
            ))),
        }
    }
}

impl Source<'_> {
    fn damaged(&self, reading: &'static str) -> impl Fn(rusqlite::Error) -> OpenError {
        damaged(self.path, reading)
    }

    fn not_a_flist(&self, found: String) -> OpenError {
        OpenError::NotAFlist {
            path: self.path.into(),
            found,
        }
    }

    /// Whether a table exists; refuses one that is something else, lacks columns, or has broken pages.
    fn check_table(&self, table: &'static str, required: bool, columns: &[&str]) -> Result<bool, OpenError> {
        let failed = self.damaged(table);
        let mut query = self
            .db
            .prepare("SELECT type, rootpage FROM sqlite_master WHERE name = ?")
            .map_err(&failed)?;
        let mut rows = query.query([table]).map_err(&failed)?;
        let Some(row) = rows.next().map_err(&failed)? else {
            return if required {
                Err(self.not_a_flist(format!("it has no table {table}")))
            } else {
                Ok(false)
            };
        };
        let kind: String = row.get(0).map_err(&failed)?;
        let page: i64 = row.get(1).map_err(&failed)?;
        if kind != "table" || page <= 0 {
            return Err(self.not_a_flist(format!("its {table} is not an ordinary table")));
        }
        self.check_columns(table, columns)?;
        self.check_pages(table)?;
        Ok(true)
    }

    fn check_columns(&self, table: &'static str, columns: &[&str]) -> Result<(), OpenError> {
        let failed = self.damaged(table);
        let mut query = self
            .db
            .prepare("SELECT lower(name), hidden FROM pragma_table_xinfo(?)")
            .map_err(&failed)?;
        let found = query
            .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(&failed)?;
        let found: Vec<(String, i64)> = found.collect::<Result<_, _>>().map_err(&failed)?;
        if let Some(column) = columns
            .iter()
            .find(|column| !found.iter().any(|(name, _)| name == *column))
        {
            return Err(self.not_a_flist(format!("its table {table} has no column {column}")));
        }
        let odd = |name: &str, hidden: i64| hidden != 0 || matches!(name, "rowid" | "_rowid_" | "oid");
        if let Some((name, _)) = found.iter().find(|(name, hidden)| odd(name, *hidden)) {
            return Err(self.not_a_flist(format!(
                "column {name:?} of its table {table} is not an ordinary column"
            )));
        }
        Ok(())
    }

    /// Lets the database check the pages of a table and its indexes against each other.
    fn check_pages(&self, table: &'static str) -> Result<(), OpenError> {
        let failed = self.damaged(table);
        let query = format!("PRAGMA integrity_check({table})");
        let answer: String = self.db.query_row(&query, [], |row| row.get(0)).map_err(&failed)?;
        if answer == "ok" {
            return Ok(());
        }
        Err(OpenError::Damaged {
            path: self.path.into(),
            reading: table,
            source: answer.into(),
        })
    }

    /// Gives every row of a table to `take` in the order of rowid. Column 0 of the query is the rowid.
    fn each(
        &self,
        table: &'static str,
        columns: &str,
        mut take: impl FnMut(&Cells<'_>) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let failed = self.damaged(table);
        let query = format!("SELECT rowid, {columns} FROM {table} NOT INDEXED ORDER BY rowid");
        let mut query = self.db.prepare(&query).map_err(&failed)?;
        let mut rows = query.query([]).map_err(&failed)?;
        let mut last = i64::MIN;
        while let Some(row) = rows.next().map_err(&failed)? {
            let rowid = row.get(0).map_err(&failed)?;
            let cells = Cells {
                path: self.path,
                table,
                rowid,
                row,
            };
            if rowid <= last {
                return Err(cells.error("its key does not rise"));
            }
            last = rowid;
            take(&cells)?;
        }
        Ok(())
    }

    fn inodes(&self) -> Result<Inodes, OpenError> {
        let mut inodes = Inodes {
            inos: Vec::new(),
            parents: Vec::new(),
            names: Vec::new(),
            nodes: Vec::new(),
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
            inos, names, mut nodes, ..
        } = inodes;
        for (index, (name, parent)) in names.into_iter().zip(parents).enumerate().skip(1) {
            let id = u32::try_from(index).map_err(|_| self.tree_error(TreeError::TooManyNodes, &inos))?;
            match parent.map(|parent| &mut nodes[parent].kind) {
                Some(NodeKind::Directory(entries)) => entries.push((name, NodeId(id))),
                Some(_) => return Err(self.inode_error(inos[index], "its parent is not a directory")),
                None => return Err(self.inode_error(inos[index], "its parent does not exist")),
            }
        }
        Tree::from_nodes(nodes).map_err(|source| self.tree_error(source, &inos))
    }

    /// Says it by inode number where the tree can only say it by node.
    fn tree_error(&self, source: TreeError, inos: &[i64]) -> OpenError {
        match source {
            TreeError::Unreachable { node, .. } => {
                self.inode_error(inos[node as usize], "it can not be reached from the root")
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
