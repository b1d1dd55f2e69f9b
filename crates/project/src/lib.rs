//! The machines of a compose project: what there is, and making it what the files say.
//!
//! ```text
//! Project (zmachine-compose) ─> words of `create` for each machine (words) ─> Front ─> MachineSpec ─> engine (converge)
//! ```
//! # Invariants
//! What belongs to a project is known by labels, those of docker's compose: nothing else remembers it. A machine is left alone as long as
//! the hash of its service, which is one of them, is the same. Volumes go only when that is asked for. A service is turned into the words of
//! a command line, and the front end reads them as it reads a user's: so an option means the same in both places.
//!
//! | module | owns |
//! |---|---|
//! | [`words`] | a service as words of `create` |
//! | [`resources`] | networks, files and volumes that machines need; what makes a service another one |
//! | [`converge`] | making and starting, each after what it needs |
//! | `health` | waiting for what others need |
//! | [`end`] | stopping, removing and starting what is there |
//! | [`logs`], [`follow`] | what the machines write, among each other |

pub mod converge;
pub mod end;
pub mod follow;
mod health;
pub mod logs;
mod owned;
pub mod resources;
pub mod words;

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Map, Value};
use zmachine_image::Progress;
use zmachine_spec::{Failure, MachineSpec, VolumeRequest};

pub use owned::{CONFIG_FILES, NUMBER, ONE_OFF, Owned, PROJECT, SERVICE, labels, levels, owned};

/// What only a front end can do: read words as its command line, and tell its user.
pub trait Front: Sync {
    /// The spec that the words of `create` ask for; relative paths are relative to `folder`.
    ///
    /// # Errors
    /// What is wrong with a word.
    fn spec(&self, words: Vec<OsString>, folder: &Path) -> Result<MachineSpec, Failure>;

    /// The words that keys of a machine file stand for; relative paths are relative to the folder of `file`.
    ///
    /// # Errors
    /// Which key is wrong.
    fn keys(&self, file: &Path, keys: &Map<String, Value>) -> Result<Vec<OsString>, Failure>;

    /// The word for a volume, which may say more than a user can write in one.
    ///
    /// # Errors
    /// When there is none.
    fn volume(&self, request: &VolumeRequest) -> Result<OsString, Failure>;

    /// A failure with settings as compose files spell them.
    fn respelled(&self, failure: Failure) -> Failure;

    /// Where work that takes its time is shown.
    fn progress(&self) -> Box<dyn Progress>;

    /// Something was done to a thing.
    fn done(&self, thing: &str, what: &str);

    /// Something the user should know.
    fn warn(&self, line: &str);

    /// Writes to the standard output.
    ///
    /// # Errors
    /// When that cannot be written.
    fn write(&self, bytes: &[u8]) -> Result<(), Failure>;

    /// A failure that is not the last one.
    fn failed(&self, failure: &Failure);
}

/// A failure as one of a service.
pub fn of_service(front: &dyn Front, service: &str, failure: Failure) -> Failure {
    front.respelled(failure).context(format!("service '{service}'"))
}
