//! Projects of the kinds that there are many of, and what their files say together; mistakes, and how they are told.

mod documents;
mod mistakes;
mod projects;
mod values;

use std::collections::BTreeMap;
use std::path::Path;

use zmachine_compose::{ComposeError, Options, Project};

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::Builder::new()
        .prefix("shop")
        .rand_bytes(0)
        .tempdir_in(parent())
        .unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

/// A folder of its own for each, so that all can have the same name.
fn parent() -> std::path::PathBuf {
    tempfile::tempdir().unwrap().keep()
}

fn options(folder: &Path) -> Options {
    Options {
        cwd: folder.to_owned(),
        ..Options::default()
    }
}

/// What these files say, with variables of the process.
fn read(files: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<Project, ComposeError> {
    let folder = folder(files);
    let environment: BTreeMap<String, String> = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let project = zmachine_compose::project(&Options {
        environment,
        ..options(folder.path())
    });
    std::fs::remove_dir_all(folder.path().parent().unwrap()).unwrap();
    project
}

/// What one file says.
fn one(text: &str) -> Result<Project, ComposeError> {
    read(&[("compose.yaml", text)], &[])
}
