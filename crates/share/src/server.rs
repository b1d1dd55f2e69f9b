//! Which virtiofsd this host has, and its command line.
//!
//! There are two programs of that name: QEMU's own in C until 7.2 (Debian 12: package qemu-system-common), and the one in
//! Rust that replaced it. Their options differ; what is used here does the same in both.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Where it is looked for, first match wins. The first three are for one that an administrator installed.
const PLACES: [&str; 6] = [
    "/usr/local/bin/virtiofsd",
    "/usr/local/libexec/virtiofsd",
    "/usr/bin/virtiofsd",
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
];

/// How virtiofsd locks itself in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sandbox {
    /// It makes namespaces of its own.
    Namespaces,
    /// It is in namespaces of its own already, and makes the tree its root.
    ChangedRoot,
}

/// A virtiofsd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    program: PathBuf,
    is_qemus: bool,
}

/// There is no virtiofsd on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this host has no virtiofsd, which serves directories to guests")]
pub struct MissingServer;

impl MissingServer {
    /// What the user can do about it.
    pub fn hint(self) -> &'static str {
        "apt-get install qemu-system-common (Debian 12), or virtiofsd (later releases)"
    }
}

impl Server {
    /// The one that this host has.
    ///
    /// # Errors
    /// [`MissingServer`].
    pub fn find() -> Result<Server, MissingServer> {
        let found = PLACES.iter().map(Path::new).find(|path| path.is_file());
        found.map(|path| Server::at(path.to_owned())).ok_or(MissingServer)
    }

    fn at(program: PathBuf) -> Server {
        // A small program in C, against several megabytes with Rust's runtime in it: only the first has this text, the name
        // of an option that the other never had.
        let content = std::fs::read(&program).unwrap_or_default();
        let mark = b"max_idle_threads";
        Server {
            is_qemus: content.windows(mark.len()).any(|window| window == mark),
            program,
        }
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its arguments: serve `directory` on the listening socket `listener`. A root's tree comes with extended attributes
    /// (file capabilities) and nobody but the guest changes it; a shared directory has what the host allows, now.
    pub(crate) fn arguments(
        &self,
        directory: &Path,
        listener: RawFd,
        is_root: bool,
        sandbox: Sandbox,
    ) -> Vec<OsString> {
        let source = |option: &str| {
            let mut text = OsString::from(option);
            text.push(directory);
            text
        };
        let sandbox = match sandbox {
            Sandbox::Namespaces => "namespace",
            Sandbox::ChangedRoot => "chroot",
        };
        let cache = if is_root { "always" } else { "auto" };
        let mut arguments: Vec<OsString> = vec![format!("--fd={listener}").into()];
        if self.is_qemus {
            let xattr = if is_root { "xattr" } else { "no_xattr" };
            let options = format!("sandbox={sandbox},cache={cache},{xattr},announce_submounts,log_level=err");
            arguments.extend(["-f".into(), "-o".into(), options.into(), "-o".into(), source("source=")]);
        } else {
            arguments.push(source("--shared-dir="));
            arguments.push(format!("--sandbox={sandbox}").into());
            arguments.extend(["--announce-submounts", "--log-level=warn"].map(OsString::from));
            arguments.push(format!("--cache={cache}").into());
            if is_root {
                arguments.push("--xattr".into());
            }
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(is_qemus: bool, is_root: bool) -> String {
        let server = Server {
            program: "/v".into(),
            is_qemus,
        };
        let words = server.arguments(Path::new("/run/m/tree"), 7, is_root, Sandbox::Namespaces);
        words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn both_programs_of_that_name_are_told_the_same() {
        assert_eq!(
            line(true, false),
            "--fd=7 -f -o sandbox=namespace,cache=auto,no_xattr,announce_submounts,log_level=err -o source=/run/m/tree"
        );
        assert_eq!(
            line(false, true),
            "--fd=7 --shared-dir=/run/m/tree --sandbox=namespace --announce-submounts --log-level=warn --cache=always --xattr"
        );
    }

    #[test]
    fn the_one_of_qemu_is_known_by_its_options() {
        let dir = tempfile::tempdir().unwrap();
        let (c, rust) = (dir.path().join("c"), dir.path().join("rust"));
        std::fs::write(&c, "-o max_idle_threads").unwrap();
        std::fs::write(&rust, "--thread-pool-size").unwrap();
        assert!(Server::at(c).is_qemus);
        assert!(!Server::at(rust).is_qemus);
    }
}
