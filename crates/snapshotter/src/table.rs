//! The snapshots that containerd knows of, in one file:
//!
//! ```text
//! {"version": 1, "snapshots": {"<name>": {"kind": "committed", "parent": "<name>", "labels": {}, "created_at": "..", "updated_at": "..",
//!   "image": {"digest": "<hex>", "depth": 2, "is_whole": true}}}}
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const VERSION: u32 = 1;

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// For a look.
    View,
    /// A container's.
    Active,
    /// A layer, with all below it.
    Committed,
}

/// The image that a layer belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerOf {
    /// Its digest in hex.
    pub(crate) digest: String,
    /// So many layers of it are here: this one, and those below.
    pub(crate) depth: usize,
    /// It has no other ones.
    pub(crate) is_whole: bool,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) kind: Kind,
    /// The one below; empty: there is none.
    pub(crate) parent: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) image: Option<LayerOf>,
}

impl Snapshot {
    /// One that is made now.
    pub(crate) fn new(kind: Kind, parent: &str, image: Option<LayerOf>) -> Snapshot {
        let now = Timestamp::now();
        Snapshot {
            kind,
            parent: parent.to_owned(),
            labels: BTreeMap::new(),
            created_at: now,
            updated_at: now,
            image,
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Table {
    path: PathBuf,
    all: BTreeMap<String, Snapshot>,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    snapshots: BTreeMap<String, Snapshot>,
}

/// What is wrong with the table's file.
#[derive(Debug, Error)]
pub(crate) enum TableError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: this is not a table of snapshots ({reason})", path.display())]
    Content { path: PathBuf, reason: String },
}

impl Table {
    /// Reads the file; without one, there are none.
    ///
    /// # Errors
    /// [`TableError`]
    pub(crate) fn open(path: &Path) -> Result<Table, TableError> {
        let path = path.to_owned();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let all = BTreeMap::new();
                return Ok(Table { path, all });
            }
            Err(source) => return Err(TableError::File { path, source }),
            Ok(text) => text,
        };
        let unreadable = |reason: String, path: PathBuf| TableError::Content { path, reason };
        match serde_json::from_str::<File>(&text) {
            Ok(file) if file.version == VERSION => Ok(Table {
                path,
                all: file.snapshots,
            }),
            Ok(file) => Err(unreadable(format!("its version is {}", file.version), path)),
            Err(error) => Err(unreadable(error.to_string(), path)),
        }
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Option<&Snapshot> {
        self.all.get(name)
    }

    /// All of them, by their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Snapshot)> {
        self.all.iter()
    }

    /// Adds one, or puts another one in its place.
    ///
    /// # Errors
    /// [`TableError`]; nothing has changed then.
    pub(crate) fn set(&mut self, name: &str, snapshot: Snapshot) -> Result<(), TableError> {
        let before = self.all.insert(name.to_owned(), snapshot);
        self.write().inspect_err(|_| {
            match before {
                Some(before) => self.all.insert(name.to_owned(), before),
                None => self.all.remove(name),
            };
        })
    }

    /// Removes one.
    ///
    /// # Errors
    /// [`TableError`]; nothing has changed then.
    pub(crate) fn remove(&mut self, name: &str) -> Result<Option<Snapshot>, TableError> {
        let removed = self.all.remove(name);
        if let (Err(error), Some(snapshot)) = (self.write(), &removed) {
            self.all.insert(name.to_owned(), snapshot.clone());
            return Err(error);
        }
        Ok(removed)
    }

    fn write(&self) -> Result<(), TableError> {
        let file = File {
            version: VERSION,
            snapshots: self.all.clone(),
        };
        zmachine_sys::file::replace_json(&self.path, &file).map_err(|error| TableError::File {
            path: self.path.clone(),
            source: io::Error::other(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = r#"{"version":1,"snapshots":{"a":{"kind":"committed","parent":"","labels":{"x":"y"},"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z","image":{"digest":"ab","depth":1,"is_whole":true}}}}"#;

    #[test]
    fn a_table_of_the_first_version_is_read_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshots.json");
        fs::write(&path, GOLDEN).unwrap();
        let mut table = Table::open(&path).unwrap();
        let image = table.get("a").unwrap().image.clone().unwrap();
        assert_eq!((image.digest.as_str(), image.depth, image.is_whole), ("ab", 1, true));
        table.set("b", Snapshot::new(Kind::Active, "a", Some(image))).unwrap();
        assert_eq!(Table::open(&path).unwrap().all, table.all);
        table.remove("b").unwrap();
        let written: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(GOLDEN).unwrap());
    }

    #[test]
    fn another_version_is_not_taken_for_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshots.json");
        fs::write(&path, r#"{"version":2,"snapshots":{}}"#).unwrap();
        assert!(Table::open(&path).unwrap_err().to_string().contains("version is 2"));
    }
}
