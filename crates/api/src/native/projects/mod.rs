//! Operations on compose projects.
//!
//! A project is made by the command line of this host, which reads the document from its standard input: what its keys mean is decided
//! there alone. The document is whole: variables have their values, and files their contents, as on another host neither can be looked up.

mod wish;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use zmachine_spec::{Class, Failure};

use self::wish::{Act, Wish};
use super::Call;
use super::machines::{failing, read};
use super::problem::Problem;
use crate::app::App;
use crate::http::{Answer, Body, json, typed};

/// What is read of a stream at once, in bytes.
const PIECE: usize = 16 << 10;

/// The longest secret, in bytes: it is a variable for a moment.
const SECRET: usize = 64 << 10;

/// The label with the name of a machine's project.
const PROJECT: &str = "com.docker.compose.project";

/// The label with the files that it was made of.
const CONFIG_FILES: &str = "com.docker.compose.project.config_files";

/// Variables by which the command line would look elsewhere than it is told.
const NOT_PASSED: [&str; 6] = [
    "ZMACHINE_HOST",
    "ZMACHINE_CONTEXT",
    "COMPOSE_FILE",
    "COMPOSE_PROFILES",
    "COMPOSE_PROJECT_NAME",
    "COMPOSE_ENV_FILES",
];

/// The command line of this host for a project; it finds the server's state as the server did.
fn compose(app: &App, before: &[String], words: &[String]) -> Command {
    let mut command = Command::new(app.engine.programs().host());
    command
        .args(["--context", "local", "compose"])
        .args(before)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for name in NOT_PASSED {
        command.env_remove(name);
    }
    command
}

fn started(command: &mut Command) -> Result<Child, Failure> {
    command.spawn().map_err(|error| match error.kind() {
        // A word that no command line can have.
        std::io::ErrorKind::InvalidInput => Failure::new(Class::Usage, "a name or a value has a NUL in it"),
        _ => Failure::from(error).context("the command line of this host cannot be started"),
    })
}

/// A document without variables: a dollar sign in it is one.
fn without_variables(document: &mut Value) {
    match document {
        Value::String(text) => *text = text.replace('$', "$$"),
        Value::Array(items) => items.iter_mut().for_each(without_variables),
        Value::Object(members) => members.values_mut().for_each(without_variables),
        _ => {}
    }
}

/// Has the secrets of a document read from variables of the process that reads it: documents hold none. Gives these variables.
///
/// # Errors
/// [`Class::Usage`] for one that the document does not have, or that no variable can hold.
fn with_secrets(config: &mut Value, secrets: BTreeMap<String, String>) -> Result<Vec<(String, String)>, Failure> {
    let mut variables = Vec::new();
    for (number, (name, content)) in secrets.into_iter().enumerate() {
        let wrong = |why: &str| Failure::new(Class::Usage, format!("secrets: '{name}' {why}"));
        if content.contains('\0') || content.len() > SECRET {
            return Err(wrong(&format!("is longer than {SECRET} bytes, or has a NUL")));
        }
        let variable = format!("ZMACHINE_SECRET_{number}");
        match config
            .pointer_mut("/secrets")
            .and_then(|secrets| secrets.get_mut(&name))
        {
            Some(secret) => *secret = json!({"environment": variable}),
            None => return Err(wrong("is none of the document")),
        }
        variables.push((variable, content));
    }
    Ok(variables)
}

fn named(app: &App, name: &str, document: bool) -> Vec<String> {
    let mut words = vec![format!("--project-name={name}"), "--env-file=/dev/null".to_owned()];
    words.push(format!(
        "--project-directory={}",
        app.engine.home().machines().display()
    ));
    if document {
        words.push("--file=-".to_owned());
    }
    words
}

/// Does something with a project; what is told of it is a stream, and how it ended its last line. It goes on when the client goes.
///
/// # Errors
/// 400 for a wish that makes no sense.
pub async fn act(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let mut wish: Wish = read(call).await?;
    if matches!(wish.action, Act::Up | Act::Pull) && wish.config.is_none() {
        return Err(Failure::new(Class::Usage, "'config' is missing: the compose file as a document").into());
    }
    let words = wish.words()?;
    let mut command = compose(app, &named(app, &name, wish.config.is_some()), &words);
    let document = match wish.config.take() {
        None => None,
        Some(mut config) => {
            command.envs(with_secrets(&mut config, std::mem::take(&mut wish.secrets))?);
            without_variables(&mut config);
            Some(config.to_string())
        }
    };
    let mut child = started(&mut command)?;
    if let Some(mut stdin) = child.stdin.take() {
        tokio::spawn(async move {
            if let Some(document) = document {
                let _ = stdin.write_all(document.as_bytes()).await;
            }
        });
    }
    let (sender, body) = Body::stream();
    tokio::spawn(async move {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        tokio::join!(told(stdout, "stdout", &sender), told(stderr, "stderr", &sender));
        let end = match child.wait().await {
            Ok(status) => json!({"exit": status.code().unwrap_or(1)}),
            Err(error) => json!({"failed": error.to_string()}),
        };
        let _ = sender.send(line(&end)).await;
    });
    Ok(typed(StatusCode::OK, "application/x-ndjson", body))
}

