//! Hosts that have names, of which one may be in use.
//!
//! # On disk
//! `zmachine/contexts.json` in the user's folder of configuration, mode 0600: where hosts and the files of their tokens are, never a token.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zmachine_spec::{Class, Failure};
use zmachine_sys::file;

use crate::target::Host;

/// The largest file that is read, in bytes.
const FILE_BYTES: u64 = 1 << 20;

/// The name of this host's own engine, which needs no server.
pub const LOCAL: &str = "local";

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    version: u32,
    /// The one in use; `None` is this host.
    #[serde(default)]
    pub current: Option<String>,
    /// By their names.
    #[serde(default)]
    pub contexts: BTreeMap<String, Host>,
}

/// Where they are kept.
///
/// # Errors
/// [`Class::Usage`] without a home.
pub fn path(variable: impl Fn(&str) -> Option<String>) -> Result<PathBuf, Failure> {
    let folder = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let configuration = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
    let configuration = configuration.ok_or_else(|| {
        Failure::new(
            Class::Usage,
            "there is no place for contexts: neither XDG_CONFIG_HOME nor HOME is set",
        )
        .hint("use --host")
    })?;
    Ok(configuration.join("zmachine/contexts.json"))
}

impl Contexts {
    /// Reads them; none when there is no file.
    ///
    /// # Errors
    /// When the file cannot be read, or is of a later version.
    pub fn read(path: &Path) -> Result<Contexts, Failure> {
        let bytes = match file::read_regular(path, FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Contexts {
                    version: 1,
                    ..Contexts::default()
                });
            }
            Err(error) => return Err(Failure::from(error).context(format!("{} cannot be read", path.display()))),
        };
        let wrong = |failure: Failure| failure.context(format!("{} cannot be read", path.display()));
        let contexts: Contexts =
            serde_json::from_slice(&bytes).map_err(|e| wrong(Failure::from_error(Class::Failed, &e)))?;
        match contexts.version {
            1 => Ok(contexts),
            other => Err(wrong(Failure::new(Class::Failed, format!("it is of version {other}")))),
        }
    }

    /// Keeps them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        if let Some(folder) = path.parent() {
            file::make_dirs(folder)?;
        }
        Ok(file::replace_json(path, self)?)
    }

    /// The host of a name; `None` for this one.
    ///
    /// # Errors
    /// [`Class::NotFound`].
    pub fn get(&self, name: &str) -> Result<Option<&Host>, Failure> {
        if name == LOCAL {
            return Ok(None);
        }
        self.contexts.get(name).map(Some).ok_or_else(|| {
            Failure::new(Class::NotFound, format!("there is no context '{name}'"))
                .hint("'zmachine context ls' shows all of them")
        })
    }

    /// Adds one.
    ///
    /// # Errors
    /// [`Class::Conflict`] for a name that is taken; [`Class::Usage`] for one that cannot be.
    pub fn add(&mut self, name: &str, host: Host) -> Result<(), Failure> {
        let is_name = (1..=63).contains(&name.len())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !is_name {
            return Err(
                Failure::new(Class::Usage, format!("'{name}' cannot be a context's name"))
                    .hint("use 1 to 63 letters, digits, '-', '_' and '.'"),
            );
        }
        host.way()?;
        if name == LOCAL || self.contexts.contains_key(name) {
            return Err(
                Failure::new(Class::Conflict, format!("there is a context '{name}' already"))
                    .hint("remove it with 'zmachine context rm', or use another name"),
            );
        }
        self.contexts.insert(name.to_owned(), host);
        Ok(())
    }

    /// Removes one. When it is in use, this host is used from then on.
    ///
    /// # Errors
    /// [`Class::NotFound`]; [`Class::Usage`] for this host's own.
    pub fn remove(&mut self, name: &str) -> Result<(), Failure> {
        if self.get(name)?.is_none() {
            return Err(Failure::new(Class::Usage, "this host's own context stays"));
        }
        self.contexts.remove(name);
        self.current.take_if(|current| current == name);
        Ok(())
    }

    /// Uses one from now on.
    ///
    /// # Errors
    /// [`Class::NotFound`].
    pub fn choose(&mut self, name: &str) -> Result<(), Failure> {
        self.current = self.get(name)?.map(|_| name.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_kept_used_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/contexts.json");
        let host = Host {
            host: "https://zm.example".to_owned(),
            token_file: Some("/etc/token".into()),
            ca_file: None,
        };
        let mut contexts = Contexts::read(&path).unwrap();
        contexts.add("far", host.clone()).unwrap();
        assert_eq!(contexts.add("far", host.clone()).unwrap_err().class, Class::Conflict);
        assert_eq!(contexts.add("a/b", host.clone()).unwrap_err().class, Class::Usage);
        assert_eq!(contexts.choose("none").unwrap_err().class, Class::NotFound);
        contexts.choose("far").unwrap();
        contexts.write(&path).unwrap();
        let mut again = Contexts::read(&path).unwrap();
        assert_eq!(
            (again.current.as_deref(), again.get("far").unwrap()),
            (Some("far"), Some(&host))
        );
        assert_eq!(again.get(LOCAL).unwrap(), None);
        again.remove("far").unwrap();
        assert_eq!(again.current, None);
        std::fs::write(&path, r#"{"version": 2}"#).unwrap();
        assert!(Contexts::read(&path).is_err());
    }
}
