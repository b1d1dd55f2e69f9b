//! The machines of a home on disk: their folders, names and ids.
//!
//! # Invariants
//! A machine's folder appears whole, by rename from `.new-<id>`, and its name is a link made with it under the
//! catalog's lock. So whoever holds the lock may remove what an interrupted creation or removal left.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use zmachine_sys::file::{self, FileError};
use zmachine_sys::lock::FileLock;

use crate::events;
use crate::failure::{Class, Failure};
use crate::graveyard;
use crate::home::Home;
use crate::killpoint::Killpoints;
use crate::plan::Plan;
use crate::spec::MachineSpec;
use crate::state::State;
use crate::volume::{self, Origin, VolumeArgument};

/// A machine's folder with its spec and state.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// Twelve hex digits.
    pub id: String,
    /// Its folder.
    pub dir: PathBuf,
    /// What the user asked for.
    pub spec: MachineSpec,
    /// Where it is in its life.
    pub state: State,
}

impl Machine {
    /// Loads the machine `id`.
    ///
    /// # Errors
    /// [`Class::NotFound`] when there is none; a file that can not be read is reported, never removed.
    pub fn load(home: &Home, id: &str) -> Result<Machine, Failure> {
        let dir = home.machine(id);
        let spec = file::read_json::<MachineSpec>(&MachineSpec::path(&dir));
        let spec = spec.map_err(|e| {
            if e.is_not_found() {
                not_found(id)
            } else {
                damaged(id, &e)
            }
        })?;
        let state = load_state(&dir).map_err(|e| damaged(id, &e))?;
        Ok(Machine {
            id: id.to_owned(),
            dir,
            spec,
            state,
        })
    }

    /// Whether it is made to use the volume `name`.
    pub fn uses_volume(&self, name: &str) -> bool {
        self.volume_uses(name).next().is_some()
    }

    /// Whether it is made to write to the volume `name`.
    pub fn writes_volume(&self, name: &str) -> bool {
        self.volume_uses(name).any(|argument| !argument.read_only)
    }

    fn volume_uses(&self, name: &str) -> impl Iterator<Item = VolumeArgument> {
        let arguments = self.spec.volumes.iter().enumerate().filter_map(|(index, text)| {
            let argument = VolumeArgument::parse(text, Path::new("/")).ok()?;
            let is_it = match &argument.origin {
                Origin::Named(named) => named == name,
                Origin::Anonymous => name == volume::anonymous(&self.id, index),
                Origin::Directory(_) => false,
            };
            is_it.then_some(argument)
        });
        arguments.collect::<Vec<_>>().into_iter()
    }

    /// The plan it was created with.
    ///
    /// # Errors
    /// When the file can not be read.
    pub fn plan(&self) -> Result<Plan, Failure> {
        file::read_json(&self.dir.join("plan.json")).map_err(|e| damaged(&self.id, &e))
    }

    /// The lock that its monitor holds.
    pub fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }
}

/// Reads the state of a machine's folder.
///
/// # Errors
/// When it can not be read.
pub fn load_state(dir: &Path) -> Result<State, FileError> {
    file::read_json(&dir.join("state.json"))
}

/// Writes the state of a machine's folder.
///
/// # Errors
/// When it can not be written; the old state stays.
pub fn save_state(dir: &Path, state: &State) -> Result<(), FileError> {
    file::replace_json(&dir.join("state.json"), state)
}

fn not_found(name: &str) -> Failure {
    Failure::new(Class::NotFound, format!("no machine is called '{name}'")).hint("'zmachine ps -a' lists all machines")
}

fn damaged(id: &str, error: &FileError) -> Failure {
    Failure::from_error(Class::Failed, error)
        .context(format!("the state of machine {id} can not be read"))
        .hint("nothing was changed; put the file right, or remove the machine with 'zmachine rm -f'")
}

/// A new id: twelve random hex digits.
pub fn new_id() -> String {
    format!("{:012x}", file::random_u64() & 0xffff_ffff_ffff)
}

fn is_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The ids of all machines, in the order of the directory.
///
/// # Errors
/// When the folder of machines can not be read.
pub fn ids(home: &Home) -> Result<Vec<String>, Failure> {
    let dir = home.machines();
    let entries = fs::read_dir(&dir).map_err(|e| FileError::io("read", &dir, e))?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    Ok(names.filter(|n| is_id(n)).collect())
}

