//! `images/<digest>/image.json`: what was found out about an image when it came, so that later starts read one small file.
//!
//! ```json
//! {"version": 1, "features": [], "digest": "<64 hex>", "flist_bytes": 1, "boot": {...}, "startup": {...}, "sizes": {...}, "tags": {}}
//! ```
//! `features` names what a reader must know; an unknown one, or another version, is refused, unknown fields are ignored.
//! What is kept are findings (which deciding paths exist), not the verdict, so every [`Mode`] can be answered later.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zmachine_flist::{Flist, Startup};
use zmachine_sys::file;

use super::error::ResolveError;
use crate::facts::{BootFiles, ImageFacts, ImageSizes, Mode};

const VERSION: u32 = 1;

/// The head that every version of the file has.
#[derive(Debug, Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    features: Vec<String>,
}

/// The content of `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    features: Vec<String>,
    pub(crate) digest: String,
    pub(crate) flist_bytes: u64,
    pub(crate) boot: BootFiles,
    pub(crate) startup: StartupRecord,
    pub(crate) sizes: ImageSizes,
    pub(crate) tags: BTreeMap<String, String>,
}

/// What `.startup.toml` says. A broken one matters only to containers, so it is remembered instead of refused here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum StartupRecord {
    Absent,
    Broken {
        problem: String,
    },
    Entry {
        program: Option<String>,
        args: Vec<String>,
        dir: Option<String>,
        env: BTreeMap<String, String>,
    },
}

impl From<Option<Startup>> for StartupRecord {
    fn from(startup: Option<Startup>) -> StartupRecord {
        match startup {
            None => StartupRecord::Absent,
            Some(Startup {
                program,
                args,
                dir,
                env,
            }) => StartupRecord::Entry {
                program,
                args,
                dir,
                env,
            },
        }
    }
}

impl Record {
    pub(crate) fn new(digest: String, flist_bytes: u64, flist: &Flist, startup: StartupRecord) -> Record {
        Record {
            version: VERSION,
            features: Vec::new(),
            digest,
            flist_bytes,
            boot: BootFiles::of(&flist.tree),
            startup,
            sizes: ImageSizes::of(flist),
            tags: flist.tags.clone(),
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Record, ResolveError> {
        check_head(path)?;
        Ok(file::read_json(path)?)
    }

    /// The facts for `mode`; `reference` names the image in errors.
    pub(crate) fn facts(&self, mode: Mode, reference: &str) -> Result<ImageFacts, ResolveError> {
        let kind = self.boot.classify(mode).map_err(|source| ResolveError::Kind {
            reference: reference.to_owned(),
            source,
        })?;
        let is_container = matches!(kind, crate::ImageKind::Container | crate::ImageKind::OwnKernel { .. });
        let startup = match &self.startup {
            StartupRecord::Broken { problem } if is_container => {
                return Err(ResolveError::Startup {
                    reference: reference.to_owned(),
                    problem: problem.clone(),
                });
            }
            StartupRecord::Absent | StartupRecord::Broken { .. } => None,
            StartupRecord::Entry {
                program,
                args,
                dir,
                env,
            } => Some(Startup {
                program: program.clone(),
                args: args.clone(),
                dir: dir.clone(),
                env: env.clone(),
            }),
        };
        Ok(ImageFacts {
            kind,
            startup,
            sizes: self.sizes,
            tags: self.tags.clone(),
        })
    }
}

/// Refuses a file of another version, or with features that are not known here.
pub(crate) fn check_head(path: &Path) -> Result<(), ResolveError> {
    let head: Head = file::read_json(path)?;
    let what = match head.features.first() {
        _ if head.version != VERSION => format!("version {}", head.version),
        Some(feature) => format!("feature '{feature}'"),
        None => return Ok(()),
    };
    Err(ResolveError::TooNew {
        path: path.to_owned(),
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Found;

    fn record() -> Record {
        Record {
            version: 1,
            features: Vec::new(),
            digest: "00".repeat(32),
            flist_bytes: 65_536,
            boot: BootFiles {
                kernel: Found::Nothing,
                initrd: Found::Other {
                    what: "a directory".into(),
                },
                image: Found::File { size: 7 },
                boot_kernel: Found::Nothing,
                boot_initrd: Found::Nothing,
            },
            startup: StartupRecord::Entry {
                program: Some("/bin/sh".into()),
                args: vec!["-c".into()],
                dir: None,
                env: BTreeMap::from([("A".into(), "1".into())]),
            },
            sizes: ImageSizes {
                nodes: 1,
                file_bytes: 2,
                blocks: 3,
                block_bytes: 4,
            },
            tags: BTreeMap::from([("version".into(), "1.2".into())]),
        }
    }

    fn golden() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/image-v1.json")
    }

    #[test]
    fn version_1_on_disk_is_read_and_written_as_it_was() {
        assert_eq!(Record::read(&golden()).unwrap(), record());
        let mut written = serde_json::to_string_pretty(&record()).unwrap();
        written.push('\n');
        assert_eq!(written, std::fs::read_to_string(golden()).unwrap());
    }

    #[test]
    fn a_newer_version_or_an_unknown_feature_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.json");
        for (text, what) in [
            (r#"{"version":2,"else":true}"#, "(version 2)"),
            (r#"{"version":1,"features":["x"]}"#, "(feature 'x')"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Record::read(&path).unwrap_err().to_string();
            assert!(error.ends_with(what), "{error}");
        }
    }

    #[test]
    fn a_broken_startup_file_matters_to_containers_only() {
        let mut record = record();
        record.startup = StartupRecord::Broken {
            problem: "line 1".into(),
        };
        assert!(record.facts(Mode::Auto, "x").is_ok());
        let error = record.facts(Mode::Container, "x").unwrap_err();
        assert_eq!(error.to_string(), "x has a broken /.startup.toml: line 1");
    }
}
