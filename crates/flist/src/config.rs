//! What an image says about running it, beyond its files: kept in one tag of a flist.
//!
//! ```json
//! zmachine.config = {"entrypoint": ["/bin/server"], "cmd": ["-v"], "env": ["LANG=C"], "user": "web", "workdir": "/srv",
//!                    "stop_signal": "SIGINT", "ports": ["80/tcp"], "volumes": ["/data"], "labels": {"a": "b"}}
//! ```
//! The fields have the meaning of the image configuration of OCI; absent ones say nothing. Readers of old see a tag that
//! they do not know. `.startup.toml`, when the tree has one, is a file for everybody and comes first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The tag that holds the configuration.
pub const TAG: &str = "zmachine.config";

/// How to run an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// The program and its first arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// What follows the entrypoint unless the user says something else; the program itself when there is no entrypoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=VALUE`, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// `USER[:GROUP]`, by name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The signal that asks the program to end (`SIGTERM`, `15`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Ports the program listens on: `80/tcp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Directories for volumes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Free labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A configuration that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("tag {TAG} is broken")]
pub struct ConfigError {
    /// What is wrong with it.
    #[from]
    source: serde_json::Error,
}

impl ImageConfig {
    /// The configuration among the tags of a flist; the empty one when there is none.
    ///
    /// # Errors
    /// When the tag is there and is not what [`ImageConfig::store`] writes.
    pub fn from_tags(tags: &BTreeMap<String, String>) -> Result<ImageConfig, ConfigError> {
        match tags.get(TAG) {
            Some(text) => Ok(serde_json::from_str(text)?),
            None => Ok(ImageConfig::default()),
        }
    }

    /// Puts the configuration among the tags; the empty one leaves no tag.
    pub fn store(&self, tags: &mut BTreeMap<String, String>) {
        if *self == ImageConfig::default() {
            tags.remove(TAG);
            return;
        }
        // Strings and lists of strings: nothing that JSON cannot hold.
        let text = serde_json::to_string(self).unwrap_or_default();
        tags.insert(TAG.into(), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_survives_its_tag_and_the_empty_one_has_none() {
        let config = ImageConfig {
            entrypoint: vec!["/bin/sh".into(), "-c".into()],
            user: Some("1000:1000".into()),
            labels: BTreeMap::from([("a".into(), "b".into())]),
            ..ImageConfig::default()
        };
        let mut tags = BTreeMap::new();
        config.store(&mut tags);
        assert_eq!(
            tags[TAG],
            r#"{"entrypoint":["/bin/sh","-c"],"user":"1000:1000","labels":{"a":"b"}}"#
        );
        assert_eq!(ImageConfig::from_tags(&tags).unwrap(), config);
        ImageConfig::default().store(&mut tags);
        assert!(tags.is_empty());
    }

    #[test]
    fn a_tag_that_is_no_configuration_is_an_error_and_an_unknown_field_is_not() {
        let read = |text: &str| ImageConfig::from_tags(&BTreeMap::from([(TAG.to_owned(), text.to_owned())]));
        assert!(read("nonsense").is_err());
        assert!(read(r#"{"cmd":"/bin/sh"}"#).is_err());
        assert_eq!(read(r#"{"later":1}"#).unwrap(), ImageConfig::default());
    }
}
