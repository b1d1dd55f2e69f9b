//! A server over a home, and the clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use zmachine_testkit::{Finished, Invocation, Need, TestHome, Tree, command_path, debian_program, lacking, skip};

/// How long a client may take for one command: some start a guest.
const PATIENCE: Duration = Duration::from_secs(240);

/// A home whose machines are served, with the image `bb`.
pub(crate) struct Served {
    server: Option<Child>,
    pub(crate) socket: PathBuf,
    docker: PathBuf,
    // Last: the server is gone before it is checked what is left.
    pub(crate) home: TestHome,
}

impl Served {
    /// `None` (with the reason printed) on a host that cannot have guests, or no client.
    pub(crate) fn new() -> Option<Served> {
        let commands = [
            "qemu-system-x86_64",
            "mkfs.ext4",
            "busybox",
            "ip",
            "nft",
            "dnsmasq",
            "apt-get",
            "dpkg-deb",
        ];
        let needs: Vec<Need<'_>> = [Need::Root, Need::Guest]
            .into_iter()
            .chain(commands.map(Need::Command))
            .collect();
        if let Some(reason) = lacking(&needs) {
            skip(&reason);
            return None;
        }
        let home = TestHome::new();
        let docker = command_path("docker").unwrap_or_else(|| {
            fs::create_dir_all(home.cache()).expect("a folder");
            // The command is a package of its own from Debian 13 on.
            let is_new = Command::new("apt-cache").args(["show", "docker-cli"]).output();
            let package = match is_new.is_ok_and(|shown| shown.status.success()) {
                true => "docker-cli",
                false => "docker.io",
            };
            debian_program(package, "usr/bin/docker", &home.cache())
        });
        let image = Tree::busybox(&home).pack(&home, "box");
        home.zmachine(["image", "pull", &image, "bb"]).finish().expect_success();
        let mut served = Served {
            server: None,
            socket: home.file("docker.sock"),
            docker,
            home,
        };
        served.start();
        Some(served)
    }

    /// Starts a server.
    pub(crate) fn start(&mut self) {
        let program = Path::new(env!("CARGO_BIN_EXE_zmachine-api"));
        let args = ["serve", "--docker", &self.socket.display().to_string()].map(str::to_owned);
        self.server = Some(self.home.command(program, args).start());
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.docker(&["version"]).code != 0 {
            assert!(Instant::now() < deadline, "the server does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills the server as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().expect("kill");
            server.wait().expect("wait");
        }
    }

    /// A command, with the server in its environment.
    pub(crate) fn with(&self, program: &Path, args: &[&str]) -> Invocation {
        self.home
            .command(program, args)
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("DOCKER_CONFIG", self.home.file("config"))
            .deadline(PATIENCE)
    }

    /// `docker args...`, not started yet.
    pub(crate) fn command(&self, args: &[&str]) -> Invocation {
        self.with(&self.docker, args)
    }

    /// `docker args...`, to its end.
    pub(crate) fn docker(&self, args: &[&str]) -> Finished {
        self.command(args).finish()
    }

    /// What `docker args...` prints, which must succeed.
    #[track_caller]
    pub(crate) fn output(&self, args: &[&str]) -> String {
        let run = self.docker(args);
        run.expect_success();
        run.stdout().trim_end().to_owned()
    }

    /// A Python with `package` of PyPI; `None` (with the reason printed) where that cannot be had.
    pub(crate) fn python(&self, package: &str) -> Option<PathBuf> {
        let folder = self.home.cache().join(format!("python-{package}"));
        let python = folder.join("bin/python");
        if !folder.join("done").exists() {
            fs::create_dir_all(self.home.cache()).expect("a folder");
            let _ = fs::remove_dir_all(&folder);
            let at = folder.display().to_string();
            let runs = |program: &Path, args: &[&str]| {
                let done = Command::new(program).args(args).output();
                done.is_ok_and(|done| done.status.success())
            };
            let is_there = runs(Path::new("python3"), &["-m", "venv", &at])
                && runs(&python, &["-m", "pip", "-q", "install", package]);
            if !is_there {
                skip(format!("needs python3 with venv, and {package} of PyPI").as_str());
                return None;
            }
            fs::write(folder.join("done"), "").expect("a file");
        }
        Some(python)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let pid = rustix::process::Pid::from_child(&server);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = server.wait();
    }
}

/// Waits until `look` finds what it looks for.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
