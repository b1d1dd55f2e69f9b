//! Blocks: the content-addressed, encrypted pieces of regular files, and their codec.
//!
//! A block is known by two digests: the `id` over the stored (sealed) bytes, under which every store keeps it, and the
//! `key` over the plaintext, which is also its decryption key. Format 1 uses 16-byte digests, format 2 32-byte ones; the
//! codec follows from that length.

/// A digest of 16 bytes (format 1) or 32 bytes (format 2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    bytes: [u8; 32],
    len: u8,
}

/// Digest of the stored bytes of a block: its name in every store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub Digest);

/// Digest of the plaintext of a block: its decryption key, and its name in the local cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey(pub Digest);

/// One block of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Name in the stores.
    pub id: BlockId,
    /// Decryption key and plaintext digest.
    pub key: BlockKey,
    /// Plaintext length in bytes.
    pub len: u32,
}
