//! `mount`.

use std::path::Path;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use zmachine_mount::{Mount, MountError};
use zmachine_spec::{Class, Failure};

use super::{fetcher, open};
use crate::args::flist::ReadArgs;

/// Serves the mount until it is taken away, by `umount` or a signal.
pub(super) fn mount_flist(file: &Path, target: &Path, from: ReadArgs) -> Result<u8, Failure> {
    let flist = open(file)?;
    let fetcher = fetcher(&flist, &from.store)?;
    let failure = |error: MountError| {
        let class = match error {
            MountError::NotADirectory { .. } => Class::Usage,
            MountError::Refused { .. } => Class::Unsupported,
            _ => Class::Failed,
        };
        Failure::from_error(class, &error).hint(error.hint())
    };
    // Before the mount is there: a signal between the two would leave it behind.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let name = file.display().to_string();
    let mut mount = Mount::new(flist.tree, fetcher, target, &name, |problem| {
        eprintln!("warning: {problem}")
    })
    .map_err(failure)?;
    eprintln!("{name} is mounted on {}; Ctrl-C or umount ends it", target.display());
    let mut unmounter = mount.unmounter();
    thread::spawn(move || {
        for _ in signals.forever() {
            if let Err(error) = unmounter.end() {
                eprintln!("warning: the mount stays, somebody uses it: {error}");
            }
        }
    });
    mount.serve().map_err(failure)?;
    Ok(0)
}
