//! Checks of the project itself, run as `cargo xtask CHECK` and by `make check`.
//!
//! Owns the rules a compiler cannot see: which crate may import which ([`layering`]), which
//! files may not import each other ([`circles`]), and what may stand in a tracked
//! file ([`tidy`]). Reads `cargo metadata` and `git ls-files`; changes nothing.

mod circles;
mod layering;
mod tidy;

use std::process::{Command, ExitCode};

use serde_json::Value;

const USAGE: &str = "usage: cargo xtask layering | tidy [--forbid TEXT]...

  layering   the edges between the workspace's crates are the ones listed in crates/xtask/src/layering.rs, no crate is too
             large, and no files of the watched crates import each other in a circle
  tidy       no tracked file holds unfinished code, a path of this machine or a forbidden TEXT, or too many lines";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.split_first() {
        Some((check, [])) if check == "layering" => check_layering(),
        Some((check, rest)) if check == "tidy" => forbidden_texts(rest).and_then(|texts| check_tidy(&texts)),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// The words after `tidy`: `--forbid TEXT` pairs.
fn forbidden_texts(words: &[String]) -> Result<Vec<String>, String> {
    words
        .chunks(2)
        .map(|pair| match pair {
            [flag, text] if flag == "--forbid" && !text.is_empty() => Ok(text.clone()),
            _ => Err(USAGE.to_owned()),
        })
        .collect()
}

fn check_layering() -> Result<String, String> {
    let metadata = output_of(Command::new(cargo()).args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let metadata: Value = serde_json::from_slice(&metadata).map_err(|e| format!("layering: cargo metadata: {e}"))?;
    let edges = layering::edges_of(&metadata)?;
    let root = metadata["workspace_root"]
        .as_str()
        .ok_or("layering: no workspace_root")?;
    let root = std::path::Path::new(root);
    let mut findings = layering::violations(&edges);
    findings.extend(layering::too_large(root)?);
    findings.extend(circles::violations(root)?);
    report(
        "layering",
        findings,
        &format!("{} edges, all of them listed; no circles of files", edges.len()),
    )
}

fn check_tidy(forbidden: &[String]) -> Result<String, String> {
    let root = output_of(Command::new("git").args(["rev-parse", "--show-toplevel"]))?;
    let root = std::path::PathBuf::from(String::from_utf8_lossy(&root).trim_end());
    let listed = output_of(Command::new("git").arg("-C").arg(&root).args(["ls-files", "-z"]))?;
    let mut texts = forbidden.to_vec();
    texts.extend(tidy::paths_of_this_machine(&root, &names_beside(&root)));
    let (mut files, mut findings) = (0, Vec::new());
    for name in listed.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        // A tracked file that is gone from the work tree, or a link out of it, is git's business.
        let Ok(content) = std::fs::read(root.join(&name)) else {
            continue;
        };
        files += 1;
        findings.extend(tidy::findings(&name, &content, &texts));
    }
    report("tidy", findings, &format!("{files} files"))
}

/// The names in the folder that holds `root`; none when it cannot be read.
fn names_beside(root: &std::path::Path) -> Vec<String> {
    let entries = root.parent().and_then(|parent| std::fs::read_dir(parent).ok());
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// `findings` as a failure, one per line, or the summary when there are none.
fn report(check: &str, findings: Vec<String>, summary: &str) -> Result<String, String> {
    if findings.is_empty() {
        return Ok(format!("{check}: {summary}"));
    }
    Err(findings
        .iter()
        .map(|finding| format!("{check}: {finding}"))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// The cargo that runs us, so a pinned toolchain stays the one in use.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn output_of(command: &mut Command) -> Result<Vec<u8>, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!(
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(output.stdout)
}
