//! Images under construction: `images/.new-<pid>-<random>/`, which becomes `images/<digest>/` by a rename or vanishes.
//!
//! Everyone who stages holds `images/.lock` shared; what crashed processes left is cleared by whoever gets it exclusively,
//! so nothing that is being built is ever cleared.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zmachine_sys::file::{self, FileError};

use super::error::ResolveError;
use crate::progress::Progress;

/// The longest flist that is accepted: 4 GiB of metadata describes some tens of millions of files.
pub(crate) const FLIST_LIMIT: u64 = 4 << 30;

const CHUNK: usize = 128 * 1024;

/// A directory under construction; dropped without [`Staging::publish`], it is gone.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: PathBuf,
    /// Held until the directory has its place or is gone.
    _lock: File,
}

/// What [`Staging::receive`] wrote.
pub(crate) struct Received {
    pub(crate) digest: blake2b_simd::Hash,
    pub(crate) bytes: u64,
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> ResolveError {
    FileError::io(action, path, source).into()
}

fn open_lock(images: &Path) -> Result<(PathBuf, File), ResolveError> {
    let path = images.join(".lock");
    let file = File::options().create(true).append(true).mode(0o600).open(&path);
    let file = file.map_err(|e| io_error("open lock", &path, e))?;
    Ok((path, file))
}

/// Clears what crashed processes left in `images`, unless somebody is staging right now.
pub(crate) fn clear_leftovers(images: &Path) -> Result<(), ResolveError> {
    let (_, lock) = open_lock(images)?;
    if lock.try_lock().is_err() {
        return Ok(());
    }
    let layers = images.join("layers");
    for folder in [Some(images), layers.is_dir().then_some(layers.as_path())]
        .into_iter()
        .flatten()
    {
        clear(folder)?;
    }
    Ok(())
}

fn clear(folder: &Path) -> Result<(), ResolveError> {
    let entries = fs::read_dir(folder).map_err(|e| io_error("list", folder, e))?;
    for entry in entries {
        let path = entry.map_err(|e| io_error("list", folder, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with(".new-") || name.starts_with(".gone-") {
            fs::remove_dir_all(&path).map_err(|e| io_error("remove", &path, e))?;
        }
    }
    Ok(())
}

/// An unkeyed BLAKE2b state of 32 bytes, the digest of flists.
pub(crate) fn hasher() -> blake2b_simd::State {
    blake2b_simd::Params::new().hash_length(32).to_state()
}

/// Reads `source` to its end through `each`; more than [`FLIST_LIMIT`] bytes are an error.
pub(crate) fn stream(
    source: &mut dyn Read,
    progress: &dyn Progress,
    mut each: impl FnMut(&[u8]) -> Result<(), ResolveError>,
    failed: impl Fn(io::Error) -> ResolveError,
    reference: &str,
) -> Result<u64, ResolveError> {
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let n = match source.read(&mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed(e)),
        };
        bytes += n as u64;
        if bytes > FLIST_LIMIT {
            return Err(ResolveError::TooLong {
                reference: reference.to_owned(),
                limit: FLIST_LIMIT,
            });
        }
        each(&chunk[..n])?;
        progress.advance(n as u64);
    }
}

impl Staging {
    pub(crate) fn new(images: &Path) -> Result<Staging, ResolveError> {
        let (path, lock) = open_lock(images)?;
        lock.lock_shared().map_err(|e| io_error("lock", &path, e))?;
        let dir = images.join(format!(".new-{}-{:016x}", std::process::id(), file::random_u64()));
        // Writable for their owner alone whatever the umask, as the flist in it.
        DirBuilder::new()
            .mode(0o755)
            .create(&dir)
            .map_err(|e| io_error("create directory", &dir, e))?;
        Ok(Staging { dir, _lock: lock })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.dir
    }

    /// The place of the flist.
    pub(crate) fn flist(&self) -> PathBuf {
        self.dir.join("image.fl")
    }

    /// Writes `source` to the flist's place, synced, and gives its digest; `failed` is the error of a failed read.
    pub(crate) fn receive(
        &self,
        source: &mut dyn Read,
        progress: &dyn Progress,
        failed: impl Fn(io::Error) -> ResolveError,
        reference: &str,
    ) -> Result<Received, ResolveError> {
        let path = self.flist();
        let out = File::options().write(true).create_new(true).mode(0o644).open(&path);
        let mut out = out.map_err(|e| io_error("create", &path, e))?;
        let mut state = hasher();
        let each = |chunk: &[u8]| {
            state.update(chunk);
            out.write_all(chunk).map_err(|e| io_error("write", &path, e))
        };
        let bytes = stream(source, progress, each, failed, reference)?;
        out.sync_all().map_err(|e| io_error("sync", &path, e))?;
        Ok(Received {
            digest: state.finalize(),
            bytes,
        })
    }

    /// Gives the directory its final name. Somebody who was faster with the same image is as good.
    pub(crate) fn publish(self, place: &Path) -> Result<(), ResolveError> {
        file::sync_dir(&self.dir)?;
        match fs::rename(&self.dir, place) {
            Ok(()) => Ok(file::sync_dir(place.parent().unwrap_or(place))?),
            Err(_) if place.join("image.json").is_file() => Ok(()),
            Err(e) => Err(io_error("create", place, e)),
        }
    }
}

impl Staging {
    /// Gives the directory its final name, which another one may have: that one is gone then.
    pub(crate) fn publish_over(self, place: &Path) -> Result<(), ResolveError> {
        file::sync_dir(&self.dir)?;
        let mut renamed = fs::rename(&self.dir, place);
        // Again and again: another process may be at it with the same name.
        for _ in 0..8 {
            if renamed.is_ok() || !place.is_dir() {
                break;
            }
            file::remove_dir_all(place)?;
            renamed = fs::rename(&self.dir, place);
        }
        renamed.map_err(|e| io_error("create", place, e))?;
        Ok(file::sync_dir(place.parent().unwrap_or(place))?)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a publish there is nothing to remove; what cannot be removed is cleared by a later start.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
