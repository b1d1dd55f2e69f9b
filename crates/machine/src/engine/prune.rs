//! Removing images and blocks that no machine needs.

use std::collections::HashSet;

use zmachine_flist::Digest;
use zmachine_image::Library;
use zmachine_image::library::{PruneReport, TrimReport};

use super::Engine;
use crate::catalog::{self, Machine};
use crate::failure::{Class, Failure};
use crate::home::Home;

impl Engine {
    /// Removes images without a name that no machine uses, and the blocks that no image has.
    ///
    /// # Errors
    /// When a machine is being created all the time, or the state of one can not be read: what it needs is not known then.
    pub fn prune_images(&self) -> Result<PruneReport, Failure> {
        let library = Library::open(self.home.data())?;
        let Some(prune) = library.begin_prune()? else {
            return Err(
                Failure::new(Class::Conflict, "a machine is being created, or an image pulled")
                    .hint("try again when that is done"),
            );
        };
        Ok(prune.run(&images_of(&self.home, |_| true)?)?)
    }

    /// Removes the least recently used blocks when the cache is over its limit, but none that an active machine may read.
    /// `None` when there is no limit, or another process is at it.
    ///
    /// # Errors
    /// When the state of a machine can not be read, or the cache not be listed; nothing is removed then.
    pub fn trim_cache(&self) -> Result<Option<TrimReport>, Failure> {
        trim_cache(&self.home)
    }
}

/// See [`Engine::trim_cache`].
pub(crate) fn trim_cache(home: &Home) -> Result<Option<TrimReport>, Failure> {
    let library = Library::open(home.data())?;
    if library.cache_limit()?.is_none() {
        return Ok(None);
    }
    let pinned = images_of(home, |machine| machine.state.phase.is_active())?;
    Ok(library.trim_cache(&pinned)?)
}

/// The images of the machines that `is_meant`.
fn images_of(home: &Home, is_meant: impl Fn(&Machine) -> bool) -> Result<HashSet<Digest>, Failure> {
    let mut images = HashSet::new();
    for id in catalog::ids(home)? {
        let unknown = |failure: Failure| {
            failure
                .context(format!("it can not be told which image machine {id} needs"))
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
        let Some(image) = plan.image() else { continue };
        let digest = image.parse();
        images.insert(digest.map_err(|_| unknown(Failure::new(Class::Failed, format!("'{image}' is no digest"))))?);
    }
    Ok(images)
}
