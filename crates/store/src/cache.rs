//! The block cache, which may be that of several homes: what of it machines need.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use zmachine_flist::Digest;
use zmachine_image::Library;
use zmachine_image::library::TrimReport;
use zmachine_spec::{Class, Failure, Home};

use zmachine_sys::file::replace_json_unsynced;

use crate::catalog;
use crate::catalog::Machine;
use crate::snapshot::Snapshots;

/// Where the blocks of `home` are and who shares them, in one line.
///
/// # Errors
/// When they cannot be used; or when a home that shares them cannot be read, so that none may be removed.
pub fn describe_cache(home: &Home) -> Result<String, Failure> {
    let library = Library::open(home.data())?;
    let homes = library.homes()?;
    let folder = library.cache().directory().display();
    if homes.is_empty() {
        return Ok(folder.to_string());
    }
    for other in homes.iter().filter(|other| other.exists()) {
        images_of_home(home, other, |_| true)?;
    }
    let homes: Vec<String> = homes.iter().map(|home| home.display().to_string()).collect();
    Ok(format!("{folder}, shared by {}", homes.join(" and ")))
}

/// Removes the least recently used blocks when the cache is over its limit, but none that an active machine may read, of any
/// home with this cache. `None` when there is no limit, or another process is at it.
///
/// # Errors
/// When the state of a machine cannot be read, or the cache not be listed; nothing is removed then.
pub fn trim_cache(home: &Home) -> Result<Option<TrimReport>, Failure> {
    let library = Library::open(home.data())?;
    library.trim_cache(|other| images_of_home(home, other, |machine| machine.state.phase.is_active()))
}

/// The images of the machines that `is_meant`, of the home in `folder`: this one or another one with the same cache.
///
/// # Errors
/// When the state of one cannot be read: what it needs is not known then.
pub fn images_of_home(
    own: &Home,
    folder: &Path,
    is_meant: impl Fn(&Machine) -> bool,
) -> Result<HashSet<Digest>, Failure> {
    if own.is_in(folder) {
        return images_of(own, is_meant);
    }
    let images = Home::of_others(folder).and_then(|other| images_of(&other, is_meant));
    images.map_err(|failure| {
        let why = format!(
            "no block was removed: the home {} has the same cache and cannot be read",
            folder.display()
        );
        failure.context(why).hint(format!(
            "mend it; or, if nobody needs it any more, remove the folder {}: it is forgotten then",
            folder.display()
        ))
    })
}

/// The images that were brought to a machine while it runs, in its folder: a JSON list of digests.
fn later_images_file(home: &Home, id: &str) -> PathBuf {
    home.machine(id).join("images.json")
}

/// Notes the images that are brought to the machine `id` while it runs, before its guest has them: their blocks are needed then.
///
/// # Errors
/// When they cannot be written.
pub fn note_later_images(home: &Home, id: &str, digests: &[String]) -> Result<(), Failure> {
    // Nobody needs it after a power cut.
    Ok(replace_json_unsynced(&later_images_file(home, id), &digests)?)
}

/// The images that were brought to an active machine.
fn later_images(home: &Home, machine: &Machine) -> Result<Vec<String>, Failure> {
    if !machine.state.phase.is_active() {
        return Ok(Vec::new());
    }
    match std::fs::read(later_images_file(home, &machine.id)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| Failure::from_error(Class::Failed, &error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// The images of snapshots: a machine that goes on from one reads what the guest has not read yet.
fn images_of_snapshots(home: &Home) -> Result<HashSet<Digest>, Failure> {
    let mut images = HashSet::new();
    for listed in Snapshots::of(home).list()? {
        let unknown = |name: &str, failure: Failure| {
            failure
                .context(format!("it cannot be told which image the snapshot {name} needs"))
                .hint(format!("remove it with 'zmachine snapshot rm {name}', then try again"))
        };
        let snapshot = listed.map_err(|(name, failure)| unknown(&name, failure))?;
        // A disk image of this host is none of the library's.
        let Some(image) = snapshot.plan.image() else { continue };
        let digest = image.parse();
        let no_digest = |_| {
            unknown(
                &snapshot.name(),
                Failure::new(Class::Failed, format!("'{image}' is no digest")),
            )
        };
        images.insert(digest.map_err(no_digest)?);
    }
    Ok(images)
}

/// The images of the machines that `is_meant`, and of all snapshots.
fn images_of(home: &Home, is_meant: impl Fn(&Machine) -> bool) -> Result<HashSet<Digest>, Failure> {
    let mut images = images_of_snapshots(home)?;
    for id in catalog::ids(home)? {
        let unknown = |failure: Failure| {
            failure
                .context(format!("it cannot be told which image machine {id} needs"))
                .hint("remove the machine with 'zmachine rm -f', then try again")
        };
        let machine = match Machine::load(home, &id) {
            Ok(machine) if is_meant(&machine) => machine,
            Ok(_) => continue,
            // Removed since the listing.
            Err(_) if !home.machine(&id).exists() => continue,
            Err(failure) => return Err(unknown(failure)),
        };
        let plan = machine.plan().map_err(unknown)?;
        let later = later_images(home, &machine).map_err(unknown)?;
        for image in plan.image().map(str::to_owned).into_iter().chain(later) {
            let digest = image.parse();
            images.insert(digest.map_err(|_| unknown(Failure::new(Class::Failed, format!("'{image}' is no digest"))))?);
        }
    }
    Ok(images)
}
