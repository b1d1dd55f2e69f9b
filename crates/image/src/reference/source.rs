//! Images of other engines, as users name them: `docker://`, `oci:`, `oci-archive:` and `docker-archive:`.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::ImageName;

/// The registry of names that name none.
pub const DOCKER_HUB: &str = "docker.io";

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
            return ImageSource::named(rest, DOCKER_HUB)
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

impl ImageSource {
    /// A name as docker reads it: without a host it is in the registry `default`, without a tag it is `latest`. `None` when no image
    /// of a registry can have the name.
    pub fn named(text: &str, default: &str) -> Option<ImageSource> {
        let (name, digest) = text
            .split_once('@')
            .map_or((text, None), |(name, digest)| (name, Some(digest)));
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => (default, name),
        };
        // The names that docker's own registry goes by.
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
            host => host,
        };
        let (repository, tag) = path
            .split_once(':')
            .map_or((path, None), |(path, tag)| (path, Some(tag)));
        let reference = digest.or(tag).unwrap_or("latest");
        let behind_address = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
        let port = behind_address.split_once(':').map_or("0", |(_, port)| port);
        let is_fine = port.parse::<u16>().is_ok()
            && is_part(repository)
            && repository.split('/').all(|part| !part.is_empty() && part != "..")
            && match digest {
                Some(digest) => is_digest(digest),
                None => is_part(reference) && !reference.contains('/'),
            };
        let official = host == DOCKER_HUB && !repository.contains('/');
        is_fine.then(|| ImageSource::Registry {
            host: host.to_owned(),
            repository: if official {
                format!("library/{repository}")
            } else {
                repository.to_owned()
            },
            reference: reference.to_owned(),
        })
    }

    /// The name under which an image of a registry is kept and shown, as docker shows it; `None` for the other kinds.
    pub fn local_name(&self) -> Option<ImageName> {
        let ImageSource::Registry {
            host,
            repository,
            reference,
        } = self
        else {
            return None;
        };
        let path = match host.as_str() {
            DOCKER_HUB => repository.strip_prefix("library/").unwrap_or(repository).to_owned(),
            host => format!("{host}/{repository}"),
        };
        ImageName::new(&format!("{path}{}{reference}", separator(reference))).ok()
    }

    /// The same image by the digest of its manifest; `None` for what is in no registry.
    pub fn with_digest(&self, digest: &str) -> Option<ImageSource> {
        match self {
            ImageSource::Registry { host, repository, .. } => Some(ImageSource::Registry {
                host: host.clone(),
                repository: repository.clone(),
                reference: digest.to_owned(),
            }),
            _ => None,
        }
    }

    /// The same image by the digest of its manifest, as it is written without `docker://`; `None` for the other kinds.
    pub fn pinned(&self, digest: &str) -> Option<String> {
        match self {
            ImageSource::Registry { host, repository, .. } => Some(format!("{host}/{repository}@{digest}")),
            _ => None,
        }
    }

    /// Whether what it leads to never changes.
    pub fn is_pinned(&self) -> bool {
        matches!(self, ImageSource::Registry { reference, .. } if is_digest(reference))
    }

    /// The same with its path below `directory`, when it has a relative one.
    #[must_use]
    pub fn below(self, directory: &Path) -> ImageSource {
        match self {
            ImageSource::Layout { path, pick } => ImageSource::Layout {
                path: directory.join(path),
                pick,
            },
            ImageSource::LayoutArchive { path, pick } => ImageSource::LayoutArchive {
                path: directory.join(path),
                pick,
            },
            ImageSource::DockerArchive { path, pick } => ImageSource::DockerArchive {
                path: directory.join(path),
                pick,
            },
            registry @ ImageSource::Registry { .. } => registry,
        }
    }
}

fn is_part(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && is_part(hex))
}

fn separator(reference: &str) -> char {
    if reference.contains(':') { '@' } else { ':' }
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
                write!(f, "docker://{host}/{repository}{}{reference}", separator(reference))
            }
        }
    }
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

    #[test]
    fn an_image_is_kept_under_the_name_that_docker_shows() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, shown) in [
            ("nginx", "nginx:latest".to_owned()),
            ("docker.io/library/nginx:1.2", "nginx:1.2".to_owned()),
            ("index.docker.io/a/b", "a/b:latest".to_owned()),
            ("ghcr.io/org/app:1.2", "ghcr.io/org/app:1.2".to_owned()),
            (
                &format!("127.0.0.1:5000/a@{digest}"),
                format!("127.0.0.1:5000/a@{digest}"),
            ),
        ] {
            let name = ImageSource::named(text, DOCKER_HUB).unwrap().local_name();
            assert_eq!(name.unwrap().as_str(), shown);
        }
        let elsewhere = ImageSource::named("nginx", "registry.example").unwrap();
        assert_eq!(elsewhere.to_string(), "docker://registry.example/nginx:latest");
    }
}
