//! A server over a home, and the clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zmachine_testkit::{Finished, Invocation, Need, TestHome, Tree, command_path, debian_program, lacking, skip};

/// How long a client may take for one command: some start a guest.
const PATIENCE: Duration = Duration::from_secs(240);

/// A home whose machines are served, with the image `bb`.
pub(crate) struct Served {
    server: Option<Child>,
    pub(crate) socket: PathBuf,
    pub(crate) native: PathBuf,
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
            native: home.file("api.sock"),
            docker,
            home,
        };
        served.start();
        Some(served)
    }

    /// Starts a server.
    pub(crate) fn start(&mut self) {
        let program = Path::new(env!("CARGO_BIN_EXE_zmachine-api"));
        let (docker, native) = (self.socket.display().to_string(), self.native.display().to_string());
        let args = ["serve", "--docker", &docker, "--socket", &native].map(str::to_owned);
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

    /// An archive, as `docker save` writes it, of an image of one layer: `tree`, run as `config` says.
    pub(crate) fn archive(&self, name: &str, tree: &Path, config: &Value) -> String {
        let mut layer = tar::Builder::new(Vec::new());
        layer.follow_symlinks(false);
        layer.append_dir_all(".", tree).expect("a layer");
        let layer = layer.into_inner().expect("a layer");
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z", "config": config,
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
            "history": [{"created": "2026-01-02T03:04:05Z", "created_by": "by hand"}],
        });
        let config = config.to_string().into_bytes();
        let (config_name, layer_name) = (format!("{}.json", hex(&config)), "layer.tar");
        let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}]).to_string();
        let path = self.home.file(&format!("{}.tar", name.replace(['/', ':'], "-")));
        let mut archive = tar::Builder::new(fs::File::create(&path).expect("a file"));
        for (name, bytes) in [
            (config_name.as_str(), config.as_slice()),
            (layer_name, layer.as_slice()),
            ("manifest.json", manifest.as_bytes()),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, bytes).expect("a member");
        }
        archive.into_inner().expect("an archive");
        path.display().to_string()
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

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
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
