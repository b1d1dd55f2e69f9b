//! Writing format 2.
//!
//! Rows follow the walk of the tree (directory before entries, entries by name), so equal flists give equal files. The
//! database is built beside its target without a journal, synced and renamed: a half-written `.fl` is never seen.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, Statement, params};
use tempfile::NamedTempFile;

use super::mode::type_and_device;
use crate::Flist;
use crate::block::BlockRef;
use crate::error::WriteError;
use crate::tree::{Metadata, Node, NodeId, NodeKind, Tree};

/// The tables that every reader of the format needs.
const TABLES: &str = "
CREATE TABLE inode (ino INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER, name VARCHAR(255), size INTEGER,
    uid INTEGER, gid INTEGER, mode INTEGER, rdev INTEGER, ctime INTEGER, mtime INTEGER);
CREATE TABLE extra (ino INTEGER PRIMARY KEY, data VARCHAR(4096));
CREATE TABLE block (ino INTEGER, id VARCHAR(32), key VARCHAR(32));
CREATE TABLE tag (key VARCHAR(10) PRIMARY KEY, value VARCHAR(255));
CREATE TABLE route (start integer, end integer, url VARCHAR(2048));
";

/// The extension for names that are not UTF-8; only made when there is one.
const NAME_BYTES: &str = "CREATE TABLE IF NOT EXISTS name_bytes (ino INTEGER PRIMARY KEY, name BLOB NOT NULL)";

/// The extension for hard links; only made when there is one.
const HARD_LINK: &str = "CREATE TABLE IF NOT EXISTS hard_link (ino INTEGER PRIMARY KEY, target INTEGER NOT NULL)";

/// The extension for nanoseconds; only made when there are some.
const NSEC: &str = "CREATE TABLE IF NOT EXISTS nsec (ino INTEGER PRIMARY KEY, mtime INTEGER NOT NULL)";

/// The extension for extended attributes; only made when there is one.
const XATTR: &str = "CREATE TABLE IF NOT EXISTS xattr (ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL)";

/// The indexes of the format, and one more that makes a look-up in a big directory a look-up.
const INDEXES: &str = "
CREATE INDEX parents ON inode (parent);
CREATE INDEX names ON inode (name);
CREATE INDEX block_ino ON block (ino);
CREATE INDEX parent_name ON inode (parent, name);
";

/// What directories show as their size, as on ext4.
const DIRECTORY_SIZE: i64 = 4096;

/// Writes `flist` to `path` durably and atomically.
pub(crate) fn write(flist: &Flist, path: &Path) -> Result<(), WriteError> {
    check(flist, path)?;
    let file_error = |source| WriteError::File {
        path: path.into(),
        source,
    };
    let directory = directory_of(path);
    let temporary = temporary_beside(path, &directory).map_err(file_error)?;
    fill(flist, temporary.path(), path)?;
    temporary.as_file().sync_all().map_err(file_error)?;
    temporary.persist(path).map_err(|error| file_error(error.error))?;
    File::open(&directory)
        .and_then(|directory| directory.sync_all())
        .map_err(file_error)
}

/// The directory that a path's last component is in.
fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => PathBuf::from("."),
    }
}

fn temporary_beside(path: &Path, directory: &Path) -> std::io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    let name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".tmp")
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(directory)
}

/// Refuses what the format cannot hold and our own reader would refuse.
fn check(flist: &Flist, path: &Path) -> Result<(), WriteError> {
    let unsupported = |what| {
        Err(WriteError::Unsupported {
            path: path.into(),
            what,
        })
    };
    if let Some(route) = flist.routes.0.iter().find(|route| route.first > route.last) {
        return unsupported(format!("the empty route {}-{}", route.first, route.last));
    }
    let old = |block: &BlockRef| block.id.0.as_bytes().len() != 32;
    for node in &flist.tree.nodes {
        if let Some(block) = node
            .content()
            .and_then(|(_, blocks)| blocks.first())
            .filter(|block| old(block))
        {
            return unsupported(format!("block {} of format 1", block.id));
        }
    }
    Ok(())
}

/// Makes the database file `at`.
fn fill(flist: &Flist, at: &Path, path: &Path) -> Result<(), WriteError> {
    let failed = |writing: &'static str| {
        move |source: rusqlite::Error| WriteError::Database {
            path: path.into(),
            writing,
            source: Box::new(source),
        }
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(at, flags).map_err(failed("the database"))?;
    // The file is not seen before it is complete and synced, so the database needs neither journal nor syncs.
    db.execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;")
        .map_err(failed("the database"))?;
    let transaction = db.transaction().map_err(failed("the database"))?;
    transaction.execute_batch(TABLES).map_err(failed("the tables"))?;
    fill_tree(&flist.tree, &transaction).map_err(failed("the tree"))?;
    fill_routes(flist, &transaction).map_err(failed("routes and tags"))?;
    transaction.execute_batch(INDEXES).map_err(failed("the indexes"))?;
    transaction.commit().map_err(failed("the database"))?;
    db.close().map_err(|(_, source)| failed("the database")(source))
}