fn line(value: &Value) -> Bytes {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

/// Passes what a command says on; without a client, it is read all the same.
async fn told(stream: Option<impl AsyncRead + Unpin>, name: &str, sender: &mpsc::Sender<Bytes>) {
    let Some(mut stream) = stream else { return };
    let mut piece = vec![0; PIECE];
    while let Ok(count) = stream.read(&mut piece).await {
        if count == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&piece[..count]);
        let _ = sender.send(line(&json!({"stream": name, "text": text}))).await;
    }
}

/// What the machines of a project wrote, each line with the name of its machine.
///
/// # Errors
/// 404 for a service that is not there.
pub async fn logs(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let mut words = vec!["logs".to_owned(), "--no-color".to_owned()];
    for name in ["follow", "timestamps"] {
        words.extend(call.query.flag(name).then(|| format!("--{name}")));
    }
    words.extend(call.query.flag("no_prefix").then(|| "--no-log-prefix".to_owned()));
    for name in ["tail", "since", "until"] {
        words.extend(call.query.get(name).map(|value| format!("--{name}={value}")));
    }
    words.push("--".to_owned());
    words.extend(call.query.all("service").map(str::to_owned));
    let mut command = compose(app, &named(app, &call.place("name"), false), &words);
    let mut child = started(command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true))?;
    let (sender, body) = Body::stream();
    tokio::spawn(async move {
        let Some(mut stdout) = child.stdout.take() else { return };
        let mut piece = vec![0; PIECE];
        loop {
            let read = tokio::select! {
                read = stdout.read(&mut piece) => read,
                () = sender.closed() => break,
            };
            match read {
                Ok(count) if count > 0 => {
                    if sender.send(Bytes::copy_from_slice(&piece[..count])).await.is_err() {
                        break;
                    }
                }
                _ => break,
            }
        }
        let _ = child.kill().await;
    });
    Ok(typed(StatusCode::OK, "text/plain", body))
}

/// Lists projects, known by the labels of their machines.
///
/// # Errors
/// When machines cannot be listed.
pub async fn list(app: &Arc<App>) -> Result<Answer, Problem> {
    let projects = failing(app, |app| {
        let mut projects: BTreeMap<String, (BTreeMap<&'static str, usize>, String)> = BTreeMap::new();
        for machine in app.engine.machines()?.into_iter().flatten() {
            let label = |key: &str| machine.spec.labels.get(key).cloned();
            let Some(name) = label(PROJECT) else { continue };
            let (states, files) = projects.entry(name).or_default();
            *states.entry(machine.state.phase.word()).or_default() += 1;
            *files = label(CONFIG_FILES).unwrap_or_default();
        }
        let shown = |(name, (states, files))| json!({"name": name, "states": states, "files": files});
        Ok(projects.into_iter().map(shown).collect::<Vec<Value>>())
    })
    .await?;
    Ok(json(StatusCode::OK, &json!({"projects": projects})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_from_variables_and_are_not_in_the_document() {
        let mut config = json!({"secrets": {"key": {"file": "/far"}}});
        let secrets = |name: &str, content: &str| BTreeMap::from([(name.to_owned(), content.to_owned())]);
        let variables = with_secrets(&mut config, secrets("key", "hidden")).unwrap();
        assert_eq!(variables, [("ZMACHINE_SECRET_0".to_owned(), "hidden".to_owned())]);
        assert_eq!(
            config,
            json!({"secrets": {"key": {"environment": "ZMACHINE_SECRET_0"}}})
        );
        for (name, content) in [("none", "x"), ("key", "a\0b"), ("key", &"x".repeat(SECRET + 1))] {
            assert!(with_secrets(&mut config, secrets(name, content)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_dollar_sign_in_a_document_is_one() {
        let mut document = json!({"a": ["$HOME", {"b": "x$"}], "n": 1});
        without_variables(&mut document);
        assert_eq!(document, json!({"a": ["$$HOME", {"b": "x$$"}], "n": 1}));
    }
}
