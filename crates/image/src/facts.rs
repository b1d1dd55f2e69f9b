//! What an image is, found out from its tree alone: which kind of machine it makes, what that starts, and its sizes.
//!
//! The kind follows one precedence table over all generations of flists (first match wins):
//!
//! | found | kind |
//! |---|---|
//! | `/kernel`, with `/image.raw` (required) and `/initrd` (optional) | [`ImageKind::KernelDisk`] |
//! | `/image.raw` | [`ImageKind::Disk`] |
//! | `/boot/vmlinuz`, with `/boot/initrd.img` (optional) | [`ImageKind::OwnKernel`] |
//! | anything else | [`ImageKind::Container`] |
//!
//! Links are followed inside of the image. A directory, a special file or a link that leads nowhere at one of these paths
//! is an error: a broken image must not start as another kind than its maker meant. Pure: no I/O here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zmachine_flist::{Flist, NodeKind, ResolveError, Startup, Tree};

/// A file of the image that the host uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// Its path in the image, to be resolved inside of it (`/kernel`).
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
}

/// Which kind of machine an image makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ImageKind {
    /// A container; the host provides the kernel.
    Container,
    /// A container that brings its own kernel and initrd.
    OwnKernel {
        /// `/boot/vmlinuz`.
        kernel: ImageFile,
        /// `/boot/initrd.img`.
        initrd: Option<ImageFile>,
    },
    /// A VM whose kernel lies beside its disk.
    KernelDisk {
        /// `/kernel`.
        kernel: ImageFile,
        /// `/initrd`.
        initrd: Option<ImageFile>,
        /// `/image.raw`.
        image: ImageFile,
    },
    /// A VM that boots from its disk by firmware.
    Disk {
        /// `/image.raw`.
        image: ImageFile,
    },
}

/// What the user says the image is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// By the table.
    #[default]
    Auto,
    /// A container, whatever VM files it has.
    Container,
    /// A VM; an image without the files of one is refused.
    Vm,
}

/// Why an image makes no machine.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KindError {
    /// `/kernel` makes it a VM, which needs a disk.
    #[error("the image has /kernel and no /image.raw")]
    KernelWithoutImage,
    /// Something that is no regular file where one decides.
    #[error("{path} of the image is {found}")]
    Unusable {
        /// The path in the image.
        path: String,
        /// What is there.
        found: String,
    },
    /// Asked to be a VM without being one.
    #[error("the image is not a VM: it has neither /kernel nor /image.raw")]
    NotAVm,
}

impl KindError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            KindError::KernelWithoutImage => Some("add /image.raw to the flist, or run it as a container".into()),
            KindError::Unusable { .. } => Some("put a regular file there and pack the flist again, or run it".into()),
            KindError::NotAVm => Some("let its content decide, or run it as a container".into()),
        }
    }
}

/// What is at one of the deciding paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "found", rename_all = "snake_case")]
pub(crate) enum Found {
    Nothing,
    File { size: u64 },
    Other { what: String },
}

/// The deciding paths and what is there; enough to classify in any [`Mode`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootFiles {
    pub(crate) kernel: Found,
    pub(crate) initrd: Found,
    pub(crate) image: Found,
    pub(crate) boot_kernel: Found,
    pub(crate) boot_initrd: Found,
}

const KERNEL: &str = "/kernel";
const INITRD: &str = "/initrd";
const IMAGE: &str = "/image.raw";
const BOOT_KERNEL: &str = "/boot/vmlinuz";
const BOOT_INITRD: &str = "/boot/initrd.img";

impl BootFiles {
    pub(crate) fn of(tree: &Tree) -> BootFiles {
        BootFiles {
            kernel: find(tree, KERNEL),
            initrd: find(tree, INITRD),
            image: find(tree, IMAGE),
            boot_kernel: find(tree, BOOT_KERNEL),
            boot_initrd: find(tree, BOOT_INITRD),
        }
    }

    pub(crate) fn classify(&self, mode: Mode) -> Result<ImageKind, KindError> {
        match mode {
            Mode::Container => self.container(mode),
            Mode::Vm => self.vm()?.ok_or(KindError::NotAVm),
            Mode::Auto => match self.vm()? {
                Some(kind) => Ok(kind),
                None => self.container(mode),
            },
        }
    }

    fn vm(&self) -> Result<Option<ImageKind>, KindError> {
        let kernel = usable(KERNEL, &self.kernel)?;
        let image = usable(IMAGE, &self.image)?;
        match (kernel, image) {
            (Some(kernel), Some(image)) => Ok(Some(ImageKind::KernelDisk {
                kernel,
                initrd: usable(INITRD, &self.initrd)?,
                image,
            })),
            (Some(_), None) => Err(KindError::KernelWithoutImage),
            (None, Some(image)) => Ok(Some(ImageKind::Disk { image })),
            (None, None) => Ok(None),
        }
    }

    fn container(&self, mode: Mode) -> Result<ImageKind, KindError> {
        let kernel = match usable(BOOT_KERNEL, &self.boot_kernel) {
            // Who says "container" aloud wants it to run; our kernel then does.
            Err(_) if mode == Mode::Container => None,
            other => other?,
        };
        match kernel {
            None => Ok(ImageKind::Container),
            Some(kernel) => Ok(ImageKind::OwnKernel {
                kernel,
                initrd: usable(BOOT_INITRD, &self.boot_initrd)?,
            }),
        }
    }
}

