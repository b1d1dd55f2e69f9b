//! The jail: what a process that a hostile guest can reach is locked into before it runs.
//!
//! ```text
//! monitor ── Jailed ──> fork, first process of a pid namespace ── exec "zmachine jail --jail {...} -- PROGRAM ..."
//!                                                                     │ enter(): the protections below
//!                                                                     └ exec PROGRAM, or go on in a role of ours
//! ```
//! | wall | how |
//! |---|---|
//! | identity | a user of its own, no groups, no capabilities (a few for virtiofsd), no new privileges |
//! | files | own mount namespace, `pivot_root` into a tmpfs that has the paths of [`Jail::view`] and nothing else; read-only |
//! | devices | own `/dev` with those of [`Jail::devices`]; nodes on anything else do not open |
//! | processes | own pid namespace (when started by [`Jailed::spawn`]), `/proc` of that alone |
//! | network | own namespace with nothing in it, unless [`Jail::network`] |
//! | ipc, host name | own namespaces |
//! | resources | [`Limits`] |
//! | kernel | a filter of system calls that none of them needs; the program's own filter comes on top |
//! | files again | Landlock: the paths of the view; abstract sockets and signals stay inside |
//!
//! # Invariants
//! A path of the view is at the same place inside as outside, so no argument of a program changes with the jail. What the
//! machine alone may use comes as a descriptor. The process is killed when the thread that started it ends: the request for
//! that is made before the change of user, which cancels it, and again after it.
//!
//! # Degradation
//! Without root the mount, network, ipc and uts namespaces are those of a user namespace of its own, where the kernel allows
//! one and the program keeps no capabilities; the user stays. Without namespaces there are still Landlock, limits and the filter. A step that this host lacks is left out;
//! [`status`] reads from the kernel which protections are active in the end, and the monitor says so. What fails for another reason is an error.

mod enter;
mod filter;
mod landlock;
mod spawn;
pub mod status;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use enter::enter;
pub use spawn::Jailed;
use spawn::has_process_namespace;

/// The role of the program that enters a jail and becomes another program.
pub const ROLE: &str = "jail";

/// What a process is locked into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jail {
    /// User and group it becomes; `None`: it stays who it is.
    pub user: Option<u32>,
    /// An existing empty folder on which its view is put together, seen by nobody else.
    pub folder: PathBuf,
    /// The paths it sees.
    pub view: Vec<View>,
    /// Its devices.
    pub devices: Vec<Device>,
    /// It is in the network of whoever starts it. Else it has none.
    #[serde(default)]
    pub network: bool,
    /// Capabilities it keeps, by number (`CAP_*` of linux/capability.h).
    #[serde(default)]
    pub capabilities: Vec<u32>,
    /// `/proc` has the files of the system too, read-only; else processes alone.
    #[serde(default)]
    pub system_proc: bool,
    /// What it may take.
    #[serde(default)]
    pub limits: Limits,
    /// A descriptor (`pidfd`) of whoever starts it, set by [`Jailed::spawn`].
    #[serde(default)]
    pub parent: Option<RawFd>,
    /// Landlock is left to the process itself, which knows more.
    #[serde(default)]
    pub own_landlock: bool,
    /// The program that has the role [`ROLE`]; `None`: the calling one.
    #[serde(skip)]
    pub launcher: Option<PathBuf>,
}

/// A path that is seen inside, with all that is mounted below it. Never devices, never setuid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Absolute, the same inside as outside. One that does not exist is left out.
    pub path: PathBuf,
    /// What can be done with it.
    pub access: Access,
    /// A descriptor of a mount that is nowhere yet ([`crate::mount`]), which is inherited and put there in place of what is at
    /// the path outside.
    #[serde(default)]
    pub mount: Option<RawFd>,
}

/// What can be done with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Read, and programs executed.
    Execute,
    /// Read. A socket is connected to.
    Read,
    /// Read and written, as far as its user may.
    Write,
}

/// A device of `/dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// `/dev/null`
    Null,
    /// `/dev/zero`
    Zero,
    /// `/dev/random`
    Random,
    /// `/dev/urandom`
    Urandom,
    /// `/dev/kvm`, for the jail's user alone.
    Kvm,
}

