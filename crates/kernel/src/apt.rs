//! Getting a kernel's package from the host's own package sources: downloaded and checked by apt, never installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::KernelError;
use crate::error::AtPath;

/// The series whose cloud flavour is the default kernel: a long-term one, and in Debian 12's security archive.
const PREFIX: &str = "linux-image-6.12.";
const FLAVOUR: &str = "-cloud-amd64";

/// The newest package of the default kernel that apt knows. The `-unsigned` twin (same kernel without the signature for
/// Secure Boot, which a guest does not use) is taken when only it is there.
pub(crate) fn newest_kernel_package() -> Result<String, KernelError> {
    let known = run(Command::new("apt-cache").args(["pkgnames", PREFIX]), "apt")?;
    newest(&known).ok_or_else(|| KernelError::NoPackage {
        pattern: format!("{PREFIX}*{FLAVOUR}"),
    })
}

/// Downloads `package` into `dir` and gives its file. Apt checks it against the signed index.
pub(crate) fn download(package: &str, dir: &Path) -> Result<PathBuf, KernelError> {
    // The sandbox user cannot write to a private folder; apt would only warn and go on as root.
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", package])
        .current_dir(dir);
    run(&mut command, "apt")?;
    let entries = std::fs::read_dir(dir).at("read", dir)?;
    let mut files = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "deb"));
    files
        .next()
        .ok_or_else(|| KernelError::bad_input(package, "apt-get downloaded nothing"))
}

/// Runs a command to its end and gives what it printed; `packages` bring it when it is missing.
pub(crate) fn run(command: &mut Command, packages: &'static str) -> Result<String, KernelError> {
    let shown = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
    };
    let shown = shown();
    let output = command.stdin(std::process::Stdio::null()).env("LC_ALL", "C").output();
    let output = output.map_err(|source| KernelError::NoTool {
        tool: command.get_program().to_string_lossy().into_owned(),
        packages,
        source,
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reported = String::from_utf8_lossy(&output.stderr);
    // What apt only warns of hides why it failed.
    let tells = |line: &&str| !line.trim().is_empty() && !line.starts_with("W: ");
    let lines: Vec<&str> = reported.lines().filter(tells).collect();
    let last_lines = lines[lines.len().saturating_sub(5)..].join("; ");
    Err(KernelError::Tool {
        command: shown,
        status: output.status.to_string(),
        last_lines,
    })
}

fn newest(names: &str) -> Option<String> {
    let candidates = names.lines().filter_map(|name| {
        let middle = name.strip_prefix(PREFIX)?;
        let (middle, signed) = match middle.strip_suffix("-unsigned") {
            Some(middle) => (middle, false),
            None => (middle, true),
        };
        let version = middle.strip_suffix(FLAVOUR)?;
        let numbers: Vec<u32> = version
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect();
        Some((numbers, signed, name))
    });
    candidates.max().map(|(_, _, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_found_by_number_and_not_by_text() {
        let names = "linux-image-6.12.9+deb12-cloud-amd64\nlinux-image-6.12.117+deb12-cloud-amd64-unsigned\n\
            linux-image-6.12.117+deb12-cloud-amd64\nlinux-image-6.12.117+deb12-cloud-amd64-dbg\n\
            linux-image-6.12.120+deb12-amd64\n";
        assert_eq!(newest(names).as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
    }

    #[test]
    fn the_unsigned_twin_will_do() {
        let names = "linux-image-6.12.100+deb12-cloud-amd64\nlinux-image-6.12.101+deb12-cloud-amd64-unsigned\n";
        assert_eq!(
            newest(names).as_deref(),
            Some("linux-image-6.12.101+deb12-cloud-amd64-unsigned")
        );
    }

    #[test]
    fn warnings_do_not_hide_why_it_failed() {
        let script =
            "echo 'E: no such package' >&2; for i in 1 2 3 4 5 6; do echo 'W: configured twice' >&2; done; exit 100";
        let error = run(Command::new("sh").args(["-c", script]), "apt").unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("E: no such package"), "{text}");
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let error = run(&mut Command::new("no-such-tool-of-ours"), "apt").unwrap_err();
        assert_eq!(error.hint().as_deref(), Some("apt-get install apt"));
    }

    #[test]
    fn a_failing_tool_is_quoted() {
        let error = run(Command::new("sh").args(["-c", "echo E: broken >&2; exit 3"]), "sh").unwrap_err();
        assert!(error.to_string().contains("(exit status: 3): E: broken"), "{error}");
    }
}
