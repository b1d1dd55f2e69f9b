//! Images as trees on this host, and what containers with a kernel of their own need beside.
//!
//! ```text
//! images/<digest>/tree/          for its owner alone: setuid programs of the image are not for users of this host
//! images/<digest>/tree/root/     the image as files, made once, never written; appears by rename, when all of it is on disk
//! images/<digest>/tree/lock      held while it is made
//! ```

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use zmachine_image::{Image, ImageKind, Library, Progress};
use zmachine_pack::unpack::{UnpackError, UnpackOptions, unpack};
use zmachine_plan::tree::TreeFacts;
use zmachine_spec::volume::ResolvedVolume;
use zmachine_spec::{Class, Failure, MachineSpec, Setting};
use zmachine_store::volume;
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use super::image_facts::image_facts;

/// The facts of a container with a kernel of its own; `None` when it has none, or is to run with a named one of ours.
pub(super) fn tree_facts(
    library: &Library,
    image: &Image,
    spec: &MachineSpec,
    wanted: &[ResolvedVolume],
    progress: &dyn Progress,
) -> Result<Option<TreeFacts>, Failure> {
    let ImageKind::OwnKernel { kernel, initrd } = &image.facts.kind else {
        return Ok(None);
    };
    if spec.kernel.is_some() {
        return Ok(None);
    }
    wanted.iter().try_for_each(volume::check_mountable)?;
    let named = format!("{} of {}", kernel.path, spec.flist);
    let bootable = |bytes: &[u8]| -> Result<(), Failure> {
        zmachine_kernel::check_bootable(bytes, &named).map_err(|e| {
            Failure::from(e)
                .hint("give a bzImage or an ELF with a PVH entry, or run it with a guest kernel of this host")
                .about(Setting::Kernel)
        })
    };
    let take = |_: &[u8]| Ok::<(), Failure>(());
    let initrd = initrd.as_ref();
    Ok(Some(TreeFacts {
        kernel: library.host_file(image, &kernel.path, "boot-kernel", bootable)?,
        initrd: initrd
            .map(|file| library.host_file(image, &file.path, "boot-initrd", take))
            .transpose()?,
        tree: unpacked(library, image, &spec.flist, progress)?,
        image: image_facts(image, &spec.flist)?,
        volumes: wanted.to_vec(),
    }))
}

/// The image as files of this host, unpacked the first time.
///
/// # Errors
/// [`Class::Fetch`] when a block cannot be had; nothing is left then.
pub(super) fn unpacked(
    library: &Library,
    image: &Image,
    flist: &str,
    progress: &dyn Progress,
) -> Result<PathBuf, Failure> {
    let folder = image.directory.join("tree");
    let root = folder.join("root");
    if root.is_dir() {
        return Ok(root);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let _lock = FileLock::exclusive(&folder.join("lock"))?;
    if root.is_dir() {
        return Ok(root);
    }
    let new = folder.join("new");
    if new.exists() {
        // An interrupted one.
        fs::remove_dir_all(&new).map_err(|e| Failure::from(e).context(format!("cannot remove {}", new.display())))?;
    }
    let content = image.open_flist()?;
    let fetcher = library.fetcher(content.routes.clone())?;
    unpack(&content, &new, &fetcher, UnpackOptions::default(), progress).map_err(|e| not_unpacked(&e, flist))?;
    publish(&new, &root)?;
    Ok(root)
}

/// Everything is on disk before its name is.
fn publish(new: &Path, root: &Path) -> Result<(), Failure> {
    let context = |e: std::io::Error| Failure::from(e).context("the unpacked image could not be kept");
    let on_disk = File::open(new).map_err(context)?;
    rustix::fs::syncfs(&on_disk).map_err(|e| context(e.into()))?;
    fs::rename(new, root).map_err(context)?;
    Ok(file::sync_dir(root.parent().unwrap_or(root))?)
}

fn not_unpacked(error: &UnpackError, flist: &str) -> Failure {
    let class = match error {
        UnpackError::Fetch { .. } => Class::Fetch,
        _ => Class::Failed,
    };
    let failure = Failure::from_error(class, error).context(format!("{flist} cannot be unpacked"));
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
