//! Finding QEMU and asking what it is.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use zmachine_sys::jail::SEARCH_PATH;

use super::{BINARY, QBOOT, Qemu};

/// The oldest version whose options we use and have seen working.
const OLDEST: (u32, u32) = (7, 2);

/// Why no QEMU can be used here.
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
    #[error("{} does not say which version of QEMU it is: {reported}", binary.display())]
    NotQemu {
        /// The program.
        binary: PathBuf,
        /// What it said.
        reported: String,
    },
    /// The program is too old.
    #[error("{} is QEMU {}.{}, which is older than {}.{}", binary.display(), version.0, version.1, OLDEST.0, OLDEST.1)]
    TooOld {
        /// The program.
        binary: PathBuf,
        /// Its major and minor version.
        version: (u32, u32),
    },
    /// The firmware is not there.
    #[error("QEMU's firmware {QBOOT} is in none of its data folders: {}", searched.join(" "))]
    NoFirmware {
        /// Where QEMU would look.
        searched: Vec<String>,
    },
}

impl ProbeError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "apt-get install qemu-system-x86",
            Self::NoFirmware { .. } => "apt-get install qemu-system-data",
            Self::NotQemu { .. } | Self::TooOld { .. } => "install QEMU 7.2 or later (Debian: qemu-system-x86)",
        }
    }
}

/// Asks the QEMU at `binary`, or the one in the search path when `None`. Takes about 25 ms of two CPUs.
///
/// # Errors
/// [`ProbeError`].
pub fn probe(binary: Option<&Path>) -> Result<Qemu, ProbeError> {
    let binary = binary.unwrap_or(Path::new(BINARY)).to_owned();
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(arguments).env_clear().env("PATH", SEARCH_PATH);
        command.stdin(Stdio::null()).output()
    };
    // Both at once: each is mostly the loading of a big program.
    let (version, folders) = std::thread::scope(|scope| {
        let folders = scope.spawn(|| ask(&["-L", "help"]));
        (
            ask(&["-version"]),
            folders
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the asking thread died"))),
        )
    });
    let missing = |source| ProbeError::Missing {
        binary: binary.clone(),
        source,
    };
    let (version, folders) = (text(version.map_err(missing)?), text(folders.map_err(missing)?));
    let Some(parsed) = parse_version(&version) else {
        let reported = version.lines().next().unwrap_or_default().chars().take(100).collect();
        return Err(ProbeError::NotQemu { binary, reported });
    };
    if parsed < OLDEST {
        return Err(ProbeError::TooOld {
            binary,
            version: parsed,
        });
    }
    if !folders.lines().any(|folder| Path::new(folder).join(QBOOT).exists()) {
        return Err(ProbeError::NoFirmware {
            searched: folders.lines().map(str::to_owned).collect(),
        });
    }
    Ok(Qemu {
        version: parsed,
        ..Qemu::unasked(Some(&binary))
    })
}

fn text(output: Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// From `QEMU emulator version 7.2.22 (Debian ...)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text
        .strip_prefix("QEMU emulator version ")?
        .split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_distributions_print_them() {
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"),
            Some((7, 2))
        );
        assert_eq!(parse_version("QEMU emulator version 10.0.2\n"), Some((10, 0)));
        assert_eq!(parse_version("BusyBox v1.35"), None);
    }

    #[test]
    fn a_missing_qemu_says_what_to_install() {
        let error = probe(Some(Path::new("/nonexistent/qemu"))).unwrap_err();
        assert_eq!(error.to_string(), "cannot run /nonexistent/qemu");
        assert_eq!(error.hint(), "apt-get install qemu-system-x86");
    }

    #[test]
    fn another_program_is_not_taken_for_qemu() {
        assert!(matches!(
            probe(Some(Path::new("/bin/echo"))),
            Err(ProbeError::NotQemu { .. })
        ));
    }
}
