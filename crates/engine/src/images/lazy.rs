//! Images that are used before they are here as a whole, and how the rest of them comes.
//!
//! A machine of such an image starts with what it reads; a process that outlives the command (role `complete`, with the lowest priority)
//! brings the layers meanwhile. One that ends early, since the registry or the host went away, is started again with the next machine of
//! the image.

use std::collections::HashSet;
use std::path::Path;

use zmachine_flist::Digest;
use zmachine_image::lazy::{KNOWN_FILE, is_lazy};
use zmachine_image::{Image, Library, Mode, Progress, Silent};
use zmachine_pack::oci::lazy::complete;
use zmachine_spec::Failure;
use zmachine_store::cache::images_of_home;
use zmachine_sys::lock::FileLock;

use super::{Engine, import_failure};

/// Held by who brings the layers of an image.
const LOCK_FILE: &str = "lazy.lock";
/// Where it says what went wrong.
const LOG_FILE: &str = "lazy.log";

/// Whether layers of an image are missing that were to come later.
fn is_unfinished(image: &Path) -> bool {
    is_lazy(image) && !image.join(KNOWN_FILE).exists()
}

impl Engine {
    /// Brings the rest of an image that was begun lazily, and gives its names to the whole one. Nothing to do for any other image.
    ///
    /// # Errors
    /// When the layers cannot be had.
    pub fn complete_image(&self, library: &Library, image: &Image, progress: &dyn Progress) -> Result<Image, Failure> {
        if !is_lazy(&image.directory) {
            return Ok(image.clone());
        }
        // Of two at a time the second one finds everything here.
        let _alone = FileLock::exclusive(&image.directory.join(LOCK_FILE))?;
        let options = self.import_options()?;
        let whole = complete(image, &options, library, progress).map_err(import_failure)?;
        let listed = library.list_readable()?.0;
        let names = listed.into_iter().find(|listed| listed.digest == image.digest);
        for name in names.map_or_else(Vec::new, |listed| listed.names) {
            library.set_name(&name, &whole.digest)?;
        }
        Ok(whole)
    }

    /// The same for the image `digest`, by a process that was started for it; nothing when another one is at it.
    ///
    /// # Errors
    /// As [`Engine::complete_image`].
    pub fn complete_in_background(&self, digest: &Digest) -> Result<(), Failure> {
        let library = Library::open(self.home.data())?;
        let image = library.by_its_digest(digest, Mode::Auto, &digest.to_string())?;
        if !is_unfinished(&image.directory) || FileLock::is_held(&image.directory.join(LOCK_FILE))? {
            return Ok(());
        }
        self.complete_image(&library, &image, &Silent)?;
        // A machine that runs of it goes on with it; else it has done its work.
        if let Some(prune) = library.begin_prune()? {
            let used = |home: &Path| images_of_home(&self.home, home, |_| true);
            prune.remove_images(&HashSet::from([*digest]), used)?;
        }
        Ok(())
    }

    /// Starts the process that brings the rest of the image in this directory, when there is one to bring.
    ///
    /// # Errors
    /// When it cannot be started, which is no reason not to start a machine: its blocks come one by one then.
    pub fn complete_later(&self, image: &Path) -> Result<(), Failure> {
        if !is_unfinished(image) || FileLock::is_held(&image.join(LOCK_FILE))? {
            return Ok(());
        }
        let mut command = self.role("complete");
        command.arg("--image").arg(image.file_name().unwrap_or_default());
        for file in &self.registry_files.auth {
            command.arg("--authfile").arg(file);
        }
        Engine::start_beside(command, &image.join(LOG_FILE), &[])
            .map_err(|failure| failure.context("cannot bring the rest of the image"))
    }
}
