//! A hundred forks of one machine: nothing of them is the same, and nothing of the machine that was saved is ever seen.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use zmachine_testkit::{Need, TestHome, lacking, skip};

use crate::support::{exec_output, home_with_box, until, until_logged, zmachine};

const BATCHES: usize = 10;
const EACH: usize = 10;

/// How far a clock may be off in seconds.
const LAG: f64 = 0.05;

/// Writes to its disk all the time.
const WRITE: &str = "i=0; while true; do i=$((i+1)); echo $i; echo $i >>/count; sleep 0.1; done";

/// Prints the sources of frames, each once: MACs, and addresses of IPv4, IPv6 or ARP. What a machine hands to its own tap is not counted: what is not
/// its own is dropped right behind that. Only what comes out of a bridge or of another tap is.
const CAPTURE: &str = r"
import socket, subprocess
seen, bridges = set(), {}
def is_bridge(name):
    if name not in bridges:
        shown = subprocess.run(['ip', '-d', 'link', 'show', name], capture_output=True, text=True).stdout
        bridges[name] = ' bridge forward_delay' in shown
    return bridges[name]
frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
frames.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
print('ready', flush=True)
while True:
    frame, (interface, _, direction, _, _) = frames.recvfrom(2048)
    if direction != socket.PACKET_OUTGOING and not is_bridge(interface):
        continue
    kind = frame[12:14]
    source = {b'\x08\x00': (26, 30, socket.AF_INET), b'\x08\x06': (28, 32, socket.AF_INET), b'\x86\xdd': (22, 38, socket.AF_INET6)}.get(kind)
    found = {frame[6:12].hex(':')}
    if source and len(frame) >= source[1]:
        found.add(socket.inet_ntop(source[2], frame[source[0]:source[1]]))
    for one in found - seen:
        print(one, flush=True)
    seen |= found
";

struct Capture {
    process: Child,
    file: std::path::PathBuf,
}

impl Capture {
    /// On every interface of the home's network namespace.
    fn begin(home: &TestHome) -> Capture {
        let file = home.file("frames");
        let to_file = format!("exec python3 -c \"$0\" >{}", file.display());
        let process = home.command(Path::new("/bin/sh"), ["-c", &to_file, CAPTURE]).start();
        let capture = Capture { process, file };
        until("frames are captured", Duration::from_secs(20), || {
            capture.seen().contains("ready").then_some(())
        });
        capture
    }

    fn seen(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn digest(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).expect("the file")).to_vec()
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("time")
        .as_secs_f64()
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn a_hundred_forks_have_nothing_in_common() {
    let Some((home, image)) = home_with_box() else { return };
    if let Some(reason) = lacking(&[Need::Command("python3")]) {
        return skip(&reason);
    }
    let words = ["run", "-d", "--name", "web", "--snapshots", &image, "sh", "-c", WRITE];
    zmachine(&home, &words).expect_success();
    until_logged(&home, "web", "3");
    exec_output(&home, "web", "echo 0123456789abcdef0123456789abcdef >/etc/machine-id");
    let address = "ip -4 -o addr show eth0 | sed 's/.*inet //; s,/.*,,'";
    let of_template = [
        exec_output(&home, "web", address),
        exec_output(&home, "web", "cat /sys/class/net/eth0/address"),
    ];
    zmachine(&home, &["snapshot", "create", "web@s"]).expect_success();
    let folder = home.path().join("snapshots/web@s");
    let files = ["memory", "root.img", "state"].map(|name| folder.join(name));
    let before = files.each_ref().map(|path| digest(path));
    // It keeps its address, and sends nothing any more.
    zmachine(&home, &["stop", "-t", "1", "web"]).expect_success();

    let capture = Capture::begin(&home);
    let script = format!(
        "hostname; cat /etc/machine-id; cat /sys/class/net/eth0/address; {address}; \
         cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -x; echo $(hostname) >/own"
    );
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut count = 0;
    for batch in 0..BATCHES {
        let prefix = format!("b{batch}");
        let made = zmachine(&home, &["fork", "web@s", "-n", &EACH.to_string(), "--name", &prefix]);
        let forks: Vec<String> = made.expect_success().stdout().lines().map(str::to_owned).collect();
        assert_eq!(forks.len(), EACH);
        for fork in &forks {
            let all = exec_output(&home, fork, &script);
            let lines: Vec<&str> = all.lines().map(str::trim).collect();
            assert_eq!(lines.len(), 6, "{all}");
            for (what, value) in ["name", "id", "MAC", "address", "uuid", "random"].iter().zip(lines) {
                // Addresses and MACs may be those of a fork that is gone.
                let of = if matches!(*what, "MAC" | "address") {
                    &*prefix
                } else {
                    ""
                };
                assert!(
                    seen.insert(format!("{of} {what} {value}")),
                    "{fork}: {what} {value} is another's as well"
                );
                assert!(
                    !of_template.iter().any(|template| template == value),
                    "{fork} has the {what} of the template"
                );
            }
            let earliest = now();
            let clock = exec_output(&home, fork, "busybox adjtimex | sed -n 's/.*time.tv_u*sec: *//p'");
            let guest = match clock.split_whitespace().collect::<Vec<_>>()[..] {
                [seconds, micros] => {
                    seconds.parse::<f64>().expect("seconds") + micros.parse::<f64>().expect("microseconds") / 1e6
                }
                _ => panic!("{fork}: {clock}"),
            };
            assert!(
                guest >= earliest - LAG && guest <= now() + LAG,
                "{fork}: {guest} between {earliest} and {}",
                now()
            );
        }
        for fork in &forks {
            assert_eq!(exec_output(&home, fork, "cat /own"), *fork);
        }
        // Each goes on to write from where the template was.
        let counted = |fork: &str| -> u32 { exec_output(&home, fork, "tail -n 1 /count").parse().expect("a number") };
        let first = counted(&forks[0]);
        until("it writes", Duration::from_secs(60), || {
            (counted(&forks[0]) > first).then_some(())
        });
        let words: Vec<&str> = ["rm", "-f"]
            .into_iter()
            .chain(forks.iter().map(String::as_str))
            .collect();
        zmachine(&home, &words).expect_success();
        count += forks.len();
        assert!(capture.seen().len() > 2, "nothing is captured: {:?}", capture.seen());
    }
    assert_eq!(count, 100);
    let frames = capture.seen();
    for template in &of_template {
        assert!(!frames.contains(template), "a frame has the template's {template}");
    }
    assert!(
        files.each_ref().map(|path| digest(path)) == before,
        "the snapshot has changed"
    );
    zmachine(&home, &["rm", "-f", "web"]).expect_success();
    zmachine(&home, &["snapshot", "rm", "web@s"]).expect_success();
    drop(capture);
    home.assert_host_clean();
}
