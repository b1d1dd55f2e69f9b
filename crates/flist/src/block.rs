//! Blocks: the content-addressed, encrypted pieces of regular files, and their codec.
//!
//! A block is known by two digests: the `id` over the stored (sealed) bytes, under which every store keeps it, and the
//! `key` over the plaintext, which is also its decryption key. Format 1 uses 16-byte digests, format 2 32-byte ones; the
//! codec follows from that length. [`open`](BlockRef::open) reads both, [`seal`](BlockRef::seal) writes format 2 only.
//!
//! # Format 2 pipeline
//! ```text
//! key = BLAKE2b-32(plain)   c = snappy raw block of plain   sealed = AES-256-GCM(key, nonce = key[0..12], no aad, c) || tag
//! id  = BLAKE2b-32(sealed)
//! ```
//! # Format 1 pipeline
//! ```text
//! key = BLAKE2b-16(plain)   c = snappy raw block of plain   sealed = XXTEA(key, c)   id = BLAKE2b-16(sealed)
//! ```
//! "BLAKE2b-n" is unkeyed BLAKE2b with digest length n in its parameter block. The same plaintext always gives the same
//! `key`; the same `id` only from the same snappy encoder, so the encoder (crate `snap`) is part of what keeps our blocks
//! equal to those of existing stores.
//!
//! This module does no I/O. Nothing is allocated from a length that the input claims before that length is checked.

use std::fmt;
use std::str::FromStr;

pub use self::codec::{Opener, Sealer};
use self::codec::{TAG_BYTES, compressed, decrypt};
use crate::xxtea;

mod codec;

/// A digest of 16 bytes (format 1) or 32 bytes (format 2).
///
/// The bytes past its length are zero, so the derived comparisons are right; equal bytes of another length are unequal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    bytes: [u8; 32],
    len: u8,
}

/// A text or byte string that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Neither 16 nor 32 bytes.
    #[error("a digest has 16 or 32 bytes, not {bytes}")]
    Length {
        /// Bytes found.
        bytes: usize,
    },
    /// Something else than lower-case hexadecimal digits.
    #[error("{text:?} is not a digest: 32 or 64 lower-case hexadecimal digits are needed")]
    Hex {
        /// The text, cut to 80 characters.
        text: String,
    },
}

impl Digest {
    /// The unkeyed BLAKE2b digest of 32 bytes of `bytes`.
    #[must_use]
    pub fn blake2b_32(bytes: &[u8]) -> Digest {
        Digest::of_hash(&blake2b_simd::Params::new().hash_length(32).hash(bytes))
    }

    /// The unkeyed BLAKE2b digest of 16 bytes of `bytes`.
    #[must_use]
    pub fn blake2b_16(bytes: &[u8]) -> Digest {
        Digest::of_hash(&blake2b_simd::Params::new().hash_length(16).hash(bytes))
    }

    /// A hash of 16 or 32 bytes.
    fn of_hash(hash: &blake2b_simd::Hash) -> Digest {
        let bytes = hash.as_bytes();
        let mut digest = Digest {
            bytes: [0; 32],
            len: bytes.len() as u8,
        };
        digest.bytes[..bytes.len()].copy_from_slice(bytes);
        digest
    }

    /// 16 or 32.
    fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// The digest of `bytes` as long as `self`.
    #[must_use]
    pub fn same_of(&self, bytes: &[u8]) -> Digest {
        match self.len {
            16 => Digest::blake2b_16(bytes),
            _ => Digest::blake2b_32(bytes),
        }
    }