/// Finds a machine by name, id, or a prefix of its id that no other machine shares.
///
/// # Errors
/// [`Class::NotFound`], or [`Class::Conflict`] when a prefix fits several.
pub fn find(home: &Home, name: &str) -> Result<String, Failure> {
    if crate::spec::check_name(name).is_ok()
        && let Ok(target) = fs::read_link(home.by_name().join(name))
        && let Some(id) = target.file_name().and_then(|n| n.to_str())
        && home.machine(id).is_dir()
    {
        return Ok(id.to_owned());
    }
    let matches: Vec<String> = ids(home)?
        .into_iter()
        .filter(|id| !name.is_empty() && id.starts_with(name))
        .collect();
    match matches.as_slice() {
        [id] => Ok(id.clone()),
        [] => Err(not_found(name)),
        several => Err(
            Failure::new(Class::Conflict, format!("'{name}' fits {} machines", several.len()))
                .hint(format!("use more digits: {}", several.join(", "))),
        ),
    }
}

/// The lock under which machines are created and removed.
///
/// # Errors
/// When it can not be taken.
pub fn lock(home: &Home) -> Result<FileLock, Failure> {
    Ok(FileLock::exclusive(&home.machines().join(".lock"))?)
}

/// A name nobody has: two words.
pub fn free_name(home: &Home) -> String {
    const FIRST: [&str; 16] = [
        "amber", "brisk", "calm", "deft", "eager", "fair", "glad", "hardy", "keen", "light", "merry", "neat", "proud",
        "quick", "sound", "warm",
    ];
    const SECOND: [&str; 16] = [
        "badger", "crane", "dolphin", "falcon", "heron", "ibex", "lynx", "marten", "otter", "owl", "panda", "raven",
        "seal", "tapir", "wolf", "wren",
    ];
    loop {
        let random = file::random_u64();
        let name = format!(
            "{}-{}-{:02}",
            FIRST[random as usize % 16],
            SECOND[(random >> 8) as usize % 16],
            (random >> 16) % 100
        );
        if fs::symlink_metadata(home.by_name().join(&name)).is_err() {
            return name;
        }
    }
}

/// Makes sure that nobody has the name.
///
/// # Errors
/// [`Class::Conflict`] when somebody has.
pub fn require_free(home: &Home, name: &str) -> Result<(), Failure> {
    if fs::symlink_metadata(home.by_name().join(name)).is_err() {
        return Ok(());
    }
    Err(
        Failure::new(Class::Conflict, format!("a machine called '{name}' exists already"))
            .hint(format!("choose another --name, or remove it with 'zmachine rm {name}'")),
    )
}

/// Makes the folder and the name of a machine. The caller holds the catalog's lock.
///
/// # Errors
/// [`Class::Conflict`] when the name is taken; nothing is made then.
pub fn add(
    home: &Home,
    id: &str,
    spec: &MachineSpec,
    plan: &Plan,
    state: &State,
    kill: &Killpoints,
) -> Result<(), Failure> {
    let link = home.by_name().join(&spec.name);
    require_free(home, &spec.name)?;
    let new = home.machines().join(format!(".new-{id}"));
    kill.pass("create: before the folder");
    file::make_dirs(&new)?;
    file::replace_json(&MachineSpec::path(&new), spec)?;
    file::replace_json(&new.join("plan.json"), plan)?;
    save_state(&new, state)?;
    kill.pass("create: before the rename");
    let dir = home.machine(id);
    fs::rename(&new, &dir).map_err(|e| FileError::io("create", &dir, e))?;
    kill.pass("create: before the name");
    symlink(Path::new("..").join(id), &link).map_err(|e| FileError::io("create", &link, e))?;
    file::sync_dir(&home.machines())?;
    file::sync_dir(&home.by_name())?;
    events::record(home, &events::Event::new(id, &spec.name, "created"));
    kill.pass("create: done");
    Ok(())
}

/// Removes the name and the folder of a machine. The caller holds the catalog's lock and the machine's.
///
/// # Errors
/// When a file can not be removed.
pub fn remove(home: &Home, machine: &Machine, kill: &Killpoints) -> Result<(), Failure> {
    kill.pass("remove: before the name");
    file::remove_if_there(&home.by_name().join(&machine.spec.name))?;
    kill.pass("remove: before the folder");
    // What happened stays known for a while; a disk too full for that is no reason to keep the machine.
    let _ = graveyard::bury(home, &machine.dir, &machine.id);
    kill.pass("remove: buried");
    file::remove_dir_all(&machine.dir)?;
    let name = &machine.spec.name;
    events::record(home, &events::Event::new(&machine.id, name, "removed"));
    kill.pass("remove: done");
    Ok(())
}

