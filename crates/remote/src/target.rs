//! Which host, by which way, with which token.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zmachine_spec::{Class, Failure};

/// The largest file of a token that is read, in bytes.
const TOKEN_BYTES: u64 = 4096;

/// The port where nothing else is said.
const PORT: u16 = 8443;

/// A way to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A Unix socket of this host.
    Socket(PathBuf),
    /// TCP with TLS.
    Tls {
        /// A name, or an address without brackets.
        host: String,
        /// The port.
        port: u16,
    },
}

/// A server, and what it takes to use it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// `unix:///PATH` or `https://NAME:PORT`.
    pub host: String,
    /// Where the token is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Certificates that its own is checked against, in PEM; this host's when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl Host {
    /// The way to it.
    ///
    /// # Errors
    /// [`Class::Usage`] for what is no URL of a server.
    pub fn way(&self) -> Result<Way, Failure> {
        let text = self.host.as_str();
        let wrong = |why: &str| {
            Failure::new(Class::Usage, format!("'{text}' cannot be a host: {why}"))
                .hint("use unix:///run/zmachine/api.sock or https://NAME:8443")
        };
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Way::Socket(path.into())),
                false => Err(wrong("the path of a socket begins with /")),
            };
        }
        if text.starts_with("http://") {
            return Err(wrong("a token does not go over a network without TLS"));
        }
        let rest = text
            .strip_prefix("https://")
            .ok_or_else(|| wrong("it is neither unix:// nor https://"))?;
        let authority: hyper::http::uri::Authority = rest
            .trim_end_matches('/')
            .parse()
            .map_err(|_| wrong("it has more than a name and a port"))?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(wrong("it has more than a name and a port"));
        }
        Ok(Way::Tls {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(PORT),
        })
    }

    /// The token, where there is a file with one.
    ///
    /// # Errors
    /// [`Class::Usage`] for a file that cannot be read, or that has no token.
    pub fn token(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.token_file else { return Ok(None) };
        read_token(path).map(Some)
    }
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = zmachine_sys::file::read_text(path, TOKEN_BYTES)
        .map_err(|e| Failure::from_error(Class::Usage, &e).hint("--token-file names a file with one token"))?;
    let token = text.trim();
    let is_plain = !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic());
    match is_plain {
        true => Ok(token.to_owned()),
        false => Err(Failure::new(Class::Usage, format!("{} has no token", path.display()))
            .hint("'zmachine token create' on the host prints one")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(host: &str) -> Result<Way, Failure> {
        let host = Host {
            host: host.to_owned(),
            ..Host::default()
        };
        host.way()
    }

    #[test]
    fn ways_are_read_and_none_is_without_tls() {
        let tls = |host: &str, port| Way::Tls {
            host: host.to_owned(),
            port,
        };
        assert_eq!(way("unix:///run/z.sock").unwrap(), Way::Socket("/run/z.sock".into()));
        assert_eq!(way("https://zm.example").unwrap(), tls("zm.example", 8443));
        assert_eq!(way("https://zm.example:1/").unwrap(), tls("zm.example", 1));
        assert_eq!(way("https://[fd00::1]:9").unwrap(), tls("fd00::1", 9));
        for wrong in [
            "",
            "zm.example",
            "http://zm.example",
            "unix://run",
            "https://",
            "https://a@b",
            "https://a/b",
            "ssh://a",
        ] {
            assert_eq!(way(wrong).unwrap_err().class, Class::Usage, "{wrong}");
        }
    }

    #[test]
    fn a_token_is_one_word_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "zmt_a_b\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), "zmt_a_b");
        for wrong in ["", "a b", "a\r\nEvil: 1"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(read_token(&path).is_err(), "{wrong:?}");
        }
    }
}
