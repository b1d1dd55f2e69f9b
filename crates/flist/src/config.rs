//! What an image says about running it, beyond its files: kept in one tag of a flist.
//!
//! ```json
//! zmachine.config = {"entrypoint": ["/bin/server"], "cmd": ["-v"], "env": ["LANG=C"], "user": "web", "workdir": "/srv",
//!                    "stop_signal": "SIGINT", "ports": ["80/tcp"], "volumes": ["/data"], "labels": {"a": "b"},
//!                    "healthcheck": {"test": ["CMD", "/bin/check"], "interval_ns": 5000000000, "retries": 2}}
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
    /// How to tell whether the program does its work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// The shell of a check that is a line for one, with its arguments; `/bin/sh -c` when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
}

/// A health check, with the fields of docker's extension of the image configuration. What is 0 or absent says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", PROGRAM, ARGUMENT...]` or `["CMD-SHELL", LINE]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Time between two checks in nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval_ns: u64,
    /// Time that one may take in nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout_ns: u64,
    /// Time after a start in nanoseconds in which failures do not count.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period_ns: u64,
    /// Time between two checks in that time, in nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval_ns: u64,
    /// So many failures in a row mean that it is unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
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
        // Strings, numbers and lists of strings: nothing that JSON cannot hold.
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
            healthcheck: Some(Healthcheck {
                test: vec!["NONE".into()],
                retries: 2,
                ..Healthcheck::default()
            }),
            ..ImageConfig::default()
        };
        let mut tags = BTreeMap::new();
        config.store(&mut tags);
        assert_eq!(
            tags[TAG],
            r#"{"entrypoint":["/bin/sh","-c"],"user":"1000:1000","labels":{"a":"b"},"healthcheck":{"test":["NONE"],"retries":2}}"#
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
