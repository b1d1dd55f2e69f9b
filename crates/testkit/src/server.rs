//! Real servers for tests: programs of Debian's packages that are unpacked and not installed (an installed one would be a
//! service of the host), and processes that end with the test.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to answer its first connection.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A server on a port of the loopback interface; it is killed when the value ends.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts what `command` gives for a free port, and waits until it takes connections.
    ///
    /// # Panics
    /// When it cannot be started, ends at once on three ports, or does not listen in time.
    pub fn start(command: impl Fn(u16) -> Command) -> Server {
        let started = Instant::now();
        for _ in 0..3 {
            // Free again before the server takes it: should another program be quicker, the server ends.
            let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
            let port = port.expect("a port of the loopback interface").port();
            let mut command = command(port);
            let name = command.get_program().to_string_lossy().into_owned();
            let child = command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            let child = child.unwrap_or_else(|error| panic!("{name}: {error}; run 'make test-tools'"));
            let mut server = Server { child, port };
            while server.child.try_wait().expect("wait").is_none() {
                // Whoever answers is the server only if it is still there.
                let answers = TcpStream::connect(("127.0.0.1", port)).is_ok();
                std::thread::sleep(Duration::from_millis(20));
                if answers && server.child.try_wait().expect("wait").is_none() {
                    return server;
                }
                assert!(started.elapsed() < TIMEOUT, "{name} does not start");
            }
        }
        panic!("the server ends at once");
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program `path` (relative) of Debian's package, unpacked below `cache` once.
///
/// # Panics
/// When the package cannot be had.
pub fn debian_program(package: &str, path: &str, cache: &Path) -> PathBuf {
    let folder = cache.join(package);
    let program = folder.join(path);
    if !program.exists() {
        let staging = tempfile::tempdir_in(cache).expect("a folder beside the programs");
        let script = format!("apt-get -q download {package} && dpkg-deb -x ./*.deb tree");
        let mut command = Command::new("sh");
        let done = command
            .args(["-c", &script])
            .current_dir(&staging)
            .output()
            .expect("sh");
        assert!(
            done.status.success(),
            "{package}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        // Another test may have been quicker: its tree is as good.
        let _ = fs::rename(staging.path().join("tree"), &folder);
        assert!(program.exists(), "{package} has no {path}");
    }
    program
}
