//! Images that are made here, of layers that are here.

use std::path::PathBuf;

use zmachine_flist::{Digest, Flist};
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use super::origin::Origin;
use super::staging::{Staging, hasher, stream};
use super::{Asked, Image, Library, ResolveError, layers, to_digest};
use crate::facts::Mode;
use crate::library::record::Record;

/// A container image whose layers are here.
#[derive(Debug, Clone, Copy)]
pub struct NewImage<'a> {
    /// Its tree and what it says about running it.
    pub flist: &'a Flist,
    /// The names of its layers, the lowest first.
    pub layers: &'a [String],
    /// Files beside the flist: names and contents.
    pub files: &'a [(&'a str, &'a [u8])],
    /// Whether its layers may be missing, since its blocks are lazy ([`crate::lazy`]).
    pub is_lazy: bool,
}

impl Library {
    /// Adds an image, which has no name then. `reference` names it in errors. `None` when a block of a layer has been removed meanwhile.
    ///
    /// # Errors
    /// When it makes no machine of this kind, or cannot be written; nothing is left then.
    pub fn add(&self, new: NewImage<'_>, mode: Mode, reference: &str) -> Result<Option<Image>, ResolveError> {
        let staging = Staging::new(&self.images)?;
        new.flist
            .write(&staging.flist())
            .map_err(|source| ResolveError::NotWritten {
                reference: reference.to_owned(),
                source,
            })?;
        let mut state = hasher();
        let mut written =
            file::open_regular(&staging.flist()).map_err(|e| file::FileError::io("read", &staging.flist(), e))?;
        let each = |chunk: &[u8]| {
            state.update(chunk);
            Ok(())
        };
        let failed = |e| file::FileError::io("read", &staging.flist(), e).into();
        let bytes = stream(&mut written, &crate::Silent, each, failed, reference)?;
        let digest = to_digest(&state.finalize());
        let asked = Asked {
            library: self,
            shown: reference.to_owned(),
            mode,
            progress: &crate::Silent,
        };
        // Nobody removes blocks between the look at them and the moment from which the image keeps them.
        let _alone = FileLock::exclusive(&self.place.lock())?;
        for layer in new.layers.iter().filter(|_| !new.is_lazy) {
            if self.layer(layer)?.is_none() {
                return Ok(None);
            }
        }
        let place = self.place_of(&digest);
        if !place.is_dir() {
            let startup = asked.read_startup(new.flist)?;
            let record = Record::new(digest.to_string(), bytes, new.flist, startup);
            // What makes no machine is refused before it has a place.
            record.facts(mode, reference)?;
            file::replace_json(&staging.flist().with_file_name("image.json"), &record)?;
            layers::write(staging.directory(), new.layers)?;
            layers::write_files(staging.directory(), new.files)?;
            staging.publish(&place)?;
        }
        self.image(&digest, mode, reference).map(Some)
    }

    /// A file that came with an image; `None` when it has none of this name.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn image_file(&self, image: &Digest, name: &str) -> Result<Option<Vec<u8>>, ResolveError> {
        const LIMIT: u64 = 16 << 20;
        let path: PathBuf = self.place_of(image).join(name);
        match file::read_regular(&path, LIMIT) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(file::FileError::io("read", &path, e).into()),
        }
    }

    /// The flist of an image, open.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn flist_file(&self, image: &Digest) -> Result<std::fs::File, ResolveError> {
        let path = self.place_of(image).join("image.fl");
        Ok(file::open_regular(&path).map_err(|e| file::FileError::io("open", &path, e))?)
    }

    /// When an image came here.
    pub fn image_time(&self, image: &Digest) -> Option<std::time::SystemTime> {
        self.place_of(image).join("image.fl").metadata().ok()?.modified().ok()
    }

    /// Remembers that `source`, a name in a registry, led to a manifest with the digest `manifest`, which is this image.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self, source: &str, manifest: &str, image: &Digest) -> Result<(), ResolveError> {
        let origin = Origin::new(source, &image.to_string(), Some(manifest.to_owned()), None);
        origin.write(&self.images, source)
    }

    /// The image that `source` led to, when it is still here, and the digest of its manifest.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn remembered(&self, source: &str) -> Result<Option<(Digest, String)>, ResolveError> {
        let origin = Origin::read(&self.images, source)?;
        let known = origin.and_then(|origin| Some((origin.digest.parse::<Digest>().ok()?, origin.etag?)));
        Ok(known.filter(|(digest, _)| self.place_of(digest).is_dir()))
    }

    /// The image with this digest, which must be here.
    ///
    /// # Errors
    /// When it is not, or cannot be read.
    pub fn by_its_digest(&self, digest: &Digest, mode: Mode, reference: &str) -> Result<Image, ResolveError> {
        self.image(digest, mode, reference)
    }
}
