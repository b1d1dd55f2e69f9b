//! The checks that every request passes before anybody looks at what it asks for.
//!
//! # Order
//! 1. A page of a browser asks (`Origin`): refused, whatever it brings. There is no CORS, and a WebSocket needs none.
//! 2. By TCP: one `Host`, and the one that the certificate was checked for.
//! 3. By TCP: an address that has failed too often waits.
//! 4. The token, where there is one or there must be one.
//! 5. A token that asks too often waits.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use hyper::{StatusCode, Uri};

use zmachine_access::rate::{Buckets, Pace};
use zmachine_access::tokens::{Tokens, Wrong};
use zmachine_access::{Caller, Door, Role};

use crate::app::locked;
use crate::http::Refusal;

/// Failures of an address.
const FAILURES: Pace = Pace {
    burst: 10,
    every: Duration::from_secs(6),
};

/// Requests of a token.
const REQUESTS: Pace = Pace {
    burst: 200,
    every: Duration::from_millis(20),
};

/// Why somebody is not let in, and when it makes sense to come again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The answer.
    pub refusal: Refusal,
    /// Not before that time.
    pub retry_after: Option<Duration>,
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Denial {
        Denial {
            refusal,
            retry_after: None,
        }
    }
}

/// What the checks need.
#[derive(Debug)]
pub struct Guard {
    /// The tokens of this home.
    pub tokens: Tokens,
    failures: Mutex<Buckets<IpAddr>>,
    requests: Mutex<Buckets<String>>,
}

impl Guard {
    /// For a home whose state is at `data`.
    pub fn of(data: &Path) -> Guard {
        Guard {
            tokens: Tokens::of(data),
            failures: Mutex::new(Buckets::new(FAILURES)),
            requests: Mutex::new(Buckets::new(REQUESTS)),
        }
    }

    /// Who asks, by a way in and the headers of a request.
    ///
    /// # Errors
    /// 400 without a host, 401 without a token that is valid, 403 for a browser, 421 for another host, 429 for whoever comes too often.
    pub fn caller(&self, door: &Door, uri: &Uri, headers: &HeaderMap) -> Result<Caller, Denial> {
        if headers.contains_key(ORIGIN) {
            let message = "pages of browsers are not served: the request has the header Origin";
            return Err(Refusal::new(StatusCode::FORBIDDEN, message).into());
        }
        let uid = match door {
            Door::Local { uid } => *uid,
            Door::Network { peer, name } => {
                require_host(name.as_deref(), uri, headers)?;
                let wait = locked(&self.failures).wait(&source(peer.ip()), Instant::now());
                if let Some(wait) = wait {
                    return Err(later(
                        "too many requests without a valid token came from this address",
                        wait,
                    ));
                }
                None
            }
        };
        let mut sent = headers.get_all(AUTHORIZATION).iter();
        let token = match (sent.next(), door) {
            (None, Door::Local { .. }) => {
                return Ok(Caller {
                    token: None,
                    uid,
                    role: Role::Admin,
                });
            }
            (None, _) => {
                Err("a token is needed: send 'Authorization: Bearer TOKEN' ('zmachine token create' makes one)")
            }
            (Some(_), _) if sent.next().is_some() => Err("there is more than one header Authorization"),
            (Some(text), _) => {
                let text = text.to_str().ok().and_then(bearer);
                let recognised = text.map_or(Err(Wrong::Unknown), |text| self.tokens.recognise(text));
                recognised.map_err(|wrong| match wrong {
                    Wrong::Unknown => "the token is not valid here",
                    Wrong::Expired => "the token has expired: make another with 'zmachine token create'",
                })
            }
        };
        let now = Instant::now();
        let token = token.map_err(|message| {
            if let Door::Network { peer, .. } = door {
                locked(&self.failures).take(&source(peer.ip()), now);
            }
            Refusal::new(StatusCode::UNAUTHORIZED, message)
        })?;
        let mut requests = locked(&self.requests);
        if let Some(wait) = requests.wait(&token.name, now) {
            return Err(later("this token asks too often", wait));
        }
        requests.take(&token.name, now);
        Ok(Caller {
            uid,
            role: token.role,
            token: Some(token),
        })
    }
}

/// That a role is enough.
///
/// # Errors
/// 403, with the role that would be.
pub fn require(caller: &Caller, needed: Role) -> Result<(), Refusal> {
    if caller.role >= needed {
        return Ok(());
    }
    let message = format!(
        "this needs the role {needed}, and the token '{}' has the role {}",
        caller.token.as_ref().map_or("", |token| token.name.as_str()),
        caller.role
    );
    Err(Refusal::new(StatusCode::FORBIDDEN, message))
}

fn later(message: &str, wait: Duration) -> Denial {
    Denial {
        refusal: Refusal::new(StatusCode::TOO_MANY_REQUESTS, message),
        retry_after: Some(wait),
    }
}

fn bearer(text: &str) -> Option<&str> {
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whoever has one address of IPv6 has 2^64 of them.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        address => address,
    }
}

/// That the request is for the host that the client has checked the certificate of: a page that gets a browser to connect here by a name of its own
/// (DNS rebinding), or a proxy that mixes hosts up, is told so.
fn require_host(name: Option<&str>, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next().map(|host| host.to_str()), hosts.next()) {
        (Some(Ok(host)), None) if !host.is_empty() => host,
        _ => return Err(Refusal::bad("the request must have the header Host, once")),
    };
    let misdirected = || {
        let message = format!("this server is not '{}'", host.escape_default());
        Refusal::new(StatusCode::MISDIRECTED_REQUEST, message)
    };
    let authority: hyper::http::uri::Authority = host.parse().map_err(|_| misdirected())?;
    let is_same = uri.authority().is_none_or(|other| other == &authority);
    let host = authority.host();
    let is_ours = match name {
        Some(name) => host.eq_ignore_ascii_case(name),
        // The handshake has no names that are addresses.
        None => host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok(),
    };
    (is_same && is_ours).then_some(()).ok_or_else(misdirected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: Option<&str>, sent: &[&str]) -> Option<u16> {
        let mut headers = HeaderMap::new();
        for host in sent {
            headers.append(HOST, host.parse().unwrap());
        }
        let checked = require_host(name, &Uri::from_static("/v1/version"), &headers);
        checked.err().map(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn the_host_is_the_one_of_the_handshake() {
        assert_eq!(host(Some("zm.example"), &["ZM.example:8443"]), None);
        assert_eq!(host(Some("zm.example"), &["other.example"]), Some(421));
        assert_eq!(host(Some("zm.example"), &["10.0.0.1"]), Some(421));
        assert_eq!(host(None, &["10.0.0.1:8443"]), None);
        assert_eq!(host(None, &["[::1]:8443"]), None);
        assert_eq!(host(None, &["rebound.example"]), Some(421));
        assert_eq!(host(None, &[]), Some(400));
        assert_eq!(host(None, &["10.0.0.1", "10.0.0.1"]), Some(400));
        assert_eq!(host(None, &["a b"]), Some(421));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let source = |text: &str| source(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
    }

    #[test]
    fn roles_are_one_above_the_other() {
        let caller = |role| Caller {
            token: None,
            uid: None,
            role,
        };
        assert!(require(&caller(Role::Admin), Role::Viewer).is_ok());
        let refusal = require(&caller(Role::Viewer), Role::Operator).unwrap_err();
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
        assert!(
            refusal.message.contains("needs the role operator"),
            "{}",
            refusal.message
        );
    }
}