impl Device {
    /// What every program may expect.
    pub const BASIC: [Device; 4] = [Device::Null, Device::Zero, Device::Random, Device::Urandom];

    /// Name in `/dev`.
    fn name(self) -> &'static str {
        match self {
            Device::Null => "null",
            Device::Zero => "zero",
            Device::Random => "random",
            Device::Urandom => "urandom",
            Device::Kvm => "kvm",
        }
    }
}

/// Limits of the process (setrlimit(2)); `None`: as whoever starts it has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// Threads and processes of its user together.
    pub processes: Option<u64>,
    /// Size of any file it writes, memory files too, in bytes.
    pub file_bytes: Option<u64>,
    /// Private writable memory in bytes.
    pub private_bytes: Option<u64>,
}

/// Why a process cannot be locked in. It must not go on then.
#[derive(Debug, Error)]
#[error("cannot lock the process in: cannot {action}")]
pub struct JailError {
    action: String,
    source: std::io::Error,
}

impl JailError {
    fn new(action: impl Into<String>, source: impl Into<std::io::Error>) -> JailError {
        JailError {
            action: action.into(),
            source: source.into(),
        }
    }
}

impl Jail {
    /// A jail on `folder` for `user`, with the basic devices, no files, no network.
    pub fn new(folder: impl Into<PathBuf>, user: Option<u32>) -> Jail {
        Jail {
            user,
            folder: folder.into(),
            view: Vec::new(),
            devices: Device::BASIC.to_vec(),
            network: false,
            capabilities: Vec::new(),
            system_proc: false,
            limits: Limits::default(),
            parent: None,
            own_landlock: false,
            launcher: None,
        }
    }

    /// Adds a path.
    #[must_use]
    pub fn see(mut self, path: impl Into<PathBuf>, access: Access) -> Jail {
        self.view.push(View {
            path: path.into(),
            access,
            mount: None,
        });
        self
    }

    /// Adds a path at which it sees the mount `mount`, a descriptor that is kept when it is started.
    #[must_use]
    pub fn see_mount(mut self, path: impl Into<PathBuf>, access: Access, mount: RawFd) -> Jail {
        self.view.push(View {
            path: path.into(),
            access,
            mount: Some(mount),
        });
        self
    }

    /// Adds what a program of the distribution needs to run: itself and the libraries, no other program.
    #[must_use]
    pub fn see_program(mut self, program: &Path) -> Jail {
        for folder in [
            "/usr/lib",
            "/usr/lib32",
            "/usr/lib64",
            "/lib",
            "/lib32",
            "/lib64",
            "/usr/local/lib",
        ] {
            self = self.see(folder, Access::Execute);
        }
        self = self.see("/etc/ld.so.cache", Access::Read);
        let is_seen = self.view.iter().any(|seen| program.starts_with(&seen.path));
        if is_seen {
            self
        } else {
            self.see(program, Access::Execute)
        }
    }

    /// This jail as one argument of a command line.
    pub fn to_argument(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads [`Jail::to_argument`].
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_argument(text: &str) -> Result<Jail, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// Where programs are looked for, whatever the environment says.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where [`SEARCH_PATH`] has `name`: the first executable file of that name. A name with folders in it is itself.
pub fn find_program(name: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    if name.components().count() > 1 {
        return Some(name.to_owned());
    }
    let is_program = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    SEARCH_PATH
        .split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jail_passes_through_a_command_line() {
        let jail = Jail::new("/run/x", Some(7))
            .see("/a b\"c", Access::Write)
            .see_program(Path::new("/usr/bin/q"));
        assert_eq!(Jail::from_argument(&jail.to_argument()).unwrap(), jail);
        assert!(jail.view.iter().any(|view| view.path == Path::new("/usr/bin/q")));
    }

    #[test]
    fn a_program_among_the_libraries_needs_no_line_of_its_own() {
        let jail = Jail::new("/run/x", None).see_program(Path::new("/usr/lib/qemu/virtiofsd"));
        assert!(!jail.view.iter().any(|view| view.path.ends_with("virtiofsd")));
    }
}
