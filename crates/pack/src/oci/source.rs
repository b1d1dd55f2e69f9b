//! What all places that have images have in common.

use std::io::Read;
use std::path::Path;
use std::time::Instant;

use zmachine_image::reference::ImageSource;

use super::archive::DockerArchive;
use super::files::Files;
use super::layout::Layout;
use super::manifest::Descriptor;
use super::mirrored::Mirrored;
use super::{ImportOptions, Problem};

/// A place that has an image.
pub(super) trait Source: Send + Sync {
    /// The document that the reference leads to.
    fn manifest(&self) -> Result<Vec<u8>, Problem>;

    /// A manifest or index that another document refers to; not verified.
    fn manifest_by_digest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Problem>;

    /// The names that the image has where it is.
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    /// The bytes of a blob; not verified.
    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Problem>;

    /// A part of a blob, asked for once; not verified. `None` where parts cannot be had.
    fn part(&self, digest: &str, part: &Part) -> Result<Option<Vec<u8>>, Problem> {
        let _ = (digest, part);
        Ok(None)
    }
}

/// Which part of a blob, and until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) at: u64,
    /// Bytes of it, at least one.
    pub(super) length: u64,
    pub(super) deadline: Instant,
}

/// Opens the place.
pub(super) fn open(image: &ImageSource, options: &ImportOptions) -> Result<Box<dyn Source>, Problem> {
    let archive = |path: &Path| Files::of_archive(path, &options.temporary);
    let level = options.amd64_level;
    Ok(match image {
        ImageSource::Layout { path, .. } if path.is_file() => {
            let what = "it is a file: name it oci-archive:FILE or docker-archive:FILE";
            return Err(Problem::Read(std::io::Error::new(
                std::io::ErrorKind::NotADirectory,
                what,
            )));
        }
        ImageSource::Layout { path, pick } => Box::new(Layout::open(Files::Directory(path.clone()), pick, level)?),
        ImageSource::LayoutArchive { path, pick } => Box::new(Layout::open(archive(path)?, pick, level)?),
        ImageSource::DockerArchive { path, pick } => Box::new(DockerArchive::open(archive(path)?, pick)?),
        ImageSource::Registry {
            host,
            repository,
            reference,
        } => Box::new(Mirrored::open(host, repository, reference, options)?),
    })
}
