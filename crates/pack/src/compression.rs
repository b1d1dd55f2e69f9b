//! Compressed streams, told apart by their first bytes: gzip of several members, zstd of several frames, xz of several streams, or none
//! of them. bzip2 is told by its name and not read.
//!
//! Checksums that a stream has are checked. Memory is bounded: zstd's window to 100 MiB by its decoder and xz to [`XZ_MEMORY`], whatever
//! a frame asks.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Bytes that are read at once.
const BUFFER: usize = 64 << 10;

/// The most memory that reading xz may take, in bytes: `xz -9` needs half of it.
const XZ_MEMORY: u64 = 128 << 20;

/// A stream without its compression.
pub(crate) enum Decompressed<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(Box<Frames<BufReader<R>>>),
    Xz(Box<XzDecoder<BufReader<R>>>),
}

impl<R: Read> Decompressed<R> {
    /// Looks at the first bytes of `inner`.
    ///
    /// # Errors
    /// When these cannot be read.
    pub(crate) fn new(inner: R) -> io::Result<Decompressed<R>> {
        let mut inner = BufReader::with_capacity(BUFFER, inner);
        // A pipe may deliver fewer bytes than a magic number has; a shorter stream has no compression.
        let head = inner.fill_buf()?;
        Ok(if head.starts_with(&[0x1f, 0x8b]) {
            Decompressed::Gzip(Box::new(MultiGzDecoder::new(inner)))
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable(head) {
            Decompressed::Zstd(Box::new(Frames {
                source: inner,
                decoder: FrameDecoder::new(),
                is_within: false,
            }))
        } else if head.starts_with(b"\xfd7zXZ") {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(io::Error::other)?;
            Decompressed::Xz(Box::new(XzDecoder::new_stream(inner, stream)))
        } else if head.starts_with(b"BZh") && head.get(4..10) == Some(b"1AY&SY") {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it is compressed with bzip2, which is not read here: decompress it first (bunzip2)",
            ));
        } else {
            Decompressed::Plain(inner)
        })
    }

    /// The compressed stream, where the decoder left it.
    pub(crate) fn into_inner(self) -> BufReader<R> {
        match self {
            Decompressed::Plain(inner) => inner,
            Decompressed::Gzip(decoder) => decoder.into_inner(),
            Decompressed::Zstd(frames) => frames.source,
            Decompressed::Xz(decoder) => decoder.into_inner(),
        }
    }
}

/// Frames of zstd that hold no data: tables of contents (`zstd:chunked` layers have them), dictionaries.
fn is_skippable(head: &[u8]) -> bool {
    matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Decompressed::Plain(inner) => inner.read(bytes),
            Decompressed::Gzip(decoder) => decoder.read(bytes).map_err(|error| damaged(&error)),
            Decompressed::Zstd(frames) => frames.read(bytes),
            Decompressed::Xz(decoder) => decoder.read(bytes).map_err(|error| damaged(&error)),
        }
    }
}

/// A decoder's complaint is about the bytes, unless the connection failed.
fn damaged(error: &io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
            io::Error::new(error.kind(), error.to_string())
        }
        // A source that complains about its bytes has said all there is to say.
        io::ErrorKind::InvalidData if error.get_ref().is_some() => io::Error::new(error.kind(), error.to_string()),
        _ => broken(error),
    }
}

fn broken(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the compression is broken ({why})"))
}

/// All frames of a stream, one behind the other.
pub(crate) struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    /// Whether a frame was begun and not finished.
    is_within: bool,
}

impl<R: BufRead> Frames<R> {
    /// Begins the next frame; whether there is one.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.is_within = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let wanted = u64::from(length);
                    if io::copy(&mut self.source.by_ref().take(wanted), &mut io::sink())? < wanted {
                        return Err(broken("it is cut short"));
                    }
                }
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        while self.is_within || self.begin()? {
            let decoder = &mut self.decoder;
            while decoder.can_collect() == 0 && !decoder.is_finished() {
                let decoded = decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1));
                decoded.map_err(broken)?;
            }
            let read = decoder.read(bytes)?;
            if read > 0 {
                return Ok(read);
            }
            let (output, is) = (decoder.get_checksum_from_data(), decoder.get_calculated_checksum());
            if output.is_some() && output != is {
                return Err(broken("a checksum is wrong"));
            }
            self.is_within = false;
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Decompressed::new(bytes)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    #[test]
    fn every_member_and_frame_is_read_and_what_holds_no_data_is_skipped() {
        let plain: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let (a, b) = plain.split_at(1_000_000);
        let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        for bytes in [
            plain.clone(),
            gzip(&plain),
            [gzip(a), gzip(b)].concat(),
            xz(&plain),
            [xz(a), xz(b)].concat(),
            zstd(&plain),
            [zstd(a), zstd(b)].concat(),
            [skipped.clone(), zstd(a), skipped.clone(), zstd(b), skipped].concat(),
        ] {
            assert!(read(&bytes).unwrap() == plain, "{:?}", &bytes[..8]);
        }
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(&zstd(b"")).unwrap(), b"");
    }

    #[test]
    fn what_is_cut_or_changed_is_an_error() {
        let plain = vec![7; 100_000];
        for whole in [gzip(&plain), zstd(&plain), xz(&plain)] {
            for length in [5, whole.len() / 2, whole.len() - 1] {
                assert!(read(&whole[..length]).is_err(), "{length} of {}", whole.len());
            }
            assert!(read(&[&whole[..], b"garbage behind"].concat()).is_err());
            let mut changed = whole.clone();
            *changed.last_mut().unwrap() ^= 1;
            assert!(read(&changed).is_err(), "a checksum or length that is another");
        }
        let bzip2 = read(b"BZh91AY&SY").unwrap_err().to_string();
        assert!(bzip2.contains("bunzip2"), "{bzip2}");
    }
}
