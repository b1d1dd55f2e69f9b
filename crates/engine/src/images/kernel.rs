//! The guest kernel of a host that has none yet.

use zmachine_image::Progress;
use zmachine_kernel::{KernelError, KernelLibrary, KernelSource};
use zmachine_spec::Failure;

use crate::Engine;

impl Engine {
    /// That there is a default guest kernel: one is installed when there is none, unless `installs` says otherwise.
    ///
    /// # Errors
    /// When there is none, or it cannot be installed.
    pub(crate) fn require_kernel(&self, installs: bool, progress: &dyn Progress) -> Result<(), Failure> {
        let library = KernelLibrary::open(self.home.data())?;
        match library.default() {
            Err(KernelError::NoDefault { .. }) if installs => {
                progress.message("no guest kernel is installed yet: installing Debian's cloud kernel");
                library
                    .install(&KernelSource::Debian, None, &mut |_| ())
                    .map_err(|error| {
                        Failure::from(error).context("there is no guest kernel, and Debian's could not be installed")
                    })?;
                Ok(())
            }
            Err(error @ KernelError::NoDefault { .. }) => {
                Err(Failure::from(error).hint("install one with 'zmachine kernel install', or leave --no-install out"))
            }
            // What else is wrong is told where the kernel is used.
            _ => Ok(()),
        }
    }
}
