//! Credentials of registries: the files of docker and podman, the helpers that these name, and the token servers that
//! registries send to.
//!
//! A file has `auths` (base64 of `user:password`, or an identity token), `credHelpers` (a helper for a registry) and
//! `credsStore` (one for all others). They are asked in this order within a file: the helper of the registry, `auths`,
//! the helper of all. The helpers' protocol is that of the programs `docker-credential-*`: [`super::helper`].

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::Agent;

use super::Problem;
use super::helper;
use super::registry::to_problem;

/// The longest credentials file or token answer, in bytes.
const LIMIT: u64 = 1 << 20;

/// The name of Docker's own registry in files and helpers.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

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
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
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
/// When a helper is named and can not be asked.
pub(super) fn login(files: &[PathBuf], host: &str, repository: &str) -> Result<Option<Login>, Problem> {
    let names = names(host, repository);
    // Docker's own registry has another name with helpers than in references.
    let server = if host == "docker.io" { DOCKER_HUB } else { host };
    for file in files {
        // A file that is not there, or not readable, or of another form, knows nobody.
        let text = fs::read(file).ok().filter(|text| text.len() as u64 <= LIMIT);
        let Some(file) = text.and_then(|text| serde_json::from_slice::<AuthFile>(&text).ok()) else {
            continue;
        };
        let ask = |helper: &String| -> Result<Option<Login>, Problem> {
            let found = helper::ask(helper, server)?;
            Ok(found.map(|found| Login::of(&found.username, &found.secret)))
        };
        let own = names.iter().find_map(|name| file.cred_helpers.get(name));
        let kept = || names.iter().find_map(|name| file.auths.get(name)?.login());
        let found = match (own.map(ask).transpose()?.flatten().or_else(kept), &file.creds_store) {
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

/// The parameters of `WWW-Authenticate: Bearer key="value",...`; `None` for another scheme.
pub(super) fn challenge(header: &str) -> Option<BTreeMap<String, String>> {
    let (scheme, mut rest) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = BTreeMap::new();
    while let Some((key, value)) = rest.split_once('=') {
        let (value, behind) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_once(',').unwrap_or((value, "")),
        };
        parameters.insert(key.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned());
        rest = behind;
    }
    Some(parameters)
}

/// Asks the token server of a challenge.
pub(super) fn token(
    agent: &Agent,
    challenge: &BTreeMap<String, String>,
    login: Option<&Login>,
    repository: &str,
) -> Result<String, Problem> {
    let realm = challenge
        .get("realm")
        .ok_or_else(|| Problem::Broken("it asks for a token from nowhere".into()))?;
    // Credentials go to the server that the registry names, so not in the clear to another host.
    let is_safe =
        realm.starts_with("https://") || realm.starts_with("http://localhost") || realm.starts_with("http://127.");
    let scope = format!("repository:{repository}:pull");
    let scope = challenge.get("scope").unwrap_or(&scope).as_str();
    let service = challenge.get("service").map(String::as_str);
    let response = match login.filter(|_| is_safe) {
        Some(Login::Identity(token)) => agent.post(realm).send_form([
            ("grant_type", "refresh_token"),
            ("client_id", "zmachine"),
            ("service", service.unwrap_or_default()),
            ("scope", scope),
            ("refresh_token", token),
        ]),
        other => {
            let mut request = agent.get(realm).query("scope", scope);
            if let Some(service) = service {
                request = request.query("service", service);
            }
            if let Some(Login::Basic(basic)) = other {
                request = request.header("authorization", format!("Basic {basic}"));
            }
            request.call()
        }
    };
    let mut response = response.map_err(|error| to_problem(&error))?;
    if response.status() != 200 {
        return Err(Problem::Status(response.status().as_u16()));
    }
    let body = response.body_mut().with_config().limit(LIMIT).read_to_vec();
    let token: Token = super::manifest::json(&body.map_err(|error| to_problem(&error))?, "token")?;
    token
        .token
        .or(token.access_token)
        .ok_or_else(|| Problem::Broken("its token server gave none".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_taken_apart() {
        let header =
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a,b:pull""#;
        let challenge = challenge(header).unwrap();
        assert_eq!(challenge["realm"], "https://auth.docker.io/token");
        assert_eq!(challenge["scope"], "repository:a,b:pull");
        assert!(super::challenge("Basic realm=\"x\"").is_none());
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