/// Removes what an interrupted creation or removal left: half-made folders, folders without a name, names without a
/// folder. The caller holds the catalog's lock. Returns the ids whose leases and other kept things must go too.
///
/// # Errors
/// When the folders can not be read.
pub fn sweep(home: &Home) -> Result<Vec<String>, Failure> {
    let mut named = std::collections::BTreeSet::new();
    let by_name = home.by_name();
    for entry in fs::read_dir(&by_name)
        .map_err(|e| FileError::io("read", &by_name, e))?
        .flatten()
    {
        let target = fs::read_link(entry.path()).ok();
        match target.as_deref().and_then(|t| t.file_name()?.to_str()) {
            Some(id) if home.machine(id).is_dir() => drop(named.insert(id.to_owned())),
            _ => file::remove_if_there(&entry.path())?,
        }
    }
    let mut gone = Vec::new();
    let machines = home.machines();
    for entry in fs::read_dir(&machines)
        .map_err(|e| FileError::io("read", &machines, e))?
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let hidden = name.strip_prefix(".new-").or(name.strip_prefix(".gone-"));
        let id = hidden.map_or(name.as_str(), |n| n.split('-').next().unwrap_or(n));
        if !is_id(id) || (hidden.is_none() && named.contains(id)) {
            continue;
        }
        // A folder without a name and with a live monitor is being removed by that monitor right now.
        if FileLock::is_held(&entry.path().join("lock"))? {
            continue;
        }
        match fs::remove_dir_all(entry.path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::io("remove", &entry.path(), e).into());
            }
            _ => gone.push(id.to_owned()),
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
        (dir, home)
    }

    fn put(home: &Home, id: &str, name: &str) {
        let dir = home.machine(id);
        file::make_dirs(&dir).unwrap();
        file::replace_json(&MachineSpec::path(&dir), &MachineSpec::new(name, "/x.fl")).unwrap();
        save_state(&dir, &State::created(jiff::Timestamp::UNIX_EPOCH, vec![])).unwrap();
        symlink(Path::new("..").join(id), home.by_name().join(name)).unwrap();
    }

    #[test]
    fn machines_are_found_by_name_id_and_unique_prefix() {
        let (_dir, home) = home();
        put(&home, "aaaabbbbcccc", "web");
        put(&home, "aaaaddddeeee", "db");
        for name in ["web", "aaaabbbbcccc", "aaaab"] {
            assert_eq!(find(&home, name).unwrap(), "aaaabbbbcccc");
        }
        assert_eq!(find(&home, "aaaa").unwrap_err().class, Class::Conflict);
        for name in ["", "nope", "../aaaabbbbcccc", ".lock", "by-name"] {
            assert_eq!(find(&home, name).unwrap_err().class, Class::NotFound, "{name}");
        }
    }

    #[test]
    fn a_sweep_removes_what_is_half_made_and_nothing_else() {
        let (_dir, home) = home();
        put(&home, "aaaabbbbcccc", "web");
        file::make_dirs(&home.machines().join(".new-111111111111")).unwrap();
        file::make_dirs(&home.machines().join(".gone-222222222222-77")).unwrap();
        file::make_dirs(&home.machine("333333333333")).unwrap();
        symlink("../444444444444", home.by_name().join("ghost")).unwrap();
        std::fs::write(home.machines().join("notes.txt"), "mine").unwrap();
        let mut gone = sweep(&home).unwrap();
        gone.sort();
        assert_eq!(gone, ["111111111111", "222222222222", "333333333333"]);
        assert!(Machine::load(&home, "aaaabbbbcccc").is_ok() && home.machines().join("notes.txt").exists());
        assert_eq!(std::fs::read_dir(home.by_name()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_whose_monitor_lives_is_not_swept() {
        let (_dir, home) = home();
        let dir = home.machine("333333333333");
        file::make_dirs(&dir).unwrap();
        let _held = FileLock::exclusive(&dir.join("lock")).unwrap();
        assert!(sweep(&home).unwrap().is_empty() && dir.exists());
    }

    #[test]
    fn a_damaged_state_is_reported_and_kept() {
        let (_dir, home) = home();
        put(&home, "aaaabbbbcccc", "web");
        let path = home.machine("aaaabbbbcccc").join("state.json");
        std::fs::write(&path, "{").unwrap();
        let failure = Machine::load(&home, "aaaabbbbcccc").unwrap_err();
        assert!(failure.hint.unwrap().contains("nothing was changed"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{");
    }
}