    /// A digest from its 16 or 32 raw bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Digest, DigestError> {
        if bytes.len() != 16 && bytes.len() != 32 {
            return Err(DigestError::Length { bytes: bytes.len() });
        }
        let mut digest = Digest {
            bytes: [0; 32],
            len: bytes.len() as u8,
        };
        digest.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(digest)
    }

    /// The 16 or 32 raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// 32 or 64 lower-case hexadecimal digits, as every store names its blocks.
    #[must_use]
    pub fn to_hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.as_bytes()
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|digit| char::from(DIGITS[usize::from(digit)]))
            .collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let not_hex = || DigestError::Hex {
            text: text.chars().take(80).collect(),
        };
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(not_hex()),
        };
        if text.len() != 32 && text.len() != 64 {
            return Err(not_hex());
        }
        let mut bytes = [0u8; 32];
        for (pair, byte) in text.as_bytes().chunks_exact(2).zip(&mut bytes) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Digest::from_bytes(&bytes[..text.len() / 2])
    }
}

/// Digest of the stored bytes of a block: its name in every store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub Digest);

/// Digest of the plaintext of a block: its decryption key, and its name in the local cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey(pub Digest);

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl BlockKey {
    /// The format 2 key of a plaintext.
    #[must_use]
    pub fn of(plain: &[u8]) -> BlockKey {
        BlockKey(Digest::blake2b_32(plain))
    }

    /// [`BlockRef::seal`] for who has the key already, because the plaintext was looked for by it. `self` must be
    /// [`BlockKey::of`] `plain`: a block sealed with another key is one that nobody can open.
    ///
    /// # Panics
    /// As [`BlockRef::seal`].
    #[must_use]
    pub fn seal(self, plain: &[u8]) -> (BlockRef, Vec<u8>) {
        assert!(plain.len() <= BlockRef::SIZE, "a block has at most 524288 bytes");
        let mut sealed = compressed(plain);
        let tag = codec::encrypt(&self.0, &mut sealed);
        sealed.extend_from_slice(tag.as_ref());
        let reference = BlockRef {
            id: BlockId(Digest::blake2b_32(&sealed)),
            key: self,
            len: plain.len() as u32,
        };
        (reference, sealed)
    }
}

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

/// Why bytes are not the block they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// An id of one format with a key of the other.
    #[error("block {id}: its key is one of another format")]
    MixedFormats {
        /// The block.
        id: BlockId,
    },
    /// The stored bytes are not those that the id names.
    #[error("block {id}: the {stored_bytes} stored bytes have digest {found}")]
    WrongId {
        /// The block.
        id: BlockId,
        /// Digest of the bytes given.
        found: Digest,
        /// How many bytes were given.
        stored_bytes: usize,
    },
    /// More stored bytes than a block can have, or fewer than its tag has.
    #[error("block {id}: {stored_bytes} stored bytes cannot be a block")]
    StoredLength {
        /// The block.
        id: BlockId,
        /// How many bytes were given.
        stored_bytes: usize,
    },
    /// The key does not open the stored bytes.
    #[error("block {id}: key {key} does not open it")]
    WrongKey {
        /// The block.
        id: BlockId,
        /// The key of the flist.
        key: BlockKey,
    },
    /// The decrypted bytes are not a snappy block.
    #[error("block {id}: broken compression: {reason}")]
    Compression {
        /// The block.
        id: BlockId,
        /// What the decoder said.
        reason: String,
    },
    /// The plaintext is longer or shorter than the flist says.
    #[error("block {id}: {found} bytes of plaintext instead of {expected}")]
    PlainLength {
        /// The block.
        id: BlockId,
        /// Length by the flist.
        expected: u32,
        /// Length found.
        found: usize,
    },
    /// The plaintext does not have the digest that the key is.
    #[error("block {id}: the plaintext has digest {found} instead of {key}")]
    WrongPlaintext {
        /// The block.
        id: BlockId,
        /// The key of the flist.
        key: BlockKey,
        /// Digest of the plaintext.
        found: Digest,
    },
}

impl BlockRef {
    /// Plaintext bytes of every block of a file but its last, in both formats' writers (format 2 knows no other size).
    pub const SIZE: usize = 524_288;

    /// Compresses and encrypts one piece of a file: its reference and the bytes to store under `reference.id`.
    ///
    /// # Panics
    /// When `plain` is longer than [`BlockRef::SIZE`]: cutting a file is the caller's duty.
    #[must_use]
    pub fn seal(plain: &[u8]) -> (BlockRef, Vec<u8>) {
        BlockKey::of(plain).seal(plain)
    }

