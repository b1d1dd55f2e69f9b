//! Bringing an image that is kept here to a registry.
//!
//! A layer that the registry has, in the form the image came in, is not sent again; another one is compressed with gzip. An image whose
//! layers are all there keeps its manifest, and so its digest.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use zmachine_flist::Digest;
use zmachine_image::progress::Progress;
use zmachine_image::reference::ImageSource;
use zmachine_image::{Library, Mode};
use zmachine_sys::file::NewFile;

use super::frame::write_tar;
use super::layer::digest_of;
use super::manifest::{self, Document};
use super::registry::Registry;
use super::save::{Kept, SaveError};
use super::{ImportError, ImportOptions, Problem, artifact};

/// Why an image could not be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// What is here cannot be given away.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The registry does not take it.
    #[error(transparent)]
    Registry(#[from] ImportError),
    /// The target is no registry.
    #[error("'{target}' is not the name of an image in a registry")]
    NoRegistry {
        /// What was named.
        target: String,
    },
}

impl PushError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            PushError::Save(error) => error.hint(),
            PushError::Registry(ImportError::Status { status: 401 | 403, .. }) => Some(
                "log in to the registry with 'zmachine login'; to Docker Hub images are pushed as USER/NAME".into(),
            ),
            PushError::Registry(error) => error.hint(),
            PushError::NoRegistry { .. } => Some("name it as HOST[:PORT]/NAME[:TAG]".into()),
        }
    }
}

/// What goes through is hashed and counted.
struct Counting<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Pushes an image of the library; the digest that its name has in the registry then.
///
/// # Errors
/// [`PushError`]; what was sent stays there.
pub fn push(
    library: &Library,
    image: &Digest,
    target: &ImageSource,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<String, PushError> {
    let ImageSource::Registry {
        host,
        repository,
        reference,
    } = target
    else {
        return Err(PushError::NoRegistry {
            target: target.to_string(),
        });
    };
    let named = |problem: Problem| problem.of(target);
    let kept = match Kept::of(library, image, &target.to_string()) {
        Ok(kept) => kept,
        // Blocks that are on this host alone would be of no use elsewhere.
        Err(SaveError::NoLayers { .. }) if library.layers_of(image).is_ok_and(|layers| layers.is_empty()) => {
            let registry = Registry::open(host, repository, reference, options).map_err(named)?;
            let mut flist = library.flist_file(image).map_err(SaveError::from)?;
            // One that cannot be run here goes as it is.
            let facts = library.by_its_digest(image, Mode::Auto, &target.to_string());
            let facts = facts.ok().map(|image| image.facts);
            return Ok(artifact::push(&mut flist, facts.as_ref(), &registry, progress).map_err(named)?);
        }
        Err(error) => return Err(error.into()),
    };
    let registry = Registry::open(host, repository, reference, options).map_err(named)?;
    let sent = send(library, &kept, &registry, options, progress);
    Ok(sent.map_err(named)?)
}

fn send(
    library: &Library,
    kept: &Kept,
    registry: &Registry,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<String, Problem> {
    let Document::Manifest(known) = manifest::parse(&kept.manifest)? else {
        return Err(Problem::Broken("its manifest is an index".into()));
    };
    let mut is_same = true;
    let mut layers = Vec::new();
    for (at, ((name, layer), known)) in kept.layers.iter().zip(&known.layers).enumerate() {
        progress.begin_part(at, known.size, &name[..12]);
        if !known.digest.is_empty() && registry.has_blob(&known.digest)? {
            progress.end_part(at, "is there");
            layers.push(json!({"mediaType": known.media_type, "digest": known.digest, "size": known.size}));
            continue;
        }
        let new = NewFile::create(&options.temporary, 0o600).map_err(io::Error::other)?;
        let mut file = new.file().try_clone()?;
        let (digest, size) = compress(library, layer, &mut file)?;
        is_same &= digest == known.digest;
        if !registry.has_blob(&digest)? {
            file.rewind()?;
            registry.upload(&digest, size, &mut file)?;
        }
        progress.end_part(at, "pushed");
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        layers.push(json!({"mediaType": kind, "digest": digest, "size": size}));
    }
    let configuration = digest_of(&kept.configuration);
    if !registry.has_blob(&configuration)? {
        let size = kept.configuration.len() as u64;
        registry.upload(&configuration, size, &mut kept.configuration.as_slice())?;
    }
    let text: serde_json::Value = manifest::json(&kept.manifest, "manifest")?;
    let kind = text.get("mediaType").and_then(serde_json::Value::as_str);
    let oci = "application/vnd.oci.image.manifest.v1+json";
    // An archive of docker has none that a registry would take.
    let is_whole = is_same && known.layers.iter().all(|layer| !layer.digest.is_empty());
    let (bytes, kind) = match is_whole {
        true => (kept.manifest.clone(), kind.unwrap_or(oci)),
        false => {
            let made = json!({
                "schemaVersion": 2,
                "mediaType": oci,
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": configuration,
                    "size": kept.configuration.len(),
                },
                "layers": layers,
            });
            (made.to_string().into_bytes(), oci)
        }
    };
    registry.put_manifest(&bytes, kind)?;
    Ok(digest_of(&bytes))
}

/// The layer with gzip; its digest and length.
fn compress(library: &Library, layer: &zmachine_image::library::Layer, file: &mut File) -> io::Result<(String, u64)> {
    let counting = Counting {
        inner: BufWriter::with_capacity(256 << 10, file),
        hash: Sha256::new(),
        bytes: 0,
    };
    let mut encoder = GzEncoder::new(counting, Compression::fast());
    write_tar(
        File::open(layer.frame_path())?,
        &layer.blocks,
        library.cache(),
        &mut encoder,
    )?;
    let mut counting = encoder.finish()?;
    counting.flush()?;
    let hex: String = counting
        .hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((format!("sha256:{hex}"), counting.bytes))
}
