//! The machines of a home on disk: their folders, names and ids.
//!
//! # Invariants
//! A machine's folder appears whole, by rename from `.new-<id>`, after its name, a link, is on disk; it disappears by
//! rename to `.gone-<id>-<random>`, before its name does. Both happen under the catalog's lock. So whoever holds the lock may
//! remove what carries one of those two marks, and nothing else: a folder without a name is a machine that lost it, and is
//! kept, listed and mended ([`repair_names`]).

mod names;

use std::fs;
use std::path::{Path, PathBuf};

use zmachine_plan::{PLAN_VERSION, Plan};
use zmachine_spec::state::STATE_VERSION;
use zmachine_spec::versioned::{NEWER_HINT, read_versioned};
use zmachine_spec::{Class, Failure, Health, HealthStatus, Home, MachineSpec, Origin, Phase, State, pod};
use zmachine_sys::file::{self, FileError};
use zmachine_sys::lock::FileLock;

pub use self::names::{Repaired, free_name, give_up_name, nameless, repair_names, require_free, take_name};
use self::names::{id_of_name, is_surplus, link_name, lost, taken};
use crate::events;
use crate::killpoint::Killpoints;
use crate::tombstones;

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
    /// [`Class::NotFound`] when there is none; a file that cannot be read is reported, never removed.
    pub fn load(home: &Home, id: &str) -> Result<Machine, Failure> {
        let dir = home.machine(id);
        let read = || {
            let spec = MachineSpec::read(&dir)?;
            Ok((spec, load_state(&dir)?))
        };
        let (spec, state) = read().map_err(|failure: Failure| match file::is_there(&dir) {
            // Removed meanwhile, or never there.
            Ok(false) => not_found(id),
            _ => damaged(id, failure),
        })?;
        Ok(Machine {
            id: id.to_owned(),
            dir,
            spec,
            state,
        })
    }

    /// How it is made to use the volume `name`; `None` when it is not.
    pub fn volume_use(&self, name: &str) -> Option<VolumeUse> {
        let mut found = None;
        for (index, request) in self.spec.volumes.iter().enumerate() {
            let is_it = match &request.origin {
                Origin::Named(named) => named == name,
                Origin::Anonymous => name == zmachine_spec::volume::anonymous(&self.id, index),
                Origin::Directory(_) => false,
            };
            if is_it {
                let writes = !request.read_only || found == Some(VolumeUse::Writes);
                found = Some(if writes { VolumeUse::Writes } else { VolumeUse::Reads });
            }
        }
        found
    }

    /// What its last health checks said; `None` without any. One that does not run is not healthy.
    pub fn health(&self) -> Option<Health> {
        let mut health = load_health(&self.dir)?;
        if !self.state.phase.is_active() || matches!(self.state.phase, Phase::Restarting { .. }) {
            health.status = HealthStatus::Unhealthy;
        }
        Some(health)
    }

    /// The plan it was created with.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn plan(&self) -> Result<Plan, Failure> {
        read_versioned(&self.dir.join("plan.json"), PLAN_VERSION).map_err(|failure| damaged(&self.id, failure))
    }

    /// The lock that its monitor holds.
    pub fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }
}

/// What a machine does with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeUse {
    /// It only reads.
    Reads,
    /// It may write.
    Writes,
}

/// Reads the state of a machine's folder.
///
/// # Errors
/// When it cannot be read, or is of a newer version.
pub fn load_state(dir: &Path) -> Result<State, Failure> {
    read_versioned(&dir.join("state.json"), STATE_VERSION)
}

/// Writes the state of a machine's folder.
///
/// # Errors
/// When it cannot be written; the old state stays.
pub fn save_state(dir: &Path, state: &State) -> Result<(), FileError> {
    file::replace_json(&dir.join("state.json"), state)
}

/// What the health checks of a machine's last run said; `None` without any, and where a power cut broke the file.
pub fn load_health(dir: &Path) -> Option<Health> {
    file::read_json(&health_path(dir)).ok()
}

/// Writes what the health checks of a machine say. It is written often and waits for no disk; `None` removes it.
///
/// # Errors
/// When it cannot be written; the old one stays.
pub fn save_health(dir: &Path, health: Option<&Health>) -> Result<(), FileError> {
    match health {
        Some(health) => file::replace_json_unsynced(&health_path(dir), health),
        None => file::remove_if_there(&health_path(dir)),
    }
}

fn health_path(dir: &Path) -> PathBuf {
    dir.join("health.json")
}

/// Writes spec and plan of a machine that has changed: it is in other networks, or has another name.
///
/// # Errors
/// When one cannot be written; it stays as it was then.
pub fn write_networks(dir: &Path, spec: &MachineSpec, plan: &Plan) -> Result<(), FileError> {
    file::replace_json(&dir.join("plan.json"), plan)?;
    spec.write(dir)
}

