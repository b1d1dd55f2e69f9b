//! Several homes of one user with one block cache: coming to it, and leaving it.
//!
//! A home that comes brings the blocks of its own cache along. One that leaves begins with an empty cache of its own; what
//! it alone needed goes with the next pruning of the shared one.
//!
//! ```text
//! <home>/images/.place    held shared by who starts a machine, while it looks where the blocks are; exclusively here
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use zmachine_sys::file::{self, FileError};
use zmachine_sys::lock::FileLock;

use super::cache_location::{self, CacheLocation};
use super::cache_users::{self, HOMES};
use super::{Library, ResolveError};
use crate::cache::{Adopted, BlockCache};

/// How long other processes are waited for that use or change what this does.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why homes cannot share a cache, or what one of them stands in the way of.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The folder of the cache is not there.
    #[error("{}, the block cache of {}, is not there", folder.display(), home.display())]
    Missing {
        /// The cache.
        folder: PathBuf,
        /// The home that names it.
        home: PathBuf,
    },
    /// The folder has something else in it.
    #[error("{} is no shared block cache, and not empty", folder.display())]
    NotACache {
        /// The folder.
        folder: PathBuf,
    },
    /// What is removed or pruned with a home cannot be other homes' too.
    #[error("{} is inside of the home {}", folder.display(), home.display())]
    InAHome {
        /// The folder.
        folder: PathBuf,
        /// The home.
        home: PathBuf,
    },
    /// Others may put files there.
    #[error("users other than {owner} may write to {}", folder.display())]
    Writable {
        /// The folder.
        folder: PathBuf,
        /// Number of its owner.
        owner: u32,
    },
    /// Cache and home are not of one user.
    #[error("{} belongs to user {folder_owner}, and the home {} to user {home_owner}", folder.display(), home.display())]
    Owners {
        /// The cache.
        folder: PathBuf,
        /// Number of its owner.
        folder_owner: u32,
        /// The home.
        home: PathBuf,
        /// Number of its owner.
        home_owner: u32,
    },
    /// The cache is another user's than the one who runs this.
    #[error("the block cache {} belongs to user {owner}, and this is user {user}", folder.display())]
    OtherUser {
        /// The cache.
        folder: PathBuf,
        /// Number of its owner.
        owner: u32,
        /// Number of who wants to use it.
        user: u32,
    },
    /// Somebody else is at it.
    #[error("the block cache {} is in use by another command", folder.display())]
    Busy {
        /// The cache.
        folder: PathBuf,
    },
    /// It cannot be told which blocks a home needs.
    #[error("no block was removed: the home {} has the same cache and cannot be read", home.display())]
    Unreadable {
        /// The home.
        home: PathBuf,
        /// Why.
        source: Box<ResolveError>,
    },
}

impl ShareError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            ShareError::Missing { .. } => {
                "mount or restore it, or give the home its own cache with 'zmachine image cache --shared none'".into()
            }
            ShareError::NotACache { .. } | ShareError::InAHome { .. } => {
                "name an empty or a new folder outside of all homes".into()
            }
            ShareError::Writable { folder, .. } => {
                format!(
                    "'chmod go-w {}': who writes there decides what machines read",
                    folder.display()
                )
            }
            ShareError::Owners { .. } | ShareError::OtherUser { .. } => {
                "only homes of one user can share a cache, as that user".into()
            }
            ShareError::Busy { .. } => "try again when that is done".into(),
            ShareError::Unreadable { home, .. } => format!(
                "mend it; or, if nobody needs it any more, remove the folder {}: it is forgotten then",
                home.display()
            ),
        }
    }
}

/// Where the machine that is starting in `home` has its blocks. It is in an active phase already, so whoever changes the place
/// sees it, or has made the change.
///
/// # Errors
/// As [`Library::open`].
pub fn blocks_directory(home: &Path) -> Result<PathBuf, ResolveError> {
    let _as_it_is = FileLock::shared(&change_lock(home)?)?;
    Ok(Library::open(home)?.cache().directory().to_owned())
}

fn change_lock(home: &Path) -> Result<PathBuf, ResolveError> {
    let images = home.join("images");
    file::make_dirs(&images)?;
    Ok(images.join(".place"))
}

