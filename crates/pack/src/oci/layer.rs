//! A layer's stream: how far it is, the digest of what is kept, the compression, the digest of the tar inside.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};
use zmachine_image::progress::Progress;

use super::Problem;
use super::manifest::Descriptor;
use crate::compression::Decompressed;

/// Tells of all that is read.
pub(super) struct Reported<'a, R> {
    pub(super) inner: R,
    pub(super) progress: &'a dyn Progress,
}

impl<R: Read> Read for Reported<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.progress.advance(read as u64);
        Ok(read)
    }
}

/// Reads through a hash; the bytes are counted and held against a limit.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    /// Bytes that may still come.
    left: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| broken("a layer is longer than it should be"))?;
        self.hash.update(&bytes[..read]);
        Ok(read)
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The tar of a layer.
pub(super) struct LayerStream<'a> {
    decoder: Hashing<Decompressed<Hashing<Box<dyn Read + 'a>>>>,
    digest: String,
    diff_id: String,
}

impl Read for LayerStream<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(bytes)
    }
}

impl<'a> LayerStream<'a> {
    /// `kept`: the bytes that `layer` describes; `diff_id`: the digest of the tar inside. The compression is told by the
    /// bytes themselves, as media types are often wrong.
    pub(super) fn new(kept: Box<dyn Read + 'a>, layer: &Descriptor, diff_id: &str) -> Result<LayerStream<'a>, Problem> {
        check_form(diff_id)?;
        let hashing = Hashing {
            inner: kept,
            hash: Sha256::new(),
            left: layer.size,
        };
        Ok(LayerStream {
            decoder: Hashing {
                inner: Decompressed::new(hashing)?,
                hash: Sha256::new(),
                left: u64::MAX,
            },
            digest: layer.digest.clone(),
            diff_id: diff_id.to_owned(),
        })
    }

    /// Reads what is left behind the archive and checks both digests.
    pub(super) fn finish(mut self) -> Result<(), Problem> {
        io::copy(&mut self.decoder, &mut io::sink())?;
        check(&self.decoder.hash.finalize(), &self.diff_id)?;
        let mut kept = self.decoder.inner.into_inner();
        io::copy(&mut kept, &mut io::sink())?;
        // An archive of docker does not tell the digest of what it keeps; all other places find it by that.
        if self.digest.is_empty() {
            return Ok(());
        }
        let kept = kept.into_inner();
        if kept.left > 0 {
            return Err(Problem::Broken(format!(
                "layer {} is {} bytes shorter than the manifest says",
                self.digest, kept.left
            )));
        }
        check(&kept.hash.finalize(), &self.digest)
    }
}

/// Only SHA-256 is in use.
fn check_form(digest: &str) -> Result<&str, Problem> {
    let hex = digest.strip_prefix("sha256:");
    let hex = hex.filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    hex.ok_or_else(|| {
        Problem::Broken(format!(
            "{:?} is no SHA-256 digest",
            digest.chars().take(80).collect::<String>()
        ))
    })
}

/// Hexadecimal digits of a digest `sha256:...`, which are also its file name.
pub(super) fn hex_of(digest: &str) -> Result<&str, Problem> {
    check_form(digest)
}

fn check(found: &[u8], digest: &str) -> Result<(), Problem> {
    let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
    if found != check_form(digest)? {
        return Err(Problem::Broken(format!(
            "what should be {digest} has digest sha256:{found}"
        )));
    }
    Ok(())
}

/// The digest of a document.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Holds a document against its digest.
pub(super) fn check_digest(bytes: &[u8], digest: &str) -> Result<(), Problem> {
    check(&Sha256::digest(bytes), digest)
}
