//! The one error type of this crate: every failure names the file or the name concerned, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why something about guest kernels did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file or folder of ours could not be handled.
    #[error(transparent)]
    File(#[from] zmachine_sys::file::FileError),
    /// A name that cannot be a folder's name.
    #[error("'{name}' cannot be the name of a kernel")]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// No kernel of that name is installed.
    #[error("there is no kernel '{name}'")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// No kernel is installed at all, or none is the default.
    #[error("no guest kernel is installed in {}", dir.display())]
    NoDefault {
        /// The folder `kernels/`.
        dir: PathBuf,
    },
    /// The name is taken.
    #[error("kernel '{name}' exists already")]
    Exists {
        /// The name asked for.
        name: String,
    },
    /// The description of an installed kernel cannot be understood. It is never deleted because of that.
    #[error("{} is not a kernel description: {reason}", path.display())]
    BadDescription {
        /// The description.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A package, a kernel or a module is not what it should be.
    #[error("{what} is damaged or of an unknown kind: {reason}")]
    BadInput {
        /// The file, or the part of a file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel cannot be entered by a hypervisor directly.
    #[error("{what} has no PVH entry note")]
    NoPvhEntry {
        /// The kernel file.
        what: String,
    },
    /// A kernel lacks something every machine needs.
    #[error("{what} has no module '{module}', and it is not built in")]
    MissingModule {
        /// The package or the modules folder.
        what: String,
        /// The module.
        module: String,
    },
    /// No package with the default kernel is known to this host.
    #[error("no package {pattern} is known to apt")]
    NoPackage {
        /// The package name looked for, with `*`.
        pattern: String,
    },
    /// A tool that is needed is not there.
    #[error("'{tool}' is needed here")]
    NoTool {
        /// The command.
        tool: String,
        /// The Debian packages that bring it.
        packages: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A tool failed.
    #[error("'{command}' failed ({status}): {last_lines}")]
    Tool {
        /// The command with its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        last_lines: String,
    },
}

impl KernelError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::BadName { .. } => Some(
                "use 1 to 64 of a-z, 0-9, '.', '_', '+' and '-', beginning with a letter or a digit; not 'default'"
                    .into(),
            ),
            Self::NotFound { .. } => Some("'zmachine kernel ls' shows what is installed".into()),
            Self::NoDefault { .. } => Some("'zmachine kernel install' fetches Debian's cloud kernel".into()),
            Self::Exists { name } => Some(format!(
                "remove it first ('zmachine kernel rm {name}'), or choose another name"
            )),
            Self::BadDescription { path, .. } => Some(format!(
                "install that kernel again under another name; nothing below {} was touched",
                path.display()
            )),
            Self::BadInput { .. } => {
                Some("get the file again; a kernel is a .deb, a bzImage or an ELF vmlinux for x86-64".into())
            }
            Self::NoPvhEntry { .. } => Some("the kernel must be built with CONFIG_PVH=y".into()),
            Self::MissingModule { .. } => {
                Some("use a kernel made for virtual machines, such as Debian's 'cloud' flavour".into())
            }
            Self::NoPackage { .. } => Some("run 'apt-get update' first, or give a .deb or a vmlinux file".into()),
            Self::NoTool { packages, .. } => Some(format!("apt-get install {packages}")),
            Self::Tool { command, .. } if command.starts_with("apt-get") => {
                Some("run 'apt-get update' first, or give a .deb or a vmlinux file".into())
            }
            Self::Tool { .. } | Self::Io { .. } | Self::File(_) => None,
        }
    }

    pub(crate) fn bad_input(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::BadInput {
            what: what.into(),
            reason: reason.to_string(),
        }
    }
}

/// Puts the action and the path to an I/O error.
pub(crate) trait AtPath<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, KernelError>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, KernelError> {
        self.map_err(|source| KernelError::Io {
            action,
            path: path.to_owned(),
            source,
        })
    }
}
