//! `login` and `logout`: credentials in the files that docker and podman have.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use thiserror::Error;
use zmachine_sys::file::{self, FileError, read_regular};

use super::auth::{DOCKER_HUB, LIMIT};
use super::registry::Registry;
use super::{ImportOptions, Problem, helper};

/// Why somebody could not be logged in or out.
#[derive(Debug, Error)]
pub enum LoginError {
    /// The registry does not know them.
    #[error("{host} does not take this user and password")]
    Refused {
        /// The registry.
        host: String,
    },
    /// It could not be asked.
    #[error("{host} could not be asked: {what}")]
    Registry {
        /// The registry.
        host: String,
        /// What happened.
        what: String,
    },
    /// The program that keeps the credentials does not do what it was asked for.
    #[error("{} leaves credentials to a program: {what}", path.display())]
    Helper {
        /// The file that says so.
        path: PathBuf,
        /// What happened.
        what: String,
    },
    /// Nobody is logged in there.
    #[error("nobody is logged in to {host}")]
    Unknown {
        /// The registry.
        host: String,
    },
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl LoginError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            LoginError::Refused { .. } => Some("check the name, and use a token where the registry wants one".into()),
            LoginError::Registry { .. } => Some("check the name of the registry and the network".into()),
            LoginError::Helper { .. } => {
                Some("see that the program works, or take it out of 'credsStore' and 'credHelpers' of that file".into())
            }
            LoginError::Unknown { .. } | LoginError::File(_) => None,
        }
    }
}

/// The key that a registry has in such a file.
fn key(host: &str) -> &str {
    match host {
        "docker.io" => DOCKER_HUB,
        host => host,
    }
}

/// The file as it is, with what is not of interest here.
fn read(path: &Path) -> Result<Map<String, Value>, LoginError> {
    let bytes = match read_regular(path, LIMIT) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(FileError::io("read", path, e).into()),
    };
    serde_json::from_slice(&bytes).map_err(|source| {
        let path = path.to_owned();
        FileError::Malformed { path, source }.into()
    })
}

fn auths(content: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let auths = content.entry("auths").or_insert_with(|| json!({}));
    if !auths.is_object() {
        *auths = json!({});
    }
    match auths {
        Value::Object(auths) => auths,
        _ => unreachable!("it was made an object right before"),
    }
}

/// The program that a file leaves the credentials of this registry to.
fn helper_of<'a>(content: &'a Map<String, Value>, host: &str) -> Option<&'a str> {
    let own = content.get("credHelpers").and_then(|helpers| helpers.get(key(host)));
    let name = own.or(content.get("credsStore")).and_then(Value::as_str);
    name.filter(|name| !name.is_empty())
}

fn helper_failed(path: &Path, problem: Problem) -> LoginError {
    LoginError::Helper {
        path: path.to_owned(),
        what: text(problem),
    }
}

fn text(problem: Problem) -> String {
    match problem {
        Problem::Status(status) => format!("it answered with status {status}"),
        Problem::Read(error) => error.to_string(),
        Problem::Broken(what) | Problem::Platform(what) => what,
    }
}

/// Writes user and password of a registry into a file, or has the program keep them that it names, after the registry has taken them.
///
/// # Errors
/// [`LoginError`]; nothing is written then.
pub fn login(host: &str, user: &str, password: &str, path: &Path, options: &ImportOptions) -> Result<(), LoginError> {
    let mut content = read(path)?;
    let pair = STANDARD.encode(format!("{user}:{password}"));
    let checked = Registry::check(host, &pair, options);
    checked.map_err(|problem| match problem {
        Problem::Status(401 | 403) => LoginError::Refused { host: host.to_owned() },
        other => LoginError::Registry {
            host: host.to_owned(),
            what: text(other),
        },
    })?;
    let kept = match helper_of(&content, host) {
        Some(name) => {
            helper::store(name, key(host), user, password).map_err(|problem| helper_failed(path, problem))?;
            // As docker has it: what lists logins finds it here.
            json!({})
        }
        None => json!({"auth": pair}),
    };
    auths(&mut content).insert(key(host).to_owned(), kept);
    if let Some(folder) = path.parent() {
        file::make_dirs(folder)?;
    }
    Ok(file::replace_json(path, &content)?)
}

/// Takes the credentials of a registry out of those of `paths` that have some, and of the programs that these name.
///
/// # Errors
/// [`LoginError::Unknown`] when none has, or why one cannot be changed.
pub fn logout(host: &str, paths: &[PathBuf]) -> Result<(), LoginError> {
    let mut is_known = false;
    for path in paths {
        let mut content = read(path)?;
        if let Some(name) = helper_of(&content, host) {
            let erased = helper::ask(name, key(host)).and_then(|found| match found {
                Some(_) => helper::erase(name, key(host)).map(|()| true),
                None => Ok(false),
            });
            is_known |= erased.map_err(|problem| helper_failed(path, problem))?;
        }
        if auths(&mut content).remove(key(host)).is_some() {
            file::replace_json(path, &content)?;
            is_known = true;
        }
    }
    match is_known {
        true => Ok(()),
        false => Err(LoginError::Unknown { host: host.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_taken_out_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let before =
            r#"{"auths":{"a:1":{"auth":"YTpi"},"https://index.docker.io/v1/":{"auth":"YTpi"}},"detachKeys":"ctrl-e"}"#;
        std::fs::write(&path, before).unwrap();
        logout("docker.io", std::slice::from_ref(&path)).unwrap();
        let after: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            after,
            json!({"auths": {"a:1": {"auth": "YTpi"}}, "detachKeys": "ctrl-e"})
        );
        let again = logout("docker.io", &[path]);
        assert!(matches!(again, Err(LoginError::Unknown { .. })));
    }
}
