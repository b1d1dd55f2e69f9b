//! A private home of zmachine for one test.
//!
//! ```text
//! /tmp/z<6 random>/          short: sockets below it must fit into 108 bytes
//!   home/                    ZMACHINE_HOME; home/kernels -> the kernels all tests share
//!   store/                   the block store `pack` writes to
//!   ...                      whatever the test makes with `file`
//! ```
//!
//! As many homes at a time in a checkout as its host has CPUs, up to [`TOGETHER`]: the lock of one is held from `new` to the
//! end of drop. A guest that waits for its host leaves a CPU idle, and more guests than CPUs would only make each other late.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::artifacts::{Artifacts, artifacts};
use crate::command::Invocation;
use crate::leftovers::Surroundings;
use crate::netns::NetworkNamespace;

/// Where homes are made, whatever `TMPDIR` says: a long one would not leave room for socket paths.
const PARENT: &str = "/tmp";

/// Homes at a time at most.
const TOGETHER: usize = 4;

/// How often a test that waits for its turn looks whether it has come.
const LOOK: Duration = Duration::from_millis(20);

/// How long things may take to disappear after the command that ended them returned.
const VANISHING: Duration = Duration::from_secs(5);

/// A fresh home; see the module. Dropping it removes its machines, checks that nothing of it is left, and removes it.
#[derive(Debug)]
pub struct TestHome {
    folder: TempDir,
    artifacts: &'static Artifacts,
    network: Option<Arc<NetworkNamespace>>,
    before: Surroundings,
    // Last, so it is released after everything else is gone.
    turn: Arc<File>,
}

impl TestHome {
    /// A fresh home, as soon as there is room for one more. As root its networks are in a namespace of their own; other
    /// users' are wherever the test runs, and not checked for leftovers.
    ///
    /// # Panics
    /// When the programs are not built or the guest kernel cannot be had.
    #[allow(
        clippy::new_without_default,
        reason = "it takes a lock and makes things: nothing a default value does"
    )]
    pub fn new() -> TestHome {
        let turn = Arc::new(take_turn(&artifacts().target));
        let folder = fresh_folder();
        let root = rustix::process::geteuid().is_root();
        let network = root.then(|| NetworkNamespace::new(&format!("zmachine-test-{}", name_of(folder.path()))));
        TestHome::in_folder(folder, network.map(Arc::new), turn)
    }

    /// A second home in the same network, for tests of two that must not disturb each other. Drop it before this one.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn beside(&self) -> TestHome {
        TestHome::in_folder(fresh_folder(), self.network.clone(), Arc::clone(&self.turn))
    }

    fn in_folder(folder: TempDir, network: Option<Arc<NetworkNamespace>>, turn: Arc<File>) -> TestHome {
        let artifacts = artifacts();
        let kernels = artifacts.kernels().canonicalize().expect("the kernels' folder");
        let home = folder.path().join("home");
        std::fs::create_dir(&home).expect("the home's folder");
        std::os::unix::fs::symlink(kernels, home.join("kernels")).expect("a link to the kernels");
        let before = Surroundings::look(folder.path(), network.as_deref());
        TestHome {
            folder,
            artifacts,
            network,
            before,
            turn,
        }
    }

    /// `ZMACHINE_HOME`.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// A path for a file of the test's own; nothing is made.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The block store of this home's flists, as a URL.
    pub fn store(&self) -> String {
        format!("dir://{}", self.file("store").display())
    }

    /// The network namespace machines of this home run in; `None` without root.
    pub fn network(&self) -> Option<&NetworkNamespace> {
        self.network.as_deref()
    }

    /// The command `zmachine args...` in this home.
    pub fn zmachine(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Invocation {
        self.command(&self.artifacts.zmachine, args)
    }

    /// A folder for what is downloaded for tests, shared by all tests of a checkout.
    pub fn cache(&self) -> PathBuf {
        self.artifacts.target.join("test-cache")
    }

    /// The program under test.
    pub fn zmachine_path(&self) -> &Path {
        &self.artifacts.zmachine
    }

    /// Another program, in this home's network and with its environment.
    pub fn command(&self, program: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Invocation {
        let command = match &self.network {
            Some(network) => network.command(program, args),
            None => Invocation::new(program, args),
        };
        command.env("ZMACHINE_HOME", self.path()).folder(self.folder.path())
    }

    /// Packs the file tree `tree` into this home's store; the flist's path.
    ///
    /// # Panics
    /// When packing fails.
    pub fn pack(&self, tree: &Path, name: &str) -> String {
        let flist = self.file(&format!("{name}.fl")).display().to_string();
        let tree = tree.display().to_string();
        self.zmachine(["flist", "pack", &tree, "-o", &flist, "--store", &self.store()])
            .finish()
            .expect_success();
        flist
    }

    /// That no running machine, and nothing a machine ever used, is left on this host. Files of machines that exist and
    /// do not run may be there; images and volumes always may.
    ///
    /// # Panics
    /// With the list of what is left.
    #[track_caller]
    pub fn assert_host_clean(&self) {
        let left = self.left_after(VANISHING);
        assert!(left.is_empty(), "left on this host:\n  {}", left.join("\n  "));
    }

    /// What is left, given `patience` to go.
    fn left_after(&self, patience: Duration) -> Vec<String> {
        let deadline = std::time::Instant::now() + patience;
        loop {
            let left = Surroundings::look(self.folder.path(), self.network.as_deref()).beyond(&self.before);
            if left.is_empty() || std::time::Instant::now() >= deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Removes every machine of this home by the command a user would use.
    fn remove_machines(&self) {
        // A test that failed early has no machines, and a broken program must not hide why the test failed.
        let listed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.zmachine(["ps", "-a", "-q"]).finish()
        }));
        let names = listed.map(|listed| listed.stdout()).unwrap_or_default();
        for name in names.lines() {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.zmachine(["rm", "-f", name]).finish()
            }));
        }
    }
}

impl Drop for TestHome {
    fn drop(&mut self) {
        if self.path().join("machines").exists() {
            self.remove_machines();
        }
        let left = self.left_after(VANISHING);
        Surroundings::end_processes(self.folder.path());
        if left.is_empty() {
            return;
        }
        let message = format!(
            "left on this host by {}:\n  {}",
            self.folder.path().display(),
            left.join("\n  ")
        );
        if std::thread::panicking() {
            eprintln!("{message}");
        } else {
            panic!("{message}");
        }
    }
}

/// A folder for one home and what the test makes beside it.
fn fresh_folder() -> TempDir {
    let folder = tempfile::Builder::new()
        .prefix("z")
        .tempdir_in(PARENT)
        .expect("a folder in /tmp");
    // Guests' hypervisors run as other users and must get through.
    set_mode(folder.path(), 0o755);
    folder
}

/// Waits until there is room for one more home of this checkout.
fn take_turn(target: &Path) -> File {
    let places = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(TOGETHER);
    loop {
        for place in 0..places {
            let path = target.join(format!("test-home.{place}.lock"));
            let lock = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            match lock.try_lock() {
                Ok(()) => return lock,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => panic!("{}: {e}", path.display()),
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode of a fresh folder");
}
