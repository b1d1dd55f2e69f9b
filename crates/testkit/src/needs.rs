//! What a test needs of its host, and how it says that it was skipped.

use std::io::Write;
use std::path::Path;

/// One thing a test needs of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need<'a> {
    /// To run as root.
    Root,
    /// A command in `PATH` (or in the folders of system commands).
    Command(&'a str),
    /// A file or device.
    File(&'a str),
}

/// Why a test that has `needs` can not run here, as a sentence; `None` when it can.
pub fn lacking(needs: &[Need<'_>]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Need::Root => (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned()),
        Need::Command(name) => command_path(name)
            .is_none()
            .then(|| format!("needs the command {name}")),
        Need::File(path) => (!Path::new(path).exists()).then(|| format!("needs {path}")),
    })
}

/// Prints that the calling test is skipped, past the test runner's capture, so a skipped test is never silently green.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("a test"));
    // Not eprintln: the runner swallows that of a test that passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The file that would run as `name`, also from the folders an ordinary user's `PATH` lacks.
pub(crate) fn command_path(name: &str) -> Option<std::path::PathBuf> {
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
        let lacked = lacking(&[Need::Command("sh"), Need::Command("no-such-command")]);
        assert_eq!(lacked.as_deref(), Some("needs the command no-such-command"));
    }
}
