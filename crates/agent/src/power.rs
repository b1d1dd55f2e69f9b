//! The machine's power.

use std::io;
use std::process::{Command, Stdio};
use std::thread;

use rustix::system::{RebootCommand, reboot};

/// Switches the machine off.
pub(crate) fn power_off() -> ! {
    let _ = reboot(RebootCommand::PowerOff);
    // A machine without a power switch: the hypervisor takes a reset for the end.
    let _ = reboot(RebootCommand::Restart);
    loop {
        thread::park();
    }
}

/// Asks the init to switch the machine off; every init comes with this command.
///
/// # Errors
/// When there is no such command.
pub(crate) fn ask_for_power_off() -> io::Result<()> {
    let mut command = Command::new("poweroff");
    let quiet = command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    // It is reaped with all other children.
    quiet
        .spawn()
        .map(drop)
        .map_err(|error| io::Error::new(error.kind(), format!("poweroff: {error}")))
}
