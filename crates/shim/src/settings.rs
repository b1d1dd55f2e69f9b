//! What the node's administrator says, in `/etc/zmachine/kubernetes.toml`; every part may be left out.
//!
//! ```toml
//! memory = "512M"            # of a pod whose containers have no limits
//! cpus = 1                   # the same
//! overhead = "128M"          # what a guest needs beside its containers; RuntimeClass.overhead has to be larger
//! kernel = "NAME"            # in place of the default one
//! flists = ["/srv/flists/", "oci://registry.example/"]      # what annotations of pods may name: beginnings; none when missing
//! devices = 2                # so many block devices a pod may have as volumes, 16 at most; each costs its start a little
//! ```

use std::fs;
use std::path::Path;

use serde::Deserialize;
use zmachine_spec::bytes;

use crate::error::ShimError;

/// Where it is, unless the environment says otherwise.
const FILE: &str = "/etc/zmachine/kubernetes.toml";

/// Names another file.
const FILE_VARIABLE: &str = "ZMACHINE_KUBERNETES_CONFIG";

/// The most block devices of a pod: each is a bridge that its guest finds at boot.
const MOST_DEVICES: u16 = 16;

/// Everything that the file may say.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) memory: String,
    pub(crate) cpus: u32,
    pub(crate) overhead: String,
    pub(crate) kernel: Option<String>,
    pub(crate) flists: Vec<String>,
    pub(crate) devices: u16,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            memory: "512M".to_owned(),
            cpus: 1,
            overhead: "128M".to_owned(),
            kernel: None,
            flists: Vec::new(),
            devices: 2,
        }
    }
}

impl Settings {
    /// Reads the file; the defaults where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or says what nobody knows.
    pub(crate) fn read() -> Result<Settings, ShimError> {
        let file = std::env::var_os(FILE_VARIABLE).unwrap_or_else(|| FILE.into());
        Settings::read_from(Path::new(&file))
    }

    fn read_from(file: &Path) -> Result<Settings, ShimError> {
        let unreadable = |error: String| ShimError::Failed(format!("cannot read {}: {error}", file.display()));
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Settings::default()),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        let settings: Settings = toml::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        for size in [&settings.memory, &settings.overhead] {
            bytes::parse(size).map_err(|error| unreadable(error.to_string()))?;
        }
        if settings.devices > MOST_DEVICES {
            return Err(unreadable(format!(
                "devices = {}: {MOST_DEVICES} at most",
                settings.devices
            )));
        }
        Ok(settings)
    }

    /// Memory of a pod whose containers have no limits, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        bytes::parse(&self.memory).unwrap_or(512 << 20)
    }

    /// What a guest needs beside its containers, in bytes.
    pub(crate) fn overhead_bytes(&self) -> u64 {
        bytes::parse(&self.overhead).unwrap_or(128 << 20)
    }

    /// Whether a pod may name this flist.
    pub(crate) fn allows_flist(&self, flist: &str) -> bool {
        // No way around a beginning that is a folder.
        !flist.split('/').any(|part| part == "..") && self.flists.iter().any(|allowed| flist.starts_with(allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_has_the_defaults_and_a_wrong_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubernetes.toml");
        assert_eq!(Settings::read_from(&file).unwrap(), Settings::default());
        for (text, word) in [
            ("memroy = '1G'", "memroy"),
            ("memory = 'much'", "much"),
            ("devices = 17", "17"),
        ] {
            fs::write(&file, text).unwrap();
            let error = Settings::read_from(&file).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("kubernetes.toml"), "{error}");
        }
        fs::write(&file, "memory = '1G'\ncpus = 2").unwrap();
        let settings = Settings::read_from(&file).unwrap();
        assert_eq!((settings.memory_bytes(), settings.cpus), (1 << 30, 2));
    }

    #[test]
    fn only_flists_that_the_node_allows_are_taken() {
        let settings = Settings {
            flists: vec!["/srv/flists/".into()],
            ..Settings::default()
        };
        assert!(settings.allows_flist("/srv/flists/a.fl"));
        for other in ["/etc/shadow", "/srv/flists/../../etc/x.fl", "srv/flists/a.fl"] {
            assert!(!settings.allows_flist(other), "{other}");
        }
        assert!(!Settings::default().allows_flist("/srv/flists/a.fl"));
    }
}
