//! Memory and load of the guest, from the agent's own `/proc`.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use zmachine_agent_protocol::Capacity;

/// Ticks per second of `/proc/stat`: fixed for programs on Linux (`USER_HZ`, proc_stat(5)).
const TICKS_PER_SECOND: u64 = 100;
/// The most that is read of one file; `/proc/stat` grows with the CPUs and interrupts.
const LIMIT: u64 = 256 * 1024;

/// Reads the guest's capacity through `proc`, a directory descriptor of a proc file system.
///
/// # Errors
/// When a file of `/proc` cannot be read.
pub(crate) fn measure(proc: &OwnedFd) -> io::Result<Capacity> {
    let memory = read(proc, "meminfo")?;
    let stat = read(proc, "stat")?;
    let uptime = read(proc, "uptime")?;
    Ok(Capacity {
        memory_total_bytes: memory_field(&memory, "MemTotal:"),
        memory_available_bytes: memory_field(&memory, "MemAvailable:"),
        cpu_busy_ms: busy_ticks(&stat) * 1000 / TICKS_PER_SECOND,
        uptime_ms: uptime_ms(&uptime),
        cpus: cpus(&stat),
    })
}

fn read(proc: &OwnedFd, name: &str) -> io::Result<String> {
    let fd = rustix::fs::openat(proc.as_fd(), name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(fd).take(LIMIT).read_to_string(&mut text)?;
    Ok(text)
}

fn memory_field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
    line.split_whitespace()
        .next()
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// All of the first line but idle, iowait, and the guest times, which are counted in user and nice already.
fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or("");
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    [0, 1, 2, 5, 6, 7].iter().filter_map(|&index| fields.get(index)).sum()
}

fn uptime_ms(text: &str) -> u64 {
    let seconds = text
        .split_whitespace()
        .next()
        .and_then(|field| field.parse::<f64>().ok())
        .unwrap_or(0.0);
    (seconds * 1000.0) as u64
}

fn cpus(stat: &str) -> u32 {
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stat.lines().filter(is_cpu).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str =
        "cpu  100 10 50 900 40 1 2 3 0 0\ncpu0 50 5 25 450 20 1 1 1 0 0\ncpu1 50 5 25 450 20 0 1 2 0 0\nintr 5\n";

    #[test]
    fn busy_time_is_everything_but_idle_and_waiting() {
        assert_eq!(busy_ticks(STAT), 166);
        assert_eq!(cpus(STAT), 2);
    }

    #[test]
    fn memory_is_counted_in_bytes_and_uptime_in_milliseconds() {
        let text = "MemTotal:         475024 kB\nMemFree: 1 kB\nMemAvailable:      69328 kB\n";
        assert_eq!(memory_field(text, "MemTotal:"), 475_024 * 1024);
        assert_eq!(memory_field(text, "MemAvailable:"), 69_328 * 1024);
        assert_eq!(uptime_ms("12.34 5.00\n"), 12_340);
    }

    #[test]
    fn the_numbers_of_a_running_kernel_are_plausible() {
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let capacity = measure(&proc).unwrap();
        assert!(capacity.memory_available_bytes <= capacity.memory_total_bytes);
        assert!(capacity.cpus >= 1 && capacity.uptime_ms > 0 && capacity.cpu_busy_ms > 0);
    }
}
