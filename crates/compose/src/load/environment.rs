//! The variables that a project's values may name: those of the process over those of `.env`.

use std::path::{Path, PathBuf};

use super::{Environment, Options};
use crate::canonical::absolute;
use crate::dotenv;
use crate::error::{ComposeError, Place, Result};

/// Those of a project in `folder`.
pub(super) fn of_project(options: &Options, folder: &Path) -> Result<Environment> {
    let environment = Environment(options.environment.clone());
    let named = environment.get("COMPOSE_ENV_FILES").filter(|files| !files.is_empty());
    let files: Vec<PathBuf> = match (options.env_files.is_empty(), named) {
        (false, _) => options.env_files.clone(),
        (true, Some(named)) => named.split(',').map(PathBuf::from).collect(),
        (true, None) => return with_dotenv(environment, folder),
    };
    let at = |file: &PathBuf| PathBuf::from(absolute(&file.to_string_lossy(), &options.cwd));
    with_files(environment, &files.iter().map(at).collect::<Vec<_>>())
}

/// Those of a project that another one includes: the other's count first.
pub(super) fn of_include(outer: &Environment, files: &[PathBuf], folder: &Path) -> Result<Environment> {
    match files.is_empty() {
        true => with_dotenv(outer.clone(), folder),
        false => with_files(outer.clone(), files),
    }
}

fn with_dotenv(environment: Environment, folder: &Path) -> Result<Environment> {
    let file = folder.join(".env");
    match file.is_file() {
        true => with_files(environment, &[file]),
        false => Ok(environment),
    }
}

/// Later files count over earlier ones, and `environment` over all of them.
fn with_files(mut environment: Environment, files: &[PathBuf]) -> Result<Environment> {
    let mut of_files = Environment::default();
    for file in files.iter().filter(|file| *file != Path::new("/dev/null")) {
        let lookup = |name: &str| environment.get(name).or_else(|| of_files.get(name));
        let found = env_file("the file of variables", file, &lookup)?;
        of_files.0.extend(found);
    }
    for (name, value) in of_files.0 {
        environment.0.entry(name).or_insert(value);
    }
    Ok(environment)
}

/// The variables of one file.
///
/// # Errors
/// When it cannot be read, or a line of it is wrong.
pub(crate) fn env_file(
    what: &str,
    path: &Path,
    lookup: crate::interpolate::Lookup<'_>,
) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).map_err(|e| ComposeError::unreadable(what, path, &e))?;
    dotenv::parse(&text, lookup, &mut Vec::new()).map_err(|(line, why)| {
        let file = std::sync::Arc::from(path);
        ComposeError::at(&Place { file, line }, why)
    })
}
