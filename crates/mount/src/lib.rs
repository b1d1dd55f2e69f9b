//! A flist as a read-only directory of the host, through FUSE: for a look, for `grep` and `diff`, without unpacking.
//!
//! Blocks are fetched when they are read, through the same cache as a machine's. Everything the flist says is shown:
//! owners, modes, times, devices, hard links, extended attributes. Nothing of it takes effect on the host: the mount has
//! neither set-uid nor devices.
//!
//! # Invariants
//! * An inode number is a node's index plus one, so it is stable for as long as the mount is there. Nothing changes, so
//!   the kernel may remember everything.
//! * A block that cannot be had is EIO for that read; why goes to the mount's teller.
//!
//! It writes nothing and knows no machines.

mod files;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use thiserror::Error;
use zmachine_flist::Tree;
use zmachine_image::Fetcher;

use files::Files;

/// Requests that are answered at once: each one may wait for a store.
const THREADS: usize = 8;

/// Why a flist could not be mounted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MountError {
    /// The place is no directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The place.
        path: PathBuf,
    },
    /// The kernel or `fusermount3` refused.
    #[error("nothing can be mounted on {}", path.display())]
    Refused {
        /// The place.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount broke off.
    #[error("the mount on {} ended", path.display())]
    Broken {
        /// The place.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl MountError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            MountError::NotADirectory { .. } => "make it with mkdir",
            MountError::Refused { .. } => {
                "FUSE needs /dev/fuse (modprobe fuse), and the package fuse3 for users other than root"
            }
            MountError::Broken { .. } => "take it away with 'umount -l', then mount it again",
        }
    }
}

/// A mounted flist; unmounted when it is dropped.
pub struct Mount {
    session: Session<Files>,
    path: PathBuf,
}

/// Ends a [`Mount`] from another thread.
pub struct Unmounter(SessionUnmounter);

impl Unmounter {
    /// Unmounts it, which ends [`Mount::serve`] as soon as nobody uses it any more.
    ///
    /// # Errors
    /// When somebody still uses it.
    pub fn end(&mut self) -> io::Result<()> {
        self.0.unmount()
    }
}

impl Mount {
    /// Mounts `tree` on the directory `path`; `name` is what `mount` and `df` show. `tell` hears of every read that failed.
    ///
    /// # Errors
    /// When the place is no directory, or nothing can be mounted there.
    pub fn new(
        tree: Tree,
        fetcher: Fetcher,
        path: &Path,
        name: &str,
        tell: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Mount, MountError> {
        if !path.is_dir() {
            return Err(MountError::NotADirectory { path: path.to_owned() });
        }
        let refused = |source| MountError::Refused {
            path: path.to_owned(),
            source,
        };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::DefaultPermissions,
            MountOption::FSName(name.replace(',', "_")),
            MountOption::Subtype("zmachine".into()),
        ];
        // What only its owner may read in the image, only that user may read here.
        config.acl = if rustix::process::geteuid().is_root() {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let files = Files::new(Arc::new(tree), fetcher, Box::new(tell));
        let session = Session::new(files, path, &config).map_err(refused)?;
        Ok(Mount {
            session,
            path: path.to_owned(),
        })
    }

    /// What ends it from another thread.
    pub fn unmounter(&mut self) -> Unmounter {
        Unmounter(self.session.unmount_callable())
    }

    /// Answers until it is unmounted, by [`Unmounter::end`] or `umount`.
    ///
    /// # Errors
    /// When the connection to the kernel breaks.
    pub fn serve(self) -> Result<(), MountError> {
        let path = self.path;
        self.session.run().map_err(|source| MountError::Broken { path, source })
    }
}
