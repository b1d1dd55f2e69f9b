//! Where the blocks of a home are, and how much may be there.
//!
//! ```text
//! <home>/cache.json      {"version":1,"limit":BYTES}          a cache of its own below a limit; missing: without one
//! <home>/cache.json      {"version":2,"folder":"/srv/cache"}  a cache that it shares with other homes of its user
//! <folder>/blocks/       in the place of <home>/blocks
//! <folder>/cache.json    {"version":1,"limit":BYTES}          the one limit of that cache
//! <folder>/block-cache.json    {"version":1}: it is such a cache
//! <folder>/homes/        who uses it (module `cache_users`)
//! <folder>/.lock         held by the one process that removes blocks, or by a home that comes
//! ```
//! Only `blocks/` is in sight of the processes that fetch for machines: none of them can change who shares the cache.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zmachine_sys::file::{self, FileError};

use super::ResolveError;
use super::share::ShareError;

/// The file that says what a folder is.
const MARK: &str = "block-cache.json";
const MARK_VERSION: u32 = 1;

const FILE: &str = "cache.json";

/// Version of a file that has a limit.
const WITH_LIMIT: u32 = 1;
/// Version of a file that names a folder.
const WITH_FOLDER: u32 = 2;

#[derive(Debug, Serialize, Deserialize)]
struct CacheFile {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    folder: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    version: u32,
}

/// Whether `folder` is a shared cache.
pub(super) fn is_marked(folder: &Path) -> Result<bool, ResolveError> {
    let path = folder.join(MARK);
    match file::read_json::<Mark>(&path) {
        Ok(found) if found.version == MARK_VERSION => Ok(true),
        Ok(found) => {
            let what = format!("version {}", found.version);
            Err(ResolveError::TooNew { path, what })
        }
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Makes `folder` one.
pub(super) fn mark(folder: &Path) -> Result<(), ResolveError> {
    let mark = Mark { version: MARK_VERSION };
    Ok(file::replace_json(&folder.join(MARK), &mark)?)
}

impl CacheFile {
    fn read(path: &Path) -> Result<Option<CacheFile>, ResolveError> {
        match file::read_json::<CacheFile>(path) {
            Ok(found) if (WITH_LIMIT..=WITH_FOLDER).contains(&found.version) => Ok(Some(found)),
            Ok(found) => Err(ResolveError::LimitVersion {
                path: path.to_owned(),
                found: found.version,
            }),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// Where the blocks of one home are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CacheLocation {
    /// The home, as other homes find it.
    pub(super) home: PathBuf,
    /// The shared cache; `None`: the home has its own.
    pub(super) folder: Option<PathBuf>,
}

impl CacheLocation {
    /// What the home says.
    pub(super) fn of(home: &Path) -> Result<CacheLocation, ResolveError> {
        let home = home.canonicalize().map_err(|e| FileError::io("look at", home, e))?;
        let folder = CacheFile::read(&home.join(FILE))?.and_then(|found| found.folder);
        Ok(CacheLocation { home, folder })
    }

    /// What has `blocks/` and the limit.
    fn root(&self) -> &Path {
        self.folder.as_ref().unwrap_or(&self.home)
    }

    pub(super) fn blocks(&self) -> PathBuf {
        self.root().join("blocks")
    }

    /// Held by the one process that removes blocks.
    pub(super) fn lock(&self) -> PathBuf {
        match &self.folder {
            Some(folder) => folder.join(".lock"),
            None => self.home.join("images/.trim"),
        }
    }

    /// The limit, in bytes.
    pub(super) fn limit(&self) -> Result<Option<u64>, ResolveError> {
        Ok(CacheFile::read(&self.root().join(FILE))?.and_then(|found| found.limit))
    }

    pub(super) fn set_limit(&self, limit: Option<u64>) -> Result<(), ResolveError> {
        let path = self.root().join(FILE);
        match limit {
            None => file::remove_if_there(&path)?,
            limit => file::replace_json(
                &path,
                &CacheFile {
                    version: WITH_LIMIT,
                    limit,
                    folder: None,
                },
            )?,
        }
        Ok(())
    }

    /// Writes into the home that its blocks are here. A limit it had for its own cache is no more.
    pub(super) fn write(&self) -> Result<(), ResolveError> {
        let path = self.home.join(FILE);
        match &self.folder {
            None => file::remove_if_there(&path)?,
            Some(folder) => file::replace_json(
                &path,
                &CacheFile {
                    version: WITH_FOLDER,
                    limit: None,
                    folder: Some(folder.clone()),
                },
            )?,
        }
        Ok(())
    }

    /// That a shared cache is there and of the user who runs this, as the home is: what one user writes, another one can
    /// neither replace nor remove.
    pub(super) fn check(&self) -> Result<(), ResolveError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let missing = || ShareError::Missing {
            folder: folder.clone(),
            home: self.home.clone(),
        };
        let there = folder.metadata().map_err(|_| missing())?;
        if !is_marked(folder)? {
            return Err(missing().into());
        }
        self.same_owner(folder, &there)?;
        let user = rustix::process::geteuid().as_raw();
        if user != there.uid() {
            return Err(ShareError::OtherUser {
                folder: folder.clone(),
                owner: there.uid(),
                user,
            }
            .into());
        }
        Ok(())
    }

    /// That `folder`, which `meta` is of, belongs to the home's user.
    pub(super) fn same_owner(&self, folder: &Path, meta: &Metadata) -> Result<(), ResolveError> {
        let home = self.home.metadata();
        let home_owner = home.map_err(|e| FileError::io("look at", &self.home, e))?.uid();
        if meta.uid() == home_owner {
            return Ok(());
        }
        Err(ShareError::Owners {
            folder: folder.to_owned(),
            folder_owner: meta.uid(),
            home: self.home.clone(),
            home_owner,
        }
        .into())
    }
}
