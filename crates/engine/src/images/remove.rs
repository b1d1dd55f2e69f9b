//! Taking names away from images, and images that nothing leads to any more.

use std::collections::HashSet;

use zmachine_image::library::PruneReport;
use zmachine_image::{ImageName, Library};
use zmachine_spec::Failure;
use zmachine_store::cache::images_of_home;

use crate::Engine;

/// What became of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Names that it has no more.
    pub names: Vec<ImageName>,
    /// What was removed with them; `None` when it has other names, a machine uses it, or others remove blocks right now.
    pub image: Option<PruneReport>,
    /// Machines that use it.
    pub machines: Vec<String>,
}

impl Engine {
    /// Takes a name away, and the image when it was its last one and no machine uses it. A digest, or its beginning, stands for all names
    /// of its image.
    ///
    /// # Errors
    /// When there is no such image, or it cannot be removed.
    pub fn remove_image(&self, name: &ImageName) -> Result<Removed, Failure> {
        let library = Library::open(self.home.data())?;
        let digest = library.find(name)?;
        let digest = digest.ok_or_else(|| zmachine_image::ResolveError::UnknownName { name: name.to_string() })?;
        let listed = library.list_readable()?.0;
        let all = listed
            .into_iter()
            .find(|image| image.digest == digest)
            .map_or_else(Vec::new, |image| image.names);
        let completed = name
            .in_registry(zmachine_image::reference::DOCKER_HUB)
            .and_then(|source| source.local_name());
        let meant: Vec<ImageName> = all
            .iter()
            .filter(|other| *other == name || Some(*other) == completed.as_ref())
            .cloned()
            .collect();
        let names = if meant.is_empty() {
            all.clone()
        } else {
            meant[..1].to_vec()
        };
        for name in &names {
            library.remove_name(name)?;
            self.tell_of_image(&name.to_string(), &digest, "untagged");
        }
        let machines: Vec<String> = self
            .machines()?
            .into_iter()
            .flatten()
            .filter(|machine| {
                machine
                    .plan()
                    .is_ok_and(|plan| plan.image() == Some(&digest.to_string()))
            })
            .map(|machine| machine.spec.name)
            .collect();
        let is_last = names.len() == all.len();
        let image = match is_last && machines.is_empty() {
            true => match library.begin_prune()? {
                Some(prune) => {
                    let images = HashSet::from([digest]);
                    Some(prune.remove_images(&images, |home| images_of_home(&self.home, home, |_| true))?)
                }
                None => None,
            },
            false => None,
        };
        Ok(Removed { names, image, machines })
    }
}