fn usable(path: &str, found: &Found) -> Result<Option<ImageFile>, KindError> {
    match found {
        Found::Nothing => Ok(None),
        Found::File { size } => Ok(Some(ImageFile {
            path: path.to_owned(),
            size: *size,
        })),
        Found::Other { what } => Err(KindError::Unusable {
            path: path.to_owned(),
            found: what.clone(),
        }),
    }
}

fn find(tree: &Tree, path: &str) -> Found {
    let other = |what: &str| Found::Other { what: what.to_owned() };
    match tree.resolve(path.as_bytes()) {
        Ok(node) => match &tree.get(node).kind {
            NodeKind::Regular { size, .. } => Found::File { size: *size },
            NodeKind::Directory(_) => other("a directory"),
            NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. } => other("a device"),
            NodeKind::Fifo => other("a named pipe"),
            NodeKind::Socket => other("a socket"),
            NodeKind::Symlink(_) => other("a link"),
        },
        Err(ResolveError::Loop { .. }) => other("a link that leads back to itself"),
        // The last component itself is there, so it is a link and its target is not.
        Err(_) if tree.resolve_no_follow(path.as_bytes()).is_ok() => other("a link that leads nowhere"),
        Err(_) => Found::Nothing,
    }
}

/// The facts of an image that planning a machine needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// Which kind of machine it makes.
    pub kind: ImageKind,
    /// What its `.startup.toml` starts; `None` without that file, or without an entry in it.
    pub startup: Option<Startup>,
    /// Its sizes.
    pub sizes: ImageSizes,
    /// The tags of the flist (`version`, `description`, ...).
    pub tags: BTreeMap<String, String>,
}

/// The sizes of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSizes {
    /// Files of all kinds.
    pub nodes: u64,
    /// Sum of the lengths of the regular files, in bytes.
    pub file_bytes: u64,
    /// Different blocks.
    pub blocks: u64,
    /// Sum of the plain lengths of the different blocks, in bytes: what the image takes in the block cache when all is fetched.
    pub block_bytes: u64,
}

impl ImageSizes {
    pub(crate) fn of(flist: &Flist) -> ImageSizes {
        let blocks = flist.tree.unique_blocks();
        ImageSizes {
            nodes: flist.tree.len() as u64,
            file_bytes: flist.tree.counts().file_bytes,
            blocks: blocks.len() as u64,
            block_bytes: blocks.iter().map(|block| u64::from(block.len)).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: BootFiles = BootFiles {
        kernel: Found::Nothing,
        initrd: Found::Nothing,
        image: Found::Nothing,
        boot_kernel: Found::Nothing,
        boot_initrd: Found::Nothing,
    };

    fn file(path: &str) -> ImageFile {
        ImageFile {
            path: path.into(),
            size: 1,
        }
    }

    fn all() -> BootFiles {
        let file = Found::File { size: 1 };
        BootFiles {
            kernel: file.clone(),
            initrd: file.clone(),
            image: file.clone(),
            boot_kernel: file.clone(),
            boot_initrd: file,
        }
    }

    #[test]
    fn the_first_match_of_the_table_wins() {
        let kernel_disk = ImageKind::KernelDisk {
            kernel: file(KERNEL),
            initrd: Some(file(INITRD)),
            image: file(IMAGE),
        };
        let mut files = all();
        assert_eq!(files.classify(Mode::Auto), Ok(kernel_disk));
        files.kernel = Found::Nothing;
        assert_eq!(files.classify(Mode::Auto), Ok(ImageKind::Disk { image: file(IMAGE) }));
        files.image = Found::Nothing;
        let own_kernel = ImageKind::OwnKernel {
            kernel: file(BOOT_KERNEL),
            initrd: Some(file(BOOT_INITRD)),
        };
        assert_eq!(files.classify(Mode::Auto), Ok(own_kernel));
        files.boot_kernel = Found::Nothing;
        assert_eq!(files.classify(Mode::Auto), Ok(ImageKind::Container));
    }

    #[test]
    fn a_kernel_without_a_disk_is_an_error_unless_a_container_is_wanted() {
        let files = BootFiles {
            kernel: Found::File { size: 1 },
            ..NOTHING
        };
        assert_eq!(files.classify(Mode::Auto), Err(KindError::KernelWithoutImage));
        assert_eq!(files.classify(Mode::Vm), Err(KindError::KernelWithoutImage));
        assert_eq!(files.classify(Mode::Container), Ok(ImageKind::Container));
    }

    #[test]
    fn a_container_is_no_vm_even_with_its_own_kernel() {
        let files = BootFiles {
            boot_kernel: Found::File { size: 1 },
            ..NOTHING
        };
        assert_eq!(files.classify(Mode::Vm), Err(KindError::NotAVm));
        assert_eq!(NOTHING.classify(Mode::Vm), Err(KindError::NotAVm));
    }

    #[test]
    fn something_else_than_a_file_at_a_deciding_path_is_an_error() {
        for spoil in [
            (|f| &mut f.kernel) as fn(&mut BootFiles) -> &mut Found,
            |f| &mut f.initrd,
            |f| &mut f.image,
        ] {
            let mut files = all();
            *spoil(&mut files) = Found::Other {
                what: "a directory".into(),
            };
            assert!(matches!(files.classify(Mode::Auto), Err(KindError::Unusable { .. })));
        }
        let files = BootFiles {
            boot_kernel: Found::Other {
                what: "a device".into(),
            },
            ..NOTHING
        };
        assert_eq!(
            files.classify(Mode::Auto).unwrap_err().to_string(),
            "/boot/vmlinuz of the image is a device"
        );
        assert_eq!(files.classify(Mode::Container), Ok(ImageKind::Container));
    }
}
