//! Undoing whatever compression a kernel, a module or a package part comes in. Pure: bytes in, bytes out.
//!
//! The kind is read from the first bytes, never from a file name. Output is bounded, so that a hostile file cannot fill
//! the memory.

use std::io::Read;

use crate::KernelError;

/// More than any kernel or module: 512 MiB.
const MAX_OUTPUT_BYTES: u64 = 512 << 20;
/// Blocks of the legacy LZ4 format hold at most this much plain data (`lib/lz4` of the kernel: 8 MiB).
const LZ4_BLOCK_BYTES: usize = 8 << 20;

/// The compressions that kernels, modules and packages use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
    /// The legacy frame format, the one `lz4 -l` writes and the kernel build uses.
    Lz4,
}

impl Compression {
    /// What the first bytes say; anything unknown counts as not compressed.
    pub(crate) fn of(data: &[u8]) -> Self {
        match data {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4,
            _ => Self::None,
        }
    }
}

/// Undoes the compression of `data`, which is called `what` in errors. Bytes behind the compressed stream are ignored.
pub(crate) fn decompress(data: &[u8], what: &str) -> Result<Vec<u8>, KernelError> {
    let bad = |reason: &dyn std::fmt::Display| KernelError::bad_input(what, reason);
    match Compression::of(data) {
        Compression::None => Ok(data.to_vec()),
        Compression::Gzip => read_all(flate2::bufread::GzDecoder::new(data), what),
        Compression::Xz => read_all(liblzma::bufread::XzDecoder::new(data), what),
        Compression::Zstd => read_all(
            ruzstd::decoding::StreamingDecoder::new(data).map_err(|e| bad(&e))?,
            what,
        ),
        Compression::Lz4 => lz4_legacy(&data[4..], what),
    }
}

/// A reader of the plain bytes of `data`, for archives that are too big to hold twice.
pub(crate) fn reader<'a>(data: &'a [u8], what: &str) -> Result<Box<dyn Read + 'a>, KernelError> {
    Ok(match Compression::of(data) {
        Compression::None => Box::new(data),
        Compression::Gzip => Box::new(flate2::bufread::GzDecoder::new(data)),
        Compression::Xz => Box::new(liblzma::bufread::XzDecoder::new(data)),
        Compression::Zstd => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(data).map_err(|e| KernelError::bad_input(what, e))?)
        }
        Compression::Lz4 => return Err(KernelError::bad_input(what, "an archive in lz4 is not supported")),
    })
}

fn read_all(from: impl Read, what: &str) -> Result<Vec<u8>, KernelError> {
    let mut plain = Vec::new();
    from.take(MAX_OUTPUT_BYTES + 1)
        .read_to_end(&mut plain)
        .map_err(|e| KernelError::bad_input(what, e))?;
    if plain.len() as u64 > MAX_OUTPUT_BYTES {
        return Err(KernelError::bad_input(what, "more than 512 MiB when decompressed"));
    }
    Ok(plain)
}

/// `[length: u32 LE][block]` repeated, until the end or until a length that cannot be one (the kernel build appends
/// the plain size to the stream).
fn lz4_legacy(mut data: &[u8], what: &str) -> Result<Vec<u8>, KernelError> {
    let mut plain = Vec::new();
    let mut block = vec![0; LZ4_BLOCK_BYTES];
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > rest.len() {
            break;
        }
        let made = lz4_flex::block::decompress_into(&rest[..length], &mut block)
            .map_err(|e| KernelError::bad_input(what, e))?;
        plain.extend_from_slice(&block[..made]);
        if plain.len() as u64 > MAX_OUTPUT_BYTES {
            return Err(KernelError::bad_input(what, "more than 512 MiB when decompressed"));
        }
        data = &rest[length..];
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn gzip_xz_and_plain_give_the_same_bytes() {
        let plain = b"kernel ".repeat(1000);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(&plain).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&plain).unwrap();
        for packed in [gz.finish().unwrap(), xz.finish().unwrap(), plain.clone()] {
            assert_eq!(decompress(&packed, "test").unwrap(), plain);
        }
    }

    #[test]
    fn zstd_and_bytes_behind_it() {
        let plain = b"kernel ".repeat(1000);
        let mut packed = ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest);
        packed.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        assert_eq!(decompress(&packed, "test").unwrap(), plain);
    }

    #[test]
    fn legacy_lz4_with_the_size_appended() {
        let plain = b"kernel ".repeat(1000);
        let block = lz4_flex::block::compress(&plain);
        let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
        packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
        packed.extend_from_slice(&block);
        packed.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        assert_eq!(decompress(&packed, "test").unwrap(), plain);
    }

    #[test]
    fn a_cut_stream_is_an_error_that_names_it() {
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&b"kernel ".repeat(1000)).unwrap();
        let packed = xz.finish().unwrap();
        let error = decompress(&packed[..packed.len() / 2], "half.xz").unwrap_err();
        assert!(error.to_string().starts_with("half.xz is damaged"), "{error}");
    }
}
