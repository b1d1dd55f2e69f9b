//! Reaps children that outlive the interest in them: a long-lived program would have a zombie for each.

use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// One thread for all of them; it only sleeps.
const STACK_BYTES: usize = 64 * 1024;

struct Reaper {
    newcomers: Mutex<Vec<Child>>,
    wake: OwnedFd,
}

/// Reaps `child` when it ends, in the background. In a program that ends before it, the init does.
pub fn reap_later(mut child: Child) {
    static REAPER: OnceLock<Option<Reaper>> = OnceLock::new();
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let reaper = REAPER.get_or_init(|| {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        Some(Reaper {
            newcomers: Mutex::default(),
            wake,
        })
    });
    let Some(reaper) = reaper else { return };
    static THREAD: OnceLock<bool> = OnceLock::new();
    reaper
        .newcomers
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(child);
    THREAD.get_or_init(|| {
        let builder = thread::Builder::new().name("reaper".into()).stack_size(STACK_BYTES);
        builder.spawn(|| run(reaper)).is_ok()
    });
    let _ = rustix::io::write(&reaper.wake, &1u64.to_ne_bytes());
}

fn run(reaper: &Reaper) {
    let mut children: Vec<(Option<OwnedFd>, Child)> = Vec::new();
    loop {
        let newcomers = std::mem::take(&mut *reaper.newcomers.lock().unwrap_or_else(PoisonError::into_inner));
        for child in newcomers {
            let pid = Pid::from_raw(child.id() as i32);
            children.push((pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()), child));
        }
        children.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
        let mut watched = vec![PollFd::new(&reaper.wake, PollFlags::IN)];
        let pidfds = children.iter().filter_map(|(pidfd, _)| pidfd.as_ref());
        watched.extend(pidfds.map(|pidfd| PollFd::new(pidfd, PollFlags::IN)));
        let _ = poll(&mut watched, None);
        let _ = rustix::io::read(&reaper.wake, &mut [0; 8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn nobody_who_ends_stays_a_zombie() {
        let pids: Vec<u32> = ["0", "0.2", "0.4"]
            .map(|seconds| {
                let child = Command::new("sleep").arg(seconds).spawn().unwrap();
                let pid = child.id();
                reap_later(child);
                pid
            })
            .into();
        let deadline = Instant::now() + Duration::from_secs(20);
        // A zombie has an entry there until it is waited for.
        while pids
            .iter()
            .any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists())
        {
            assert!(Instant::now() < deadline, "{pids:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}
