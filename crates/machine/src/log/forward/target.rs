//! Where a log is sent.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::failure::{Class, Failure};

/// The socket of the host's own syslog.
const LOCAL_SYSLOG: &str = "/dev/log";

/// Where a log is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
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

impl FromStr for Target {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Target, Failure> {
        let bad = |why: &str| {
            Failure::new(Class::Usage, format!("--log-to {text}: {why}")).hint(
                "use tcp://HOST:PORT, unix:///PATH, file:///PATH, ws://HOST:PORT/PATH, syslog://HOST:PORT, or syslog",
            )
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text {
                "syslog" => Ok(Target::SyslogLocal(LOCAL_SYSLOG.into())),
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
            "tcp" => Ok(Target::Tcp(address(rest, None)?)),
            "unix" => Ok(Target::Unix(path()?)),
            "file" => Ok(Target::File(path()?)),
            "syslog" if rest.starts_with('/') => Ok(Target::SyslogLocal(path()?)),
            "syslog" => Ok(Target::SyslogUdp(address(rest, Some(514))?)),
            "ws" => Ok(Target::Websocket {
                address: address(rest.split(['/', '?']).next().unwrap_or_default(), Some(80))?,
                url: text.to_owned(),
            }),
            _ => Err(bad("there is no such kind of receiver")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(address) => write!(f, "tcp://{address}"),
            Target::Unix(path) => write!(f, "unix://{}", path.display()),
            Target::File(path) => write!(f, "file://{}", path.display()),
            Target::SyslogUdp(address) => write!(f, "syslog://{address}"),
            Target::SyslogLocal(path) => write!(f, "syslog://{}", path.display()),
            Target::Websocket { url, .. } => f.write_str(url),
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
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("syslog".parse::<Target>().unwrap().to_string(), "syslog:///dev/log");
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
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
