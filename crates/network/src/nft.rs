//! Running `nft`: one script, one transaction.

use std::io;
use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::NetworkError;

/// Where distributions put nft; a user's search path often lacks the sbin folders.
const PLACES: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft", "/usr/bin/nft"];

/// The nft program, by its full path when it is in one of the usual places.
pub(crate) fn program() -> &'static str {
    PLACES.into_iter().find(|p| Path::new(p).exists()).unwrap_or("nft")
}

/// Applies `script` to the current network namespace, all of it or nothing. `table` is for the error.
pub(crate) async fn apply(table: &str, script: &str) -> Result<(), NetworkError> {
    let output = run(&["-f", "-"], script)
        .await
        .map_err(|source| NetworkError::NoNft { source })?;
    if output.0 {
        return Ok(());
    }
    if output.1.contains("Operation not permitted") {
        let action = format!("to change the rules of table {table}");
        return Err(NetworkError::NeedsRoot { action });
    }
    let message = explain(&output.1, script);
    let table = table.to_owned();
    Err(NetworkError::Nft { table, message })
}

/// Runs nft with `input`; whether it succeeded, and its output (errors when it failed).
pub(crate) async fn run(args: &[&str], input: &str) -> io::Result<(bool, String)> {
    let mut child = Command::new(program())
        .args(args)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A nft that dies early says why on stderr; the broken pipe says nothing.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    let text = if output.status.success() {
        output.stdout
    } else {
        output.stderr
    };
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// nft's first message and the rule it points at: `/dev/stdin:7:3-9: Error: ...` (line 7, from 1).
fn explain(stderr: &str, script: &str) -> String {
    let first = stderr
        .lines()
        .find(|l| l.contains("Error"))
        .unwrap_or_else(|| stderr.lines().next().unwrap_or(""));
    let reported = first
        .split_once("Error: ")
        .map_or(first, |(_, reported)| reported)
        .trim();
    let number = first.split(':').nth(1).and_then(|n| n.parse::<usize>().ok());
    match number.and_then(|n| script.lines().nth(n.checked_sub(1)?)) {
        Some(rule) => format!("{reported}, in: {}", rule.trim()),
        None => reported.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_rule_is_named() {
        let stderr = "/dev/stdin:2:3-9: Error: syntax error, unexpected string\n\t\tbad rule\n\t\t^^^\n";
        let reported = explain(stderr, "table inet x {\n\t\tbad rule\n}\n");
        assert_eq!(reported, "syntax error, unexpected string, in: bad rule");
        assert_eq!(
            explain("netlink: Error: cache initialization failed", ""),
            "cache initialization failed"
        );
    }
}