/// Inserts routes and tags.
fn fill_routes(flist: &Flist, db: &Connection) -> rusqlite::Result<()> {
    for route in &flist.routes.0 {
        db.execute(
            "INSERT INTO route VALUES (?, ?, ?)",
            params![route.first, route.last, route.url],
        )?;
    }
    for (key, value) in &flist.tags {
        db.execute("INSERT INTO tag VALUES (?, ?)", params![key, value])?;
    }
    Ok(())
}

/// The prepared statements of the tree's rows.
struct Rows<'a> {
    db: &'a Connection,
    inode: Statement<'a>,
    extra: Statement<'a>,
    block: Statement<'a>,
    last_ino: i64,
    /// The first row of each node that has several names.
    first: HashMap<NodeId, i64>,
}

/// Inserts every node, one row per name, in the order of the walk.
fn fill_tree(tree: &Tree, db: &Connection) -> rusqlite::Result<()> {
    let mut rows = Rows {
        db,
        inode: db.prepare("INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?,
        extra: db.prepare("INSERT INTO extra VALUES (?, ?)")?,
        block: db.prepare("INSERT INTO block VALUES (?, ?, ?)")?,
        last_ino: 0,
        first: HashMap::new(),
    };
    let names = names_of_nodes(tree);
    let root = rows.insert(0, b"/", tree.root())?;
    rows.extend(root, &tree.root().metadata)?;
    let mut stack = vec![(NodeId::ROOT, root, 0usize)];
    while let Some((directory, ino, next)) = stack.last_mut() {
        let Some((name, id)) = tree.children(*directory).get(*next) else {
            stack.pop();
            continue;
        };
        *next += 1;
        let node = tree.get(*id);
        let row = rows.insert(*ino, name, node)?;
        let first = match names[id.0 as usize] {
            1 => row,
            _ => *rows.first.entry(*id).or_insert(row),
        };
        if first == row {
            rows.extend(row, &node.metadata)?;
        } else {
            rows.link(row, first)?;
        }
        if node.entries().is_some() {
            stack.push((*id, row, 0));
        }
    }
    Ok(())
}

/// How many names each node has.
fn names_of_nodes(tree: &Tree) -> Vec<u32> {
    let mut names = vec![0; tree.len()];
    for node in &tree.nodes {
        for (_, id) in node.entries().unwrap_or_default() {
            names[id.0 as usize] += 1;
        }
    }
    names
}

impl Rows<'_> {
    /// Marks a row as a further name of `first`.
    fn link(&self, row: i64, first: i64) -> rusqlite::Result<()> {
        self.db.execute_batch(HARD_LINK)?;
        let mut link = self.db.prepare_cached("INSERT INTO hard_link VALUES (?, ?)")?;
        link.execute([row, first]).map(drop)
    }

    /// What the original tables have no column for.
    fn extend(&self, row: i64, metadata: &Metadata) -> rusqlite::Result<()> {
        if metadata.mtime_nsec != 0 {
            self.db.execute_batch(NSEC)?;
            let mut nsec = self.db.prepare_cached("INSERT INTO nsec VALUES (?, ?)")?;
            nsec.execute(params![row, metadata.mtime_nsec])?;
        }
        for (name, value) in &metadata.xattrs {
            self.db.execute_batch(XATTR)?;
            let mut xattr = self.db.prepare_cached("INSERT INTO xattr VALUES (?, ?, ?)")?;
            xattr.execute(params![row, name, value])?;
        }
        Ok(())
    }

    /// Inserts one name with everything that belongs to its node; its inode number.
    fn insert(&mut self, parent: i64, name: &[u8], node: &Node) -> rusqlite::Result<i64> {
        self.last_ino += 1;
        let ino = self.last_ino;
        let (size, meta) = (stored_size(&node.kind), &node.metadata);
        let (type_bits, rdev) = type_and_device(&node.kind);
        let mode = type_bits | u32::from(meta.mode);
        let text = String::from_utf8_lossy(name);
        self.inode.execute(params![
            ino,
            parent,
            text,
            size,
            meta.uid,
            meta.gid,
            mode,
            rdev as i64,
            meta.ctime,
            meta.mtime
        ])?;
        if text.as_bytes() != name {
            self.db.execute_batch(NAME_BYTES)?;
            self.db
                .execute("INSERT INTO name_bytes VALUES (?, ?)", params![ino, name])?;
        }
        match &node.kind {
            NodeKind::Symlink(target) => {
                self.extra.execute(params![ino, target])?;
            }
            NodeKind::Regular { blocks, .. } => {
                for block in blocks {
                    self.block
                        .execute(params![ino, block.id.0.as_bytes(), block.key.0.as_bytes()])?;
                }
            }
            _ => {}
        }
        Ok(ino)
    }
}

/// `st_size` of a node. The cast is right: a size is the sum of blocks in memory.
fn stored_size(kind: &NodeKind) -> i64 {
    match kind {
        NodeKind::Directory(_) => DIRECTORY_SIZE,
        NodeKind::Regular { size, .. } => *size as i64,
        NodeKind::Symlink(target) => target.len() as i64,
        _ => 0,
    }
}
