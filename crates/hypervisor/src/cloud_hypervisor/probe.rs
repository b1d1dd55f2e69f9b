//! Finding Cloud Hypervisor and asking what it is.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use zmachine_sys::jail::SEARCH_PATH;

use super::{BINARY, CloudHypervisor, OLDEST};

/// Why no Cloud Hypervisor can be used here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The program cannot be run.
    #[error("cannot run {}", binary.display())]
    Missing {
        /// The program.
        binary: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The program is something else.
    #[error("{} does not say which version of Cloud Hypervisor it is: {reported}", binary.display())]
    Other {
        /// The program.
        binary: PathBuf,
        /// What it said.
        reported: String,
    },
    /// The program is too old.
    #[error("{} is Cloud Hypervisor {}.{}, which is older than {}.{}", binary.display(), version.0, version.1, OLDEST.0, OLDEST.1)]
    TooOld {
        /// The program.
        binary: PathBuf,
        /// Its major and minor version.
        version: (u32, u32),
    },
}

impl ProbeError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        "put the static binary of Cloud Hypervisor v53 or later into the search path as 'cloud-hypervisor'"
    }
}

/// Asks the Cloud Hypervisor at `binary`, or the one in the search path when `None`.
///
/// # Errors
/// [`ProbeError`].
pub fn probe(binary: Option<&Path>) -> Result<CloudHypervisor, ProbeError> {
    let binary = binary.unwrap_or(Path::new(BINARY)).to_owned();
    let mut command = Command::new(&binary);
    command.arg("--version").env_clear().env("PATH", SEARCH_PATH);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| ProbeError::Missing {
        binary: binary.clone(),
        source,
    })?;
    judge(binary, &String::from_utf8_lossy(&output.stdout))
}

/// What the program that answers `--version` with `text` is.
fn judge(binary: PathBuf, text: &str) -> Result<CloudHypervisor, ProbeError> {
    let Some(version) = parse_version(text) else {
        let reported = text.lines().next().unwrap_or_default().chars().take(100).collect();
        return Err(ProbeError::Other { binary, reported });
    };
    if version < OLDEST {
        return Err(ProbeError::TooOld { binary, version });
    }
    Ok(CloudHypervisor {
        version,
        ..CloudHypervisor::unasked(Some(&binary))
    })
}

/// From `cloud-hypervisor v53.0.0` or `cloud-hypervisor v53.0-12-gabcdef`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text
        .strip_prefix("cloud-hypervisor v")?
        .split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_releases_and_builds_print_them() {
        assert_eq!(parse_version("cloud-hypervisor v53.0.0\n"), Some((53, 0)));
        assert_eq!(parse_version("cloud-hypervisor v54.1-7-g01f93762\n"), Some((54, 1)));
        assert_eq!(parse_version("Firecracker v1.9.0"), None);
    }

    #[test]
    fn a_missing_an_old_and_another_program_are_told_apart() {
        let missing = probe(Some(Path::new("/nonexistent/ch"))).unwrap_err();
        assert!(matches!(missing, ProbeError::Missing { .. }) && missing.hint().contains("v53"));
        assert!(matches!(
            probe(Some(Path::new("/bin/echo"))),
            Err(ProbeError::Other { .. })
        ));
        let error = judge("/opt/ch".into(), "cloud-hypervisor v34.0.0\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/opt/ch is Cloud Hypervisor 34.0, which is older than 53.0"
        );
        assert_eq!(
            judge("/opt/ch".into(), "cloud-hypervisor v53.0.0\n").unwrap().version,
            (53, 0)
        );
    }
}
