//! The end of a machine: processes, file systems, power.
//!
//! # Order
//! entrypoint (signal, grace, SIGKILL), everybody else (SIGTERM, grace, SIGKILL), the entrypoint's stream, sync,
//! unmount, read-only, power off. A watchdog thread cuts the power when the last steps hang in the kernel.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::thread;
use std::time::Duration;

use futures::future::{Either, select};
use rustix::fs::{Mode, OFlags, sync};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

use crate::reaper::Reaper;
use crate::setup::Writable;
use crate::{console, power};

/// Time between SIGTERM and SIGKILL for what outlives the entrypoint.
const REST: Duration = Duration::from_secs(2);
/// The same when the host is gone and nobody can wait.
const ORPHANED: Duration = Duration::from_secs(5);
/// The longest grace: the clock cannot add everything a u64 holds.
const LONGEST: Duration = Duration::from_secs(86_400);
/// How long killed processes may take to vanish: one that hangs in the kernel never does.
const VANISH: Duration = Duration::from_secs(2);
/// How long the file systems may take.
const FILE_SYSTEMS: Duration = Duration::from_secs(60);
/// The same when the host is gone: with [`ORPHANED`], ten seconds in all.
const FILE_SYSTEMS_ORPHANED: Duration = Duration::from_secs(5);

/// Why the machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The entrypoint ended and its stream is served.
    EntrypointEnded,
    /// The host asked.
    Requested { signal: i32, grace: Duration },
    /// The channel to the host broke.
    HostGone,
}

/// What is stopped.
pub(crate) trait Stoppable {
    /// Whoever reaps its processes.
    fn reaper(&self) -> &Reaper;
    /// The guest's `/proc`.
    fn proc(&self) -> &OwnedFd;
    /// The machine stops: no new processes from here on. Returns the entrypoint's pid if one was started.
    fn begin_stop(&self) -> Option<i32>;
    /// Resolves when the entrypoint's stream has got everything and is closed, or was never opened.
    async fn entrypoint_served(&self);
    /// Pids of processes that have a terminal; some may be gone.
    fn at_terminals(&self) -> Vec<i32>;
    /// The file systems to make read-only at the end.
    fn take_writable(&self) -> Vec<Writable>;
}

/// Stops everything and makes the file systems clean. More requests may come while it waits.
pub(crate) async fn stop(agent: &impl Stoppable, first: Stop, more: &mut UnboundedReceiver<Stop>) {
    let entrypoint = agent.begin_stop();
    if let Some(pid) = entrypoint {
        stop_entrypoint(agent, pid, first, more).await;
    }
    let orphaned = first == Stop::HostGone;
    stop_everybody(agent).await;
    if !orphaned {
        // Bounded by the session itself; a host that breaks now is noticed by it as well.
        agent.entrypoint_served().await;
    }
    let limit = if orphaned { FILE_SYSTEMS_ORPHANED } else { FILE_SYSTEMS };
    cut_power_after(limit);
    settle(agent.proc(), &agent.take_writable());
}

async fn stop_entrypoint(agent: &impl Stoppable, pid: i32, first: Stop, more: &mut UnboundedReceiver<Stop>) {
    let mut end = ask_entrypoint(agent, pid, first);
    loop {
        let gone = pin!(wait_until(end, agent.reaper(), || !agent.reaper().is_alive(pid)));
        let again = pin!(more.recv());
        match select(gone, again).await {
            Either::Left((true, _)) => return,
            Either::Left((false, _)) | Either::Right((None, _)) => break,
            // A later request may shorten the grace, never extend it.
            Either::Right((Some(stop), _)) => end = end.min(ask_entrypoint(agent, pid, stop)),
        }
    }
    let _ = agent.reaper().signal(pid, libc::SIGKILL);
    if !wait_until(Instant::now() + VANISH, agent.reaper(), || {
        !agent.reaper().is_alive(pid)
    })
    .await
    {
        console::error("the entrypoint does not die");
    }
}

/// Sends the stop signal; returns when the grace ends.
fn ask_entrypoint(agent: &impl Stoppable, pid: i32, stop: Stop) -> Instant {
    let (signal, grace) = match stop {
        Stop::Requested { signal, grace } => (signal, grace.min(LONGEST)),
        Stop::HostGone => (libc::SIGTERM, ORPHANED),
        Stop::EntrypointEnded => return Instant::now(),
    };
    if let Err(error) = agent.reaper().signal(pid, signal) {
        console::error(&format!("stop signal {signal}: {error}"));
    }
    Instant::now() + grace
}

