//! Chunks of layers, out of a registry.

use std::io::Read;
use std::path::Path;
use std::time::Instant;

use zmachine_image::lazy::{Chunk, ChunkCompression, ChunkError, ChunkSource, LazyLayer, MOST_STORED, Origin};
use zmachine_image::library::ResolveError;

use super::super::registries::Registries;
use super::super::source::{self, Part, Source};
use super::super::{ImportError, ImportOptions, Problem};
use crate::compression::Decompressed;

/// The layers of one image where they are.
pub(super) struct Layers {
    source: Box<dyn Source>,
    layers: Vec<LazyLayer>,
    shown: String,
}

/// Where the layers of the image in `directory` are fetched from; `None` when its blocks are not lazy. Nothing is asked by this, and all
/// files that are needed for it are read.
///
/// # Errors
/// When the image says something that cannot be, or a file with credentials cannot be read.
pub fn chunk_source(directory: &Path) -> Result<Option<Box<dyn ChunkSource>>, ImportError> {
    let unreadable = |e| ImportError::Here {
        image: directory.display().to_string(),
        source: Box::new(ResolveError::File(e)),
    };
    let origin = Origin::read(directory).map_err(unreadable)?;
    origin.as_ref().map(layers_of).transpose()
}

fn layers_of(origin: &Origin) -> Result<Box<dyn ChunkSource>, ImportError> {
    let shown = origin.source.trim_start_matches("docker://").to_owned();
    let of = |problem: Problem| problem.of(&shown);
    let image = super::super::ImageSource::parse(&origin.source)
        .map_err(|_| of(Problem::Broken("it is no reference of a registry".into())))?;
    let registries = Registries::load(&origin.registries);
    let options = ImportOptions {
        auth_files: origin.auth_files.clone(),
        registries: registries.map_err(|e| of(Problem::Read(std::io::Error::other(e.to_string()))))?,
        ..ImportOptions::default()
    };
    Ok(Box::new(Layers {
        source: source::open(&image, &options).map_err(of)?,
        layers: origin.layers.clone(),
        shown: shown.split('@').next().unwrap_or_default().to_owned(),
    }))
}

impl ChunkSource for Layers {
    fn chunks(&self, layer: usize, chunks: &[Chunk], deadline: Instant) -> Result<Vec<Vec<u8>>, ChunkError> {
        let broken = |what: String| ChunkError {
            what,
            is_transient: false,
        };
        let layer = self
            .layers
            .get(layer)
            .ok_or_else(|| broken(format!("{} has no such layer", self.shown)))?;
        let stored = || chunks.iter().filter(|chunk| chunk.stored > 0);
        let start = stored().map(|chunk| chunk.at).min().unwrap_or_default();
        let end = stored()
            .map(|chunk| chunk.at.saturating_add(u64::from(chunk.stored)))
            .max();
        let length = end.unwrap_or_default().saturating_sub(start);
        if length > MOST_STORED || end.is_some_and(|end| end > layer.size) {
            return Err(broken(format!(
                "a file of {} is in too many places of layer {}",
                self.shown, layer.digest
            )));
        }
        let bytes = match length {
            0 => Vec::new(),
            _ => self.part(layer, start, length, deadline)?,
        };
        let each = chunks.iter().map(|chunk| {
            let plain = match chunk.stored {
                0 => Ok(vec![0; chunk.size as usize]),
                _ => unpacked(&bytes[(chunk.at - start) as usize..], chunk, layer.compression),
            };
            plain.map_err(|e| {
                broken(format!(
                    "{}: layer {} cannot be unpacked at {}: {e}",
                    self.shown, layer.digest, chunk.at
                ))
            })
        });
        each.collect()
    }

    fn describe(&self) -> String {
        self.shown.clone()
    }
}

impl Layers {
    fn part(&self, layer: &LazyLayer, at: u64, length: u64, deadline: Instant) -> Result<Vec<u8>, ChunkError> {
        let part = Part { at, length, deadline };
        let (what, is_transient) = match self.source.part(&layer.digest, &part) {
            Ok(Some(bytes)) => return Ok(bytes),
            Ok(None) => ("it sends no parts of layers".to_owned(), false),
            Err(Problem::Read(error)) => (error.to_string(), true),
            Err(Problem::Status(status)) => (
                format!("it answered with status {status}"),
                status >= 500 || status == 429,
            ),
            Err(Problem::Broken(what) | Problem::Platform(what)) => (what, false),
        };
        Err(ChunkError {
            what: format!("{}: {what}", self.shown),
            is_transient,
        })
    }
}

/// The plaintext of a chunk that begins with `stored`.
fn unpacked(stored: &[u8], chunk: &Chunk, compression: ChunkCompression) -> std::io::Result<Vec<u8>> {
    let stored = &stored[..(chunk.stored as usize).min(stored.len())];
    let mut reader: Box<dyn Read + '_> = match compression {
        // One member: what is behind its content belongs to somebody else.
        ChunkCompression::Gzip => Box::new(flate2::bufread::GzDecoder::new(stored)),
        ChunkCompression::Zstd => Box::new(Decompressed::new(stored)?),
    };
    let skipped = std::io::copy(&mut reader.by_ref().take(u64::from(chunk.skip)), &mut std::io::sink())?;
    let mut plain = vec![0; chunk.size as usize];
    match skipped == u64::from(chunk.skip) {
        true => reader.read_exact(&mut plain)?,
        false => return Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
    Ok(plain)
}
