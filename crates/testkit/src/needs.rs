//! What a test needs of its host, and how it says that it was skipped.
//!
//! A skip is printed past the test runner's capture, and counted: `make test` lists all of them at its end. What
//! `scripts/setup` installs, root, and a guest kernel in `ZMACHINE_TEST_KERNEL` are **provided** to CI: a test that lacks one
//! of these fails there (`CI=true`), because a suite that skips it tests nothing. Everything else a host may lack: KVM,
//! Cloud Hypervisor, features of its kernel, the network.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What is installed on a host that builds and tests: its lines `need COMMAND-OR-FILE PACKAGE`.
const SETUP: &str = include_str!("../../../scripts/setup");

/// Names the file that every skip adds a line to.
const LIST: &str = "ZMACHINE_TEST_SKIPS";

/// Set by `make test-fast`, which leaves out what wants root or a guest, whoever runs it.
const FAST: &str = "ZMACHINE_TEST_FAST";

/// The folder of an installed guest kernel.
const KERNEL: &str = "ZMACHINE_TEST_KERNEL";

/// One thing a test needs of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need<'a> {
    /// To run as root.
    Root,
    /// A command in `PATH` (or in the folders of system commands).
    Command(&'a str),
    /// A file or device.
    File(&'a str),
    /// A guest kernel ([`test_kernel`]), and the QEMU to run it.
    Guest,
}

/// Why a test cannot run on this host, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    what: String,
    is_provided: bool,
}

impl Lack {
    /// A lack of something that every host of CI has.
    pub fn provided(what: impl Into<String>) -> Lack {
        Lack {
            what: what.into(),
            is_provided: true,
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// A lack of something that a host of CI may be without.
impl From<&str> for Lack {
    fn from(what: &str) -> Lack {
        Lack {
            what: what.to_owned(),
            is_provided: false,
        }
    }
}

impl From<&String> for Lack {
    fn from(what: &String) -> Lack {
        what.as_str().into()
    }
}

impl From<&Lack> for Lack {
    fn from(lack: &Lack) -> Lack {
        lack.clone()
    }
}

/// Why a test that has `needs` cannot run here; `None` when it can.
pub fn lacking(needs: &[Need<'_>]) -> Option<Lack> {
    let is_fast = std::env::var_os(FAST).is_some();
    needs.iter().find_map(|need| match *need {
        Need::Root | Need::Guest if is_fast => Some("make test-fast leaves out root and guests".into()),
        Need::Root => (!rustix::process::geteuid().is_root()).then(|| Lack::provided("needs root")),
        Need::Command(name) => command_path(name)
            .is_none()
            .then(|| lack(format!("needs the command {name}"), name)),
        Need::File(path) => (!Path::new(path).exists()).then(|| lack(format!("needs {path}"), path)),
        Need::Guest => match test_kernel() {
            None => Some(Lack::provided(format!(
                "needs an installed kernel, its folder in {KERNEL}"
            ))),
            Some(_) => lacking(&[Need::Command("qemu-system-x86_64"), Need::Command("busybox")]),
        },
    })
}

fn lack(what: String, name: &str) -> Lack {
    Lack {
        what,
        is_provided: is_set_up(name),
    }
}

/// Whether `scripts/setup` installs `name`.
fn is_set_up(name: &str) -> bool {
    let mut words = SETUP.lines().map(|line| line.split_ascii_whitespace());
    words.any(|mut words| words.find(|word| *word == "need").is_some() && words.next() == Some(name))
}

/// The folder of an installed kernel that `ZMACHINE_TEST_KERNEL` names.
pub fn test_kernel() -> Option<PathBuf> {
    std::env::var_os(KERNEL).map(PathBuf::from)
}

/// Says that the calling test is skipped, so a skipped test is never silently green.
///
/// # Panics
/// In CI (`CI=true`), for a lack of what CI provides.
pub fn skip(lack: impl Into<Lack>) {
    let lack = lack.into();
    let is_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(
        !(is_ci && lack.is_provided),
        "{lack}: scripts/setup, root and make test provide this, so it is no reason to skip in CI"
    );
    let thread = std::thread::current();
    let line = line(thread.name().unwrap_or("a test"), &lack);
    // Not eprintln: the runner swallows that of a test that passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(list) = std::env::var_os(LIST)
        && let Err(error) = append(Path::new(&list), &line)
    {
        panic!("{LIST}: {}: {error}", Path::new(&list).display());
    }
}

/// One line, whatever the reason has in it.
fn line(test: &str, lack: &Lack) -> String {
    let why = lack.what.replace('\n', " ");
    format!("skipped: {test}: {why}\n")
}

/// Adds a line in one write, since other tests add theirs at the same time.
fn append(list: &Path, line: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::options().create(true).append(true).open(list)?;
    file.write_all(line.as_bytes())
}

/// The file that would run as `name`, also from the folders an ordinary user's `PATH` lacks.
pub fn command_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Into::into);
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_thing_a_host_lacks_is_named() {
        assert_eq!(lacking(&[Need::Command("sh"), Need::File("/dev/null")]), None);
        let lacked = lacking(&[Need::Command("sh"), Need::Command("no-such-command")]).unwrap();
        assert_eq!(lacked.to_string(), "needs the command no-such-command");
    }

    #[test]
    fn what_setup_installs_is_provided_and_nothing_else() {
        for name in ["qemu-img", "sgdisk", "/usr/share/OVMF/OVMF_CODE_4M.fd"] {
            assert!(is_set_up(name), "{name}");
        }
        for name in ["cloud-hypervisor", "/dev/kvm", "need", "gdisk"] {
            assert!(!is_set_up(name), "{name}");
        }
    }

    #[test]
    fn every_skip_is_one_line_of_the_list() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("skips");
        append(&list, &line("a::b", &"one\nreason".into())).unwrap();
        append(&list, &line("c", &Lack::provided("needs root"))).unwrap();
        let text = std::fs::read_to_string(&list).unwrap();
        assert_eq!(text, "skipped: a::b: one reason\nskipped: c: needs root\n");
    }

    /// Runs itself again as CI would, and as a person would.
    #[test]
    fn skipping_what_is_provided_fails_in_ci_alone() {
        const INSIDE: &str = "ZMACHINE_TEST_SKIP_INSIDE";
        if std::env::var_os(INSIDE).is_some() {
            return skip(Lack::provided("needs root"));
        }
        let run = |ci: &str| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "needs::tests::skipping_what_is_provided_fails_in_ci_alone"])
                .env(INSIDE, "1")
                .env("CI", ci)
                .env_remove(LIST)
                .output()
                .unwrap()
                .status
                .success()
        };
        assert!(!run("true"));
        assert!(run("false"));
    }
}