/// There is no machine of that name.
pub fn not_found(name: &str) -> Failure {
    Failure::new(Class::NotFound, format!("no machine is called '{name}'")).hint("'zmachine ps -a' lists all machines")
}

fn damaged(id: &str, failure: Failure) -> Failure {
    let hint = match failure.class {
        Class::Unsupported => NEWER_HINT.to_owned(),
        _ => format!("nothing was changed; put the file right, or remove the machine with 'zmachine rm -f {id}'"),
    };
    failure.context(format!("machine {id} cannot be read")).hint(hint)
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
/// When the folder of machines cannot be read.
pub fn ids(home: &Home) -> Result<Vec<String>, Failure> {
    // A name that is not UTF-8 is none of ours.
    let names = file::names_in(&home.machines())?;
    Ok(names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| is_id(name))
        .collect())
}

/// Finds a machine by name, id, a prefix of its id that no other machine shares, or the name of a pod, with or without its namespace
/// (`NAMESPACE/NAME`).
///
/// # Errors
/// [`Class::NotFound`], or [`Class::Conflict`] when a prefix fits several.
pub fn find(home: &Home, name: &str) -> Result<String, Failure> {
    if zmachine_spec::check_name(name).is_ok()
        && let Some(id) = id_of_name(home, name)?
        && file::is_there(&home.machine(&id))?
    {
        return Ok(id);
    }
    let matches: Vec<String> = ids(home)?
        .into_iter()
        .filter(|id| !name.is_empty() && id.starts_with(name))
        .collect();
    match matches.as_slice() {
        [id] => Ok(id.clone()),
        [] => match lost(home, name)? {
            Some(id) => Err(not_found(name).hint(format!(
                "the machine {id} had that name and lost it: 'zmachine doctor --repair' gives it back"
            ))),
            None => of_pod(home, name),
        },
        several => Err(
            Failure::new(Class::Conflict, format!("'{name}' fits {} machines", several.len()))
                .hint(format!("use more digits: {}", several.join(", "))),
        ),
    }
}

/// The machine of the pod that a user calls so, when no machine is.
fn of_pod(home: &Home, name: &str) -> Result<String, Failure> {
    let mut found: Vec<(String, String)> = Vec::new();
    for id in ids(home)? {
        // One that cannot be read is told by listings.
        if let Ok(spec) = MachineSpec::read(&home.machine(&id))
            && pod::is_meant(&spec.labels, name)
            && let Some((namespace, pod)) = pod::name_of(&spec.labels)
        {
            found.push((id, format!("{namespace}/{pod}")));
        }
    }
    match found.as_slice() {
        [(id, _)] => Ok(id.clone()),
        [] => Err(not_found(name)),
        several => {
            let names: Vec<String> = several.iter().map(|(id, name)| format!("{name} ({id})")).collect();
            let failure = Failure::new(
                Class::Conflict,
                format!("'{name}' is the name of {} pods", several.len()),
            );
            Err(failure.hint(format!("use NAMESPACE/NAME, or an id: {}", names.join(", "))))
        }
    }
}

