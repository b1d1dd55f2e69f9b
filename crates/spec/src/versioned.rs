//! JSON files with a `version`: what a newer program wrote is refused, as its own words say, and never taken for damage.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use zmachine_sys::file::FileError;

use crate::failure::{Class, Failure};

/// What to do about a file that a newer program wrote.
pub const NEWER_HINT: &str = "use the zmachine that wrote it, or a newer one";

/// What every version of every file has.
#[derive(Deserialize)]
pub struct Versioned {
    /// The version of its format.
    pub version: u32,
}

/// The refusal of a file that a newer program wrote.
pub fn newer(path: &Path, version: u32) -> Failure {
    let message = format!(
        "{} has format version {version}, which this zmachine does not know",
        path.display()
    );
    Failure::new(Class::Unsupported, message).hint(NEWER_HINT)
}

/// Reads a JSON file with a `version`. The version comes first: what a newer program wrote may have any form.
pub fn read_versioned<T: DeserializeOwned>(path: &Path, known: u32) -> Result<T, Failure> {
    let bytes = fs::read(path).map_err(|e| FileError::io("read", path, e))?;
    let malformed = |source| FileError::Malformed {
        path: path.to_owned(),
        source,
    };
    let found: Versioned = serde_json::from_slice(&bytes).map_err(malformed)?;
    if found.version > known {
        return Err(newer(path, found.version));
    }
    Ok(serde_json::from_slice(&bytes).map_err(malformed)?)
}
