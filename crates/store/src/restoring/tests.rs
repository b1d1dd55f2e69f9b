use std::fs;

use zmachine_spec::volume::{Fs, NewVolume};
use zmachine_spec::{MachineSpec, State};

use super::*;
use crate::catalog::save_state;

/// A home with a machine that has a disk, variables of a firmware and two volumes, and a folder with what all were before.
struct Then {
    dir: tempfile::TempDir,
    home: Home,
}

const ID: &str = "0123456789ab";

impl Then {
    fn new() -> Then {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("data"), &dir.path().join("run")).unwrap();
        let machine = home.machine(ID);
        file::make_dirs(&machine).unwrap();
        MachineSpec::new("web", "/x.fl").write(&machine).unwrap();
        save_state(&machine, &State::created(jiff::Timestamp::UNIX_EPOCH, vec![])).unwrap();
        for file in ["root.img", "firmware.vars"] {
            fs::write(machine.join(file), "now").unwrap();
        }
        fs::create_dir(dir.path().join("then")).unwrap();
        for file in ["root.img", "a", "b"] {
            fs::write(dir.path().join("then").join(file), "then").unwrap();
        }
        for name in ["a", "b"] {
            let new = NewVolume {
                name: name.into(),
                size_bytes: 1 << 20,
                fs: Fs::None,
                anonymous_of: None,
                labels: Default::default(),
            };
            Volumes::new(&home).create(&new).unwrap();
            fs::write(Volumes::new(&home).data(name), "now").unwrap();
        }
        Then { dir, home }
    }

    fn volumes(&self) -> Volumes {
        Volumes::new(&self.home)
    }

    fn begin(&self) -> Restoring {
        let machine = Machine::load(&self.home, ID).unwrap();
        let then = self.dir.path().join("then");
        let names = vec!["a".to_owned(), "b".to_owned()];
        let mut restoring = Restoring::begin(&self.home, &machine, &["root.img", "firmware.vars"], names).unwrap();
        for name in ["a", "b"] {
            restoring.volume(name, &then.join(name), &Content::Raw).unwrap();
        }
        restoring.own(&then).unwrap();
        restoring
    }

    /// What the disks hold.
    fn disks(&self) -> Vec<String> {
        let machine = self.home.machine(ID);
        let paths = [
            machine.join("root.img"),
            machine.join("firmware.vars"),
            self.volumes().data("a"),
            self.volumes().data("b"),
        ];
        let read = |path: &PathBuf| fs::read_to_string(path).unwrap_or_else(|_| "none".into());
        paths.iter().map(read).collect()
    }

    /// That nothing is left of any restore.
    fn assert_clean(&self) {
        let folders = [
            self.home.machine(ID),
            self.home.data().join("volumes/a"),
            self.home.data().join("volumes/b"),
        ];
        for folder in folders {
            for name in file::names_in(&folder).unwrap() {
                let name = name.to_string_lossy().into_owned();
                assert!(
                    !name.contains("restor") && !name.contains("replacing"),
                    "{name} is left"
                );
            }
        }
    }
}

const NOW: [&str; 4] = ["now", "now", "now", "now"];
const THEN: [&str; 4] = ["then", "none", "then", "then"];

/// The restore as a process leaves it that is killed: nothing of it is undone, but its locks are gone.
fn killed(restoring: Restoring) {
    let mut restoring = restoring;
    for volume in &mut restoring.volumes {
        volume.forget_as_killed();
    }
    restoring.volumes.clear();
    restoring.intent.is_decided = true; // on nothing but this value, so that dropping it changes nothing
}

