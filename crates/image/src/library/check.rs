//! Hashing the block cache, and fetching again what was damaged.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use zmachine_flist::BlockRef;

use super::{Library, ResolveError, open_flist};
use crate::progress::Progress;

/// What became of a damaged block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Mended {
    /// It is still there: nothing was to be mended.
    Left,
    /// It is whole again.
    Fetched,
    /// It is gone; no image of this home has it.
    Removed,
    /// It is gone, and cannot be had now.
    Lost {
        /// Why.
        problem: String,
    },
}

/// A file of the cache that is not the block its name says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DamagedBlock {
    /// The file.
    pub path: PathBuf,
    /// What became of it.
    #[serde(flatten)]
    pub mended: Mended,
}

/// What [`Library::check_cache`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CacheReport {
    /// Blocks whose bytes are right.
    pub good: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// The others, sorted by path.
    pub damaged: Vec<DamagedBlock>,
    /// Images that cannot be read, with the reason: a damaged block of theirs was removed and not fetched again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

impl CacheReport {
    /// Damaged blocks that are still there, or are gone although an image needs them.
    pub fn left(&self) -> usize {
        let is_left = |block: &&DamagedBlock| matches!(block.mended, Mended::Left | Mended::Lost { .. });
        self.damaged.iter().filter(is_left).count()
    }
}

impl Library {
    /// Hashes every block of the cache. `repairs`: damaged ones go, and are fetched again when an image of this home has them.
    ///
    /// # Errors
    /// When the cache cannot be listed, a damaged block not be removed, or the images not be listed.
    pub fn check_cache(&self, repairs: bool, progress: &dyn Progress) -> Result<CacheReport, ResolveError> {
        let found = self.cache.check(repairs, progress)?;
        let mut report = CacheReport {
            good: found.good,
            bytes: found.bytes,
            ..CacheReport::default()
        };
        let mut mended: HashMap<PathBuf, Mended> = HashMap::new();
        if repairs && !found.damaged.is_empty() {
            progress.begin(Some(found.damaged.len() as u64), "fetching damaged blocks");
            let wanted: HashSet<&Path> = found.damaged.iter().map(PathBuf::as_path).collect();
            for image in self.list()? {
                let fetched = self.fetch_again(&image.digest, &wanted, &mut mended, progress);
                if let Err(error) = fetched {
                    report.unreadable.push(format!("{}: {error}", image.digest));
                }
            }
        }
        let of = |path: PathBuf| {
            // What the disk does not give stays, for somebody who has its bytes.
            let is_gone = repairs && path.symlink_metadata().is_err();
            let default = if is_gone { Mended::Removed } else { Mended::Left };
            DamagedBlock {
                mended: mended.remove(&path).unwrap_or(default),
                path,
            }
        };
        report.damaged = found.damaged.into_iter().map(of).collect();
        Ok(report)
    }

    /// Fetches those of the `wanted` files that an image has and that are not whole already.
    fn fetch_again(
        &self,
        digest: &zmachine_flist::Digest,
        wanted: &HashSet<&Path>,
        mended: &mut HashMap<PathBuf, Mended>,
        progress: &dyn Progress,
    ) -> Result<(), ResolveError> {
        let flist = open_flist(&self.place_of(digest).join("image.fl"), &digest.to_string())?;
        let blocks = flist.tree.unique_blocks();
        let of_image = blocks.iter().map(|block| (block, self.cache.path_of(block)));
        let missing: Vec<(&BlockRef, PathBuf)> = of_image
            .filter(|(_, path)| wanted.contains(path.as_path()) && mended.get(path) != Some(&Mended::Fetched))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let fetcher = self.fetcher(flist.routes.clone())?;
        for (block, path) in missing {
            let state = match fetcher.fetch(block) {
                Ok(_) => Mended::Fetched,
                Err(error) => Mended::Lost {
                    problem: error.to_string(),
                },
            };
            mended.insert(path, state);
            progress.advance(1);
        }
        Ok(())
    }
}
