//! Where the state lives.
//!
//! ```text
//! data/format                 {"version":1}; a version or feature flag we do not know is refused
//! data/blocks/ data/cache.json data/images/ data/kernels/ data/networks/      see the crates image, kernel, network
//! data/removed/ data/events.jsonl                             what is left of removed machines; what happened
//! data/machines/.lock         held while a machine is created or removed
//! data/machines/by-name/<name> -> ../<id>
//! data/machines/<id>/{spec,plan,state}.json resources.jsonl lock root.img logs/ attempts/
//! run/<id>/{ctl.sock,rootfs.sock}       gone after a reboot, and with the machine's run
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zmachine_sys::file;

use crate::failure::{Class, Failure};

/// Version of the layout that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// Longest path a unix socket address takes, without the final NUL.
const SOCKET_PATH_MAX: usize = 107;

/// The two roots of all state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    data: PathBuf,
    run: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Format {
    version: u32,
    #[serde(default)]
    incompatible: Vec<String>,
}

impl Home {
    /// Opens the state under `data` (kept) and `run` (lost at reboot), and makes both when missing.
    ///
    /// # Errors
    /// When they cannot be made, are of a newer format, or `run` is too long for the sockets below it.
    pub fn open(data: &Path, run: &Path) -> Result<Home, Failure> {
        let home = Home {
            data: data.to_owned(),
            run: run.to_owned(),
        };
        let socket = home.run_dir("0123456789ab").join("rootfs.sock");
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            let message = format!("the folder {} is too long for sockets below it", run.display());
            return Err(Failure::new(Class::Usage, message).hint("choose a shorter path for ZMACHINE_HOME"));
        }
        for dir in [data, run, &home.machines(), &home.by_name()] {
            file::make_dirs(dir).map_err(|e| {
                Failure::from(e).hint("run as root, or set ZMACHINE_HOME to a folder that you may write")
            })?;
        }
        home.check_format()?;
        Ok(home)
    }

    /// Another home, to see what its machines need: nothing is made, and what a newer program wrote is refused.
    ///
    /// # Errors
    /// When it is no home, or not one that this program can read.
    pub fn of_others(data: &Path) -> Result<Home, Failure> {
        let home = Home {
            data: data.to_owned(),
            // Only its own commands know where that is.
            run: data.join("run"),
        };
        home.check_known(&file::read_json::<Format>(&data.join("format"))?)?;
        Ok(home)
    }

    /// Whether `folder` is where its state is kept.
    pub fn is_in(&self, folder: &Path) -> bool {
        self.data.canonicalize().is_ok_and(|data| data == folder)
    }

    fn check_format(&self) -> Result<(), Failure> {
        let path = self.data.join("format");
        match file::read_json::<Format>(&path) {
            Ok(format) => self.check_known(&format),
            Err(e) if e.is_not_found() => Ok(file::replace_json(
                &path,
                &Format {
                    version: FORMAT_VERSION,
                    incompatible: vec![],
                },
            )?),
            Err(e) => Err(e.into()),
        }
    }

    fn check_known(&self, found: &Format) -> Result<(), Failure> {
        if found.version == FORMAT_VERSION && found.incompatible.is_empty() {
            return Ok(());
        }
        let what = match found.incompatible.first() {
            Some(flag) => format!("the feature '{flag}'"),
            None => format!("format version {}", found.version),
        };
        let message = format!("{} uses {what}, which this zmachine does not know", self.data.display());
        Err(Failure::new(Class::Unsupported, message).hint("use the zmachine that wrote it, or a newer one"))
    }

    /// The kept state: blocks, images, kernels, networks, machines.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The folder of the runtime state of all machines.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Where the speed of this host's counter is noted.
    pub fn counter(&self) -> PathBuf {
        self.run.join("counter.json")
    }

    /// The folder of all machines.
    pub fn machines(&self) -> PathBuf {
        self.data.join("machines")
    }

    /// The folder with one link per machine name.
    pub fn by_name(&self) -> PathBuf {
        self.machines().join("by-name")
    }

    /// The folder of one machine.
    pub fn machine(&self, id: &str) -> PathBuf {
        self.machines().join(id)
    }

    /// The folder of a running machine's sockets.
    pub fn run_dir(&self, id: &str) -> PathBuf {
        self.run.join(id)
    }

    /// What is there while a machine stands by and can be taken.
    pub fn standby_mark(&self, id: &str) -> PathBuf {
        self.run_dir(id).join("standby")
    }

    /// The socket a machine's monitor listens on.
    pub fn control_socket(&self, id: &str) -> PathBuf {
        self.run_dir(id).join("ctl.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_refused_and_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Home::open(dir.path(), &dir.path().join("run"));
        open().unwrap();
        std::fs::write(dir.path().join("format"), r#"{"version":1,"incompatible":["shards"]}"#).unwrap();
        let failure = open().unwrap_err();
        assert_eq!(failure.class, Class::Unsupported);
        assert!(failure.message.contains("shards"));
    }

    #[test]
    fn a_run_folder_too_long_for_sockets_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120));
        assert_eq!(Home::open(&long, &long.join("run")).unwrap_err().class, Class::Usage);
        assert!(!long.exists());
    }
}
