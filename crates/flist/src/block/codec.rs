//! The codec for many blocks at once: digests of several inputs are computed side by side, in half the time where the CPU
//! has AVX2, and buffers are kept from one batch to the next.
//!
//! What comes out is the same as one by one: [`BlockRef::seal`] and [`BlockRef::open`] say what is checked.

use std::cmp::Reverse;
use std::ops::Range;

use blake2b_simd::Params;
use blake2b_simd::many::{HashManyJob, hash_many};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use snap::raw::{Encoder, max_compress_len};

use super::{BlockError, BlockId, BlockKey, BlockRef, Digest};

/// Bytes of the GCM tag at the end of a sealed block.
pub(super) const TAG_BYTES: usize = 16;

/// Bytes of the GCM nonce, which are the first ones of the key.
const NONCE_BYTES: usize = 12;

/// Digests of several inputs, each with the length it shall have: 16 or 32 bytes.
pub(super) fn digests(inputs: &[(&[u8], usize)]) -> Vec<Digest> {
    let (mut short, mut long) = (Params::new(), Params::new());
    short.hash_length(16);
    long.hash_length(32);
    // The longest first: one that is still left when all others are done is computed alone.
    let mut order: Vec<usize> = (0..inputs.len()).collect();
    order.sort_by_key(|at| Reverse(inputs[*at].0.len()));
    let job = |at: &usize| {
        let (bytes, len) = inputs[*at];
        HashManyJob::new(if len == 16 { &short } else { &long }, bytes)
    };
    let mut jobs: Vec<HashManyJob<'_>> = order.iter().map(job).collect();
    hash_many(&mut jobs);
    let mut digests: Vec<(usize, Digest)> = order
        .into_iter()
        .zip(jobs.iter().map(|job| Digest::of_hash(&job.to_hash())))
        .collect();
    digests.sort_unstable_by_key(|(at, _)| *at);
    digests.into_iter().map(|(_, digest)| digest).collect()
}

/// The snappy raw block of `plain` at the beginning of `out`, and how long it is.
fn compress(encoder: &mut Encoder, plain: &[u8], out: &mut [u8]) -> usize {
    let written = encoder.compress(plain, out);
    written.expect("a block is far below the limit of the encoder and the buffer has its worst size")
}

/// The snappy raw block of `plain`.
pub(super) fn compressed(plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0; max_compress_len(plain.len())];
    let written = compress(&mut Encoder::new(), plain, &mut out);
    out.truncate(written);
    out
}

/// AES-256-GCM under a 32-byte digest.
fn cipher(key: &Digest) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, &key.bytes);
    LessSafeKey::new(key.expect("the cipher's keys have 32 bytes"))
}

/// The nonce that belongs to a key. It is used for one plaintext only: the key is that one's digest.
fn nonce(key: &Digest) -> Nonce {
    let mut nonce = [0; NONCE_BYTES];
    nonce.copy_from_slice(&key.bytes[..NONCE_BYTES]);
    Nonce::assume_unique_for_key(nonce)
}

/// Encrypts in place; the tag belongs behind it.
pub(super) fn encrypt(key: &Digest, bytes: &mut [u8]) -> Tag {
    let tag = cipher(key).seal_in_place_separate_tag(nonce(key), Aad::empty(), bytes);
    tag.expect("a block is far below the limit of the cipher")
}

/// Decrypts in place what has its tag behind it, and takes that off; whether the key is the right one.
pub(super) fn decrypt(key: &Digest, sealed: &mut Vec<u8>) -> bool {
    let opened = cipher(key).open_in_place(nonce(key), Aad::empty(), sealed);
    let Ok(length) = opened.map(|plain| plain.len()) else {
        return false;
    };
    sealed.truncate(length);
    true
}

impl BlockKey {
    /// [`BlockKey::of`] each of several plaintexts.
    #[must_use]
    pub fn of_each(plains: &[&[u8]]) -> Vec<BlockKey> {
        let inputs: Vec<(&[u8], usize)> = plains.iter().map(|plain| (*plain, 32)).collect();
        digests(&inputs).into_iter().map(BlockKey).collect()
    }
}

impl BlockRef {
    /// Whether each plaintext is that of the block beside it: [`BlockRef::verify_plain`] of several, computed side by side.
    #[must_use]
    pub fn are_plains(pairs: &[(BlockRef, &[u8])]) -> Vec<bool> {
        let inputs: Vec<(&[u8], usize)> = pairs.iter().map(|(block, plain)| (*plain, block.key.0.len())).collect();
        let found = digests(&inputs).into_iter().zip(pairs);
        found
            .map(|(digest, (block, plain))| digest == block.key.0 && plain.len() == block.len as usize)
            .collect()
    }
}