/// A change of the place where a home has its blocks, which is made with [`ShareChange::make`]. No machine of the home is told the
/// place meanwhile, and nobody removes blocks of the cache it comes to.
#[derive(Debug)]
pub struct ShareChange {
    from: CacheLocation,
    to: CacheLocation,
    _machines: FileLock,
    _cache: Option<FileLock>,
}

impl ShareChange {
    /// Prepares that `home` has its blocks in `folder`, which is made when it is missing; without one, that it has its own.
    ///
    /// # Errors
    /// When the folder is no cache, or not one of this home's user; when others use it all the time.
    pub fn begin(home: &Path, folder: Option<&Path>) -> Result<ShareChange, ResolveError> {
        let mut to = CacheLocation::of(home)?;
        to.folder = folder.map(|folder| prepared(folder, &to)).transpose()?;
        to.check()?;
        let busy = || ShareError::Busy {
            folder: to.folder.clone().unwrap_or_else(|| to.home.clone()),
        };
        let cache = match &to.folder {
            Some(_) => Some(FileLock::exclusive_within(&to.lock(), TIMEOUT)?.ok_or_else(busy)?),
            None => None,
        };
        let machines = FileLock::exclusive_within(&change_lock(&to.home)?, TIMEOUT)?.ok_or_else(busy)?;
        Ok(ShareChange {
            // Only now: another command may have changed it.
            from: CacheLocation::of(&to.home)?,
            to,
            _machines: machines,
            _cache: cache,
        })
    }

    /// Whether blocks will be somewhere else than they are; machines that run must not see that.
    pub fn is_change(&self) -> bool {
        self.from != self.to
    }

    /// The limit that does not count any more, since it was that of the home's own cache.
    pub fn lost_limit(&self) -> Option<u64> {
        let is_own = self.from.folder.is_none() && self.is_change();
        is_own.then(|| self.from.limit().ok().flatten()).flatten()
    }

    /// Makes the change, and moves the blocks of a home's own cache into the shared one. What an interruption leaves to move is moved
    /// when the same change is made again.
    ///
    /// # Errors
    /// When it cannot be written, or a block not be moved; the home has its blocks in the new place already then.
    pub fn make(self) -> Result<Adopted, ResolveError> {
        let ShareChange { from, to, .. } = &self;
        cache_users::add(to)?;
        if from != to {
            to.write()?;
            cache_users::remove(from, &from.home)?;
        }
        let to = to.clone();
        // Machines may start: they use the new place.
        drop(self);
        let own = to.home.join("blocks");
        if to.folder.is_none() || !own.is_dir() {
            return Ok(Adopted::default());
        }
        let shared = BlockCache::open(&to.blocks())?;
        Ok(shared.adopt(&BlockCache::open(&own)?)?)
    }
}

/// The folder of a shared cache, without links in its path; made when it is missing.
fn prepared(folder: &Path, home: &CacheLocation) -> Result<PathBuf, ResolveError> {
    outside_of_homes(folder)?;
    let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|e| FileError::io("create directory", folder, e))?;
    let failed = |action| move |e: io::Error| FileError::io(action, folder, e);
    let folder = folder.canonicalize().map_err(failed("look at"))?;
    let meta = folder.metadata().map_err(failed("look at"))?;
    if meta.mode() & 0o022 != 0 {
        let owner = meta.uid();
        return Err(ShareError::Writable { folder, owner }.into());
    }
    outside_of_homes(&folder)?;
    if !cache_location::is_marked(&folder)? {
        let entries = fs::read_dir(&folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        if !entries.map_err(failed("list"))?.is_empty() {
            return Err(ShareError::NotACache { folder }.into());
        }
        // First the owner: nothing is made in a folder that cannot be used.
        home.same_owner(&folder, &meta)?;
        cache_location::mark(&folder)?;
    }
    file::make_dirs(&folder.join(HOMES))?;
    Ok(folder)
}

fn outside_of_homes(folder: &Path) -> Result<(), ShareError> {
    let is_home = |dir: &&Path| dir.join("format").is_file() && dir.join("machines").is_dir();
    match folder.ancestors().find(is_home) {
        None => Ok(()),
        Some(home) => Err(ShareError::InAHome {
            folder: folder.to_owned(),
            home: home.to_owned(),
        }),
    }
}
