//! Credentials of registries: the files of docker and podman, the helpers that these name, and the token servers that
//! registries send to.
//!
//! A password or identity token goes to the registry it is for, and to the token server that this one names, as docker's clients give
//! it: by TLS to whichever host, in the clear only to the host of a registry that is itself spoken to in the clear.
//!
//! A file has `auths` (base64 of `user:password`, or an identity token), `credHelpers` (a helper for a registry) and
//! `credsStore` (one for all others). They are asked in this order within a file: the helper of the registry, `auths`,
//! the helper of all. The helpers' protocol is that of the programs `docker-credential-*`: [`super::helper`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::Agent;
use ureq::http::Uri;
use zmachine_sys::file::read_regular;

use super::Problem;
use super::helper;
use super::manifest::nullable;
use super::registry::to_problem;

/// The longest credentials file or token answer, in bytes.
pub(super) const LIMIT: u64 = 1 << 20;

/// The name of Docker's own registry in files and helpers.
pub(super) const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// The value of `Authorization: Basic`.
    Basic(String),
    /// A token that the token server takes in place of a password.
    Identity(String),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Login::Basic(_) => "Basic(..)",
            Login::Identity(_) => "Identity(..)",
        })
    }
}

impl Login {
    /// As helpers and files tell it: the user `<token>` has an identity token for a password.
    fn of(user: &str, secret: &str) -> Login {
        match user {
            "<token>" => Login::Identity(secret.to_owned()),
            _ => Login::Basic(STANDARD.encode(format!("{user}:{secret}"))),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    #[serde(deserialize_with = "nullable")]
    auths: BTreeMap<String, Option<Auth>>,
    creds_store: Option<String>,
    #[serde(deserialize_with = "nullable")]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    #[serde(deserialize_with = "nullable")]
    auth: String,
    #[serde(deserialize_with = "nullable")]
    identitytoken: String,
}

impl Auth {
    fn login(&self) -> Option<Login> {
        if !self.identitytoken.is_empty() {
            return Some(Login::Identity(self.identitytoken.clone()));
        }
        let pair = STANDARD.decode(&self.auth).ok()?;
        pair.contains(&b':').then(|| Login::Basic(self.auth.clone()))
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Who to be for a repository, from the first file that knows it. The most special entry counts: podman's files may name
/// `host/namespace`. `None` when nobody knows it.
///
/// # Errors
/// When a helper is named and cannot be asked.
pub(super) fn login(files: &[PathBuf], host: &str, repository: &str) -> Result<Option<Login>, Problem> {
    let names = names(host, repository);
    // Docker's own registry has another name with helpers than in references.
    let server = if host == "docker.io" { DOCKER_HUB } else { host };
    for file in files {
        // A file that is not there, or not readable, or of another form, knows nobody.
        let Some(file) = read_regular(file, LIMIT)
            .ok()
            .and_then(|text| serde_json::from_slice::<AuthFile>(&text).ok())
        else {
            continue;
        };
        let ask = |helper: &String| -> Result<Option<Login>, Problem> {
            let found = helper::ask(helper, server)?;
            Ok(found.map(|found| Login::of(&found.username, &found.secret)))
        };
        let own = names.iter().find_map(|name| file.cred_helpers.get(name));
        let kept = || names.iter().find_map(|name| file.auths.get(name)?.as_ref()?.login());
        let store = file.creds_store.as_ref().filter(|helper| !helper.is_empty());
        let found = match (own.map(ask).transpose()?.flatten().or_else(kept), store) {
            (None, Some(helper)) => ask(helper)?,
            (found, _) => found,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The keys that a repository may have in a file, the most special first.
fn names(host: &str, repository: &str) -> Vec<String> {
    let mut names = vec![format!("{host}/{repository}")];
    let mut path = repository;
    while let Some((parent, _)) = path.rsplit_once('/') {
        names.push(format!("{host}/{parent}"));
        path = parent;
    }
    names.push(host.to_owned());
    names.push(format!("https://{host}"));
    names.push(format!("https://{host}/v2/"));
    if host == "docker.io" {
        names.extend([DOCKER_HUB, "index.docker.io"].map(str::to_owned));
    }
    names
}

/// A registry as the owner of credentials.
pub(super) struct Owner<'a> {
    /// `https://host[:port]`, or `http:`.
    pub(super) server: &'a str,
    pub(super) repository: &'a str,
    pub(super) login: Option<&'a Login>,
}

impl Owner<'_> {
    /// Who to be at the token server `realm`.
    fn login_for(&self, realm: &str) -> Option<&Login> {
        let realm: Uri = realm.parse().ok()?;
        let may_have = match realm.scheme_str()? {
            "https" => true,
            "http" => self.server.parse::<Uri>().is_ok_and(|server| {
                server.scheme_str() == Some("http")
                    && (server.host() == realm.host() || is_loopback(&server) && is_loopback(&realm))
            }),
            _ => false,
        };
        self.login.filter(|_| may_have)
    }
}

/// Whether what is sent there stays on this host.
fn is_loopback(uri: &Uri) -> bool {
    let host = uri
        .host()
        .unwrap_or_default()
        .trim_start_matches('[')
        .trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Asks the token server that a challenge with these parameters names, which must answer in time.
pub(super) fn token(
    agent: &Agent,
    parameters: &BTreeMap<String, String>,
    owner: &Owner<'_>,
    time: Duration,
) -> Result<String, Problem> {
    let realm = parameters
        .get("realm")
        .ok_or_else(|| Problem::Broken("it asks for a token from nowhere".into()))?;
    // Who only wants to know whether a login is right needs none.
    let scope = match owner.repository {
        "" => String::new(),
        repository => format!("repository:{repository}:pull"),
    };
    let scope = parameters.get("scope").unwrap_or(&scope).as_str();
    let service = parameters.get("service").map(String::as_str);
    let response = match owner.login_for(realm) {
        Some(Login::Identity(token)) => {
            let request = agent.post(realm).config().timeout_global(Some(time)).build();
            request.send_form([
                ("grant_type", "refresh_token"),
                ("client_id", "zmachine"),
                ("service", service.unwrap_or_default()),
                ("scope", scope),
                ("refresh_token", token),
            ])
        }
        other => {
            let mut request = agent.get(realm).query("scope", scope);
            if let Some(service) = service {
                request = request.query("service", service);
            }
            if let Some(Login::Basic(basic)) = other {
                request = request.header("authorization", format!("Basic {basic}"));
            }
            request.config().timeout_global(Some(time)).build().call()
        }
    };
    let mut response = response.map_err(|error| to_problem(&error))?;
    if response.status() != 200 {
        return Err(Problem::Status(response.status().as_u16()));
    }
    let body = response.body_mut().with_config().limit(LIMIT).read_to_vec();
    let token: Token = super::manifest::json(&body.map_err(|error| to_problem(&error))?, "token")?;
    let mut given = [token.token, token.access_token].into_iter().flatten();
    given
        .find(|token| !token.is_empty())
        .ok_or_else(|| Problem::Broken("its token server gave none".into()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_password_goes_nowhere_in_the_clear_but_to_its_own_registry() {
        let login = Login::Basic("secret".into());
        let goes = |server: &str, realm: &str| {
            let owner = Owner {
                server,
                repository: "a",
                login: Some(&login),
            };
            owner.login_for(realm).is_some()
        };
        for (server, realm) in [
            ("https://r.example", "https://auth.example/token"),
            ("https://r.example", "https://r.example/token"),
            ("http://r.example:5000", "https://auth.example/token"),
            ("http://r.example:5000", "http://r.example:5001/token"),
            ("http://localhost:5000", "http://127.0.0.1:5001/token"),
            ("http://[::1]:5000", "http://localhost:5001/token"),
        ] {
            assert!(goes(server, realm), "{server} {realm}");
        }
        for (server, realm) in [
            ("https://r.example", "http://r.example/token"),
            ("https://r.example", "http://localhost/token"),
            ("http://r.example", "http://auth.example/token"),
            ("http://r.example", "http://127.0.0.1/token"),
            ("http://localhost:5000", "http://localhost.evil.example/token"),
            ("http://localhost:5000", "http://127.0.0.1.evil.example/token"),
            ("http://localhost:5000", "http://localhost@evil.example/token"),
            ("https://r.example", "ftp://r.example/"),
            ("https://r.example", "/token"),
            ("https://r.example", ""),
        ] {
            assert!(!goes(server, realm), "{server} {realm}");
        }
    }

    #[test]
    fn the_most_special_entry_of_the_first_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (broad, narrow) = (STANDARD.encode("a:broad"), STANDARD.encode("a:narrow"));
        let text = format!(r#"{{"auths":{{"h":{{"auth":"{broad}"}},"h/team":{{"auth":"{narrow}"}}}}}}"#);
        let files = [dir.path().join("none"), file("broken", "{"), file("good", &text)];
        let basic = |pair: &str| Some(Login::Basic(pair.to_owned()));
        let found = |host, repository| login(&files, host, repository).ok().unwrap();
        assert_eq!(found("h", "team/app"), basic(&narrow));
        assert_eq!(found("h", "other"), basic(&broad));
        assert_eq!(found("elsewhere", "x"), None);
    }

    #[test]
    fn an_identity_token_is_no_password_and_is_not_shown() {
        assert_eq!(Login::of("<token>", "t"), Login::Identity("t".into()));
        assert_eq!(Login::of("a", "b"), Login::Basic(STANDARD.encode("a:b")));
        assert!(!format!("{:?}", Login::Identity("hunter2".into())).contains("hunter2"));
        let auth: Auth = serde_json::from_str(r#"{"identitytoken":"t"}"#).unwrap();
        assert_eq!(auth.login(), Some(Login::Identity("t".into())));
        assert_eq!(Auth::default().login(), None);
    }
}
