//! Importing container images: `oci:DIR[:NAME]`, `oci-archive:FILE[:NAME]`, `docker-archive:FILE[:NAME]`,
//! `docker://REGISTRY/REPOSITORY[:TAG|@DIGEST]`.
//!
//! Layers are read as streams, unpacked to no disk, and verified twice: the digest of the bytes as they are kept, and the
//! digest of the tar inside that the image's configuration names. What the configuration says about running the image goes
//! into the flist's tag ([`zmachine_flist::config`]).
//!
//! | submodule | what |
//! |---|---|
//! | `manifest` | the JSON documents of an image, as far as they matter here |
//! | `recognize` | whether a path is such an image |
//! | `source` | the reference, and the trait that all sources have |
//! | `files` | files by name, in a directory or a tar archive |
//! | `layout` | the OCI image layout |
//! | `archive` | a file that `docker save` or `podman save` wrote |
//! | `registry` | the distribution protocol |
//! | `mirrored` | a registry and its mirrors |
//! | `challenge` | what a registry asks for |
//! | `auth` | credentials of registries: the files of docker and podman, token servers |
//! | `helper` | programs that keep credentials for these files |
//! | `layer` | digests and compression of a layer's stream |
//! | `artifact` | flists in registries |
//! | [`mod@commit`] | an image of this host with one more layer |
//! | [`mod@pull`] | an image whose layers are kept on this host |
//! | [`mod@lazy`] | an image of a registry that is started before its layers are here |
//! | [`mod@push`] | from here to a registry |
//! | [`mod@save`] | from here to an archive |
//! | [`mod@login`] | writing credentials |
//! | `keep` | from a layer's stream to blocks here |
//! | `frame` | a layer's tar without contents, and the tar again |
//! | [`registries`] | what is said about registries on this host |

mod archive;
mod artifact;
mod auth;
mod challenge;
pub mod commit;
mod files;
mod frame;
mod helper;
mod keep;
mod layer;
mod layout;
pub mod lazy;
pub mod login;
mod manifest;
mod mirrored;
pub mod prefix;
pub mod pull;
pub mod push;
mod recognize;
pub mod registries;
mod registry;
pub mod save;
mod source;

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use zmachine_flist::Flist;

use crate::pack::{PackError, PackOptions, PackReport, pack_layers};
use layer::{LayerStream, Reported};
pub use manifest::config_json;
use manifest::{Configuration, Descriptor, Manifest};
pub use recognize::{images_of, recognize};
use registries::Registries;
use source::Source;
use zmachine_image::library::ResolveError;
use zmachine_image::progress::{Progress, Silent};
pub use zmachine_image::reference::{ImageSource, Pick, SourceError};
use zmachine_image::store::{BlockStore, Timeouts};

/// The longest manifest, index or configuration that is read, in bytes.
const DOCUMENT_BYTES: u64 = 4 << 20;

/// Where an import gets what is not in the reference.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Files with credentials of registries, in the form that docker and podman write; the first that knows a registry
    /// counts, missing ones are fine.
    pub auth_files: Vec<PathBuf>,
    /// Speak to the registry without TLS. One on this host (`localhost`, `127.*`) is always spoken to like that.
    pub plain_http: bool,
    /// Mirrors, and registries without TLS.
    pub registries: Registries,
    /// The files that `registries` was read from.
    pub registry_files: Vec<PathBuf>,
    /// Whether an image of a registry may be used before its layers are here, where these allow it.
    pub is_lazy: bool,
    /// Limits of the connections.
    pub timeouts: Timeouts,
    /// The level of the x86-64 processor that the image will run on, 1 to 4: of several variants the best for it is taken.
    pub amd64_level: u8,
    /// Where an archive that is compressed as a whole is unpacked meanwhile.
    pub temporary: PathBuf,
}

impl Default for ImportOptions {
    /// For any x86-64 processor.
    fn default() -> ImportOptions {
        ImportOptions {
            auth_files: Vec::new(),
            plain_http: false,
            registries: Registries::default(),
            registry_files: Vec::new(),
            is_lazy: false,
            timeouts: Timeouts::default(),
            amd64_level: 1,
            temporary: PathBuf::from("/var/tmp"),
        }
    }
}

/// An imported image.
#[derive(Debug)]
pub struct Imported {
    /// Its tree, and its configuration as a tag.
    pub flist: Flist,
    /// What was packed.
    pub report: PackReport,
    /// The platform that the image is for, when that is another one: its programs cannot run here.
    pub other_platform: Option<String>,
}

/// Why an image could not be imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The image could not be read from where it is.
    #[error("cannot read {image}")]
    Read {
        /// The reference.
        image: String,
        /// Why.
        source: io::Error,
    },
    /// The registry does not have it, or wants credentials.
    #[error("{image}: the registry answered with status {status}")]
    Status {
        /// The reference.
        image: String,
        /// The HTTP status.
        status: u16,
    },
    /// What was found is not what its digest says, or not an image.
    #[error("{image} is broken: {problem}")]
    Broken {
        /// The reference.
        image: String,
        /// What is wrong.
        problem: String,
    },
    /// The image has nothing for this kind of machine.
    #[error("{image} has no variant for linux/amd64 that can run here, only {found}")]
    Platform {
        /// The reference.
        image: String,
        /// What it has.
        found: String,
    },
    /// What is kept on this host could not be read or written.
    #[error("{image} cannot be kept")]
    Here {
        /// The reference.
        image: String,
        /// Why.
        source: Box<ResolveError>,
    },
    /// The layers could not be packed.
    #[error("{image} cannot be packed")]
    Pack {
        /// The reference.
        image: String,
        /// Why.
        source: PackError,
    },
}

