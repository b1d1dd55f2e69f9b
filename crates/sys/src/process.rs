//! Child processes and process identity.
//!
//! A process id alone is never trusted: [`ProcessId`] also has the start time of the process, so a number that was
//! given to somebody else since is told apart.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// A process, told apart from every other one that had or will have its number since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The number.
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The identity of the process that has the number `pid` now; `None` when there is none.
    pub fn of(pid: u32) -> Option<ProcessId> {
        stat_field(pid, 22).map(|start_ticks| ProcessId { pid, start_ticks })
    }

    /// The calling process.
    pub fn current() -> ProcessId {
        ProcessId::of(std::process::id()).unwrap_or(ProcessId {
            pid: std::process::id(),
            start_ticks: 0,
        })
    }

    /// Whether it still exists and is not a zombie.
    pub fn is_alive(self) -> bool {
        ProcessId::of(self.pid) == Some(self) && !is_zombie(self.pid)
    }

    /// Sends a signal to exactly this process. A process that is gone is fine.
    ///
    /// # Errors
    /// When the signal number does not exist or the process belongs to somebody else.
    pub fn signal(self, signal: i32) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid as i32) else {
            return Ok(());
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        // Checked after the pidfd is open: from here on the number cannot change its owner.
        if ProcessId::of(self.pid) != Some(self) {
            return Ok(());
        }
        let signal = Signal::from_named_raw(signal)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("no signal has number {signal}")))?;
        match rustix::process::pidfd_send_signal(&pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Waits until the process is gone (or a zombie), for at most `patience`; whether it is.
    pub fn wait_gone(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        true
    }
}

/// Fields of `/proc/<pid>/stat` from 3 on, counted as proc(5) does.
fn stat_field(pid: u32, field: usize) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses: fields are counted from the last one.
    let rest = &stat[stat.rfind(')')? + 1..];
    rest.split_ascii_whitespace().nth(field - 3)?.parse().ok()
}

fn is_zombie(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    stat.rfind(')')
        .and_then(|at| stat[at + 1..].trim_start().chars().next())
        .is_none_or(|state| matches!(state, 'Z' | 'X'))
}

/// CPU time a process has used, user and system; `None` when it is gone.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let ticks = stat_field(pid, 14)? + stat_field(pid, 15)?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_millis(ticks * 1000 / per_second.max(1)))
}

/// The processes that `pid` has started and that these have started, as far as they are still there and have not been left to
/// others: their numbers, without `pid`.
pub fn descendants(pid: u32) -> Vec<u32> {
    let all = std::cell::LazyCell::new(parents);
    let mut found: Vec<u32> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let children = children(parent).unwrap_or_else(|| {
            let of = all.iter().filter(|(_, its)| *its == parent);
            of.map(|(child, _)| *child).collect()
        });
        for child in children {
            // A number may come back while this looks.
            if child != pid && !found.contains(&child) {
                found.push(child);
                parents.push(child);
            }
        }
    }
    found
}

/// The children of a process, where the kernel lists them (`CONFIG_PROC_CHILDREN`).
fn children(pid: u32) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).ok()?;
        all.extend(
            text.split_ascii_whitespace()
                .filter_map(|child| child.parse::<u32>().ok()),
        );
    }
    Some(all)
}

/// All processes, each with its parent.
fn parents() -> Vec<(u32, u32)> {
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter_map(|pid| Some((pid, stat_field(pid, 4)? as u32)))
        .collect()
}

/// Resident memory of a process in bytes, shared pages included; `None` when it is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Whether this process may raise the limits of others (`CAP_SYS_RESOURCE`); root in a container often may not.
pub fn may_raise_limits() -> bool {
    let resource = rustix::thread::CapabilitySet::SYS_RESOURCE;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(resource))
}

