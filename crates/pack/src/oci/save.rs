//! An image that is kept here as an archive for others: `docker save`'s form, or an OCI layout in a tar.
//!
//! Layers are written as they were, without compression: their digests are those of the image's configuration, so the image stays the
//! same one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};

use serde_json::json;
use zmachine_flist::Digest;
use zmachine_image::Library;
use zmachine_image::library::{Layer, ResolveError};
use zmachine_image::reference::{DOCKER_HUB, ImageSource};

use super::frame::{tar_length, write_tar};
use super::layer::digest_of;
use super::pull::{CONFIGURATION, MANIFEST};

/// The form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As docker and podman save it.
    Docker,
    /// An OCI layout.
    Oci,
}

/// Why an image could not be saved or pushed.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It has no layers here: its blocks come from stores.
    #[error("{image} comes from a flist, and has no layers to give away")]
    NoLayers {
        /// Its name.
        image: String,
    },
    /// A layer is not here with all its blocks.
    #[error("layer {layer} of {image} is not complete")]
    Incomplete {
        /// Its name.
        image: String,
        /// The layer.
        layer: String,
    },
    /// What is kept here cannot be read.
    #[error(transparent)]
    Here(#[from] ResolveError),
    /// The archive cannot be written.
    #[error("the archive cannot be written")]
    Write(#[from] io::Error),
}

impl SaveError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            SaveError::NoLayers { .. } => {
                Some("flists are files already: copy the flist, or put its blocks into another store with 'zmachine flist push'".into())
            }
            SaveError::Incomplete { image, .. } => Some(format!("bring it here again: zmachine pull {image}")),
            SaveError::Here(error) => error.hint(),
            SaveError::Write(_) => None,
        }
    }
}

/// An image of the library, for giving it away.
pub(super) struct Kept {
    pub(super) manifest: Vec<u8>,
    pub(super) configuration: Vec<u8>,
    /// Names and layers, the lowest first.
    pub(super) layers: Vec<(String, Layer)>,
}

impl Kept {
    pub(super) fn of(library: &Library, digest: &Digest, name: &str) -> Result<Kept, SaveError> {
        let no_layers = || SaveError::NoLayers { image: name.to_owned() };
        let manifest = library.image_file(digest, MANIFEST)?.ok_or_else(no_layers)?;
        let configuration = library.image_file(digest, CONFIGURATION)?.ok_or_else(no_layers)?;
        let mut layers = Vec::new();
        for layer in library.layers_of(digest)? {
            let found = library.layer(&layer)?.ok_or_else(|| SaveError::Incomplete {
                image: name.to_owned(),
                layer: layer.clone(),
            })?;
            layers.push((layer, found));
        }
        Ok(Kept {
            manifest,
            configuration,
            layers,
        })
    }
}