#[test]
fn all_disks_are_replaced_and_stay_held() {
    let then = Then::new();
    let held = then.begin().put(&Killpoints::default()).unwrap();
    assert_eq!(then.disks(), THEN);
    then.assert_clean();
    assert_eq!(
        then.volumes().hold("a", false, "").unwrap_err().class,
        Class::Conflict,
        "nobody else gets one meanwhile"
    );
    let locks: Vec<_> = held.into_iter().map(Held::into_lock).collect();
    for (name, lock) in locks {
        let held = then.volumes().hold_handed(&name, lock).unwrap();
        assert_eq!(held.volume.record.content, Content::Raw);
    }
    then.volumes().hold("a", false, "").unwrap();
    let (_, of_a) = then.volumes().hold("a", false, "").unwrap().into_lock();
    assert_eq!(
        then.volumes().hold_handed("b", of_a).unwrap_err().class,
        Class::Conflict,
        "it is the lock of another one"
    );
}

#[test]
fn what_was_not_decided_is_undone() {
    let then = Then::new();
    drop(then.begin());
    assert_eq!(then.disks(), NOW);
    then.assert_clean();
    // A copy that was cut off, and one that was whole.
    killed(then.begin());
    assert!(is_pending(&then.home.machine(ID)).unwrap());
    assert_eq!(settle(&then.home, ID).unwrap(), Some(Settled::Undone));
    assert_eq!(then.disks(), NOW);
    then.assert_clean();
    assert_eq!(settle(&then.home, ID).unwrap(), None);
}

/// A restore that was decided and killed after `replaced` of its volumes had been replaced.
fn decided(then: &Then, replaced: usize) {
    let mut restoring = then.begin();
    let (machine, token) = (restoring.id.clone(), restoring.intent.token.clone());
    for volume in &mut restoring.volumes {
        let announce = |content| Replacing {
            machine: machine.clone(),
            token: token.clone(),
            content,
        };
        volume.announce(announce).unwrap();
    }
    restoring.intent.is_decided = true;
    restoring.write().unwrap();
    for volume in restoring.volumes.drain(..replaced) {
        volume.put_in_place().unwrap();
    }
    killed(restoring);
}

#[test]
fn what_was_decided_is_finished_wherever_it_was_cut_off() {
    for replaced in 0..=2 {
        let then = Then::new();
        decided(&then, replaced);
        assert_eq!(settle(&then.home, ID).unwrap(), Some(Settled::Finished));
        assert_eq!(then.disks(), THEN, "cut off after {replaced}");
        then.assert_clean();
    }
}

#[test]
fn who_takes_a_volume_first_finds_it_as_was_decided() {
    let then = Then::new();
    decided(&then, 0);
    // Another machine reads one, and writes to the other one.
    drop(then.volumes().hold("a", true, "").unwrap());
    assert_eq!(then.disks(), ["now", "now", "then", "now"]);
    let held = then.volumes().hold("b", false, "").unwrap();
    fs::write(held.volume.data(), "newer").unwrap();
    // The machine's own follow, and what was written since stays.
    assert_eq!(settle(&then.home, ID).unwrap(), Some(Settled::Finished));
    assert_eq!(then.disks(), ["then", "none", "then", "newer"]);
    drop(held);
    then.assert_clean();
}

#[test]
fn a_volume_that_was_removed_since_is_not_missed() {
    let then = Then::new();
    decided(&then, 0);
    fs::remove_dir_all(then.home.data().join("volumes/a")).unwrap();
    assert_eq!(settle(&then.home, ID).unwrap(), Some(Settled::Finished));
    assert_eq!(then.disks(), ["then", "none", "none", "then"]);
}

#[test]
fn the_intent_has_its_golden_form() {
    let golden = r#"{"version":1,"token":"1f","is_decided":true,"own":[{"file":"root.img","is_absent":false}],"volumes":["data"]}"#;
    let intent: Intent = serde_json::from_str(golden).unwrap();
    assert_eq!(serde_json::to_string(&intent).unwrap(), golden);
    let then = Then::new();
    let newer = golden.replace("\"version\":1", "\"version\":2");
    fs::write(then.home.machine(ID).join(FILE), newer).unwrap();
    assert_eq!(settle(&then.home, ID).unwrap_err().class, Class::Unsupported);
}