    /// The block of a plaintext that is kept on this host alone, as the layers of container images are: in no store, so it has no
    /// sealed form, and its id is its key. No sealed block can have such an id.
    #[must_use]
    pub fn unsealed(key: BlockKey, len: u32) -> BlockRef {
        BlockRef {
            id: BlockId(key.0),
            key,
            len,
        }
    }

    /// Whether the block is one of [`BlockRef::unsealed`].
    #[must_use]
    pub fn is_unsealed(&self) -> bool {
        self.id.0 == self.key.0
    }

    /// The format 1 block of `len` zeros, for the end of a file that its writer lost. No store need have it: see
    /// [`BlockRef::is_zeros`].
    pub(crate) fn zeros_of_format_1(len: u32) -> BlockRef {
        BlockRef::sealed_zeros_of_format_1(len).0
    }

    /// The same with the bytes that a store would have.
    fn sealed_zeros_of_format_1(len: u32) -> (BlockRef, Vec<u8>) {
        let plain = vec![0; (len as usize).min(BlockRef::SIZE)];
        let key = Digest::blake2b_16(&plain);
        let sealed = xxtea::encrypt(&compressed(&plain), &key.bytes[..16].try_into().unwrap_or_default());
        let block = BlockRef {
            id: BlockId(Digest::blake2b_16(&sealed)),
            key: BlockKey(key),
            len,
        };
        (block, sealed)
    }

    /// Whether the plaintext is zeros alone, told by its digest. Such a block can be made instead of fetched.
    #[must_use]
    pub fn is_zeros(&self) -> bool {
        self.len as usize <= BlockRef::SIZE && self.verify_plain(&vec![0; self.len as usize]).is_ok()
    }

