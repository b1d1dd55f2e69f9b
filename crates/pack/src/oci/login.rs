//! `login` and `logout`: credentials in the files that docker and podman have.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use thiserror::Error;
use zmachine_sys::file::{self, FileError, read_regular};

use super::auth::{DOCKER_HUB, LIMIT};
use super::registry::Registry;
use super::{ImportOptions, Problem};

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
    /// A program keeps the credentials.
    #[error("{} leaves credentials to the program docker-credential-{helper}", path.display())]
    Helper {
        /// The file that says so.
        path: std::path::PathBuf,
        /// The end of its name.
        helper: String,
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
                Some("log in and out with 'docker login' and 'docker logout', which ask it".into())
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

/// Refuses a file that leaves the credentials of this registry to a program.
fn refuse_helper(path: &Path, content: &Map<String, Value>, host: &str) -> Result<(), LoginError> {
    let own = content.get("credHelpers").and_then(|helpers| helpers.get(key(host)));
    let helper = own.or(content.get("credsStore")).and_then(Value::as_str);
    match helper.filter(|helper| !helper.is_empty()) {
        Some(helper) => Err(LoginError::Helper {
            path: path.to_owned(),
            helper: helper.to_owned(),
        }),
        None => Ok(()),
    }
}

/// Writes user and password of a registry into a file, after the registry has taken them.
///
/// # Errors
/// [`LoginError`]; nothing is written then.
pub fn login(host: &str, user: &str, password: &str, path: &Path, options: &ImportOptions) -> Result<(), LoginError> {
    let mut content = read(path)?;
    refuse_helper(path, &content, host)?;
    let pair = STANDARD.encode(format!("{user}:{password}"));
    let checked = Registry::check(host, &pair, options);
    checked.map_err(|problem| match problem {
        Problem::Status(401 | 403) => LoginError::Refused { host: host.to_owned() },
        Problem::Status(status) => LoginError::Registry {
            host: host.to_owned(),
            what: format!("it answered with status {status}"),
        },
        Problem::Read(error) => LoginError::Registry {
            host: host.to_owned(),
            what: error.to_string(),
        },
        Problem::Broken(what) | Problem::Platform(what) => LoginError::Registry {
            host: host.to_owned(),
            what,
        },
    })?;
    auths(&mut content).insert(key(host).to_owned(), json!({"auth": pair}));
    if let Some(folder) = path.parent() {
        file::make_dirs(folder)?;
    }
    Ok(file::replace_json(path, &content)?)
}

/// Takes the credentials of a registry out of those of `paths` that have some.
///
/// # Errors
/// [`LoginError::Unknown`] when none has, or why one cannot be changed.
pub fn logout(host: &str, paths: &[std::path::PathBuf]) -> Result<(), LoginError> {
    let mut is_known = false;
    for path in paths {
        let mut content = read(path)?;
        if auths(&mut content).remove(key(host)).is_some() {
            file::replace_json(path, &content)?;
            is_known = true;
        } else {
            refuse_helper(path, &content, host)?;
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

    #[test]
    fn what_a_program_keeps_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"credsStore":"pass"}"#).unwrap();
        let refused = login("h:1", "me", "pw", &path, &ImportOptions::default()).unwrap_err();
        assert!(refused.to_string().contains("docker-credential-pass"), "{refused}");
    }
}