/// The lock under which machines are created and removed.
///
/// # Errors
/// When it cannot be taken.
pub fn lock(home: &Home) -> Result<FileLock, Failure> {
    Ok(FileLock::exclusive(&home.machines().join(".lock"))?)
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
    fill: impl FnOnce(&Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    require_free(home, &spec.name)?;
    if let Some(other) = lost(home, &spec.name)? {
        return Err(taken(&spec.name).hint(format!(
            "the machine {other} lost the link of its name: 'zmachine doctor --repair' gives it back"
        )));
    }
    let new = home.machines().join(format!(".new-{id}"));
    kill.pass("create: before the folder");
    file::make_dirs(&new)?;
    spec.write(&new)?;
    file::replace_json(&new.join("plan.json"), plan)?;
    save_state(&new, state)?;
    fill(&new)?;
    kill.pass("create: before the name");
    link_name(home, &spec.name, id)?;
    kill.pass("create: before the rename");
    let dir = home.machine(id);
    fs::rename(&new, &dir).map_err(|e| FileError::io("create", &dir, e))?;
    file::sync_dir(&home.machines())?;
    events::record(home, &events::Event::new(id, &spec.name, "created"));
    kill.pass("create: done");
    Ok(())
}

/// Removes the name and the folder of a machine, whether its files can be read or not. The caller holds the catalog's lock
/// and the machine's. Also what a removal begins that a later [`sweep`] ends.
///
/// # Errors
/// When a file cannot be removed.
pub fn remove(home: &Home, id: &str, kill: &Killpoints) -> Result<(), Failure> {
    kill.pass("remove: before the mark");
    let (dir, gone) = (
        home.machine(id),
        home.machines().join(format!(".gone-{id}-{:016x}", file::random_u64())),
    );
    fs::rename(&dir, &gone).map_err(|e| FileError::io("remove", &dir, e))?;
    file::sync_dir(&home.machines())?;
    kill.pass("remove: marked");
    finish_removal(home, id, &gone, kill)?;
    kill.pass("remove: done");
    Ok(())
}

/// Ends the removal of the machine `id`, whose folder is `gone` by now.
fn finish_removal(home: &Home, id: &str, gone: &Path, kill: &Killpoints) -> Result<(), Failure> {
    for name in file::names_in(&home.by_name())? {
        let leads_there = name.to_str().map(|name| id_of_name(home, name));
        if matches!(leads_there, Some(Ok(Some(other))) if other == id) {
            file::remove_if_there(&home.by_name().join(&name))?;
        }
    }
    kill.pass("remove: before the folder");
    // What happened stays known for a while; a disk too full for that is no reason to keep the machine.
    let spec = MachineSpec::read(gone);
    let _ = tombstones::bury(home, gone, id);
    kill.pass("remove: buried");
    fs::remove_dir_all(gone).map_err(|e| FileError::io("remove", gone, e))?;
    let name = spec.map_or_else(|_| id.to_owned(), |spec| spec.name);
    events::record(home, &events::Event::new(id, &name, "removed"));
    Ok(())
}

/// Removes what an interrupted creation, removal or rename left: what carries a mark, names that lead to no folder, second names. Nothing
/// else is touched. The caller holds the catalog's lock. Returns the ids of what is gone.
///
/// # Errors
/// When the folders cannot be read, or something not be removed.
pub fn sweep(home: &Home) -> Result<Vec<String>, Failure> {
    let mut gone = Vec::new();
    for name in file::names_in(&home.machines())? {
        let path = home.machines().join(&name);
        let Some(name) = name.to_str() else { continue };
        let (is_removal, id) = match (name.strip_prefix(".new-"), name.strip_prefix(".gone-")) {
            (Some(id), _) => (false, id),
            (_, Some(rest)) => (true, rest.split('-').next().unwrap_or(rest)),
            (None, None) => continue,
        };
        // One with a live monitor is being removed by that monitor right now.
        if !is_id(id) || FileLock::is_held(&path.join("lock"))? {
            continue;
        }
        match is_removal {
            true => finish_removal(home, id, &path, &Killpoints::new(None))?,
            false => fs::remove_dir_all(&path).map_err(|e| FileError::io("remove", &path, e))?,
        }
        gone.push(id.to_owned());
    }
    for name in file::names_in(&home.by_name())? {
        let Some(name) = name.to_str() else { continue };
        // What is no link of ours was put there by somebody, and stays.
        if let Ok(Some(id)) = id_of_name(home, name)
            && (!file::is_there(&home.machine(&id))? || is_surplus(home, name, &id))
        {
            file::remove_if_there(&home.by_name().join(name))?;
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
        (dir, home)
    }

    fn put(home: &Home, id: &str, name: &str) {
        let dir = home.machine(id);
        file::make_dirs(&dir).unwrap();
        MachineSpec::new(name, "/x.fl").write(&dir).unwrap();
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
    fn a_sweep_removes_what_is_half_made_or_half_removed_and_nothing_else() {
        let (_dir, home) = home();
        put(&home, "aaaabbbbcccc", "web");
        file::make_dirs(&home.machines().join(".new-111111111111")).unwrap();
        file::make_dirs(&home.machines().join(".gone-222222222222-77")).unwrap();
        file::make_dirs(&home.machine("333333333333")).unwrap();
        symlink("../444444444444", home.by_name().join("ghost")).unwrap();
        symlink("/somewhere/else", home.by_name().join("mine")).unwrap();
        std::fs::write(home.by_name().join("note"), "mine").unwrap();
        std::fs::write(home.machines().join("notes.txt"), "mine").unwrap();
        let mut gone = sweep(&home).unwrap();
        gone.sort();
        assert_eq!(gone, ["111111111111", "222222222222"]);
        assert!(Machine::load(&home, "aaaabbbbcccc").is_ok() && home.machines().join("notes.txt").exists());
        assert!(home.machine("333333333333").exists());
        let mut names = file::names_in(&home.by_name()).unwrap();
        names.sort();
        assert_eq!(names, ["mine", "note", "web"]);
    }

    #[test]
    fn a_machine_that_lost_its_name_is_kept_told_and_named_again() {
        let (_dir, home) = home();
        put(&home, "aaaabbbbcccc", "web");
        let link = home.by_name().join("web");
        fs::remove_file(&link).unwrap();
        assert!(sweep(&home).unwrap().is_empty());
        assert_eq!(nameless(&home).unwrap(), ["aaaabbbbcccc"]);
        let failure = find(&home, "web").unwrap_err();
        assert!(failure.hint.unwrap().contains("doctor --repair"));
        assert_eq!(find(&home, "aaaabbbbcccc").unwrap(), "aaaabbbbcccc");
        assert_eq!(repair_names(&home).unwrap(), [Ok("web".to_owned())]);
        assert_eq!(find(&home, "web").unwrap(), "aaaabbbbcccc");
        // Somebody else has the name by now: nothing is taken away, and it is said.
        fs::remove_file(&link).unwrap();
        put(&home, "ddddeeeeffff", "web");
        let repaired = repair_names(&home).unwrap();
        assert!(
            matches!(&repaired[..], [Err((id, failure))] if id == "aaaabbbbcccc" && failure.class == Class::Conflict)
        );
    }

    #[test]
    fn of_a_rename_that_was_interrupted_one_name_is_left() {
        let (_dir, home) = home();
        let id = "aaaabbbbcccc";
        put(&home, id, "web");
        put(&home, "ddddeeeeffff", "db");
        assert_eq!(take_name(&home, "db", id).unwrap_err().class, Class::Conflict);
        for is_written in [false, true] {
            take_name(&home, "front", id).unwrap();
            take_name(&home, "front", id).unwrap();
            if is_written {
                MachineSpec::new("front", "/x.fl").write(&home.machine(id)).unwrap();
            }
            for name in ["web", "front"] {
                assert_eq!(find(&home, name).unwrap(), id);
            }
            sweep(&home).unwrap();
            let own = Machine::load(&home, id).unwrap().spec.name;
            let mut names = file::names_in(&home.by_name()).unwrap();
            names.sort();
            assert_eq!(names, ["db", own.as_str()]);
        }
        // Another one's name is not taken away.
        give_up_name(&home, "db", id).unwrap();
        assert_eq!(find(&home, "db").unwrap(), "ddddeeeeffff");
    }

    #[test]
    fn machines_that_come_and_go_meanwhile_have_lost_nothing() {
        let (_dir, home) = home();
        let plan: Plan = serde_json::from_str(include_str!("../../../plan/tests/golden/plan-v1.json")).unwrap();
        let state = State::created(jiff::Timestamp::UNIX_EPOCH, vec![]);
        let kill = Killpoints::new(None);
        std::thread::scope(|scope| {
            let coming_and_going = scope.spawn(|| {
                for round in 0..60 {
                    let id = format!("{round:012x}");
                    let _catalog = lock(&home).unwrap();
                    add(
                        &home,
                        &id,
                        &MachineSpec::new("web", "/x.fl"),
                        &plan,
                        &state,
                        &kill,
                        |_| Ok(()),
                    )
                    .unwrap();
                    remove(&home, &id, &kill).unwrap();
                }
            });
            while !coming_and_going.is_finished() {
                assert_eq!(nameless(&home).unwrap(), [""; 0]);
            }
        });
    }

    #[test]
    fn an_interrupted_removal_is_ended_and_its_records_are_kept() {
        let (_dir, home) = home();
        put(&home, "aaaabbbbcccc", "web");
        file::make_dirs(&home.machine("aaaabbbbcccc").join("attempts")).unwrap();
        fs::rename(
            home.machine("aaaabbbbcccc"),
            home.machines().join(".gone-aaaabbbbcccc-1"),
        )
        .unwrap();
        assert_eq!(sweep(&home).unwrap(), ["aaaabbbbcccc"]);
        assert!(tombstones::find(&home, "web").is_some());
        assert!(file::names_in(&home.by_name()).unwrap().is_empty());
    }

    #[test]
    fn files_of_a_newer_version_are_refused_whatever_their_form() {
        let (_dir, home) = home();
        put(&home, "aaaabbbbcccc", "web");
        let dir = home.machine("aaaabbbbcccc");
        for name in ["spec.json", "state.json"] {
            let before = fs::read(dir.join(name)).unwrap();
            fs::write(dir.join(name), r#"{"version":9,"form":"new"}"#).unwrap();
            let failure = Machine::load(&home, "aaaabbbbcccc").unwrap_err();
            assert_eq!(failure.class, Class::Unsupported, "{name}");
            assert!(failure.to_string().contains("version 9"), "{failure}");
            fs::write(dir.join(name), before).unwrap();
        }
        fs::write(dir.join("plan.json"), r#"{"version":9,"kind":"new"}"#).unwrap();
        let machine = Machine::load(&home, "aaaabbbbcccc").unwrap();
        assert_eq!(machine.plan().unwrap_err().class, Class::Unsupported);
    }

    #[test]
    fn a_folder_whose_monitor_lives_is_not_swept() {
        let (_dir, home) = home();
        let dir = home.machines().join(".gone-333333333333-1");
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
