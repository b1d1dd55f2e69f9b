//! The names of machines: links in `by-name`, what became of them, and new ones.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::{fs, io};

use zmachine_spec::{Class, Failure, Home, Setting};
use zmachine_sys::file::{self, FileError};

use super::{Machine, ids, is_id};

/// The id that a name of `by-name` leads to; `None` when there is no such name.
///
/// # Errors
/// When the name is there and is not a link of ours, or cannot be read.
pub(super) fn id_of_name(home: &Home, name: &str) -> Result<Option<String>, Failure> {
    let link = home.by_name().join(name);
    let target = match fs::read_link(&link) {
        Ok(target) => target,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::io("read the link", &link, e).into()),
    };
    let id = target.file_name().and_then(|name| name.to_str()).filter(|id| is_id(id));
    match id {
        Some(id) if target == Path::new("..").join(id) => Ok(Some(id.to_owned())),
        _ => {
            let message = format!("{} leads to {}, which is no machine", link.display(), target.display());
            Err(Failure::new(Class::Failed, message).hint("remove it, then run 'zmachine doctor --repair'"))
        }
    }
}

/// The machines without a name, in the order of their ids: the links got lost, but not the machines.
///
/// # Errors
/// When names or machines cannot be listed.
pub fn nameless(home: &Home) -> Result<Vec<String>, Failure> {
    // The folders first: one that appears after its name was looked for would seem to have none.
    let folders = ids(home)?;
    let mut named = BTreeSet::new();
    for name in file::names_in(&home.by_name())? {
        // What is no link of ours names nobody.
        if let Some(Ok(Some(id))) = name.to_str().map(|name| id_of_name(home, name)) {
            named.insert(id);
        }
    }
    let mut lost = Vec::new();
    for id in folders {
        // A removal takes the folder away before the name: one that is still there was not being removed.
        if !named.contains(&id) && file::is_there(&home.machine(&id))? {
            lost.push(id);
        }
    }
    lost.sort();
    Ok(lost)
}

/// The name that a machine has again, or its id and why it has none.
pub type Repaired = Result<String, (String, Failure)>;

/// Gives machines that lost their name the one of their spec again. The caller holds the catalog's lock. The names given.
///
/// # Errors
/// When machines cannot be listed or a link not be made. One whose name somebody else has by now, or that cannot be read, is
/// the failure beside its id.
pub fn repair_names(home: &Home) -> Result<Vec<Repaired>, Failure> {
    let give = |id: &str| {
        let name = Machine::load(home, id)?.spec.name;
        require_free(home, &name)?;
        link_name(home, &name, id)?;
        Ok(name)
    };
    let lost = nameless(home)?;
    Ok(lost
        .into_iter()
        .map(|id| give(&id).map_err(|failure| (id, failure)))
        .collect())
}

pub(super) fn link_name(home: &Home, name: &str, id: &str) -> Result<(), Failure> {
    let link = home.by_name().join(name);
    symlink(Path::new("..").join(id), &link).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => taken(name),
        _ => FileError::io("create", &link, e).into(),
    })?;
    Ok(file::sync_dir(&home.by_name())?)
}

/// Gives the machine `id` one more name. The caller holds the catalog's lock. One that leads to it already is fine.
///
/// # Errors
/// [`Class::Conflict`] when somebody else has it, or had it and lost it.
pub fn take_name(home: &Home, name: &str, id: &str) -> Result<(), Failure> {
    match id_of_name(home, name)? {
        Some(other) if other == id => return Ok(()),
        Some(_) => return Err(taken(name)),
        None => {}
    }
    match lost(home, name)? {
        Some(other) if other != id => Err(taken(name).hint(format!(
            "the machine {other} lost the link of its name: 'zmachine doctor --repair' gives it back"
        ))),
        _ => link_name(home, name, id),
    }
}

/// Takes a name from the machine `id`. The caller holds the catalog's lock. One that is somebody else's stays.
///
/// # Errors
/// When it cannot be removed.
pub fn give_up_name(home: &Home, name: &str, id: &str) -> Result<(), Failure> {
    if id_of_name(home, name)?.is_some_and(|other| other == id) {
        file::remove_if_there(&home.by_name().join(name))?;
        file::sync_dir(&home.by_name())?;
    }
    Ok(())
}

/// Whether a name leads to the machine `id` beside the one of its spec: a rename was interrupted.
pub(super) fn is_surplus(home: &Home, name: &str, id: &str) -> bool {
    let own = Machine::load(home, id).map(|machine| machine.spec.name);
    own.is_ok_and(|own| own != name && matches!(id_of_name(home, &own), Ok(Some(other)) if other == id))
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
    match file::is_there(&home.by_name().join(name))? {
        false => Ok(()),
        true => Err(taken(name)),
    }
}

pub(super) fn taken(name: &str) -> Failure {
    Failure::new(Class::Conflict, format!("a machine called '{name}' exists already"))
        .hint(format!("choose another name, or remove it with 'zmachine rm {name}'"))
        .about(Setting::Name)
}

/// The machine that lost the name `name`, if one did. One that cannot be read is listed elsewhere.
pub(super) fn lost(home: &Home, name: &str) -> Result<Option<String>, Failure> {
    let had = |id: &String| matches!(Machine::load(home, id), Ok(machine) if machine.spec.name == name);
    Ok(nameless(home)?.into_iter().find(had))
}
