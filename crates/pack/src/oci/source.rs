//! Where an image is: what the user writes, and what all places have in common.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::archive::DockerArchive;
use super::files::Files;
use super::layout::Layout;
use super::manifest::Descriptor;
use super::registry::Registry;
use super::{ImportOptions, Problem};

/// An image of another engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// `oci:DIR[:NAME|@NUMBER]`.
    Layout {
        /// The directory.
        path: PathBuf,
        /// Which of its images.
        pick: Pick,
    },
    /// `oci-archive:FILE[:NAME|@NUMBER]`: a layout in a tar archive.
    LayoutArchive {
        /// The file.
        path: PathBuf,
        /// Which of its images.
        pick: Pick,
    },
    /// `docker-archive:FILE[:NAME:TAG|@NUMBER]`.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// Which of its images.
        pick: Pick,
    },
    /// `docker://[REGISTRY/]REPOSITORY[:TAG|@DIGEST]`.
    Registry {
        /// `host[:port]`.
        host: String,
        /// The repository.
        repository: String,
        /// A tag, or a digest `sha256:...`.
        reference: String,
    },
}

/// An image among those of a directory or an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// The only one there is.
    Only,
    /// By its name: a tag, or a whole reference, as it is written there.
    Name(String),
    /// By its place in the list, from 0.
    Index(usize),
}

impl Pick {
    fn parse(text: &str) -> Option<Pick> {
        match text.strip_prefix('@') {
            Some(number) => number.parse().ok().map(Pick::Index),
            None => (!text.is_empty()).then(|| Pick::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pick::Only => Ok(()),
            Pick::Name(name) => write!(f, ":{name}"),
            Pick::Index(index) => write!(f, ":@{index}"),
        }
    }
}

/// A text that is no image source.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{text}' is not an image: {what}")]
pub struct SourceError {
    text: String,
    what: &'static str,
}

impl ImageSource {
    /// Reads what the user wrote.
    ///
    /// # Errors
    /// [`SourceError`] for an unknown kind or a broken name.
    pub fn parse(text: &str) -> Result<ImageSource, SourceError> {
        let error = |what| SourceError {
            text: text.to_owned(),
            what,
        };
        if let Some(rest) = text.strip_prefix("docker://") {
            return registry(rest)
                .ok_or_else(|| error("a registry's image is docker://[HOST/]NAME[:TAG|@sha256:DIGEST]"));
        }
        // As skopeo has it: names may have colons and slashes, so the first colon ends the path.
        let of_file = |rest: &str| -> Result<(PathBuf, Pick), SourceError> {
            let (path, pick) = match rest.split_once(':') {
                Some((path, text)) => (
                    path,
                    Pick::parse(text).ok_or_else(|| error("what follows its path is no name and no @NUMBER"))?,
                ),
                None => (rest, Pick::Only),
            };
            match path {
                "" => Err(error("it names no path")),
                path => Ok((path.into(), pick)),
            }
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, pick) = of_file(rest)?;
            return Ok(ImageSource::Layout { path, pick });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (path, pick) = of_file(rest)?;
            return Ok(ImageSource::LayoutArchive { path, pick });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, pick) = of_file(rest)?;
            return Ok(ImageSource::DockerArchive { path, pick });
        }
        Err(error(
            "it must begin with docker://, oci:, oci-archive: or docker-archive:",
        ))
    }
}

/// A name as docker reads it: without a host it is on Docker's own registry.
fn registry(text: &str) -> Option<ImageSource> {
    let (name, digest) = text
        .split_once('@')
        .map_or((text, None), |(name, digest)| (name, Some(digest)));
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => ("docker.io", name),
    };
    let (repository, tag) = path
        .split_once(':')
        .map_or((path, None), |(path, tag)| (path, Some(tag)));
    let is_part =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    let reference = digest.or(tag).unwrap_or("latest");
    let behind_address = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
    let port = behind_address.split_once(':').map_or("0", |(_, port)| port);
    if port.parse::<u16>().is_err() {
        return None;
    }
    let is_digest = |text: &str| {
        text.strip_prefix("sha256:")
            .is_some_and(|hex| hex.len() == 64 && is_part(hex))
    };
    if !is_part(repository) || repository.contains("..") || (digest.is_some() && !is_digest(reference)) {
        return None;
    }
    if digest.is_none() && (!is_part(reference) || reference.contains('/')) {
        return None;
    }
    let official = host == "docker.io" && !repository.contains('/');
    Some(ImageSource::Registry {
        host: host.to_owned(),
        repository: if official {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        },
        reference: reference.to_owned(),
    })
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageSource::Layout { path, pick } => write!(f, "oci:{}{pick}", path.display()),
            ImageSource::LayoutArchive { path, pick } => write!(f, "oci-archive:{}{pick}", path.display()),
            ImageSource::DockerArchive { path, pick } => write!(f, "docker-archive:{}{pick}", path.display()),
            ImageSource::Registry {
                host,
                repository,
                reference,
            } => {
                let colon = if reference.contains(':') { '@' } else { ':' };
                write!(f, "docker://{host}/{repository}{colon}{reference}")
            }
        }
    }
}

/// A place that has an image.
pub(super) trait Source {
    /// The document that the reference leads to.
    fn manifest(&self) -> Result<Vec<u8>, Problem>;

    /// A manifest or index that another document refers to; not verified.
    fn manifest_by_digest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Problem>;

    /// The bytes of a blob; not verified.
    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Problem>;
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
        } => Box::new(Registry::open(host, repository, reference, options)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, shown) in [
            ("docker://debian", "docker://docker.io/library/debian:latest".to_owned()),
            ("docker://a/b:1", "docker://docker.io/a/b:1".to_owned()),
            (
                "docker://localhost:5000/x/y",
                "docker://localhost:5000/x/y:latest".to_owned(),
            ),
            (
                &format!("docker://h.io/a@{digest}"),
                format!("docker://h.io/a@{digest}"),
            ),
            ("docker://[::1]:5000/x", "docker://[::1]:5000/x:latest".to_owned()),
            ("oci:/a/b", "oci:/a/b".to_owned()),
            ("oci:a:v1", "oci:a:v1".to_owned()),
            ("oci:a:localhost/app:2.0", "oci:a:localhost/app:2.0".to_owned()),
            ("oci-archive:a.tar:@3", "oci-archive:a.tar:@3".to_owned()),
            ("docker-archive:x.tar:@0", "docker-archive:x.tar:@0".to_owned()),
            ("docker-archive:x.tar:n:v", "docker-archive:x.tar:n:v".to_owned()),
        ] {
            assert_eq!(ImageSource::parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "debian",
            "oci:",
            "docker://",
            "docker://a@md5:1",
            "docker://a:b/c",
            "docker://h.io/../x",
            "docker-archive:",
            "oci-archive:",
            "oci::v1",
            "oci:a:",
            "docker-archive:x.tar:@",
            "docker-archive:x.tar:@-1",
        ] {
            assert!(ImageSource::parse(text).is_err(), "{text}");
        }
    }
}
