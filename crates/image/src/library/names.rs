//! Names of images, and other ways to say which one is meant.

use std::fs;
use std::io;

use zmachine_flist::Digest;
use zmachine_sys::file::{self, FileError};

use super::{Library, ResolveError, names_in, unknown};
use crate::reference::{DOCKER_HUB, ImageName};

impl Library {
    /// Lets `name` lead to an image of the library, whatever it led to before.
    ///
    /// # Errors
    /// When there is no such image, or the name cannot be written.
    pub fn set_name(&self, name: &ImageName, digest: &Digest) -> Result<(), ResolveError> {
        if !self.place_of(digest).is_dir() {
            return Err(unknown(digest));
        }
        let refs = self.images.join("refs");
        let tmp = refs.join(format!(".new-{:016x}", file::random_u64()));
        let path = refs.join(name.file_name());
        let linked = std::os::unix::fs::symlink(format!("../{digest}"), &tmp).and_then(|()| fs::rename(&tmp, &path));
        if let Err(e) = linked {
            let _ = fs::remove_file(&tmp);
            return Err(FileError::io("create", &path, e).into());
        }
        Ok(file::sync_dir(&refs)?)
    }

    /// Takes a name away; the image stays.
    ///
    /// # Errors
    /// [`ResolveError::UnknownName`], or when it cannot be removed.
    pub fn remove_name(&self, name: &ImageName) -> Result<(), ResolveError> {
        let refs = self.images.join("refs");
        let path = refs.join(name.file_name());
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(unknown_name(name)),
            other => {
                other.map_err(|e| FileError::io("remove", &path, e))?;
                // A name that comes back after a power loss would lead to whatever image is there then.
                Ok(file::sync_dir(&refs)?)
            }
        }
    }

    /// The digest that `name` leads to.
    ///
    /// # Errors
    /// [`ResolveError::UnknownName`] when it leads nowhere.
    pub fn digest_of(&self, name: &ImageName) -> Result<Digest, ResolveError> {
        let path = self.images.join("refs").join(name.file_name());
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(unknown_name(name)),
            Err(e) => return Err(FileError::io("read", &path, e).into()),
        };
        let digest = target.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
        digest.ok_or_else(|| unknown_name(name))
    }

    /// The image here that is meant by a name as users write it: the name itself, the one that docker would complete it to (`nginx` is
    /// `nginx:latest`), or the beginning of an image's digest.
    ///
    /// # Errors
    /// When a name cannot be read, or several images have digests that begin so.
    pub fn find(&self, name: &ImageName) -> Result<Option<Digest>, ResolveError> {
        let completed = name.in_registry(DOCKER_HUB).and_then(|image| image.local_name());
        for name in [Some(name), completed.as_ref()].into_iter().flatten() {
            match self.digest_of(name) {
                Err(ResolveError::UnknownName { .. }) => {}
                found => return found.map(Some),
            }
        }
        self.by_digest(name.as_str())
    }

    /// The image whose digest begins so: at least seven digits, with or without `sha256:`, which others write in front.
    fn by_digest(&self, text: &str) -> Result<Option<Digest>, ResolveError> {
        let start = text.strip_prefix("sha256:").unwrap_or(text);
        let is_start = (7..=64).contains(&start.len()) && start.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_start {
            return Ok(None);
        }
        let all = names_in(&self.images)?;
        let mut found = all
            .iter()
            .filter(|name| name.starts_with(start))
            .filter_map(|name| name.parse().ok());
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(ResolveError::Ambiguous {
                start: start.to_owned(),
            }),
            (found, _) => Ok(found),
        }
    }

    /// All names, with the images they lead to.
    pub(super) fn names(&self) -> Result<Names, ResolveError> {
        let mut names = Names::default();
        let refs = self.images.join("refs");
        for text in names_in(&refs)? {
            let Ok(name) = ImageName::of_file_name(&text) else {
                // Others are under construction.
                if !text.starts_with('.') {
                    let what = io::Error::new(io::ErrorKind::InvalidData, "no image can have such a name");
                    names
                        .unreadable
                        .push(FileError::io("use", &refs.join(text), what).into());
                }
                continue;
            };
            match self.digest_of(&name) {
                Ok(digest) => names.images.push((name, digest)),
                // It leads to nothing that could be an image, or is gone since the listing.
                Err(ResolveError::UnknownName { .. }) => {}
                Err(error) => names.unreadable.push(error),
            }
        }
        names.images.sort();
        Ok(names)
    }
}

/// The names of a library.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Sorted.
    images: Vec<(ImageName, Digest)>,
    /// Why it cannot be told where others lead.
    pub(super) unreadable: Vec<ResolveError>,
}

impl Names {
    /// For whoever removes what has no name: one that cannot be read may be the name of anything.
    pub(super) fn all(mut self) -> Result<Names, ResolveError> {
        match self.unreadable.pop() {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }

    pub(super) fn of(&self, digest: &Digest) -> Vec<ImageName> {
        let own = self.images.iter().filter(|(_, image)| image == digest);
        own.map(|(name, _)| name.clone()).collect()
    }
}

pub(super) fn unknown_name(name: &ImageName) -> ResolveError {
    ResolveError::UnknownName { name: name.to_string() }
}
