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
                let source = self.programs.kernel_source();
                let (which, whose) = match source {
                    KernelSource::Debian => ("Debian's cloud kernel", "Debian's"),
                    _ => ("that of this host's packages", "that of this host's packages"),
                };
                progress.message(&format!("no guest kernel is installed yet: installing {which}"));
                library.install(&source, None, &mut |_| ()).map_err(|error| {
                    Failure::from(error)
                        .context(format!("there is no guest kernel, and {whose} could not be installed"))
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