    /// Verifies, decrypts and decompresses the stored bytes of this block.
    ///
    /// Checked in this order: stored length, id over the stored bytes, GCM tag (format 1 has none), length by the compression header (before
    /// anything of that length is allocated), length by the flist, key over the plaintext.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, BlockError> {
        self.check_shape(sealed.len())?;
        self.check_id(sealed.len(), self.id.0.same_of(sealed))?;
        let mut compressed = sealed.to_vec();
        self.unseal(&mut compressed)?;
        let mut plain = vec![0; self.check_compressed(&compressed)?];
        self.decompress(&compressed, &mut plain)?;
        self.verify_plain(&plain)?;
        Ok(plain)
    }

    /// Whether `plain` is the plaintext of this block: its length and its digest.
    pub fn verify_plain(&self, plain: &[u8]) -> Result<(), BlockError> {
        if plain.len() != self.len as usize {
            return Err(BlockError::PlainLength {
                id: self.id,
                expected: self.len,
                found: plain.len(),
            });
        }
        self.check_key(self.key.0.same_of(plain))
    }

    /// Holds the digest of a plaintext of the right length against the key.
    fn check_key(&self, digest: Digest) -> Result<(), BlockError> {
        let (id, key) = (self.id, self.key);
        if digest != key.0 {
            return Err(BlockError::WrongPlaintext { id, key, found: digest });
        }
        Ok(())
    }

    /// Format and length of the stored bytes.
    fn check_shape(&self, stored_bytes: usize) -> Result<(), BlockError> {
        let id = self.id;
        if id.0.len != self.key.0.len {
            return Err(BlockError::MixedFormats { id });
        }
        let most = snap::raw::max_compress_len(BlockRef::SIZE) + TAG_BYTES;
        if stored_bytes < 8 || (id.0.len == 32 && stored_bytes < TAG_BYTES) || stored_bytes > most {
            return Err(BlockError::StoredLength { id, stored_bytes });
        }
        Ok(())
    }

    /// Holds the digest of the stored bytes against the id.
    fn check_id(&self, stored_bytes: usize, digest: Digest) -> Result<(), BlockError> {
        let id = self.id;
        if digest != id.0 {
            return Err(BlockError::WrongId {
                id,
                found: digest,
                stored_bytes,
            });
        }
        Ok(())
    }

    /// Decrypts stored bytes of the right shape; what is left is compressed.
    fn unseal(&self, sealed: &mut Vec<u8>) -> Result<(), BlockError> {
        let (id, key) = (self.id, self.key);
        if id.0.len == 32 {
            return match decrypt(&key.0, sealed) {
                true => Ok(()),
                false => Err(BlockError::WrongKey { id, key }),
            };
        }
        let compressed = xxtea::decrypt(sealed, &key.0.bytes[..16].try_into().unwrap_or_default());
        *sealed = compressed.ok_or(BlockError::WrongKey { id, key })?;
        Ok(())
    }

    fn broken(&self, error: &snap::Error) -> BlockError {
        BlockError::Compression {
            id: self.id,
            reason: error.to_string(),
        }
    }

    /// The plain length, as the header of the compressed bytes says and the flist does.
    fn check_compressed(&self, compressed: &[u8]) -> Result<usize, BlockError> {
        let found = snap::raw::decompress_len(compressed).map_err(|error| self.broken(&error))?;
        if found != self.len as usize || found > BlockRef::SIZE {
            return Err(BlockError::PlainLength {
                id: self.id,
                expected: self.len,
                found,
            });
        }
        Ok(found)
    }

    /// Undoes the compression; `plain` is as long as [`BlockRef::check_compressed`] said.
    fn decompress(&self, compressed: &[u8], plain: &mut [u8]) -> Result<(), BlockError> {
        let written = snap::raw::Decoder::new().decompress(compressed, plain);
        match written.map_err(|error| self.broken(&error))? {
            written if written == plain.len() => Ok(()),
            found => Err(BlockError::PlainLength {
                id: self.id,
                expected: self.len,
                found,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_published_vectors_hold() {
        for (plain, key, id, sealed) in [
            (
                &b"x"[..],
                "d161d71145abeec5ef15abcf0459cec60a27321e2f0ac0ef7ace5254f5944476",
                "8536d29704295d7c2a647df385e70d2c00ba5dba4ee08996c36c455f177c489e",
                "4a7c95dd1e081e5abc92b34fe5b271a99bd186",
            ),
            (
                b"hello flist\n",
                "bd903b87f488ceed3f515e42c150fd5857b8bdc6fc6a09d9b999cdf66bccddcf",
                "30ee1d63f9dcdd993f73bdfad60ed773e26350dcde159d42b5736b6bc3e46971",
                "e5a2d10ba07f6d343b310951991de7d0f444bb76c4d66d58a94da56e111d",
            ),
        ] {
            let (reference, bytes) = BlockRef::seal(plain);
            assert_eq!(reference.key.to_string(), key);
            assert_eq!(reference.id.to_string(), id);
            assert_eq!(hex(&bytes), sealed);
            assert_eq!(reference.open(&bytes).as_deref(), Ok(plain));
        }
    }

    #[test]
    fn a_digest_survives_its_text_and_shows_it_everywhere() {
        let digest = Digest::blake2b_32(b"x");
        assert_eq!(digest.to_hex().parse(), Ok(digest));
        assert_eq!(format!("{digest:?}"), digest.to_string());
        let short = Digest::from_bytes(&digest.as_bytes()[..16]).unwrap();
        assert_eq!(short.to_hex().parse(), Ok(short));
        assert_ne!(short, digest);
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let upper = Digest::blake2b_32(b"x").to_hex().to_uppercase();
        for text in ["", "ab", &upper, &"g".repeat(64), &"é".repeat(16), &"0".repeat(63)] {
            assert!(text.parse::<Digest>().is_err(), "{text:?} was taken");
        }
        assert_eq!(Digest::from_bytes(&[0; 31]), Err(DigestError::Length { bytes: 31 }));
    }

    #[test]
    fn any_flipped_bit_is_found_by_the_id() {
        let (reference, sealed) = BlockRef::seal(b"some plaintext, twice: some plaintext");
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(reference.open(&bad), Err(BlockError::WrongId { .. })));
        }
    }

    #[test]
    fn a_wrong_key_behind_the_right_id_is_found_by_the_tag() {
        let (mut reference, sealed) = BlockRef::seal(b"one");
        reference.key = BlockKey(Digest::blake2b_32(b"two"));
        assert!(matches!(reference.open(&sealed), Err(BlockError::WrongKey { .. })));
    }

    /// A block whose author chose the compressed bytes and the key freely.
    fn forged(content: &[u8], key: Digest, len: u32) -> (BlockRef, Vec<u8>) {
        let mut sealed = content.to_vec();
        let tag = codec::encrypt(&key, &mut sealed);
        sealed.extend_from_slice(tag.as_ref());
        let id = BlockId(Digest::blake2b_32(&sealed));
        (
            BlockRef {
                id,
                key: BlockKey(key),
                len,
            },
            sealed,
        )
    }

    #[test]
    fn a_block_that_claims_four_gigabytes_is_refused_before_it_is_allocated() {
        let (reference, sealed) = forged(&[0xff, 0xff, 0xff, 0xff, 0x0f], Digest::blake2b_32(b""), u32::MAX);
        assert!(matches!(reference.open(&sealed), Err(BlockError::PlainLength { .. })));
    }

    #[test]
    fn a_plaintext_that_its_key_is_not_the_digest_of_is_refused() {
        let (reference, sealed) = forged(&compressed(b"evil"), Digest::blake2b_32(b"good"), 4);
        assert!(matches!(
            reference.open(&sealed),
            Err(BlockError::WrongPlaintext { .. })
        ));
    }

    #[test]
    fn a_length_that_differs_from_the_flist_is_refused() {
        let (mut reference, sealed) = BlockRef::seal(b"four");
        reference.len = 5;
        assert!(matches!(
            reference.open(&sealed),
            Err(BlockError::PlainLength {
                expected: 5,
                found: 4,
                ..
            })
        ));
        assert!(matches!(
            reference.verify_plain(b"four"),
            Err(BlockError::PlainLength { .. })
        ));
    }

    #[test]
    fn lengths_that_no_block_has_and_short_digests_are_refused() {
        let (reference, _) = BlockRef::seal(b"x");
        for sealed in [vec![], vec![0; 15], vec![0; 700_000]] {
            assert!(matches!(reference.open(&sealed), Err(BlockError::StoredLength { .. })));
        }
        let mixed = BlockRef {
            key: BlockKey(Digest::blake2b_16(b"x")),
            ..reference
        };
        assert!(matches!(mixed.open(b"x"), Err(BlockError::MixedFormats { .. })));
    }

    #[test]
    fn the_published_vectors_of_format_1_hold() {
        let unhex = |text: &str| -> Vec<u8> {
            let pairs = text.as_bytes().chunks(2);
            pairs
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect()
        };
        for (plain, key, id, sealed) in [
            (
                &b"hello flist\n"[..],
                "febfd7e2ec6c48d6ea6209512e427230",
                "3bed0876820ef0d6d009a17ea17edfd7",
                "84a42f390f582cc82dee83eb72193c84dd8b0e65",
            ),
            (
                b"x",
                "442a44457137672b3218c1007dc8f76a",
                "cf45e4f237910ae388ea4362f6732735",
                "44ac88b66d4866de",
            ),
        ] {
            let block = BlockRef {
                id: BlockId(id.parse().unwrap()),
                key: BlockKey(key.parse().unwrap()),
                len: plain.len() as u32,
            };
            assert_eq!(block.open(&unhex(sealed)).as_deref(), Ok(plain));
            for bit in 0..sealed.len() * 4 {
                let mut bad = unhex(sealed);
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(matches!(block.open(&bad), Err(BlockError::WrongId { .. })));
                let forged = BlockRef {
                    id: BlockId(Digest::blake2b_16(&bad)),
                    ..block
                };
                assert!(forged.open(&bad).is_err(), "bit {bit}");
            }
        }
    }
}
