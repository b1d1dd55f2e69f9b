//! The programs that machines are made of. A front end need not be one of them.

use std::env;
use std::path::{Path, PathBuf};

use zmachine_kernel::KernelSource;
use zmachine_spec::{Class, Failure};

const AGENT: &str = "zmachine-agent";
const SERVER: &str = "zmachine-api";
const SNAPSHOTTER: &str = "zmachine-snapshotter";

/// The host program in whose roles a machine's processes run, and the guest's agent. Both are of one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    host: PathBuf,
    agent: PathBuf,
}

impl Programs {
    /// Those of the calling program, which is `zmachine` itself: an upgrade of its file does not matter to it.
    pub fn own() -> Programs {
        let exe = env::current_exe().unwrap_or_default();
        Programs {
            host: "/proc/self/exe".into(),
            agent: beside(&exe, AGENT),
        }
    }

    /// The server of the API that belongs to the calling program, which is `zmachine` itself.
    pub fn own_server() -> PathBuf {
        beside(&env::current_exe().unwrap_or_default(), SERVER)
    }

    /// The snapshotter for containerd that belongs to the calling program.
    pub fn own_snapshotter() -> PathBuf {
        beside(&env::current_exe().unwrap_or_default(), SNAPSHOTTER)
    }

    /// Those of the `zmachine` at `program`.
    pub fn at(program: &Path) -> Programs {
        Programs {
            host: program.to_owned(),
            agent: beside(&program.canonicalize().unwrap_or_else(|_| program.to_owned()), AGENT),
        }
    }

    /// Those of the `zmachine` that a shell would find.
    ///
    /// # Errors
    /// [`Class::Unsupported`] when there is none.
    pub fn find() -> Result<Programs, Failure> {
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path)
            .map(|folder| folder.join("zmachine"))
            .find(|program| program.is_file());
        let missing = || {
            Failure::new(Class::Unsupported, "the program zmachine is not on the PATH")
                .hint("install it, or say where it is")
        };
        found.map(|program| Programs::at(&program)).ok_or_else(missing)
    }

    /// Whose roles `monitor`, `rootfs`, `share` and `jail` are the processes of a machine.
    pub fn host(&self) -> &Path {
        &self.host
    }

    /// Where a guest kernel comes from when nobody says: the one that was installed with the programs (package `zmachine-kernel`), else
    /// Debian's.
    pub fn kernel_source(&self) -> KernelSource {
        let folder = self.agent.with_file_name("kernel");
        match folder.join("kernel.json").is_file() {
            true => KernelSource::Prepared(folder),
            false => KernelSource::Debian,
        }
    }

    /// The static guest agent.
    pub fn agent(&self) -> &Path {
        &self.agent
    }
}

/// Beside the program, or where `make install` puts it.
fn beside(program: &Path, name: &str) -> PathBuf {
    let dir = program.parent().unwrap_or(Path::new("/"));
    let installed = dir.join("../lib/zmachine").join(name);
    [dir.join(name), installed.clone()]
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or(installed)
}
