//! What the machine's processes are locked into (see [`zmachine_sys::jail`]): its user, its folder, and whether at all.
//!
//! A process that a guest can reach is started with [`Sandbox::jail`], to which its own module adds what it must see.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};
use zmachine_spec::{Failure, Home, JailChoice};
use zmachine_store::user::{self, UserLease};
use zmachine_sys::host::may_change_user;
use zmachine_sys::jail::Jail;

/// The machine's part of every jail.
#[derive(Debug)]
pub(super) struct Sandbox {
    is_off: bool,
    user: Option<UserLease>,
    folder: PathBuf,
}

impl Sandbox {
    /// A sandbox in the run folder of the machine `id`; what it could not have, as words.
    pub(super) fn make(home: &Home, id: &str, choice: JailChoice) -> Result<(Sandbox, Option<String>), Failure> {
        let folder = home.run_dir(id).join("jail");
        let is_off = choice == JailChoice::Off;
        let mut sandbox = Sandbox {
            is_off,
            user: None,
            folder,
        };
        if is_off {
            let text =
                "no jail: its processes have the rights of whoever started it (switching it off is for debugging)";
            return Ok((sandbox, Some(text.to_owned())));
        }
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).recursive(true).create(&sandbox.folder)?;
        if !rustix::process::geteuid().is_root() {
            return Ok((sandbox, None));
        }
        if !may_change_user() {
            let text = "its processes have no user of their own: this root has not the capabilities SYS_ADMIN, SETUID, SETGID and CHOWN";
            return Ok((sandbox, Some(text.to_owned())));
        }
        let whom = format!("{} {id}", home.data().display());
        match UserLease::take(Path::new(user::FOLDER), &whom) {
            Ok(lease) => {
                sandbox.user = Some(lease);
                Ok((sandbox, None))
            }
            Err(error) => Ok((
                sandbox,
                Some(format!("its processes have no user of their own: {error}")),
            )),
        }
    }

    /// Nothing is locked in.
    pub(super) fn is_off(&self) -> bool {
        self.is_off
    }

    /// The machine's user.
    pub(super) fn user(&self) -> Option<u32> {
        self.user.as_ref().map(UserLease::number)
    }

    /// A jail that has nothing but the machine's user yet; `None` when there is to be none.
    pub(super) fn jail(&self) -> Option<Jail> {
        (!self.is_off).then(|| Jail::new(&self.folder, self.user()))
    }

    /// Gives a socket of the run folder to the machine's user.
    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        if let Some(user) = self.user() {
            rustix::fs::chown(path, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
        }
        Ok(())
    }
}
