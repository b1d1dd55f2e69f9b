//! Who may do what on the server: roles, tokens, TLS, and the record of changes.
//!
//! | module | owns |
//! |---|---|
//! | [`tokens`] | the tokens of a home: made, listed, removed, recognised |
//! | [`rate`] | how often somebody may ask |
//! | [`audit`] | the record of changes |
//! | [`tls`] | the certificate and its key |
//! | [`cut`] | connections that end when their token does |
//!
//! # Invariants
//! What comes by TCP has a token, or is not answered. What comes by a Unix socket is its owner's, whom the mode of the socket lets in, unless
//! it brings a token: then it has the token's role and no more. No secret is kept, shown twice, or written to a log.

pub mod audit;
pub mod cut;
pub mod rate;
pub mod tls;
pub mod tokens;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// What somebody may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks: lists, logs, events, figures.
    Viewer,
    /// Also starts, stops and enters the machines that are there.
    Operator,
    /// Also makes, changes and removes. As a machine may share any directory of the host, that is root on it.
    Admin,
}

impl Role {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        [Role::Viewer, Role::Operator, Role::Admin]
            .into_iter()
            .find(|role| role.word() == text)
            .ok_or_else(|| format!("'{text}' is no role: use viewer, operator or admin"))
    }
}

/// Where a connection comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// A Unix socket of this host.
    Local {
        /// The user of the process that connected; `None` where the kernel does not tell.
        uid: Option<u32>,
    },
    /// TCP, with TLS.
    Network {
        /// The address of the client.
        peer: SocketAddr,
        /// The name that the client asked for in the handshake; clients that go to an address send none.
        name: Option<String>,
    },
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The token; `None` for a process of this host without one.
    pub token: Option<tokens::Token>,
    /// The user of that process.
    pub uid: Option<u32>,
    /// What may be done.
    pub role: Role,
}

/// What a lock guards, whatever became of a thread that had it: every value here is whole at any time.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
