//! Power cuts of the host: what a command had reported as done is there afterwards, and nothing else is lost.
//!
//! ```text
//! btrfs (loop) ─ disk.img ─ ext4 (loop) ─ the home      snapshot: a reflink of disk.img, at one moment, while commands run
//! ```
//! A snapshot has what was written to the disk by then. What only was in memory (whatever nobody synced) is lost with it, as in
//! a power cut; mounting it replays the journal of the file system. Each snapshot takes the place of the home in turn.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use zmachine_testkit::{TestHome, Tree, lacking, skip};

use crate::support::{home, zmachine};

/// Snapshots that are looked into.
const LOOKED_INTO: usize = 120;

/// Every fourth of those has its blocks read and a machine created.
const THOROUGH: usize = 4;

/// Of those, the ones whose machine is started.
const STARTED: usize = 3;

/// What is there, by kind and name.
type There = BTreeMap<&'static str, bool>;

/// What commands did by a moment.
#[derive(Debug, Clone, Default)]
struct Facts {
    /// What commands that have ended left there, or removed.
    done: There,
    /// What the command that is under way may make or remove.
    open: Option<&'static str>,
    /// Size of the volume in MiB, by the commands that have ended, and as it may be.
    size: (u64, u64),
}

/// A power cut: the disk as it was, and what was known when it began and when it was there.
struct Cut {
    disk: PathBuf,
    before: Facts,
    after: Facts,
}

/// The disks; unmounted when dropped.
struct Disks {
    host: PathBuf,
    home: PathBuf,
}

impl Disks {
    /// A home on a disk of its own; `None` where this host cannot have one.
    fn new(home: &TestHome) -> Option<Disks> {
        let needs = ["mkfs.btrfs", "mkfs.ext4", "mount", "umount"].map(zmachine_testkit::Need::Command);
        if let Some(reason) = lacking(&needs) {
            skip(&reason);
            return None;
        }
        let (host, backing) = (home.file("host"), home.file("host.img"));
        std::fs::create_dir(&host).unwrap();
        let file = std::fs::File::create(&backing).unwrap();
        file.set_len(8 << 30).unwrap();
        assert!(run("mkfs.btrfs", &["-q", path(&backing)]));
        if !run("mount", &["-o", "loop", path(&backing), path(&host)]) {
            skip("needs loop devices and btrfs");
            return None;
        }
        let disks = Disks {
            home: home.path(),
            host,
        };
        let file = std::fs::File::create(disks.disk()).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(run("mkfs.ext4", &["-q", "-F", path(&disks.disk())]));
        let kernels = std::fs::read_link(home.path().join("kernels")).unwrap();
        disks.mount(&disks.disk());
        std::os::unix::fs::symlink(kernels, home.path().join("kernels")).unwrap();
        Some(disks)
    }

    fn disk(&self) -> PathBuf {
        self.host.join("disk.img")
    }

    fn mount(&self, disk: &Path) {
        assert!(
            run("mount", &["-o", "loop", path(disk), path(&self.home)]),
            "{}",
            disk.display()
        );
    }

    fn unmount(&self) {
        // What a command had open may take a moment to be closed.
        let gone = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            run("umount", &[path(&self.home)])
        });
        assert!(gone, "{} stays mounted", self.home.display());
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        run("umount", &[path(&self.home)]);
        run("umount", &[path(&self.host)]);
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    let output = Command::new(program).args(args).output();
    output.is_ok_and(|output| output.status.success())
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The commands of a life, and what each leaves.
struct Life<'a> {
    home: &'a TestHome,
    facts: Arc<Mutex<Facts>>,
}

impl Life<'_> {
    /// Runs a command after which `what` is there, or is not.
    fn does(&self, what: &'static str, is_there: bool, words: &[&str]) {
        self.facts.lock().unwrap().open = Some(what);
        zmachine(self.home, words).expect_success();
        let mut facts = self.facts.lock().unwrap();
        facts.done.insert(what, is_there);
        facts.open = None;
    }

    fn grows(&self, mib: u64) {
        self.facts.lock().unwrap().size.1 = mib;
        zmachine(self.home, &["volume", "grow", "data", &format!("{mib}M")]).expect_success();
        self.facts.lock().unwrap().size.0 = mib;
    }

    fn live(&self, tree: &str) {
        let flist = self.home.path().join("box.fl").display().to_string();
        let store = format!("dir://{}", self.home.path().join("store").display());
        self.does("flist", true, &["flist", "pack", tree, "-o", &flist, "--store", &store]);
        self.does("image", true, &["image", "pull", "--blocks", &format!("box={flist}")]);
        self.facts.lock().unwrap().size = (64, 64);
        self.does("volume", true, &["volume", "create", "data", "--size", "64M"]);
        for round in 0..2 {
            self.does(
                "machine",
                true,
                &["create", "--name", "m", "-v", "data:/data", "box", "sleep", "1000"],
            );
            zmachine(self.home, &["start", "m"]).expect_success();
            self.grows(96 + 32 * round);
            zmachine(self.home, &["stop", "-t", "0", "m"]).expect_success();
            self.does("machine", false, &["rm", "m"]);
        }
        self.does("volume", false, &["volume", "rm", "data"]);
        self.does("image", false, &["image", "rm", "box"]);
    }
}