/// Lets the process `pid` write files of `bytes`, if it may write only smaller ones now.
///
/// # Errors
/// When it is gone, or the caller may not do that.
pub fn allow_file_size(pid: u32, bytes: u64) -> io::Result<()> {
    if file_size_limit(pid)?.is_none_or(|limit| limit >= bytes) {
        return Ok(());
    }
    let limit = libc::rlimit64 {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: the kernel reads one structure of that type; the old limit is not asked for.
    match unsafe { libc::prlimit64(pid as i32, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The largest file a process may write in bytes; `None`: any. To read it takes no privilege, unlike prlimit(2).
fn file_size_limit(pid: u32) -> io::Result<Option<u64>> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"));
    Ok(line.and_then(|line| line.split_whitespace().next()?.parse().ok()))
}

/// What a child of ours starts with.
#[derive(Debug, Clone, Default)]
pub struct ChildSetup {
    /// Descriptors it inherits under their own numbers; all others from 3 on are closed in it.
    pub keep: Vec<RawFd>,
    /// It is killed when the thread that started it ends: for children that must not outlive their monitor.
    pub die_with_parent: bool,
    /// It leads a session of its own: signals of the terminal do not reach it.
    pub new_session: bool,
    /// It gets no huge pages that it does not ask for: what it touches here and there takes no more memory than that.
    pub no_huge_pages: bool,
}

/// Arranges what `setup` says for the child that `command` will start.
pub fn prepare_child(command: &mut Command, setup: ChildSetup) {
    let parent = std::process::id();
    let action = move || {
        // Runs between fork and exec: system calls only, no allocation.
        if setup.new_session {
            rustix::process::setsid()?;
        }
        if setup.die_with_parent {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have ended before the line above took effect. In a pid namespace of its own a process does not
            // see its parent; it looks for it later, by a descriptor.
            let actual = rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get() as u32);
            if actual != parent && std::process::id() != 1 {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        if setup.no_huge_pages {
            // SAFETY: prctl with numbers only. A kernel that does not know it gives huge pages, which costs memory and nothing else.
            unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        }
        crate::fd::close_on_exec_except(&setup.keep)
    };
    // SAFETY: the closure runs in the forked child and only makes async-signal-safe system calls on plain values it owns.
    unsafe { command.pre_exec(action) };
}

/// Starts no new privileges, gives up the controlling terminal's session: the calling process leads its own session.
///
/// # Errors
/// When it already leads a process group.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Forks the whole program: `true` in the child. Only for a process with one thread.
///
/// # Errors
/// When the process has more than one thread, or the kernel refuses.
pub fn fork_single_threaded() -> io::Result<bool> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("cannot fork with {threads} threads")));
    }
    // SAFETY: exactly one thread exists (checked above), so no lock of another thread is lost in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(true),
        _ => Ok(false),
    }
}

/// Resets SIGPIPE to its default, so that a closed pipe ends a filter quietly, as every Unix tool does.
pub fn default_sigpipe() {
    // SAFETY: SIG_DFL is a valid disposition; no Rust code depends on SIGPIPE being ignored in this program's CLI role.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// This very program in another role, even when its file was replaced since it was started. It looks for programs in `path`,
/// whatever the user's own environment is.
pub fn own_program(role: &str, path: &str) -> Command {
    role_of(Path::new("/proc/self/exe"), role, path)
}

/// `program`, which is this one or one like it, in the role `role`. It looks for programs in `path`.
pub fn role_of(program: &Path, role: &str, path: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(role).env_clear().env("PATH", path).current_dir("/");
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_process_is_known_by_number_and_start_time() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        let imposter = ProcessId {
            start_ticks: id.start_ticks + 1,
            ..id
        };
        imposter.signal(libc::SIGKILL).unwrap();
        assert!(id.is_alive(), "a signal for another start time must not reach it");
        id.signal(libc::SIGKILL).unwrap();
        assert!(id.wait_gone(Duration::from_secs(5)));
        child.wait().unwrap();
        id.signal(libc::SIGKILL).unwrap();
    }

    #[test]
    fn the_children_of_children_are_found() {
        let script = "sleep 60 & echo $!; wait";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = child.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        let found = descendants(std::process::id());
        assert!(found.contains(&child.id()) && found.contains(&grandchild), "{found:?}");
        assert_eq!(descendants(child.id()), [grandchild]);
        let listed: Vec<_> = parents().into_iter().filter(|(_, its)| *its == child.id()).collect();
        assert_eq!(listed, [(grandchild, child.id())]);
        ProcessId::of(grandchild).unwrap().signal(libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert_eq!(descendants(child.id()), [0; 0]);
    }

    #[test]
    fn a_child_gets_only_the_descriptors_it_is_given() {
        use std::os::fd::AsRawFd;
        let (given, _a) = crate::fd::socket_pair().unwrap();
        let (secret, _b) = crate::fd::socket_pair().unwrap();
        crate::fd::set_inheritable(std::os::fd::AsFd::as_fd(&secret), true).unwrap();
        let mut command = Command::new("ls");
        command.arg("/proc/self/fd");
        prepare_child(
            &mut command,
            ChildSetup {
                keep: vec![given.as_raw_fd()],
                ..ChildSetup::default()
            },
        );
        let out = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let numbers: Vec<i32> = out.lines().filter_map(|l| l.parse().ok()).collect();
        assert!(numbers.contains(&given.as_raw_fd()), "{numbers:?}");
        assert!(!numbers.contains(&secret.as_raw_fd()), "{numbers:?}");
    }
}
