//! Credentials of registries: the files of docker and podman, and the token servers that registries send to.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::Agent;

use super::Problem;
use super::registry::to_problem;

/// The longest credentials file or token answer, in bytes.
const LIMIT: u64 = 1 << 20;

#[derive(Deserialize, Default)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: String,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// The value of `Authorization: Basic` for a repository, from the first file that knows it. The most special entry counts:
/// podman's files may name `host/namespace`.
pub(super) fn basic(files: &[PathBuf], host: &str, repository: &str) -> Option<String> {
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
        names.extend(["https://index.docker.io/v1/", "index.docker.io"].map(str::to_owned));
    }
    files.iter().find_map(|file| {
        // A file that is not there, or not readable, or of another form, knows nobody.
        let text = fs::read(file).ok().filter(|text| text.len() as u64 <= LIMIT)?;
        let file: AuthFile = serde_json::from_slice(&text).ok()?;
        let auth = names.iter().find_map(|name| file.auths.get(name))?;
        STANDARD.decode(&auth.auth).ok().filter(|pair| pair.contains(&b':'))?;
        Some(auth.auth.clone())
    })
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
    basic: Option<&str>,
    repository: &str,
) -> Result<String, Problem> {
    let realm = challenge
        .get("realm")
        .ok_or_else(|| Problem::Broken("it asks for a token from nowhere".into()))?;
    // Credentials go to the server that the registry names, so not in the clear to another host.
    let is_safe =
        realm.starts_with("https://") || realm.starts_with("http://localhost") || realm.starts_with("http://127.");
    let mut request = agent.get(realm);
    if let Some(service) = challenge.get("service") {
        request = request.query("service", service);
    }
    let scope = format!("repository:{repository}:pull");
    request = request.query("scope", challenge.get("scope").unwrap_or(&scope));
    if let Some(basic) = basic.filter(|_| is_safe) {
        request = request.header("authorization", format!("Basic {basic}"));
    }
    let mut response = request.call().map_err(|error| to_problem(&error))?;
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
        assert_eq!(basic(&files, "h", "team/app"), Some(narrow));
        assert_eq!(basic(&files, "h", "other"), Some(broad));
        assert_eq!(basic(&files, "elsewhere", "x"), None);
    }
}