impl ImportError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ImportError::Status { status: 401 | 403, .. } => {
                Some("check the name, or log in to the registry with 'zmachine login'".into())
            }
            ImportError::Status { status: 404, .. } => Some("check the name and the tag".into()),
            ImportError::Read { image, .. } if image.starts_with("docker://") => Some(
                "check the name of the registry and the network; mirrors are named in registries.toml (docs/images.md)"
                    .into(),
            ),
            ImportError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("check the path and the tag".into())
            }
            ImportError::Broken { .. } => Some("get the image again".into()),
            _ => None,
        }
    }

    /// Whether the image could not be had or is not what its digests say.
    pub fn is_fetch_failure(&self) -> bool {
        !matches!(self, ImportError::Pack { .. } | ImportError::Platform { .. })
    }
}

/// A failure without the name of the image.
pub(crate) enum Problem {
    Read(io::Error),
    Status(u16),
    Broken(String),
    Platform(String),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Problem {
        match error.kind() {
            io::ErrorKind::InvalidData => Problem::Broken(error.to_string()),
            _ => Problem::Read(error),
        }
    }
}

impl Problem {
    fn of(self, image: impl std::fmt::Display) -> ImportError {
        let image = image.to_string();
        match self {
            Problem::Read(source) => ImportError::Read { image, source },
            Problem::Status(status) => ImportError::Status { image, status },
            Problem::Broken(problem) => ImportError::Broken { image, problem },
            Problem::Platform(found) => ImportError::Platform { image, found },
        }
    }
}

/// Imports an image: its layers as one tree, its configuration as the flist's tag. Progress is told in bytes of the layers as they
/// are kept, whose sum the manifest says.
///
/// # Errors
/// [`ImportError`]; blocks that were stored stay.
pub fn import(
    image: &ImageSource,
    import_options: &ImportOptions,
    store: &dyn BlockStore,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    let named = |problem: Problem| problem.of(image);
    let source = source::open(image, import_options).map_err(named)?;
    let level = import_options.amd64_level;
    let Documents {
        manifest,
        configuration,
        ..
    } = documents(source.as_ref(), source.manifest().map_err(named)?, level).map_err(named)?;
    let other_platform = configuration.other_platform();
    let sizes = manifest.layers.iter().map(|layer| layer.size);
    progress.begin(Some(sizes.fold(0, u64::saturating_add)), "importing");
    let mut failure = None;
    let layers = manifest.layers.iter().zip(&configuration.rootfs.diff_ids);
    let packed = pack_layers(store, options, &Silent, true, |stack| {
        for (layer, diff_id) in layers {
            let mut add = || -> Result<(), Problem> {
                let kept = source.blob(layer)?;
                let reported = Reported { inner: kept, progress };
                let mut stream = LayerStream::new(Box::new(reported), layer, diff_id)?;
                let mut archive = crate::tar::Archive::new(&mut stream);
                stack.add(&mut archive)?;
                stream.finish()
            };
            if let Err(problem) = add() {
                failure = Some(problem);
                return Err(io::Error::other("a layer could not be read"));
            }
        }
        Ok(())
    });
    let (mut flist, report) = match (packed, failure) {
        (Err(PackError::Archive { .. }), Some(problem)) => return Err(named(problem)),
        (packed, _) => packed.map_err(|source| ImportError::Pack {
            image: image.to_string(),
            source,
        })?,
    };
    configuration.config.to_image_config().store(&mut flist.tags);
    Ok(Imported {
        flist,
        report,
        other_platform,
    })
}

/// The documents of an image.
struct Documents {
    manifest: Manifest,
    configuration: Configuration,
    /// As they are kept, and as their digests are of.
    manifest_bytes: Vec<u8>,
    configuration_bytes: Vec<u8>,
}

/// Manifest and configuration that `bytes` lead to, each held against its digest.
fn documents(source: &dyn Source, mut bytes: Vec<u8>, level: u8) -> Result<Documents, Problem> {
    // An index may lead to an index, but not for ever.
    for _ in 0..4 {
        match manifest::parse(&bytes)? {
            manifest::Document::Manifest(manifest) => {
                let configuration_bytes = document(source, &manifest.config)?;
                let configuration: Configuration = manifest::json(&configuration_bytes, "configuration")?;
                if configuration.rootfs.diff_ids.len() != manifest.layers.len() {
                    return Err(Problem::Broken("its configuration has another number of layers".into()));
                }
                return Ok(Documents {
                    manifest,
                    configuration,
                    manifest_bytes: bytes,
                    configuration_bytes,
                });
            }
            manifest::Document::Index(index) => {
                bytes = document(source, manifest::choose(&index.manifests, level)?)?;
            }
        }
    }
    Err(Problem::Broken("its index leads to an index again and again".into()))
}

/// A document by its descriptor.
fn document(source: &dyn Source, descriptor: &Descriptor) -> Result<Vec<u8>, Problem> {
    if descriptor.size > DOCUMENT_BYTES {
        return Err(Problem::Broken(format!(
            "document {} has {} bytes",
            descriptor.digest, descriptor.size
        )));
    }
    let bytes = if descriptor.is_manifest() {
        source.manifest_by_digest(descriptor)?
    } else {
        let mut bytes = Vec::new();
        io::Read::read_to_end(
            &mut io::Read::take(source.blob(descriptor)?, DOCUMENT_BYTES + 1),
            &mut bytes,
        )?;
        bytes
    };
    layer::check_digest(&bytes, &descriptor.digest)?;
    if bytes.len() as u64 != descriptor.size {
        return Err(Problem::Broken(format!(
            "document {} has {} bytes instead of {}",
            descriptor.digest,
            bytes.len(),
            descriptor.size
        )));
    }
    Ok(bytes)
}