/// Writes images, each with its names, as one archive.
///
/// # Errors
/// [`SaveError`]; what was written is useless then.
pub fn save(
    library: &Library,
    images: &[(Digest, Vec<String>)],
    form: Form,
    out: &mut dyn Write,
) -> Result<(), SaveError> {
    let mut tar = Tar {
        out,
        names: BTreeSet::new(),
    };
    let mut index = Vec::new();
    for (digest, names) in images {
        let shown = names.first().cloned().unwrap_or_else(|| digest.to_string());
        let kept = Kept::of(library, digest, &shown)?;
        match form {
            Form::Docker => index.push(docker(&mut tar, library, &kept, names)?),
            Form::Oci => index.extend(oci(&mut tar, library, &kept, names)?),
        }
    }
    match form {
        Form::Docker => tar.file("manifest.json", json!(index).to_string().as_bytes())?,
        Form::Oci => {
            let index = json!({"schemaVersion": 2, "manifests": index});
            tar.file("index.json", index.to_string().as_bytes())?;
            tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
    }
    Ok(tar.out.write_all(&[0; 1024])?)
}

/// The row of an image in docker's index.
fn docker(tar: &mut Tar<'_>, library: &Library, kept: &Kept, names: &[String]) -> Result<serde_json::Value, SaveError> {
    let digest = digest_of(&kept.configuration);
    let configuration = format!("{}.json", &digest["sha256:".len()..]);
    tar.file(&configuration, &kept.configuration)?;
    let mut layers = Vec::new();
    for (name, layer) in &kept.layers {
        let member = format!("{name}.tar");
        tar.layer(&member, library, layer)?;
        layers.push(member);
    }
    let tags: Vec<&String> = names.iter().filter(|name| !name.contains('@')).collect();
    Ok(json!({"Config": configuration, "RepoTags": tags, "Layers": layers}))
}

/// The rows of an image in the index of a layout, one for each name.
fn oci(
    tar: &mut Tar<'_>,
    library: &Library,
    kept: &Kept,
    names: &[String],
) -> Result<Vec<serde_json::Value>, SaveError> {
    let mut layers = Vec::new();
    for (name, layer) in &kept.layers {
        let size = tar.layer(&format!("blobs/sha256/{name}"), library, layer)?;
        let kind = "application/vnd.oci.image.layer.v1.tar";
        layers.push(json!({"mediaType": kind, "digest": format!("sha256:{name}"), "size": size}));
    }
    let configuration = digest_of(&kept.configuration);
    tar.blob(&kept.configuration)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": configuration,
            "size": kept.configuration.len(),
        },
        "layers": layers,
    });
    let manifest = manifest.to_string();
    tar.blob(manifest.as_bytes())?;
    let row = |name: Option<&String>| {
        let mut annotations = BTreeMap::new();
        if let Some(name) = name {
            let source = ImageSource::named(name, DOCKER_HUB);
            if let Some(ImageSource::Registry {
                host,
                repository,
                reference,
            }) = source
            {
                annotations.insert("io.containerd.image.name", format!("{host}/{repository}:{reference}"));
                annotations.insert("org.opencontainers.image.ref.name", reference);
            }
        }
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest_of(manifest.as_bytes()),
            "size": manifest.len(),
            "annotations": annotations,
        })
    };
    Ok(match names {
        [] => vec![row(None)],
        names => names.iter().map(|name| row(Some(name))).collect(),
    })
}

/// A tar archive that is being written.
struct Tar<'a> {
    out: &'a mut dyn Write,
    /// Members that are there: images may have files in common.
    names: BTreeSet<String>,
}

impl Tar<'_> {
    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.begin(name, bytes.len() as u64)? {
            self.out.write_all(bytes)?;
            self.end(bytes.len() as u64)?;
        }
        Ok(())
    }

    fn blob(&mut self, bytes: &[u8]) -> io::Result<()> {
        let digest = digest_of(bytes);
        self.file(&format!("blobs/sha256/{}", &digest["sha256:".len()..]), bytes)
    }

    /// A layer as it was; its length.
    fn layer(&mut self, name: &str, library: &Library, layer: &Layer) -> io::Result<u64> {
        let length = tar_length(File::open(layer.frame_path())?, &layer.blocks)?;
        if self.begin(name, length)? {
            write_tar(
                File::open(layer.frame_path())?,
                &layer.blocks,
                library.cache(),
                self.out,
            )?;
            self.end(length)?;
        }
        Ok(length)
    }

    /// Writes a header, unless the member is there.
    fn begin(&mut self, name: &str, length: u64) -> io::Result<bool> {
        if !self.names.insert(name.to_owned()) {
            return Ok(false);
        }
        let mut header = tar::Header::new_gnu();
        header.set_path(name)?;
        header.set_size(length);
        header.set_mode(0o644);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        Ok(true)
    }

    fn end(&mut self, length: u64) -> io::Result<()> {
        let padding = (512 - length % 512) % 512;
        self.out.write_all(&[0; 512][..padding as usize])
    }
}
