//! What is left of removed machines, for `why` and `logs`: seven days long.
//!
//! ```text
//! data/removed/<seconds>-<id>/{spec,plan,state}.json attempts/ logs/      removed at <seconds> of the Unix clock
//! ```
//! # Invariants
//! A folder appears here whole, by rename. It holds no disk. At most [`MOST`] are kept, and of each log the newest
//! [`LOG_BYTES`]: a host that runs thousands of short machines a day keeps its disk. A clock that jumps ahead lets
//! records go early, one that jumps back keeps them longer; nothing else depends on them.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use zmachine_spec::{Failure, Home, MachineSpec, pod};
use zmachine_sys::file::{self, FileError};

/// How long records are kept, in seconds.
pub const KEPT_S: i64 = 7 * 86_400;

/// Number of removed machines whose records are kept.
pub const MOST: usize = 1000;

/// Bytes of a log that are kept.
pub const LOG_BYTES: u64 = 8 << 20;

/// The records of a removed machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// Its id.
    pub id: String,
    /// When it was removed.
    pub at: Timestamp,
    /// Where its records are.
    pub dir: PathBuf,
}

fn folder(home: &Home) -> PathBuf {
    home.data().join("removed")
}

/// All records, oldest first.
pub fn all(home: &Home) -> Vec<Tombstone> {
    let entries = fs::read_dir(folder(home)).into_iter().flatten().flatten();
    let buried = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let (seconds, id) = name.split_once('-')?;
        Some(Tombstone {
            id: id.to_owned(),
            at: Timestamp::from_second(seconds.parse().ok()?).ok()?,
            dir: entry.path(),
        })
    };
    let mut all: Vec<Tombstone> = entries.filter_map(buried).collect();
    all.sort_by_key(|b| b.at);
    all
}

/// The newest removed machine with that name, whose id begins so, or that was the pod of that name.
pub fn find(home: &Home, name: &str) -> Option<(Tombstone, MachineSpec)> {
    all(home).into_iter().rev().find_map(|buried| {
        let spec = MachineSpec::read(&buried.dir).ok()?;
        let is_it =
            spec.name == name || (!name.is_empty() && buried.id.starts_with(name)) || pod::is_meant(&spec.labels, name);
        is_it.then_some((buried, spec))
    })
}

/// Moves the records of a machine's folder here; the rest of the folder is left for the caller to remove. A machine that
/// was never started has none.
///
/// # Errors
/// When something cannot be moved; the folder is as removable as before then.
pub fn bury(home: &Home, machine: &Path, id: &str) -> Result<(), Failure> {
    if !machine.join("attempts").is_dir() && !machine.join("logs").is_dir() {
        return Ok(());
    }
    let seconds = Timestamp::now().as_second();
    let grave = folder(home).join(format!("{seconds}-{id}"));
    let new = folder(home).join(format!(".new-{id}"));
    file::make_dirs(&folder(home))?;
    file::remove_dir_all(&new)?;
    file::make_dirs(&new)?;
    shorten(&machine.join("logs"));
    for name in ["spec.json", "plan.json", "state.json", "attempts", "logs"] {
        let (from, to) = (machine.join(name), new.join(name));
        match fs::rename(&from, &to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(FileError::io("move", &from, e).into()),
            _ => {}
        }
    }
    fs::rename(&new, &grave).map_err(|e| FileError::io("move", &grave, e))?;
    Ok(())
}

/// Removes the oldest log files until the rest is small enough. The newest file stays.
fn shorten(logs: &Path) {
    let entries = fs::read_dir(logs).into_iter().flatten().flatten();
    let mut numbered: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("machine.log."))
        })
        .collect();
    numbered.sort();
    let size = |path: &Path| path.metadata().map_or(0, |m| m.len());
    let mut kept = size(&logs.join("machine.log"));
    for path in numbered.iter().rev() {
        kept += size(path);
        if kept > LOG_BYTES {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes what is older than seven days, what is too much, and what an interrupted removal left half-moved. The caller
/// holds the catalog's lock.
///
/// # Errors
/// When something cannot be removed.
pub fn sweep(home: &Home) -> Result<(), Failure> {
    let Ok(entries) = fs::read_dir(folder(home)) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(".new-") {
            file::remove_dir_all(&entry.path())?;
        }
    }
    let all = all(home);
    let now = Timestamp::now().as_second();
    let too_many = all.len().saturating_sub(MOST);
    for (index, buried) in all.iter().enumerate() {
        if index < too_many || now - buried.at.as_second() > KEPT_S {
            file::remove_dir_all(&buried.dir)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(home: &Home, id: &str) -> PathBuf {
        let dir = home.machine(id);
        file::make_dirs(&dir.join("attempts")).unwrap();
        file::make_dirs(&dir.join("logs")).unwrap();
        MachineSpec::new("web", "/x.fl").write(&dir).unwrap();
        fs::write(dir.join("logs/machine.log"), "last words").unwrap();
        fs::write(dir.join("root.img"), "disk").unwrap();
        dir
    }

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
        (dir, home)
    }

    #[test]
    fn records_stay_and_disks_do_not() {
        let (_dir, home) = home();
        let dir = machine(&home, "0123456789ab");
        fs::write(dir.join("logs/machine.log.000001"), vec![0; LOG_BYTES as usize]).unwrap();
        fs::write(dir.join("logs/machine.log.000002"), vec![0; 1000]).unwrap();
        bury(&home, &dir, "0123456789ab").unwrap();
        for name in ["web", "0123", "0123456789ab"] {
            let (buried, _) = find(&home, name).unwrap();
            assert_eq!(
                fs::read_to_string(buried.dir.join("logs/machine.log")).unwrap(),
                "last words"
            );
            assert!(!buried.dir.join("root.img").exists() && dir.join("root.img").exists());
            assert!(buried.dir.join("logs/machine.log.000002").exists());
            assert!(!buried.dir.join("logs/machine.log.000001").exists());
        }
        assert!(find(&home, "other").is_none() && find(&home, "").is_none());
    }

    #[test]
    fn records_go_after_seven_days_and_half_moved_ones_at_once() {
        let (_dir, home) = home();
        let now = Timestamp::now().as_second();
        for (seconds, id) in [(now - KEPT_S - 1, "aaaaaaaaaaaa"), (now - KEPT_S + 60, "bbbbbbbbbbbb")] {
            file::make_dirs(&folder(&home).join(format!("{seconds}-{id}"))).unwrap();
        }
        file::make_dirs(&folder(&home).join(".new-cccccccccccc")).unwrap();
        sweep(&home).unwrap();
        assert_eq!(all(&home).len(), 1);
        assert_eq!(all(&home)[0].id, "bbbbbbbbbbbb");
        assert_eq!(fs::read_dir(folder(&home)).unwrap().count(), 1);
    }

    #[test]
    fn a_machine_that_never_ran_leaves_nothing() {
        let (_dir, home) = home();
        let dir = home.machine("0123456789ab");
        file::make_dirs(&dir).unwrap();
        bury(&home, &dir, "0123456789ab").unwrap();
        assert!(all(&home).is_empty());
    }
}
