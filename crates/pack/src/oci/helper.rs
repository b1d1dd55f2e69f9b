//! Credential helpers: programs `docker-credential-NAME` that keep what the files only refer to.
//!
//! The protocol is docker's: the program is called with the word `get` and reads the server's name, then prints
//! `{"ServerURL": ..., "Username": ..., "Secret": ...}`; when it fails it prints why. Its answer is bounded in length and
//! time. It is found by `PATH`, as docker and podman find it, and may talk to the user on the terminal.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;

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
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !is_name {
        return Err(Problem::Broken(format!("{name:?} is no name of a credential helper")));
    }
    run(Path::new(&format!("docker-credential-{name}")), server, TIMEOUT)
}

fn run(program: &Path, server: &str, patience: Duration) -> Result<Option<Found>, Problem> {
    let failed = |error: io::Error| {
        // Of no kind: the image itself may well be there.
        let program = program.display();
        Problem::Read(io::Error::other(format!(
            "the credential helper {program} cannot be asked: {error}"
        )))
    };
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    // One that does not read its input may have answered all the same.
    let _ = stdin.map(|mut stdin| stdin.write_all(server.as_bytes()));
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
    let answer = reader.recv_timeout(Duration::from_secs(1));
    let answer = answer
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    let says_unknown = String::from_utf8_lossy(&answer).to_ascii_lowercase().contains(UNKNOWN);
    if !status.success() || says_unknown {
        let output: String = String::from_utf8_lossy(&answer).trim().chars().take(200).collect();
        if says_unknown {
            return Ok(None);
        }
        return Err(failed(io::Error::other(format!("it failed ({status}): {output}"))));
    }
    // The parser's message would quote what may be a password.
    let found = serde_json::from_slice(&answer);
    let found: Found = found.map_err(|_| failed(io::Error::other("its answer is no credentials")))?;
    // How docker-credential-pass 0.6.4 says that it knows nothing, with the status of success.
    Ok(Some(found).filter(|found| !found.username.is_empty()))
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
        match run(&program, "registry.example.com", Duration::from_secs(patience)) {
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
