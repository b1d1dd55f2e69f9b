//! The processes of the container, as `top` shows them. What is read of a process is its own doing, and trusted for nothing.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use zmachine_agent_protocol::ProcessState;

/// The most that are told: with [`COMMAND`] and their numbers they fit into one message.
const MOST: usize = 2000;

/// So much of a command line is told, in bytes.
const COMMAND: usize = 1024;

/// Kernel ticks in a second (`USER_HZ`), and bytes of a page, of x86-64.
const TICKS: u64 = 100;
const PAGE: u64 = 4096;

/// All that live in a PID namespace below the agent's; with `everybody` also those in the agent's own.
pub(crate) fn list(proc: &OwnedFd, everybody: bool) -> std::io::Result<Vec<ProcessState>> {
    let uptime_ms = read(proc.as_fd(), "uptime")
        .and_then(|text| milliseconds(&text))
        .unwrap_or_default();
    let folder = openat(
        proc,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut found = Vec::new();
    let mut inside = BTreeMap::new();
    for entry in rustix::fs::Dir::new(folder)? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .ok()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // One that ended meanwhile is none.
        let Some(process) = one(proc, pid, everybody, uptime_ms) else {
            continue;
        };
        inside.insert(pid, process.pid);
        found.push(process);
        if found.len() == MOST {
            break;
        }
    }
    for process in &mut found {
        process.ppid = inside.get(&process.ppid).copied().unwrap_or_default();
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

fn milliseconds(uptime: &str) -> Option<u64> {
    let (seconds, fraction) = uptime.split_whitespace().next()?.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1000 + fraction.get(..2)?.parse::<u64>().ok()? * 10)
}

/// Its parent is that of the agent's view.
fn one(proc: &OwnedFd, pid: u32, everybody: bool, uptime_ms: u64) -> Option<ProcessState> {
    let status = read(proc.as_fd(), &format!("{pid}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let ids: Vec<u32> = field("NSpid:")?
        .split_whitespace()
        .filter_map(|id| id.parse().ok())
        .collect();
    if ids.len() < 2 && !everybody {
        return None;
    }
    let uid = field("Uid:")?.split_whitespace().next()?.parse().ok()?;
    let stat = read(proc.as_fd(), &format!("{pid}/stat"))?;
    // The name may hold anything but ends at the last bracket.
    let (before, after) = stat.rsplit_once(") ")?;
    let name = before.split_once('(')?.1;
    let numbers: Vec<u64> = after
        .split_whitespace()
        .map(|number| number.parse().unwrap_or_default())
        .collect();
    let number = |index: usize| numbers.get(index - 3).copied();
    let command = read(proc.as_fd(), &format!("{pid}/cmdline")).unwrap_or_default();
    let command = command.trim_end_matches('\0').replace('\0', " ");
    Some(ProcessState {
        pid: if everybody { pid } else { *ids.last()? },
        ppid: u32::try_from(number(4)?).ok()?,
        uid,
        cpu_ms: (number(14)? + number(15)?) * (1000 / TICKS),
        age_ms: uptime_ms.saturating_sub(number(22)? * (1000 / TICKS)),
        resident_bytes: number(24)? * PAGE,
        command: match command.is_empty() {
            true => format!("[{name}]"),
            false => command,
        },
    })
}

/// The beginning of a file, as text.
fn read(proc: BorrowedFd<'_>, path: &str) -> Option<String> {
    let file = openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    let limit = if path.ends_with("cmdline") { COMMAND } else { 16 * 1024 };
    std::fs::File::from(file)
        .take(limit as u64)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_process_is_among_all() {
        let proc = openat(
            rustix::fs::CWD,
            "/proc",
            OFlags::PATH | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .unwrap();
        let all = list(&proc, true).unwrap();
        let own = all.iter().find(|process| process.pid == std::process::id()).unwrap();
        assert_eq!(own.uid, rustix::process::getuid().as_raw());
        assert!(own.resident_bytes > 100_000 && own.age_ms < 600_000, "{own:?}");
        assert!(all.iter().any(|process| process.pid == own.ppid), "{own:?}");
        assert!(list(&proc, false).unwrap().iter().all(|process| process.pid != own.pid));
    }
}
