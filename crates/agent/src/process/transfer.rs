//! What a child does that copies files: between its standard streams and the guest's tree.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use zmachine_agent_protocol::Transfer;
use zmachine_transfer::{Keep, Layers, TransferError, receive, send, send_changes, send_list, send_root};

/// The status for a path that is not there.
const NOT_THERE: i32 = 3;

/// Copies; the exit status. Standard error tells the rest, one line each. `layers` are descriptors of the upper and the lower directory
/// of the container's root.
pub(super) fn run(transfer: &Transfer, layers: Option<[RawFd; 2]>) -> i32 {
    let warn = |text: String| drop(writeln!(io::stderr(), "warning: {text}"));
    let result = match transfer {
        Transfer::Send { path } => send(Path::new(path), output(), warn),
        Transfer::Receive {
            target,
            name,
            contents,
            keep_owner,
        } => {
            let keep = Keep {
                owner: *keep_owner,
                special_bits: true,
                devices: true,
            };
            let input = io::BufReader::with_capacity(64 * 1024, io::stdin());
            receive(input, Path::new(target), OsStr::new(name), *contents, keep, warn)
        }
        Transfer::Changes { list, .. } => changes(layers, *list, warn),
        Transfer::Root => plain_root().and_then(|root| send_root(&root.path, output(), warn)),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            match error {
                TransferError::NotFound { .. } | TransferError::NoDirectory { .. } => NOT_THERE,
                _ => 1,
            }
        }
    }
}

fn output() -> impl Write {
    io::BufWriter::with_capacity(64 * 1024, io::stdout())
}

fn changes(layers: Option<[RawFd; 2]>, list: bool, warn: impl FnMut(String)) -> Result<(), TransferError> {
    let none = || TransferError::Stream(io::Error::other("this machine has no layers"));
    let [upper, lower] = layers.ok_or_else(none)?.map(descriptor);
    let root = plain_root()?;
    let layers = Layers {
        upper: &upper,
        lower: &lower,
        merged: &root.path,
        is_mount_point: &is_mount_point,
    };
    match list {
        true => send_list(&layers, output()),
        false => send_changes(&layers, output(), warn),
    }
}

/// The root without anything that is mounted in it.
struct PlainRoot {
    path: PathBuf,
    _tree: std::os::fd::OwnedFd,
}

fn plain_root() -> Result<PlainRoot, TransferError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, "/", flags).map_err(|errno| TransferError::Io {
        action: "open",
        path: "/".into(),
        source: errno.into(),
    })?;
    Ok(PlainRoot {
        path: descriptor(tree.as_raw_fd()),
        _tree: tree,
    })
}

fn descriptor(fd: RawFd) -> PathBuf {
    // With the dot the directory is meant and not the link to it.
    PathBuf::from(format!("/proc/self/fd/{fd}/."))
}

fn is_mount_point(name: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(CWD, Path::new("/").join(name), flags, StatxFlags::empty())
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}