/// Seals batches of blocks. Keeps a buffer as large as the largest batch sealed, so each thread wants one of its own.
#[derive(Debug)]
pub struct Sealer {
    encoder: Encoder,
    sealed: Vec<u8>,
}

impl Default for Sealer {
    fn default() -> Sealer {
        Sealer {
            encoder: Encoder::new(),
            sealed: Vec::new(),
        }
    }
}

impl Sealer {
    /// References and stored bytes of several plaintexts with their keys, in their order; see [`BlockKey::seal`].
    ///
    /// # Panics
    /// As [`BlockRef::seal`].
    #[must_use]
    pub fn seal(&mut self, blocks: &[(BlockKey, &[u8])]) -> Vec<(BlockRef, &[u8])> {
        let mut ranges: Vec<Range<usize>> = Vec::with_capacity(blocks.len());
        for (key, plain) in blocks {
            let start = ranges.last().map_or(0, |range| range.end);
            ranges.push(self.seal_at(start, &key.0, plain));
        }
        let sealed = ranges.into_iter().map(|range| &self.sealed[range]);
        let inputs: Vec<(&[u8], usize)> = sealed.map(|sealed| (sealed, 32)).collect();
        let ids = digests(&inputs);
        let reference = |((key, plain), id): (&(BlockKey, &[u8]), Digest)| BlockRef {
            id: BlockId(id),
            key: *key,
            len: plain.len() as u32,
        };
        let references = blocks.iter().zip(ids).map(reference);
        references.zip(inputs.iter().map(|(sealed, _)| *sealed)).collect()
    }

    /// Seals into the buffer from `start`; where the sealed bytes are.
    fn seal_at(&mut self, start: usize, key: &Digest, plain: &[u8]) -> Range<usize> {
        assert!(plain.len() <= BlockRef::SIZE, "a block has at most 524288 bytes");
        let most = start + max_compress_len(plain.len()) + TAG_BYTES;
        if self.sealed.len() < most {
            self.sealed.resize(most, 0);
        }
        let end = start + compress(&mut self.encoder, plain, &mut self.sealed[start..]);
        let tag = encrypt(key, &mut self.sealed[start..end]);
        self.sealed[end..end + TAG_BYTES].copy_from_slice(tag.as_ref());
        start..end + TAG_BYTES
    }
}

/// Opens batches of blocks. Keeps a buffer as large as the largest batch, so each thread wants one of its own.
#[derive(Debug, Default)]
pub struct Opener {
    plain: Vec<u8>,
}

impl Opener {
    /// The plaintext of each block, verified as by [`BlockRef::open`], from its stored bytes, which are used up.
    pub fn open(&mut self, blocks: &mut [(BlockRef, Vec<u8>)]) -> Vec<Result<&[u8], BlockError>> {
        let mut ranges = verify_stored(blocks);
        let mut start = 0;
        for ((block, sealed), range) in blocks.iter_mut().zip(&mut ranges) {
            if range.is_ok() {
                *range = self.open_at(start, block, sealed);
            }
            start = range.as_ref().map_or(start, |range| range.end);
        }
        self.verified(blocks, ranges)
    }

    /// Opens one with the right stored bytes into the buffer; where the plaintext is.
    fn open_at(&mut self, start: usize, block: &BlockRef, sealed: &mut Vec<u8>) -> Result<Range<usize>, BlockError> {
        block.unseal(sealed)?;
        let end = start + block.check_compressed(sealed)?;
        if self.plain.len() < end {
            self.plain.resize(end, 0);
        }
        block.decompress(sealed, &mut self.plain[start..end])?;
        Ok(start..end)
    }

    /// The plaintexts at `ranges` that are what the keys say.
    fn verified(
        &self,
        blocks: &[(BlockRef, Vec<u8>)],
        ranges: Vec<Result<Range<usize>, BlockError>>,
    ) -> Vec<Result<&[u8], BlockError>> {
        let plains: Vec<Result<&[u8], BlockError>> = ranges
            .into_iter()
            .map(|range| range.map(|range| &self.plain[range]))
            .collect();
        let inputs: Vec<(&[u8], usize)> = blocks
            .iter()
            .zip(&plains)
            .filter_map(|((block, _), plain)| plain.as_ref().ok().map(|plain| (*plain, block.key.0.len())))
            .collect();
        let mut found = digests(&inputs).into_iter();
        blocks
            .iter()
            .zip(plains)
            .map(|((block, _), plain)| {
                let plain = plain?;
                block.check_key(found.next().expect("every plaintext has a digest"))?;
                Ok(plain)
            })
            .collect()
    }
}

