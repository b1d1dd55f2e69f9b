//! What is wrong with a compose file, and where.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.file.display(), self.line)
    }
}

/// Why a project cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeError {
    /// Where; `None` when it is about no line of a file.
    pub place: Option<Place>,
    /// What is wrong, naming the thing.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// A file that was asked for is not there.
    pub is_not_found: bool,
}

impl ComposeError {
    /// An error about no line of a file.
    pub fn new(message: impl Into<String>) -> ComposeError {
        ComposeError {
            place: None,
            message: message.into(),
            hint: None,
            is_not_found: false,
        }
    }

    /// An error at a place.
    pub(crate) fn at(place: &Place, message: impl Into<String>) -> ComposeError {
        ComposeError {
            place: Some(place.clone()),
            ..ComposeError::new(message)
        }
    }

    /// The same with a hint; an empty one is none.
    pub fn hint(mut self, hint: impl Into<String>) -> ComposeError {
        let hint = hint.into();
        self.hint = (!hint.is_empty()).then_some(hint);
        self
    }

    /// A file that cannot be read.
    pub(crate) fn unreadable(what: &str, path: &Path, error: &std::io::Error) -> ComposeError {
        ComposeError {
            is_not_found: error.kind() == std::io::ErrorKind::NotFound,
            ..ComposeError::new(format!("cannot read {what} {}: {error}", path.display()))
        }
    }
}

impl fmt::Display for ComposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for ComposeError {}

/// What every step gives.
pub(crate) type Result<T> = std::result::Result<T, ComposeError>;
