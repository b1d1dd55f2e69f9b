//! Format 2 (`.fl`): a plain SQLite 3 database.
//!
//! ```text
//! inode(ino, parent, name, size, uid, gid, mode, rdev, ctime, mtime)   a row per directory entry; root = ino 1, parent 0, "/"
//! extra(ino, data)              target of a symbolic link, raw bytes
//! block(ino, id, key)           blocks of a regular file, 32 raw bytes each, in the order of rowid
//! tag(key, value)               free metadata
//! route(start, end, url)        inclusive range of the first byte of block ids
//! name_bytes(ino, name)         ours, optional: raw name where `name` is only its lossy text
//! hard_link(ino, target)        ours, optional: this row is a further name of that row
//! nsec(ino, mtime)              ours, optional: nanoseconds of the modification time, when they are not 0
//! xattr(ino, name, value)       ours, optional: extended attributes, at the first name of a file
//! ```
//! `mode` is the whole `st_mode`, `rdev` a glibc `dev_t`, times are whole seconds. `read` takes everything a hostile file
//! may hold for hostile; `write` makes what the readers of old read. docs/flist.md is the full account.

mod mode;
mod read;
mod write;

pub(crate) use read::read;
pub(crate) use write::write;
