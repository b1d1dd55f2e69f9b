//! XXTEA as format 1 uses it: Corrected Block TEA over the whole block in one pass.
//!
//! The plaintext is padded with zeros to whole little-endian words; one more word holds its length in bytes. All 16 bytes
//! of the key count (a variant in the wild stops at the first zero byte).

const DELTA: u32 = 0x9e37_79b9;

/// The plaintext, when the length inside fits; nothing else tells a wrong key here.
pub(crate) fn decrypt(sealed: &[u8], key: &[u8; 16]) -> Option<Vec<u8>> {
    let mut words = to_words(sealed)?;
    let key = key_words(key);
    let n = words.len();
    if n < 2 {
        return None;
    }
    let rounds = 6 + 52 / n as u32;
    let mut sum = rounds.wrapping_mul(DELTA);
    let mut y = words[0];
    for _ in 0..rounds {
        let e = (sum >> 2) & 3;
        for p in (1..n).rev() {
            let z = words[p - 1];
            words[p] = words[p].wrapping_sub(mix(z, y, sum, key[(p & 3) ^ e as usize]));
            y = words[p];
        }
        words[0] = words[0].wrapping_sub(mix(words[n - 1], y, sum, key[e as usize]));
        y = words[0];
        sum = sum.wrapping_sub(DELTA);
    }
    let length = words[n - 1] as usize;
    let most = 4 * (n - 1);
    if length > most || length + 3 < most {
        return None;
    }
    let mut plain: Vec<u8> = words[..n - 1].iter().flat_map(|word| word.to_le_bytes()).collect();
    plain.truncate(length);
    Some(plain)
}

/// The inverse of [`decrypt`].
pub(crate) fn encrypt(plain: &[u8], key: &[u8; 16]) -> Vec<u8> {
    let mut padded = plain.to_vec();
    padded.resize(plain.len().next_multiple_of(4), 0);
    padded.extend_from_slice(&(plain.len() as u32).to_le_bytes());
    let mut words = to_words(&padded).unwrap_or_default();
    let key = key_words(key);
    let n = words.len();
    if n < 2 {
        return padded;
    }
    let (mut sum, mut z) = (0u32, words[n - 1]);
    for _ in 0..6 + 52 / n {
        sum = sum.wrapping_add(DELTA);
        let e = (sum >> 2) & 3;
        for p in 0..n {
            let y = words[(p + 1) % n];
            words[p] = words[p].wrapping_add(mix(z, y, sum, key[(p & 3) ^ e as usize]));
            z = words[p];
        }
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn mix(z: u32, y: u32, sum: u32, key: u32) -> u32 {
    (((z >> 5) ^ (y << 2)).wrapping_add((y >> 3) ^ (z << 4))) ^ ((sum ^ y).wrapping_add(key ^ z))
}

fn to_words(bytes: &[u8]) -> Option<Vec<u32>> {
    if !bytes.len().is_multiple_of(4) {
        return None;
    }
    let words = bytes.chunks_exact(4);
    Some(
        words
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect(),
    )
}

fn key_words(key: &[u8; 16]) -> [u32; 4] {
    std::array::from_fn(|at| u32::from_le_bytes(std::array::from_fn(|byte| key[4 * at + byte])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vector_holds() {
        let key = std::array::from_fn(|at| at as u8);
        let sealed = [
            0x51, 0x20, 0xf9, 0x75, 0xe1, 0x03, 0xd1, 0x1a, 0x5f, 0x7b, 0x66, 0x67, 0x56, 0x5c, 0x54, 0x87,
        ];
        assert_eq!(decrypt(&sealed, &key).as_deref(), Some(&b"hello world"[..]));
        assert_eq!(encrypt(b"hello world", &key), sealed);
    }

    #[test]
    fn lengths_that_can_not_be_are_refused() {
        for sealed in [&b""[..], b"abc", b"abcd", b"abcdefg", b"abcdefghijkl"] {
            assert_eq!(decrypt(sealed, &[7; 16]), None);
        }
    }
}
