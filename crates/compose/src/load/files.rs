//! Which files a project is made of.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::Options;
use super::environment;
use crate::canonical::absolute;
use crate::error::{ComposeError, Result};

/// In this order, and the first that is there counts.
const NAMES: [&str; 4] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
];

/// Laid over it when it is there.
const OVERRIDES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// Standard input, as a file.
const STDIN: &str = "-";

/// The files, and what relative paths are relative to.
pub(super) struct Found {
    pub(super) files: Vec<PathBuf>,
    pub(super) folder: PathBuf,
}

pub(super) fn find(options: &Options) -> Result<Found> {
    let given = match options.files.is_empty() {
        true => named_by_environment(options)?,
        false => options.files.clone(),
    };
    let at = |path: &Path| match path == Path::new(STDIN) {
        true => path.to_owned(),
        false => PathBuf::from(absolute(&path.to_string_lossy(), &options.cwd)),
    };
    let files: Vec<PathBuf> = match given.is_empty() {
        false => given.iter().map(|path| at(path)).collect(),
        true => looked_for(options)?,
    };
    let folder = match (&options.folder, files.first()) {
        (Some(folder), _) => at(folder),
        (None, Some(file)) if file != Path::new(STDIN) => file.parent().map(Path::to_owned).unwrap_or_default(),
        _ => options.cwd.clone(),
    };
    Ok(Found { files, folder })
}

/// `COMPOSE_FILE`, of the process or of `.env`.
fn named_by_environment(options: &Options) -> Result<Vec<PathBuf>> {
    let folder = options.folder.as_ref().unwrap_or(&options.cwd);
    let environment = environment::of_project(options, folder)?;
    let Some(files) = environment.get("COMPOSE_FILE").filter(|files| !files.is_empty()) else {
        return Ok(Vec::new());
    };
    let separator = environment
        .get("COMPOSE_PATH_SEPARATOR")
        .filter(|text| !text.is_empty());
    let separator = separator.unwrap_or_else(|| ":".to_owned());
    Ok(files.split(&separator).map(PathBuf::from).collect())
}

/// The files of this folder, or of the nearest one above that has some.
fn looked_for(options: &Options) -> Result<Vec<PathBuf>> {
    let start = match &options.folder {
        Some(folder) => PathBuf::from(absolute(&folder.to_string_lossy(), &options.cwd)),
        None => options.cwd.clone(),
    };
    for folder in start.ancestors() {
        let present = |name: &&&str| folder.join(name).is_file();
        if let Some(name) = NAMES.iter().find(present) {
            let over = OVERRIDES.iter().find(present);
            return Ok([Some(name), over]
                .into_iter()
                .flatten()
                .map(|name| folder.join(name))
                .collect());
        }
    }
    let message = format!("there is no compose file in {} or above it", start.display());
    let error = ComposeError::new(message).hint(format!(
        "name one with -f FILE; it is looked for as {}",
        NAMES.join(", ")
    ));
    Err(ComposeError {
        is_not_found: true,
        ..error
    })
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String> {
    if path == Path::new(STDIN) {
        return stdin();
    }
    std::fs::read_to_string(path).map_err(|e| ComposeError::unreadable("the compose file", path, &e))
}

/// Standard input, which can be read only once.
fn stdin() -> Result<String> {
    static TEXT: std::sync::OnceLock<std::result::Result<String, String>> = std::sync::OnceLock::new();
    let text = TEXT.get_or_init(|| {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        read.map(|_| text).map_err(|e| e.to_string())
    });
    text.clone()
        .map_err(|e| ComposeError::new(format!("cannot read standard input: {e}")))
}
