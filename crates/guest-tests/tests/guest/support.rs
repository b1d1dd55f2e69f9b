//! What the tests share: a home when this host can have guests, short forms of the commands, named checks.

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use zmachine_testkit::{Finished, Need, TestHome, Tree, debian_program, lacking, skip};

/// A home, or `None` (with the reason printed) on a host that cannot have guests with networks.
pub(crate) fn home() -> Option<TestHome> {
    let commands = [
        "qemu-system-x86_64",
        "mkfs.ext4",
        "e2fsck",
        "busybox",
        "ip",
        "nft",
        "dnsmasq",
        "nsenter",
        "setsid",
    ];
    let needs: Vec<Need<'_>> = [Need::Root].into_iter().chain(commands.map(Need::Command)).collect();
    match lacking(&needs) {
        None => Some(TestHome::new()),
        Some(reason) => {
            skip(&reason);
            None
        }
    }
}

/// A home with the busybox tree as an image.
pub(crate) fn home_with_box() -> Option<(TestHome, String)> {
    let home = home()?;
    let image = Tree::busybox(&home).pack(&home, "box");
    Some((home, image))
}

/// `zmachine args...`, to its end.
pub(crate) fn zmachine(home: &TestHome, args: &[&str]) -> Finished {
    home.zmachine(args).finish()
}

/// A shell script in a running machine.
pub(crate) fn sh(home: &TestHome, machine: &str, script: &str) -> Finished {
    zmachine(home, &["exec", machine, "sh", "-c", script])
}

/// What a shell script in a running machine prints, without the end of the last line; it must succeed.
#[track_caller]
pub(crate) fn exec_output(home: &TestHome, machine: &str, script: &str) -> String {
    let run = sh(home, machine, script);
    run.expect_success();
    run.stdout().trim_end().to_owned()
}

/// `zmachine inspect` of one machine.
#[track_caller]
pub(crate) fn inspect(home: &TestHome, machine: &str) -> Value {
    let run = zmachine(home, &["inspect", machine]);
    let all: Value = serde_json::from_str(&run.expect_success().stdout()).expect("JSON");
    all[0].clone()
}

/// The phase of a machine in one word.
#[track_caller]
pub(crate) fn phase(home: &TestHome, machine: &str) -> String {
    inspect(home, machine)["state"]["phase"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Asks `look` until it has an answer.
///
/// # Panics
/// When it has none within `patience`.
#[track_caller]
pub(crate) fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the log of `machine` has `text` on its standard output.
#[track_caller]
pub(crate) fn until_logged(home: &TestHome, machine: &str, text: &str) {
    until(
        &format!("{text:?} in the log of {machine}"),
        Duration::from_secs(30),
        || zmachine(home, &["logs", machine]).stdout().contains(text).then_some(()),
    );
}

/// Bytes that no compression makes smaller, and that are the same for the same `seed`.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    // xorshift64*, good enough for a compressor.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut word = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(word());
    }
    bytes.truncate(length);
    bytes
}

/// Checks that share one machine: each has a name and goes on after another one failed.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    failed: Vec<String>,
}

impl Checks {
    /// Runs one check.
    pub(crate) fn that(&mut self, name: &str, check: impl FnOnce()) {
        let started = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(check)).is_ok();
        let word = if passed { "ok" } else { "FAILED" };
        println!("  {name}: {word} ({:.1} s)", started.elapsed().as_secs_f32());
        if !passed {
            self.failed.push(name.to_owned());
        }
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        if !self.failed.is_empty() && !std::thread::panicking() {
            panic!("failed: {}", self.failed.join("; "));
        }
    }
}

/// Debian's `docker-registry` in the network of the home.
pub(crate) struct Registry {
    child: Child,
    /// What it has answered, a line each.
    answers: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    /// Where it listens.
    pub(crate) const HOST: &str = "127.0.0.1:5000";

    /// Starts it.
    pub(crate) fn start(home: &TestHome) -> Registry {
        let program = debian_program("docker-registry", "usr/bin/docker-registry", &home.cache());
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{}\"}}\n",
            home.file("registry").display(),
            Registry::HOST
        );
        let file = home.file("registry.yml");
        fs::write(&file, config).expect("a file");
        let mut child = home.command(&program, ["serve".as_ref(), file.as_os_str()]).start();
        let answers = Arc::<Mutex<Vec<String>>>::default();
        let (lines, into) = (child.stdout.take().expect("its output"), Arc::clone(&answers));
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                into.lock().expect("no test panics here").push(line);
            }
        });
        let registry = Registry { child, answers };
        let probe =
            "for i in $(seq 300); do (exec 3<>/dev/tcp/127.0.0.1/5000) 2>/dev/null && exit 0; sleep 0.2; done; exit 1";
        home.command(Path::new("bash"), ["-c", probe])
            .deadline(Duration::from_secs(90))
            .finish()
            .expect_success();
        registry
    }

    /// So many bytes of the blobs of a repository have been sent, by so many answers.
    pub(crate) fn sent(&self, repository: &str) -> (u64, usize) {
        // HOST - - [TIME] "GET /v2/NAME/blobs/DIGEST HTTP/1.1" STATUS BYTES "REFERRER" "AGENT"
        let path = format!("\"GET /v2/{repository}/blobs/");
        let answers = self.answers.lock().expect("no test panics here");
        let of_blobs = answers.iter().filter_map(|line| line.split_once(&path));
        let bytes: Vec<u64> = of_blobs
            .filter_map(|(_, rest)| rest.split(' ').nth(3)?.parse().ok())
            .collect();
        (bytes.iter().sum(), bytes.len())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
