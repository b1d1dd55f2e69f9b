//! A failure as the user sees it: what, why, and what to do; with a class that decides the exit code.
//!
//! It is a value that survives a pipe: the monitor sends it to the command line as JSON.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};
use zmachine_agent_protocol::{AgentError, ErrorKind};

use crate::Setting;

/// What kind of failure, as the exit codes of the command line tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Anything without a class of its own.
    Failed,
    /// The request itself makes no sense.
    Usage,
    /// The named object does not exist.
    NotFound,
    /// The name is taken, or the object's state does not allow it.
    Conflict,
    /// Something could not be fetched, or is not what its hash says.
    Fetch,
    /// This host cannot do it.
    Unsupported,
    /// The command is in the guest and cannot be run.
    CommandNotExecutable,
    /// The command is not in the guest.
    CommandNotFound,
}

/// A failure with its cause chain and a hint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Decides the exit code.
    pub class: Class,
    /// What failed, naming the thing.
    pub message: String,
    /// Why, outermost first.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What to do.
    #[serde(default)]
    pub hint: Option<String>,
    /// The settings that the user may change for it.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub settings: Box<[Setting]>,
}

impl Failure {
    /// A failure without causes.
    pub fn new(class: Class, message: impl Into<String>) -> Failure {
        Failure {
            class,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            settings: Box::default(),
        }
    }

    /// A failure of `class` that reads as `error` and its sources.
    pub fn from_error(class: Class, error: &(dyn Error + 'static)) -> Failure {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if causes.last() != Some(&text) {
                causes.push(text);
            }
            source = cause.source();
        }
        Failure {
            class,
            message: error.to_string(),
            causes,
            hint: None,
            settings: Box::default(),
        }
    }

    /// The same with a hint; an empty hint is none.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        let hint = hint.into();
        self.hint = (!hint.is_empty()).then_some(hint);
        self
    }

    /// The same as a matter of `setting`, too.
    pub fn about(mut self, setting: Setting) -> Failure {
        if !self.settings.contains(&setting) {
            self.settings = self.settings.iter().copied().chain([setting]).collect();
        }
        self
    }

    /// The same with an outer message; the old one becomes the first cause.
    pub fn context(mut self, message: impl Into<String>) -> Failure {
        let inner = std::mem::replace(&mut self.message, message.into());
        self.causes.insert(0, inner);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl Error for Failure {}

impl From<zmachine_sys::file::FileError> for Failure {
    fn from(error: zmachine_sys::file::FileError) -> Failure {
        Failure::from_error(Class::Failed, &error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::from_error(Class::Failed, &error)
    }
}

impl From<zmachine_network::NetworkError> for Failure {
    fn from(error: zmachine_network::NetworkError) -> Failure {
        use zmachine_network::{Concern, ErrorKind};
        let class = match error.kind() {
            ErrorKind::Usage => Class::Usage,
            ErrorKind::NotFound => Class::NotFound,
            ErrorKind::Conflict => Class::Conflict,
            ErrorKind::NeedsRoot | ErrorKind::Unsupported => Class::Unsupported,
            ErrorKind::Failed => Class::Failed,
        };
        let failure = Failure::from_error(class, &error).hint(error.hint().unwrap_or_default());
        match error.concerns() {
            Concern::Network => failure.about(Setting::Networks),
            Concern::Publish => failure.about(Setting::Publish),
            Concern::Other => failure,
        }
    }
}

impl From<zmachine_network::pod::PodNetworkError> for Failure {
    fn from(error: zmachine_network::pod::PodNetworkError) -> Failure {
        Failure::from_error(Class::Failed, &error)
    }
}

impl From<zmachine_hypervisor::ControlError> for Failure {
    fn from(error: zmachine_hypervisor::ControlError) -> Failure {
        Failure::from_error(Class::Failed, &error)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Failure {
        let (class, hint) = match error.kind {
            ErrorKind::CommandNotFound => (
                Class::CommandNotFound,
                "the command must be in the image; 'zmachine flist ls' lists its files",
            ),
            ErrorKind::CommandNotExecutable => (
                Class::CommandNotExecutable,
                "the file needs execute permission and a format the guest can run",
            ),
            ErrorKind::UnknownUser => (Class::Failed, "use a user of the image's /etc/passwd, or a number"),
            ErrorKind::WorkingDirectory => (Class::Failed, "choose a directory of the machine with -w"),
            ErrorKind::Setup | ErrorKind::BadRequest | ErrorKind::Internal => (Class::Failed, ""),
        };
        Failure::new(class, error.message).hint(hint)
    }
}

impl From<zmachine_kernel::KernelError> for Failure {
    fn from(error: zmachine_kernel::KernelError) -> Failure {
        use zmachine_kernel::KernelError;
        let class = match error {
            KernelError::NotFound { .. } | KernelError::NoDefault { .. } => Class::NotFound,
            KernelError::Exists { .. } => Class::Conflict,
            KernelError::BadName { .. } => Class::Usage,
            _ => Class::Failed,
        };
        Failure::from_error(class, &error).hint(error.hint().unwrap_or_default())
    }
}

impl From<zmachine_image::ResolveError> for Failure {
    fn from(error: zmachine_image::ResolveError) -> Failure {
        let class = match () {
            () if error.is_not_found() => Class::NotFound,
            () if error.is_fetch_failure() => Class::Fetch,
            () if error.is_conflict() => Class::Conflict,
            () if error.is_usage() => Class::Usage,
            () => Class::Failed,
        };
        let failure = Failure::from_error(class, &error).hint(error.hint().unwrap_or_default());
        match () {
            () if error.is_about_kind() => failure.about(Setting::Mode),
            () if error.is_about_stores() => failure.about(Setting::Stores),
            () => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_chain_of_an_error_is_kept_in_order() {
        let error = zmachine_sys::file::read_json::<u32>(std::path::Path::new("/nonexistent/a")).unwrap_err();
        let failure = Failure::from_error(Class::NotFound, &error)
            .context("cannot load machine a")
            .hint("look again");
        assert_eq!(failure.message, "cannot load machine a");
        assert_eq!(failure.causes[0], "cannot read /nonexistent/a");
        assert!(failure.causes[1].contains("No such file"));
        let text = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
    }
}
