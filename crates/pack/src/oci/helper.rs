//! Credential helpers: programs `docker-credential-NAME` that keep what the files only refer to.
//!
//! The protocol is docker's: the program is called with the word `get` and reads the server's name, then prints
//! `{"ServerURL": ..., "Username": ..., "Secret": ...}`; with `store` it reads the same and prints nothing; with `erase` it reads the
//! name. When it fails it prints why. Its answer is bounded in length and time. It is found by `PATH`, as docker and podman find it, and may talk to the user on the terminal.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::Problem;

/// The longest answer, in bytes.
const LIMIT: u64 = 1 << 20;

/// A user may have to find a password for the helper.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a helper says when it does not know the server; each has its own case and its own words around it.
const UNKNOWN: &str = "credentials not found";

/// The answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Found {
    #[serde(default)]
    pub(super) username: String,
    #[serde(default)]
    pub(super) secret: String,
}

/// What the helper `name` has for `server`; `None` when it knows nothing.
///
/// # Errors
/// When it is no helper's name, is not installed, fails, or answers with something else.
pub(super) fn ask(name: &str, server: &str) -> Result<Option<Found>, Problem> {
    get(&program(name)?, server, TIMEOUT)
}

/// Has the helper `name` keep a login of `server`.
///
/// # Errors
/// As [`ask`].
pub(super) fn store(name: &str, server: &str, user: &str, secret: &str) -> Result<(), Problem> {
    let login = json!({"ServerURL": server, "Username": user, "Secret": secret});
    call(&program(name)?, "store", &login.to_string(), TIMEOUT)?.succeeded()
}

/// Has the helper `name` forget what it keeps of `server`.
///
/// # Errors
/// As [`ask`].
pub(super) fn erase(name: &str, server: &str) -> Result<(), Problem> {
    call(&program(name)?, "erase", server, TIMEOUT)?.succeeded()
}

fn program(name: &str) -> Result<PathBuf, Problem> {
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !is_name {
        return Err(Problem::Broken(format!("{name:?} is no name of a credential helper")));
    }
    Ok(format!("docker-credential-{name}").into())
}

fn get(program: &Path, server: &str, patience: Duration) -> Result<Option<Found>, Problem> {
    let answer = call(program, "get", server, patience)?;
    if String::from_utf8_lossy(&answer.output)
        .to_ascii_lowercase()
        .contains(UNKNOWN)
    {
        return Ok(None);
    }
    answer.succeeded()?;
    // The parser's message would quote what may be a password.
    let found = serde_json::from_slice(&answer.output);
    let found: Found = found.map_err(|_| failed(program, io::Error::other("its answer is no credentials")))?;
    // How docker-credential-pass 0.6.4 says that it knows nothing, with the status of success.
    Ok(Some(found).filter(|found| !found.username.is_empty()))
}

/// Of no kind: the image itself may well be there.
fn failed(program: &Path, error: io::Error) -> Problem {
    let program = program.display();
    Problem::Read(io::Error::other(format!(
        "the credential helper {program} cannot be asked: {error}"
    )))
}

/// What a helper said, and how it ended.
struct Answer<'a> {
    program: &'a Path,
    output: Vec<u8>,
    status: ExitStatus,
}

impl Answer<'_> {
    fn succeeded(&self) -> Result<(), Problem> {
        if self.status.success() {
            return Ok(());
        }
        let output: String = String::from_utf8_lossy(&self.output).trim().chars().take(200).collect();
        let text = format!("it failed ({}): {output}", self.status);
        Err(failed(self.program, io::Error::other(text)))
    }
}

fn call<'a>(program: &'a Path, verb: &str, input: &str, patience: Duration) -> Result<Answer<'a>, Problem> {
    let failed = |error| failed(program, error);
    let mut command = Command::new(program);
    command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    // One that does not read its input may have answered all the same.
    let _ = stdin.map(|mut stdin| stdin.write_all(input.as_bytes()));
    let (answered, reader) = mpsc::channel();
    std::thread::spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.map_or(Ok(0), |stdout| stdout.take(LIMIT).read_to_end(&mut answer));
        let _ = answered.send(read.map(|_| answer));
    });
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // What it has started may hold its end of the pipe open.
    let output = reader.recv_timeout(Duration::from_secs(1));
    let output = output
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    Ok(Answer {
        program,
        output,
        status,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What a helper answers that is such a script; one that sleeps is not waited for.
    fn answer(script: &str) -> Result<Option<(String, String)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("helper");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let patience = if script.contains("sleep") { 1 } else { 60 };
        match get(&program, "registry.example.com", Duration::from_secs(patience)) {
            Ok(found) => Ok(found.map(|found| (found.username, found.secret))),
            Err(Problem::Read(error)) => Err(error.to_string()),
            Err(_) => Err("another problem".into()),
        }
    }

    #[test]
    fn a_helper_is_told_the_server_and_answers_with_a_login() {
        let script = r#"[ "$1" = get ] && printf '{"ServerURL":"","Username":"u","Secret":"%s"}' "$(cat)""#;
        assert_eq!(answer(script), Ok(Some(("u".into(), "registry.example.com".into()))));
    }

    #[test]
    fn one_that_knows_nothing_is_no_failure_and_one_that_fails_is() {
        assert_eq!(
            answer("echo credentials not found in native keychain; exit 1"),
            Ok(None)
        );
        let empty = r#"echo '{"ServerURL":"h","Username":"","Secret":""}'"#;
        assert_eq!(answer(empty), Ok(None));
        assert_eq!(answer("echo Credentials not found in native keychain"), Ok(None));
        for (script, reported) in [
            ("echo the keychain is locked; exit 3", "the keychain is locked"),
            ("echo hunter2", "no credentials"),
            ("exec sleep 100", "timed out"),
        ] {
            let error = answer(script).unwrap_err();
            assert!(error.contains(reported) && !error.contains("hunter2"), "{error}");
        }
        assert!(matches!(ask("../x", "h"), Err(Problem::Broken(_))));
        let missing = ask("zmachine-has-no-such-helper", "h");
        assert!(matches!(missing, Err(Problem::Read(error)) if error.to_string().contains("cannot be asked")));
    }
}