/// SIGTERM to all, a hang-up to those at a terminal (shells ignore SIGTERM), then SIGKILL.
async fn stop_everybody(agent: &impl Stoppable) {
    if !Reaper::has_children() {
        return;
    }
    signal_everybody(Signal::TERM);
    for pid in agent.at_terminals() {
        let _ = agent.reaper().signal(pid, libc::SIGHUP);
    }
    // A stopped process handles its signal only when it continues.
    signal_everybody(Signal::CONT);
    if wait_until(Instant::now() + REST, agent.reaper(), || !Reaper::has_children()).await {
        return;
    }
    signal_everybody(Signal::KILL);
    if !wait_until(Instant::now() + VANISH, agent.reaper(), || !Reaper::has_children()).await {
        console::error("some processes do not die");
    }
}

fn signal_everybody(signal: Signal) {
    // "Process group 1" is kill(-1): every process but PID 1 itself and the kernel's.
    let _ = kill_process_group(Pid::INIT, signal);
}

/// Whether `done` came true before `deadline`.
async fn wait_until(deadline: Instant, reaper: &Reaper, done: impl Fn() -> bool) -> bool {
    while !done() {
        if timeout_at(deadline, reaper.reaped()).await.is_err() {
            return done();
        }
    }
    true
}

/// Unmounts what the guest mounted and makes the data file systems read-only: their journals are empty afterwards.
fn settle(proc: &OwnedFd, writable: &[Writable]) {
    sync();
    for target in open_proc(proc, "self/mountinfo", OFlags::RDONLY)
        .map(mount_points)
        .unwrap_or_default()
    {
        // Busy ones are covered by the sync, and ours by the change to read-only.
        let _ = unmount(target.as_str(), UnmountFlags::NOFOLLOW);
    }
    let mut forced = false;
    for file_system in writable {
        if let Err(error) = file_system.make_read_only() {
            console::error(&format!("make {} read-only: {error}", file_system.name));
            forced = true;
        }
    }
    if forced && let Some(mut trigger) = open_proc(proc, "sysrq-trigger", OFlags::WRONLY) {
        // The kernel's emergency remount, carried out by a worker of its own.
        let _ = trigger.write_all(b"u");
        thread::sleep(Duration::from_millis(300));
    }
    sync();
}

fn open_proc(proc: &OwnedFd, path: &str, flags: OFlags) -> Option<File> {
    rustix::fs::openat(proc, path, flags | OFlags::CLOEXEC, Mode::empty())
        .ok()
        .map(File::from)
}

/// The mount points of a mountinfo file, the last one first, without the root and the kernel's file systems.
fn mount_points(file: impl Read) -> Vec<String> {
    let mut bytes = Vec::new();
    let _ = file.take(1024 * 1024).read_to_end(&mut bytes);
    // One path that is no text hides no other one.
    let text = String::from_utf8_lossy(&bytes);
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut points: Vec<String> = points.filter(|point| is_data(point)).collect();
    points.reverse();
    points
}

fn is_data(point: &str) -> bool {
    let below = |parent: &str| {
        point
            .strip_prefix(parent)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    point != "/" && !["/proc", "/sys", "/dev"].into_iter().any(below)
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// From now on the power goes off after `limit`, even if the kernel never answers again.
fn cut_power_after(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        console::error("the file systems did not settle in time");
        power::power_off();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        21 1 0:20 / / rw - overlay overlay rw\n\
        22 21 0:21 / /proc rw - proc proc rw\n\
        23 21 0:6 / /dev rw - devtmpfs devtmpfs rw\n\
        24 23 0:22 / /dev/pts rw - devpts devpts rw\n\
        30 21 253:0 / /data rw - ext4 /dev/vdc rw\n\
        31 30 253:1 / /data/my\\040disk rw - ext4 /dev/vdd rw\n\
        32 21 0:30 / /devices rw - tmpfs tmpfs rw\n";

    #[test]
    fn mounts_of_data_are_undone_in_reverse_order() {
        assert_eq!(mount_points(MOUNTS.as_bytes()), ["/devices", "/data/my disk", "/data"]);
    }
}
