//! Where an image is: what the user writes, and what all places have in common.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;

use thiserror::Error;

use super::archive::DockerArchive;
use super::layout::Layout;
use super::manifest::Descriptor;
use super::registry::Registry;
use super::{ImportOptions, Problem};

/// An image of another engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// `oci:DIR[:TAG]`.
    Layout {
        /// The directory.
        path: PathBuf,
        /// The tag; a layout with one image needs none.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:NAME:TAG]`.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// `name:tag`; an archive with one image needs none.
        name: Option<String>,
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
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, tag) = match rest.rsplit_once(':') {
                Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
                _ => (rest, None),
            };
            return match path {
                "" => Err(error("it names no directory")),
                path => Ok(ImageSource::Layout { path: path.into(), tag }),
            };
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, name) = rest
                .split_once(':')
                .map_or((rest, None), |(path, name)| (path, Some(name.to_owned())));
            return match path {
                "" => Err(error("it names no file")),
                path => Ok(ImageSource::DockerArchive {
                    path: path.into(),
                    name,
                }),
            };
        }
        Err(error("it must begin with oci:, docker-archive: or docker://"))
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
            ImageSource::Layout { path, tag: None } => write!(f, "oci:{}", path.display()),
            ImageSource::Layout { path, tag: Some(tag) } => write!(f, "oci:{}:{tag}", path.display()),
            ImageSource::DockerArchive { path, name: None } => write!(f, "docker-archive:{}", path.display()),
            ImageSource::DockerArchive { path, name: Some(name) } => {
                write!(f, "docker-archive:{}:{name}", path.display())
            }
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
    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read>, Problem>;
}

/// Opens the place.
pub(super) fn open(image: &ImageSource, options: &ImportOptions) -> Result<Box<dyn Source>, Problem> {
    Ok(match image {
        ImageSource::Layout { path, tag } => Box::new(Layout::open(path, tag.as_deref())?),
        ImageSource::DockerArchive { path, name } => Box::new(DockerArchive::open(path, name.as_deref())?),
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
        ] {
            assert!(ImageSource::parse(text).is_err(), "{text}");
        }
    }
}