/// Which blocks' stored bytes are those that the ids name; the range says nothing yet.
fn verify_stored(blocks: &[(BlockRef, Vec<u8>)]) -> Vec<Result<Range<usize>, BlockError>> {
    let shapes: Vec<Result<(), BlockError>> = blocks
        .iter()
        .map(|(block, sealed)| block.check_shape(sealed.len()))
        .collect();
    let inputs: Vec<(&[u8], usize)> = blocks
        .iter()
        .zip(&shapes)
        .filter(|(_, shape)| shape.is_ok())
        .map(|((block, sealed), _)| (sealed.as_slice(), block.id.0.len()))
        .collect();
    let mut found = digests(&inputs).into_iter();
    blocks
        .iter()
        .zip(shapes)
        .map(|((block, sealed), shape)| {
            shape?;
            block.check_id(sealed.len(), found.next().expect("all stored bytes have a digest"))?;
            Ok(0..0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths around those of the hash's own blocks, and some that compress to nothing or not at all.
    fn plains() -> Vec<Vec<u8>> {
        let mut noise = 1u32;
        let mut byte = |_| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        };
        let lengths = [0, 1, 127, 128, 129, 5000, 70_000, BlockRef::SIZE];
        let mut plains: Vec<Vec<u8>> = lengths.iter().map(|len| (0..*len).map(&mut byte).collect()).collect();
        plains.extend(lengths.iter().map(|len| vec![7; *len]));
        plains
    }

    #[test]
    fn a_batch_is_sealed_as_its_blocks_are_alone_and_a_buffer_that_was_used_changes_nothing() {
        let plains = plains();
        let slices: Vec<&[u8]> = plains.iter().map(Vec::as_slice).collect();
        let mut sealer = Sealer::default();
        for slices in [&slices[..], &slices[3..], &slices[..2], &[]] {
            let keys = BlockKey::of_each(slices);
            let batch: Vec<(BlockKey, &[u8])> = keys.into_iter().zip(slices.iter().copied()).collect();
            for ((reference, sealed), plain) in sealer.seal(&batch).into_iter().zip(slices) {
                assert_eq!((reference, sealed.to_vec()), BlockRef::seal(plain));
                assert_eq!(reference.key, BlockKey::of(plain));
                assert_eq!(reference.id, BlockId(Digest::blake2b_32(sealed)));
            }
        }
    }

    #[test]
    fn a_batch_is_opened_and_what_is_wrong_in_it_is_told_of_that_block_alone() {
        let plains = plains();
        let mut opener = Opener::default();
        for bad in 0..plains.len() {
            let mut blocks: Vec<(BlockRef, Vec<u8>)> = plains.iter().map(|plain| BlockRef::seal(plain)).collect();
            let expected = match bad % 4 {
                0 => {
                    blocks[bad].1[0] ^= 1;
                    blocks[bad].0.open(&blocks[bad].1)
                }
                1 => {
                    blocks[bad].1.clear();
                    blocks[bad].0.open(&[])
                }
                2 => {
                    blocks[bad].0.key = BlockKey(Digest::blake2b_32(b"another"));
                    blocks[bad].0.open(&blocks[bad].1)
                }
                _ => {
                    blocks[bad].0.len += 1;
                    blocks[bad].0.open(&blocks[bad].1)
                }
            };
            let opened = opener.open(&mut blocks);
            for (at, (opened, plain)) in opened.into_iter().zip(&plains).enumerate() {
                match at == bad {
                    true => assert_eq!(opened.unwrap_err(), expected.clone().unwrap_err()),
                    false => assert_eq!(opened, Ok(plain.as_slice())),
                }
            }
        }
    }

    #[test]
    fn a_plaintext_that_its_key_is_not_the_digest_of_is_refused_in_a_batch() {
        let key = Digest::blake2b_32(b"good");
        let mut sealed = compressed(b"evil");
        let tag = encrypt(&key, &mut sealed);
        sealed.extend_from_slice(tag.as_ref());
        let forged = BlockRef {
            id: BlockId(Digest::blake2b_32(&sealed)),
            key: BlockKey(key),
            len: 4,
        };
        let mut blocks = [
            BlockRef::seal(b"one"),
            (forged, sealed),
            BlockRef::sealed_zeros_of_format_1(9),
        ];
        let mut opener = Opener::default();
        let opened = opener.open(&mut blocks);
        assert_eq!((&opened[0], &opened[2]), (&Ok(&b"one"[..]), &Ok(&[0; 9][..])));
        assert!(matches!(opened[1], Err(BlockError::WrongPlaintext { .. })));
    }
}
