//! The homes that share a block cache: whatever removes blocks regards all of them, and nobody else removes meanwhile.
//!
//! ```text
//! <folder>/homes/<32 hex>.json    {"version":1,"home":"/path"}; <32 hex> = from the digest of the path
//! ```
//! # Invariants
//! * A home is here before its first block is: it comes under the cache's lock, so who removes blocks knows it or has ended.
//! * A home that is gone from disk is forgotten when blocks are removed. One that is there and cannot be read, or a file
//!   here that cannot be, means that nothing is removed.
//! * The cache's lock comes first, then locks of homes, and who has it waits for those half a minute at most.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zmachine_flist::Digest;
use zmachine_sys::file::{self, FileError};
use zmachine_sys::lock::FileLock;

use super::ResolveError;
use super::cache_location::CacheLocation;
use super::share::ShareError;

/// The folder of the registry, in that of the cache.
pub(super) const HOMES: &str = "homes";

const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Sharer {
    version: u32,
    home: PathBuf,
}

/// The right to remove blocks of a cache.
#[derive(Debug)]
pub(super) struct Removal {
    /// The other homes that use it.
    pub(super) others: Vec<PathBuf>,
    /// Homes that did, and are gone from disk.
    pub(super) forgotten: Vec<PathBuf>,
    _lock: FileLock,
}

impl Removal {
    /// Waits for the right for so long; `None` when another process has it.
    pub(super) fn begin(place: &CacheLocation, patience: Duration) -> Result<Option<Removal>, ResolveError> {
        let Some(lock) = FileLock::exclusive_within(&place.lock(), patience)? else {
            return Ok(None);
        };
        let mut removal = Removal {
            others: Vec::new(),
            forgotten: Vec::new(),
            _lock: lock,
        };
        for home in list(place)?.into_iter().filter(|home| *home != place.home) {
            match home.symlink_metadata() {
                Ok(_) => removal.others.push(home),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    remove(place, &home)?;
                    removal.forgotten.push(home);
                }
                Err(e) => return Err(unreadable(&home)(FileError::io("look at", &home, e).into())),
            }
        }
        Ok(Some(removal))
    }
}

/// Why nothing is removed from a cache that `home` shares.
pub(super) fn unreadable(home: &Path) -> impl Fn(ResolveError) -> ResolveError + '_ {
    |source| {
        ResolveError::Share(ShareError::Unreadable {
            home: home.to_owned(),
            source: Box::new(source),
        })
    }
}

/// All homes of a shared cache, sorted; none for a home with its own.
pub(super) fn list(place: &CacheLocation) -> Result<Vec<PathBuf>, ResolveError> {
    let Some(folder) = &place.folder else {
        return Ok(Vec::new());
    };
    let folder = folder.join(HOMES);
    let entries = fs::read_dir(&folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let mut homes = Vec::new();
    for entry in entries.map_err(|e| FileError::io("list", &folder, e))? {
        let path = entry.path();
        // Others are being written.
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match file::read_json::<Sharer>(&path) {
            Ok(found) if found.version == VERSION => homes.push(found.home),
            Ok(found) => {
                let what = format!("version {}", found.version);
                return Err(ResolveError::TooNew { path, what });
            }
            // It left since the listing.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
    }
    homes.sort();
    Ok(homes)
}

/// Whether the home of `place` is among them.
pub(super) fn is_in(place: &CacheLocation) -> bool {
    entry_of(place, &place.home).is_none_or(|path| path.is_file())
}

/// Adds the home of `place`; the caller has the cache's lock.
pub(super) fn add(place: &CacheLocation) -> Result<(), ResolveError> {
    if let Some(path) = entry_of(place, &place.home) {
        let home = place.home.clone();
        file::replace_json(&path, &Sharer { version: VERSION, home })?;
    }
    Ok(())
}

/// Takes `home` away from those of `place`.
pub(super) fn remove(place: &CacheLocation, home: &Path) -> Result<(), ResolveError> {
    entry_of(place, home).map_or(Ok(()), |path| Ok(file::remove_if_there(&path)?))
}

fn entry_of(place: &CacheLocation, home: &Path) -> Option<PathBuf> {
    let digest = Digest::blake2b_32(home.as_os_str().as_encoded_bytes()).to_string();
    let folder = place.folder.as_ref()?;
    Some(folder.join(HOMES).join(format!("{}.json", &digest[..32])))
}
