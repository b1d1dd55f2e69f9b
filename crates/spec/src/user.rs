//! Whom a program of a container runs as.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A user, and a group in place of its own: names, or numbers, of the guest. Only the guest knows which there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The user.
    pub name: String,
    /// The group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

impl User {
    /// Reads `USER[:GROUP]`.
    pub fn parse(text: &str) -> User {
        match text.split_once(':') {
            Some((name, group)) => User {
                name: name.to_owned(),
                group: Some(group.to_owned()),
            },
            None => User {
                name: text.to_owned(),
                group: None,
            },
        }
    }
}

/// As [`User::parse`] reads it, and as the agent of a guest does.
impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.group {
            Some(group) => write!(f, ":{group}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_reads_and_prints_back() {
        for text in ["web", "web:www", "0:0", "web:", ":www", ""] {
            assert_eq!(User::parse(text).to_string(), text);
        }
        assert_eq!(User::parse("web:www").group.as_deref(), Some("www"));
    }
}
