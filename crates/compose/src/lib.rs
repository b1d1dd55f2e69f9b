//! Compose files: read, merged, checked, and as typed values. Nothing here knows of machines.
//!
//! ```text
//! files ─> parse (nodes with places) ─> interpolate ─> canonical (long forms) ─> schema ─> include, extends, merge
//!       ─> normalize (defaults, names, variables) ─> Project
//! ```
//! # Invariants
//! The rules are those of the Compose specification; where it says nothing, those of its reference implementation. After `canonical`
//! every value has one form, so merging and reading know no other. An error names the file, the line and the key.
//!
//! | module | owns |
//! |---|---|
//! | `parse`, `node` | YAML as a tree that knows where it was written |
//! | `interpolate`, `dotenv` | variables in values, and files of variables |
//! | `canonical` | short forms, relative paths |
//! | [`schema`] | which keys there are, what their values are, and what comes of them here |
//! | `merge` | one file over another |
//! | `load` | which files, include, extends, the project's name |
//! | `normalize`, `read` | defaults, and the typed values |
//! | [`order`] | what is started before what |

mod canonical;
mod dotenv;
mod error;
mod interpolate;
mod load;
mod merge;
mod model;
mod node;
mod normalize;
pub mod order;
mod parse;
mod read;
pub mod schema;
mod yaml;

pub use error::{ComposeError, Place};
pub use load::Options;
pub use model::{
    Attachment, Condition, Dependency, FileSource, Grant, HealthCheck, HealthTest, Logging, Mount, MountSource,
    Network, Port, Project, Service, Volume,
};
pub use yaml::text as yaml;

/// Reads a project.
///
/// # Errors
/// What is wrong, with the file and the line where there is one.
pub fn project(options: &Options) -> Result<Project, ComposeError> {
    let mut loaded = load::load(options)?;
    normalize::document(&mut loaded)?;
    read::project(loaded, options)
}

/// The SHA-256 of bytes, in hex: what a service's configuration is compared by.
pub fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
