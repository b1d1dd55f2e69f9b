//! Diagnostics of the agent: short lines on the kernel log, and on the console when the agent itself breaks. As a service
//! it has a standard error, which the init keeps.
//!
//! The kernel log is the only place that exists from the first moment to the last; with `quiet` on the kernel command
//! line only errors reach the serial console. Nothing of a user's process goes here.

use std::fs::OpenOptions;
use std::io::Write;

/// A line that matters only to somebody who debugs a guest.
pub(crate) fn info(text: &str) {
    kernel_log(6, text);
}

/// A line that explains why something asked for did not happen.
pub(crate) fn error(text: &str) {
    kernel_log(3, text);
}

/// From now on a panic is printed and ends in a power-off: a dead PID 1 would be a kernel panic without a reason.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let line = format!("panic: {panic}").replace('\n', " ");
        error(&line);
        if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
            let _ = writeln!(console, "zmachine-agent: {line}");
        }
        rustix::fs::sync();
        crate::power::power_off();
    }));
}

fn kernel_log(level: u8, text: &str) {
    if std::process::id() != 1 {
        // The level is what systemd's journal makes of it (sd-daemon(3)).
        return eprintln!("<{level}>{text}");
    }
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record; the kernel takes at most about 1000 bytes of it.
        let mut line = format!("<{level}>zmachine-agent: {text}");
        line.truncate(line.floor_char_boundary(900));
        let _ = log.write_all(line.as_bytes());
    }
}
