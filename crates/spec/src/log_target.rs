//! Where a log is sent.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure};

/// The socket of the host's own syslog.
const LOCAL_SYSLOG: &str = "/dev/log";

/// Where a log is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogTarget {
    /// JSON lines over TCP to `host:port`.
    Tcp(String),
    /// JSON lines over a unix stream socket.
    Unix(PathBuf),
    /// JSON lines appended to a file.
    File(PathBuf),
    /// RFC 5424 over UDP to `host:port`.
    SyslogUdp(String),
    /// The host's own syslog, at this datagram socket.
    SyslogLocal(PathBuf),
    /// JSON text messages over a websocket: `host:port` and the whole URL.
    Websocket {
        /// `host:port`.
        address: String,
        /// As it was given.
        url: String,
    },
}

impl FromStr for LogTarget {
    type Err = Failure;

    fn from_str(text: &str) -> Result<LogTarget, Failure> {
        let bad = |why: &str| {
            Failure::new(Class::Usage, format!("'{text}' cannot receive a log: {why}")).hint(
                "use tcp://HOST:PORT, unix:///PATH, file:///PATH, ws://HOST:PORT/PATH, syslog://HOST:PORT, or syslog",
            )
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text {
                "syslog" => Ok(LogTarget::SyslogLocal(LOCAL_SYSLOG.into())),
                _ => Err(bad("it is no URL")),
            };
        };
        let path = || match rest.starts_with('/') {
            true => Ok(PathBuf::from(rest)),
            false => Err(bad("the path must start with '/'")),
        };
        let address = |text: &str, default: Option<u16>| {
            let (host, port) = match text.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() => (host, port.parse::<u16>().ok()),
                _ => (text, default),
            };
            match port {
                Some(port) if !host.is_empty() && port > 0 => Ok(format!("{host}:{port}")),
                _ => Err(bad("host and port are missing or wrong")),
            }
        };
        match scheme {
            "tcp" => Ok(LogTarget::Tcp(address(rest, None)?)),
            "unix" => Ok(LogTarget::Unix(path()?)),
            "file" => Ok(LogTarget::File(path()?)),
            "syslog" if rest.starts_with('/') => Ok(LogTarget::SyslogLocal(path()?)),
            "syslog" => Ok(LogTarget::SyslogUdp(address(rest, Some(514))?)),
            "ws" => Ok(LogTarget::Websocket {
                address: address(rest.split(['/', '?']).next().unwrap_or_default(), Some(80))?,
                url: text.to_owned(),
            }),
            _ => Err(bad("there is no such kind of receiver")),
        }
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogTarget::Tcp(address) => write!(f, "tcp://{address}"),
            LogTarget::Unix(path) => write!(f, "unix://{}", path.display()),
            LogTarget::File(path) => write!(f, "file://{}", path.display()),
            LogTarget::SyslogUdp(address) => write!(f, "syslog://{address}"),
            LogTarget::SyslogLocal(path) => write!(f, "syslog://{}", path.display()),
            LogTarget::Websocket { url, .. } => f.write_str(url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_receivers_are_read_and_shown() {
        for text in [
            "tcp://logs:99",
            "tcp://[::1]:99",
            "unix:///run/x",
            "file:///var/log/x",
            "syslog://h:514",
            "syslog:///dev/log",
            "ws://h:80/a?b",
        ] {
            let target: LogTarget = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
            let json = serde_json::to_string(&target).unwrap();
            assert_eq!(serde_json::from_str::<LogTarget>(&json).unwrap(), target);
        }
        assert_eq!("syslog".parse::<LogTarget>().unwrap().to_string(), "syslog:///dev/log");
        for bad in [
            "",
            "tcp://",
            "tcp://h",
            "tcp://h:0",
            "tcp://:9",
            "unix://x",
            "http://h:1",
            "ws:///x",
            "wss://h:1",
        ] {
            assert!(bad.parse::<LogTarget>().is_err(), "{bad}");
        }
    }
}
