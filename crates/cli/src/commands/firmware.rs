//! `zmachine firmware`.

use zmachine_spec::{Class, Failure};
use zmachine_store::firmware as configuration;

use crate::args::FirmwareCommand;
use crate::{context, output};

/// Shows or sets the firmware that Cloud Hypervisor starts disks with.
pub(crate) fn firmware(command: &FirmwareCommand) -> Result<u8, Failure> {
    let home = context::home()?;
    let pinned = match command {
        FirmwareCommand::Show => configuration::configured(&home)?.ok_or_else(|| {
            Failure::new(Class::NotFound, "no firmware is configured for Cloud Hypervisor")
                .hint("zmachine firmware set FILE; without one, machines with a boot loader run on QEMU")
        })?,
        FirmwareCommand::Set { file, sha256 } => configuration::configure(&home, file, sha256.as_deref())?,
    };
    output::print(&format!("{}  {}\n", pinned.sha256, pinned.path.display()))?;
    Ok(0)
}
