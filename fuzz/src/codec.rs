//! Blocks of both formats. The encryption is undone here before the input is used, or nothing would get past it.
//!
//! Input: one byte that chooses, four of the block's length, then the compressed bytes (or, for a round trip, plain ones).

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use zmachine_flist::{BlockId, BlockKey, BlockRef, Digest};

/// A block.
pub fn block_codec(input: &[u8]) {
    let Some(([kind, length @ ..], bytes)) = input.split_first_chunk::<5>() else {
        return;
    };
    let len = u32::from_le_bytes(*length);
    match kind % 4 {
        0 => round_trip(bytes),
        1 => opened(bytes, len, Digest::blake2b_32, sealed_2),
        2 => opened(bytes, len, Digest::blake2b_16, sealed_1),
        // Encrypted with nothing that was known.
        _ => opened(bytes, len, Digest::blake2b_32, |_, bytes| bytes.to_vec()),
    }
}

fn round_trip(plain: &[u8]) {
    let plain = &plain[..plain.len().min(BlockRef::SIZE)];
    let (block, sealed) = BlockRef::seal(plain);
    assert_eq!(block.open(&sealed).as_deref(), Ok(plain));
}

/// Opens what `seal` makes of `compressed`; the key is that of the input itself, so a plaintext may well be accepted.
fn opened(compressed: &[u8], len: u32, digest: fn(&[u8]) -> Digest, seal: fn(&Digest, &[u8]) -> Vec<u8>) {
    let key = digest(compressed);
    let sealed = seal(&key, compressed);
    let block = BlockRef {
        id: BlockId(digest(&sealed)),
        key: BlockKey(key),
        len,
    };
    if let Ok(plain) = block.open(&sealed) {
        assert_eq!(plain.len(), len as usize);
        assert!(block.verify_plain(&plain).is_ok());
    }
}

/// AES-256-GCM as format 2 has it.
fn sealed_2(key: &Digest, compressed: &[u8]) -> Vec<u8> {
    let cipher = Aes256Gcm::new_from_slice(key.as_bytes()).expect("32 bytes");
    let mut sealed = compressed.to_vec();
    let nonce = Nonce::from_slice(&key.as_bytes()[..12]);
    let tag = cipher
        .encrypt_in_place_detached(nonce, &[], &mut sealed)
        .expect("a short text");
    sealed.extend_from_slice(&tag);
    sealed
}

/// XXTEA as format 1 has it: the length as a further word.
fn sealed_1(key: &Digest, compressed: &[u8]) -> Vec<u8> {
    let mut bytes = compressed.to_vec();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend((compressed.len() as u32).to_le_bytes());
    let word = |chunk: &[u8]| u32::from_le_bytes(chunk.try_into().expect("four bytes"));
    let mut words: Vec<u32> = bytes.chunks(4).map(word).collect();
    let key: Vec<u32> = key.as_bytes().chunks(4).map(word).collect();
    let n = words.len();
    if n < 2 {
        return bytes;
    }
    let (mut sum, mut z) = (0u32, words[n - 1]);
    for _ in 0..6 + 52 / n {
        sum = sum.wrapping_add(0x9e37_79b9);
        let e = (sum >> 2 & 3) as usize;
        for p in 0..n {
            let y = words[(p + 1) % n];
            let shifts = (z >> 5 ^ y << 2).wrapping_add(y >> 3 ^ z << 4);
            z = words[p].wrapping_add(shifts ^ (sum ^ y).wrapping_add(key[p & 3 ^ e] ^ z));
            words[p] = z;
        }
    }
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}
