//! Chaos: clients that do anything at any time to machines whose guests hang, flood and die, while helpers are killed and
//! stopped at random. Every command answers within its deadline, and in the end everything can be removed.
//!
//! `ZMACHINE_CHAOS_SECONDS` makes it longer; `ZMACHINE_CHAOS_SEED` repeats one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use zmachine_testkit::TestHome;

use crate::support::{home_with_box, zmachine};

const MACHINES: usize = 12;
const CLIENTS: usize = 4;

/// No command takes longer, however loaded the host is. The longest of the program's own deadlines is below.
const DEADLINE: Duration = Duration::from_secs(170);

/// What the entrypoints do: nothing, talk for ever, end with a failure, end at once, ignore what asks them to stop, eat memory.
const ENTRYPOINTS: [&str; 6] = [
    "sleep 1000",
    "while :; do echo flood; done",
    "sleep 1; exit 7",
    "exit 0",
    "trap '' TERM; while :; do sleep 1; done",
    "sleep 2; x=0123456789; while :; do x=$x$x; done",
];

/// xorshift64*: the same seed gives the same chaos, as far as time allows.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// One command of a client.
fn command(random: &mut Random, image: &str) -> Vec<String> {
    let name = format!("c{}", random.below(MACHINES));
    let words: Vec<&str> = match random.below(20) {
        0..4 => {
            let entrypoint = random.of(&ENTRYPOINTS);
            let policy = random.of(&["no", "always", "on-failure:3"]);
            let create = [
                "run",
                "-d",
                "-m",
                "96M",
                "--restart",
                policy,
                "--name",
                &name,
                image,
                "sh",
                "-c",
                entrypoint,
            ];
            return create.map(str::to_owned).to_vec();
        }
        4..6 => vec!["start", &name],
        6 => vec!["stop", "-t", "1", &name],
        7 => vec!["kill", &name],
        8 => vec!["kill", "-s", "HUP", &name],
        9 => vec!["pause", &name],
        10 => vec!["resume", &name],
        11..13 => vec!["exec", &name, "true"],
        13 => vec!["logs", "-n", "5", &name],
        14 => vec!["ps", "-a"],
        15 => vec!["inspect", &name],
        16 => return vec!["cp".to_owned(), format!("{name}:/etc/hostname"), "-".to_owned()],
        17 => vec!["why", &name],
        18 => vec!["stats", "--no-stream", &name],
        _ => vec!["rm", "-f", &name],
    };
    words.into_iter().map(str::to_owned).collect()
}

/// What no user should ever be told, because it says nothing to them, or is a fault.
const NEVER: [&str; 6] = [
    "panicked",
    "Broken pipe",
    "File exists",
    "cannot open lock",
    "Connection reset",
    "Directory not empty",
];

/// One client: commands one after the other. The slowest of them.
fn client(home: &TestHome, image: &str, seed: u64, until: Instant, count: &AtomicU64) -> (Duration, String) {
    let mut random = Random(seed);
    let mut slowest = (Duration::ZERO, String::new());
    while Instant::now() < until {
        let words = command(&mut random, image);
        let begun = Instant::now();
        let done = home.zmachine(&words).deadline(DEADLINE).finish();
        let took = begun.elapsed();
        count.fetch_add(1, Ordering::Relaxed);
        let output = done.stderr();
        assert!(
            NEVER.iter().all(|text| !output.contains(text)),
            "{words:?} (seed {seed}): {output}"
        );
        if took > slowest.0 {
            slowest = (took, words.join(" "));
        }
    }
    slowest
}

/// The processes of the home's machines, by what their states say.
fn helpers(home: &TestHome) -> Vec<i32> {
    let machines = home.path().join("machines");
    let states = std::fs::read_dir(machines).into_iter().flatten().flatten();
    let mut all = Vec::new();
    for machine in states {
        let text = std::fs::read(machine.path().join("state.json")).unwrap_or_default();
        let state: Value = serde_json::from_slice(&text).unwrap_or_default();
        for role in ["monitor", "hypervisor", "rootfs"] {
            let (pid, ticks) = (state[role]["pid"].as_i64(), state[role]["start_ticks"].as_u64());
            // Numbers are given again: only the very process that the state names.
            if let (Some(pid), Some(ticks)) = (pid, ticks)
                && started(pid) == Some(ticks)
            {
                all.push(pid as i32);
            }
        }
    }
    all
}

/// When a process started, in ticks since boot.
fn started(pid: i64) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Kills a helper now and then, or stops it for a while.
fn reaper(home: &TestHome, seed: u64, stop: &AtomicBool) -> (u64, u64) {
    let mut random = Random(seed);
    let (mut killed, mut stopped) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(200 + random.below(600) as u64));
        let helpers = helpers(home);
        if helpers.is_empty() {
            continue;
        }
        let pid = helpers[random.below(helpers.len())];
        if random.below(3) > 0 {
            signal(pid, rustix::process::Signal::KILL);
            killed += 1;
        } else {
            signal(pid, rustix::process::Signal::STOP);
            std::thread::sleep(Duration::from_millis(1500));
            signal(pid, rustix::process::Signal::CONT);
            stopped += 1;
        }
    }
    (killed, stopped)
}

#[test]
fn whatever_happens_every_command_answers_and_everything_can_be_removed() {
    let Some((home, image)) = home_with_box() else { return };
    let seconds = setting("ZMACHINE_CHAOS_SECONDS", 60);
    let seed = setting("ZMACHINE_CHAOS_SEED", 0x5eed);
    let until = Instant::now() + Duration::from_secs(seconds);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (home, image, count, stop) = (&home, image.as_str(), &count, &stop);
        let reaper = scope.spawn(move || reaper(home, seed ^ 0xdead, stop));
        let clients: Vec<_> = (1..=CLIENTS as u64)
            .map(|nth| scope.spawn(move || client(home, image, seed.wrapping_mul(2 * nth + 1) | 1, until, count)))
            .collect();
        let ended: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let (killed, stopped) = reaper.join().unwrap();
        for slowest in ended {
            let (took, words) = slowest.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            println!("  slowest: {words}, {:.1} s", took.as_secs_f64());
        }
        let count = count.load(Ordering::Relaxed);
        println!(
            "  {count} commands in {seconds} s; {killed} helpers killed, {stopped} stopped for a while; seed {seed}"
        );
    });
    let names = zmachine(&home, &["ps", "-a", "-q"]).expect_success().stdout();
    let mut words = vec!["rm", "-f"];
    words.extend(names.lines());
    if words.len() > 2 {
        home.zmachine(&words).deadline(DEADLINE).finish().expect_success();
    }
    assert_eq!(zmachine(&home, &["ps", "-a", "-q"]).stdout(), "");
    home.assert_host_clean();
}
