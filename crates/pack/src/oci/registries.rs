//! `registries.toml`: what is said about registries on this host.
//!
//! ```toml
//! default = "docker.io"            # the registry of names that name none
//!
//! [registry."docker.io"]
//! mirrors = ["mirror.example:5000"]    # asked first, in this order; the registry itself comes last
//!
//! [registry."10.0.0.5:5000"]
//! insecure = true                  # its certificate is not checked, and it may speak without TLS
//! ```
//! What a later file says about a registry is all that is said about it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use zmachine_image::reference::DOCKER_HUB;
use zmachine_sys::file::{FileError, read_text};

/// The name of the file.
pub const FILE: &str = "registries.toml";

/// The longest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// What is said about all registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registries {
    default: String,
    known: BTreeMap<String, Registry>,
}

/// What is said about one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Registry {
    mirrors: Vec<String>,
    insecure: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    default: Option<String>,
    #[serde(default)]
    registry: BTreeMap<String, Registry>,
}

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub enum RegistriesError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is written wrongly.
    #[error("{} is not usable: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        what: String,
    },
}

impl Default for Registries {
    fn default() -> Registries {
        Registries {
            default: DOCKER_HUB.to_owned(),
            known: BTreeMap::new(),
        }
    }
}

impl Registries {
    /// Reads those of `files` that are there.
    ///
    /// # Errors
    /// When one is there and cannot be used.
    pub fn load(files: &[PathBuf]) -> Result<Registries, RegistriesError> {
        let mut all = Registries::default();
        for path in files {
            let text = match read_text(path, LIMIT) {
                Ok(text) => text,
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e.into()),
            };
            all.add(path, &text)?;
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), RegistriesError> {
        let wrong = |what: String| RegistriesError::Content {
            path: path.to_owned(),
            what,
        };
        let content: Content = toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        let hosts = content
            .registry
            .iter()
            .flat_map(|(host, known)| [host].into_iter().chain(&known.mirrors));
        for host in hosts.chain(&content.default) {
            if host.is_empty() || host.contains(['/', '@', ' ']) {
                return Err(wrong(format!(
                    "{host:?} is no registry: it is written as HOST or HOST:PORT"
                )));
            }
        }
        if let Some(default) = content.default {
            self.default = default;
        }
        self.known.extend(content.registry);
        Ok(())
    }

    /// The registry of names that name none.
    pub fn default_host(&self) -> &str {
        &self.default
    }

    /// The places to ask for what is in `host`, in order.
    pub(super) fn places<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a str> {
        let mirrors = self.known.get(host).map_or(&[][..], |known| &known.mirrors);
        mirrors.iter().map(String::as_str).chain([host])
    }

    /// Whether a registry may do without TLS, or with any certificate.
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        self.known.get(host).is_some_and(|known| known.insecure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_file_speaks_of_its_registries_alone() {
        let mut all = Registries::default();
        let first = "[registry.\"docker.io\"]\nmirrors = [\"a:1\", \"b\"]\n[registry.\"old:5000\"]\ninsecure = true\n";
        all.add(Path::new("first"), first).unwrap();
        all.add(Path::new("second"), "default = \"x:1\"\n[registry.\"docker.io\"]\n")
            .unwrap();
        assert_eq!(all.default_host(), "x:1");
        assert_eq!(all.places("docker.io").collect::<Vec<_>>(), ["docker.io"]);
        assert!(all.is_insecure("old:5000") && !all.is_insecure("docker.io"));
    }

    #[test]
    fn what_is_wrong_is_told_with_the_name_of_the_file() {
        for text in [
            "mirrors = 1",
            "[registry.x]\nmirror = []",
            "default = \"https://x\"",
            "=",
        ] {
            let error = Registries::default().add(Path::new("/etc/r.toml"), text).unwrap_err();
            assert!(error.to_string().starts_with("/etc/r.toml is not usable"), "{error}");
        }
    }
}
