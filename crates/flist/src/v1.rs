//! Format 1 (`.flist`): a gzip-compressed (or plain) tar with a SQLite database of Cap'n Proto objects. Read only.
//!
//! ```text
//! x.flist = gzip(tar)
//!   ./flistdb.sqlite3     entries(key TEXT, value BLOB): key of 32 hex digits = directory, of 16 = access list
//!                         metadata(key, value), optional: backend, entrypoint, environ, port, volume, free texts
//!   ./router.yaml         optional: stores by ranges of block ids
//! ```
//! The key of a directory is the BLAKE2b-128 of its path without leading slash; the root is the one of the empty path.
//! Blocks have digests of 16 bytes and a cipher of their own ([`crate::block`]). docs/flist.md is the full account.
//!
//! | submodule | what |
//! |---|---|
//! | `container` | finding the two members; nothing is extracted by its name |
//! | `capnp` | the message encoding, bounds-checked |
//! | `read` | directories and access lists to a tree |
//! | `routes` | where the blocks are: `router.yaml`, the metadata's backend, the public hub |

mod capnp;
mod container;
mod read;
mod routes;

pub(crate) use container::looks_like;
pub(crate) use read::read;
