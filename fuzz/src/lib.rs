//! Fuzz targets for what comes from outside: each is a function of bytes that panics when a promise is broken.
//!
//! | target | input | promise on top of "no panic, bounded time and memory" |
//! |---|---|---|
//! | [`v1_file`] | a file of format 1: gzip, tar, SQLite | what is read is a tree |
//! | [`v1_objects`] | Cap'n Proto objects in a sound database | what is read is a tree |
//! | [`v2_file`] | a file of format 2: SQLite | what is read is a tree, and is read again when it is written |
//! | [`v2_rows`] | rows in a sound database | the same |
//! | [`block_codec`] | compressed bytes below the encryption, of both formats | what is opened has the digest of its key; what is sealed opens |
//! | [`oci_layers`] | layers of a container image | the result is a tree that can be written |
//! | [`oci_documents`] | index, manifest or configuration of one | the same |
//! | [`block_requests`] | the memory of a guest, with its rings and requests to the root disk's server | every queue is done with |
//! | [`docker_bodies`] | bodies and filters of Docker's API | what is asked for is a machine that can be kept, or is refused with a reason |
//! | [`erofs`] | a tree | the image we make of it is accepted by `fsck.erofs` |
//!
//! `fuzz/run` builds them with the fuzzer and its instrumentation and lets each run for a while; the test `corpus` gives
//! them the inputs of `fuzz/corpus` in every test run, so what was found once stays found. Scratch files are in the
//! folder for temporary files.

mod codec;
mod disk;
mod docker;
mod oci;
mod scratch;
mod trees;
mod v1;
mod v2;

pub use codec::block_codec;
pub use disk::{block_requests, block_seed};
pub use docker::docker_bodies;
pub use oci::{oci_documents, oci_layers};
pub use trees::erofs;
pub use v1::{objects_of as v1_seed, v1_file, v1_objects};
pub use v2::{v2_file, v2_rows};

/// A target.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 10] = [
    ("v1_file", v1_file),
    ("v1_objects", v1_objects),
    ("v2_file", v2_file),
    ("v2_rows", v2_rows),
    ("block_codec", block_codec),
    ("oci_layers", oci_layers),
    ("oci_documents", oci_documents),
    ("erofs", erofs),
    ("block_requests", block_requests),
    ("docker_bodies", docker_bodies),
];