/// Takes snapshots until told to stop.
fn cut_again_and_again(disks: &Disks, facts: &Mutex<Facts>, stop: &AtomicBool) -> Vec<Cut> {
    let mut cuts = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let disk = disks.host.join(format!("cut-{}.img", cuts.len()));
        let before = facts.lock().unwrap().clone();
        let is_taken = run("cp", &["--reflink=always", path(&disks.disk()), path(&disk)]);
        let after = facts.lock().unwrap().clone();
        assert!(is_taken, "no reflink of {}", disks.disk().display());
        cuts.push(Cut { disk, before, after });
    }
    cuts
}

#[test]
fn what_was_reported_as_done_survives_a_power_cut_at_every_moment() {
    let Some(home) = home() else { return };
    let Some(disks) = Disks::new(&home) else { return };
    let tree = Tree::busybox(&home);
    let facts = Arc::new(Mutex::new(Facts::default()));
    let stop = AtomicBool::new(false);
    let cuts = std::thread::scope(|scope| {
        let cutting = scope.spawn(|| cut_again_and_again(&disks, &facts, &stop));
        let life = Life {
            home: &home,
            facts: facts.clone(),
        };
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| life.live(path(&tree.path("")))));
        stop.store(true, Ordering::Relaxed);
        let cuts = cutting.join().unwrap();
        lived.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        cuts
    });
    assert!(cuts.len() >= 100, "only {} power cuts", cuts.len());
    disks.unmount();
    let step = cuts.len().div_ceil(LOOKED_INTO);
    let looked_into: Vec<&Cut> = cuts.iter().step_by(step).collect();
    let has_machine = |cut: &&&Cut| is_sure(cut, "machine") == Some(true);
    let with_machine: Vec<&&Cut> = looked_into.iter().filter(has_machine).collect();
    let started: Vec<&Path> = with_machine
        .iter()
        .step_by(with_machine.len().div_ceil(STARTED).max(1))
        .map(|cut| cut.disk.as_path())
        .collect();
    for (number, cut) in looked_into.iter().enumerate() {
        disks.mount(&cut.disk);
        println!("  power cut {number}: {:?} to {:?}", cut.before, cut.after);
        look(&home, cut, number % THOROUGH == 0);
        if started.contains(&cut.disk.as_path()) {
            zmachine(&home, &["start", "m"]).expect_success();
            zmachine(&home, &["rm", "-f", "m"]).expect_success();
        }
        disks.unmount();
    }
    drop(disks);
    home.assert_host_clean();
}

/// Whether something was there all the time of a cut; `None` when a command was about to change that.
fn is_sure(cut: &Cut, what: &'static str) -> Option<bool> {
    let known = |facts: &Facts| facts.done.get(what).copied().unwrap_or(false);
    let is_open = |facts: &Facts| facts.open == Some(what);
    let (before, after) = (known(&cut.before), known(&cut.after));
    (before == after && !is_open(&cut.before) && !is_open(&cut.after)).then_some(before)
}

/// Looks into the home that a power cut left.
fn look(home: &TestHome, cut: &Cut, is_thorough: bool) {
    let listed = |words: &[&str]| -> Vec<Value> {
        let run = zmachine(home, words);
        serde_json::from_str(&run.expect_success().stdout()).expect("JSON")
    };
    // The first command may have something to clean up; what it cannot read is an error.
    let machines = listed(&["ps", "-a", "-o", "json"]);
    let volumes = listed(&["volume", "ls", "-o", "json"]);
    let images = listed(&["image", "ls", "-o", "json"]);
    let has = |list: &[Value], name: &str| list.iter().any(|item| item["name"] == name);
    let named_box = |image: &Value| {
        image["names"]
            .as_array()
            .is_some_and(|names| names.iter().any(|n| n == "box"))
    };
    let flist = home.path().join("box.fl");
    let there = [
        ("machine", has(&machines, "m")),
        ("volume", has(&volumes, "data")),
        ("image", has(&images, "box") || images.iter().any(named_box)),
        ("flist", flist.exists()),
    ];
    for (what, is_there) in there {
        if let Some(expected) = is_sure(cut, what) {
            assert_eq!(is_there, expected, "{what}: {machines:?} {volumes:?} {images:?}");
        }
    }
    assert!(
        machines.iter().all(|machine| machine["state"] != "running"),
        "{machines:?}"
    );
    if let (Some(true), Some(volume)) = (is_sure(cut, "volume"), volumes.first()) {
        let mib = volume["size_bytes"].as_u64().unwrap() >> 20;
        assert!((cut.before.size.0..=cut.after.size.1).contains(&mib), "{mib} MiB");
    }
    if !is_thorough {
        return;
    }
    if is_sure(cut, "flist") == Some(true) {
        zmachine(home, &["flist", "verify", path(&flist)]).expect_success();
    }
    if is_sure(cut, "image") == Some(true) {
        zmachine(home, &["create", "--name", "new", "box"]).expect_success();
        zmachine(home, &["rm", "new"]).expect_success();
    }
}
