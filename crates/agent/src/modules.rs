//! Loads the kernel modules of the initramfs.
//!
//! # Layout
//! `/lib/modules/order` names the files beside it that every machine needs, one per line, in load order; `order.network`
//! those that a machine with interfaces needs besides, since loading them costs a tenth of the set-up, `order.btrfs`,
//! `order.xfs` and `order.virtiofs` those of a file system and `order.nested` those of containers inside, which are there
//! only in a machine that has one. The host computed the order and unpacked the files: here is no dependency logic and no
//! decompression.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;

/// What every machine loads.
const ORDER: &str = "/lib/modules/order";
/// What of it only a machine loads that has a disk.
const FOR_DISKS: [&str; 4] = ["virtio_blk.ko", "libcrc32c.ko", "erofs.ko", "overlay.ko"];

thread_local! {
    /// Modules for disks that a machine without any has not loaded yet, in load order: their files are gone from the root.
    static KEPT: RefCell<Vec<(PathBuf, File)>> = const { RefCell::new(Vec::new()) };
}
/// What a machine with interfaces loads besides; gone with the initramfs when the roots are switched.
pub(crate) const NETWORK_ORDER: &str = "/lib/modules/order.network";
/// What containers inside of the machine need; there only in a machine that has a volume for them.
pub(crate) const NESTED_ORDER: &str = "/lib/modules/order.nested";

/// The list of what the file system `fstype` needs, if it needs anything. As [`NETWORK_ORDER`], only before the switch.
pub(crate) fn order_of(fstype: &str) -> Option<&'static Path> {
    match fstype {
        "btrfs" => Some(Path::new("/lib/modules/order.btrfs")),
        "xfs" => Some(Path::new("/lib/modules/order.xfs")),
        "virtiofs" => Some(Path::new("/lib/modules/order.virtiofs")),
        _ => None,
    }
}

/// Why a module is not loaded.
#[derive(Debug, Error)]
pub(crate) enum ModuleError {
    /// A file of the initramfs cannot be read.
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// The kernel refused the module.
    #[error("load module {path}: {source}")]
    Load { path: PathBuf, source: Errno },
}

/// Loads all modules that the file `list` names, which are beside it. Without that file there is nothing to load.
///
/// # Errors
/// The first module that cannot be read or loaded; one that is there already counts as loaded.
pub(crate) fn load_all(list: &Path) -> Result<usize, ModuleError> {
    load_some(list, &|_| true)
}

/// Loads what every machine needs, whether it has a disk or not.
///
/// # Errors
/// As [`load_all`].
pub(crate) fn load_first() -> Result<(), ModuleError> {
    load_some(Path::new(ORDER), &|name| !FOR_DISKS.contains(&name)).map(drop)
}

/// Loads what disks need.
///
/// # Errors
/// As [`load_all`].
pub(crate) fn load_for_disks() -> Result<(), ModuleError> {
    load_some(Path::new(ORDER), &|name| FOR_DISKS.contains(&name)).map(drop)
}

/// Keeps what disks need, for a machine that has none yet: until [`load_kept`], also when the initramfs is gone.
///
/// # Errors
/// The first module that cannot be opened.
pub(crate) fn keep_for_disks() -> Result<(), ModuleError> {
    let list = Path::new(ORDER);
    let text = read_order(list)?.unwrap_or_default();
    let names = order(&text).into_iter().filter(|name| FOR_DISKS.contains(name));
    let files = names.map(|name| list.with_file_name(name)).map(open);
    let files = files.collect::<Result<Vec<_>, _>>()?;
    KEPT.set(files);
    Ok(())
}

/// Loads what was kept for a disk that comes now; nothing the second time.
///
/// # Errors
/// As [`load_all`].
pub(crate) fn load_kept() -> Result<(), ModuleError> {
    KEPT.take().iter().try_for_each(|(path, file)| load_file(path, file))
}

/// Loads those modules of a list that are wanted; their number.
fn load_some(list: &Path, is_wanted: &dyn Fn(&str) -> bool) -> Result<usize, ModuleError> {
    let Some(text) = read_order(list)? else { return Ok(0) };
    let names: Vec<&str> = order(&text).into_iter().filter(|name| is_wanted(name)).collect();
    for name in &names {
        load(&list.with_file_name(name))?;
    }
    Ok(names.len())
}

/// A list; `None`: there is none.
fn read_order(list: &Path) -> Result<Option<String>, ModuleError> {
    match fs::read_to_string(list) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModuleError::Read {
            path: list.into(),
            source,
        }),
    }
}

/// Loads a module; one that is there already is fine.
///
/// # Errors
/// When it cannot be read, or the kernel refuses it.
pub(crate) fn load(path: &Path) -> Result<(), ModuleError> {
    let (path, file) = open(path.into())?;
    load_file(&path, &file)
}

fn open(path: PathBuf) -> Result<(PathBuf, File), ModuleError> {
    match File::open(&path) {
        Ok(file) => Ok((path, file)),
        Err(source) => Err(ModuleError::Read { path, source }),
    }
}

fn load_file(path: &Path, file: &File) -> Result<(), ModuleError> {
    match rustix::system::finit_module(file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(source) => Err(ModuleError::Load {
            path: path.into(),
            source,
        }),
    }
}

/// The file names of an order file: blank lines and `#` comments are no names.
fn order(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_file_is_read_line_by_line_in_its_order() {
        assert_eq!(order("b.ko\n\n# why\n a.ko \nc.ko"), ["b.ko", "a.ko", "c.ko"]);
    }

    #[test]
    fn without_an_order_file_nothing_is_loaded() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(load_all(&empty.path().join("order")).unwrap(), 0);
    }

    #[test]
    fn a_module_that_is_named_but_missing_is_an_error_with_its_path() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("order"), "gone.ko\n").unwrap();
        let error = load_all(&directory.path().join("order")).unwrap_err();
        assert!(error.to_string().ends_with("gone.ko"), "{error}");
    }
}
