//! Removing images and blocks that no machine needs.

use std::collections::HashSet;

use zmachine_flist::Digest;
use zmachine_image::Library;
use zmachine_image::library::PruneReport;

use super::Engine;
use crate::failure::{Class, Failure};

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
        let mut used = HashSet::new();
        for listed in self.machines()? {
            let unknown = |id: &str, failure: Failure| {
                let message = format!("it can not be told which image machine {id} needs");
                failure
                    .context(message)
                    .hint("remove the machine with 'zmachine rm -f', then prune")
            };
            let machine = listed.map_err(|(id, failure)| unknown(&id, failure))?;
            let plan = machine.plan().map_err(|failure| unknown(&machine.id, failure))?;
            let Some(image) = plan.image() else { continue };
            let digest: Digest = image.parse().map_err(|_| {
                unknown(
                    &machine.id,
                    Failure::new(Class::Failed, format!("'{image}' is no digest")),
                )
            })?;
            used.insert(digest);
        }
        Ok(prune.run(&used)?)
    }
}
