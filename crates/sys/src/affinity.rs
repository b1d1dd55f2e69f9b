//! On which CPUs of this host processes run.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How often the threads of a process are looked through again for new ones.
const ROUNDS: usize = 8;

/// The CPUs that this thread may run on; empty where the kernel does not tell.
pub fn allowed() -> Vec<u32> {
    let Ok(set) = sched_getaffinity(None) else {
        return Vec::new();
    };
    let all = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
    all.map(|cpu| cpu as u32).collect()
}

/// Has this process, its threads, its children and all below them run on these CPUs, and what they start from now on.
///
/// # Errors
/// When one may not be told, or no CPU of them is there.
pub fn set(cpus: &[u32]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter()
        .map(|cpu| *cpu as usize)
        .filter(|cpu| *cpu < CpuSet::MAX_CPU)
        .for_each(|cpu| set.set(cpu));
    // A thread that was made meanwhile has what its maker had: it is found in the next round.
    let mut known = 0;
    for _ in 0..ROUNDS {
        let threads = threads_below(std::process::id());
        for thread in &threads {
            match sched_setaffinity(Pid::from_raw(*thread), &set) {
                // Gone by now.
                Err(rustix::io::Errno::SRCH) => {}
                other => other?,
            }
        }
        if threads.len() == known {
            break;
        }
        known = threads.len();
    }
    Ok(())
}

/// The threads of a process and of all below it.
fn threads_below(process: u32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut processes = vec![process];
    while let Some(process) = processes.pop() {
        let tasks = Path::new("/proc").join(process.to_string()).join("task");
        let Ok(tasks) = fs::read_dir(tasks) else { continue };
        for task in tasks.flatten() {
            let Some(id) = task.file_name().to_str().and_then(|id| id.parse().ok()) else {
                continue;
            };
            found.push(id);
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            processes.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_and_its_children_run_where_they_are_told() {
        let before = allowed();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let last = *before.last().unwrap();
        set(&[last]).unwrap();
        assert_eq!(allowed(), [last]);
        let of_child = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = of_child
            .lines()
            .find(|line| line.starts_with("Cpus_allowed_list:"))
            .unwrap();
        assert_eq!(line.split_whitespace().last(), Some(last.to_string().as_str()));
        assert!(set(&[1023]).is_err());
        set(&before).unwrap();
        assert_eq!(allowed(), before);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
