//! What a running machine uses, as seen from the host and from its guest.
//!
//! The host's figures are those of the machine's processes in `/proc` (its monitor, and all that come from it: hypervisor, root
//! disk's server and that one's block broker, servers of directories, passt) and of its interfaces in `/proc/net/dev`; the guest's
//! come from its agent. Everything is a total since the start, so a rate is the difference of two samples.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zmachine_agent_protocol::Capacity;
use zmachine_network::Attachment;
use zmachine_network::user::Traffic as UserTraffic;
use zmachine_spec::State;
use zmachine_sys::file;
use zmachine_sys::process::{ProcessId, cpu_time, descendants};

/// A sample of one running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// CPU time of all its processes on the host, in milliseconds.
    pub cpu_ms: u64,
    /// Memory of all its processes on the host, in bytes.
    pub resident_bytes: u64,
    /// The part of it that is no guest memory.
    pub overhead_bytes: u64,
    /// Memory the guest has, in bytes; `None` when its agent does not answer.
    pub guest_total_bytes: Option<u64>,
    /// Memory the guest uses and cannot give up, in bytes.
    pub guest_used_bytes: Option<u64>,
    /// Time all CPUs of the guest were busy, in milliseconds.
    pub guest_cpu_ms: Option<u64>,
    /// Bytes its processes read from the host's disks; 0 when the host does not tell.
    pub block_read_bytes: u64,
    /// Bytes its processes wrote to the host's disks.
    pub block_written_bytes: u64,
    /// Bytes of the image the guest read.
    pub image_read_bytes: u64,
    /// Bytes of the image that were fetched from stores.
    pub image_fetched_bytes: u64,
    /// Bytes the guest received.
    pub network_received_bytes: u64,
    /// Bytes the guest sent.
    pub network_sent_bytes: u64,
    /// Packets the guest received.
    pub network_received_packets: u64,
    /// Packets the guest sent.
    pub network_sent_packets: u64,
    /// The same by interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<InterfaceSample>,
}

/// What went through one interface of a machine, as its guest counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceSample {
    /// Its name in the guest of a container, `eth0`.
    pub interface: String,
    /// Its network.
    pub network: String,
    /// Bytes the guest received.
    pub received_bytes: u64,
    /// Packets the guest received.
    pub received_packets: u64,
    /// Bytes the guest sent.
    pub sent_bytes: u64,
    /// Packets the guest sent.
    pub sent_packets: u64,
}

impl InterfaceSample {
    /// Reads the counters of taps from `/proc/net/dev`, and takes those of interfaces without one from `others`.
    pub fn take(attachments: &[Attachment], others: &BTreeMap<String, UserTraffic>) -> Vec<InterfaceSample> {
        let devices = file::read_text(Path::new("/proc/net/dev"), 1 << 20).unwrap_or_default();
        let sample = |attachment: &Attachment| {
            let named = InterfaceSample {
                interface: attachment.interface.clone(),
                network: attachment.network.clone(),
                ..InterfaceSample::default()
            };
            if attachment.user.is_some() {
                let traffic = others.get(&attachment.interface)?;
                return Some(InterfaceSample {
                    received_bytes: traffic.received_bytes,
                    received_packets: traffic.received_packets,
                    sent_bytes: traffic.sent_bytes,
                    sent_packets: traffic.sent_packets,
                    ..named
                });
            }
            let traffic = Traffic::parse(&devices, &attachment.tap)?;
            // What the host's end sends is what the guest receives.
            Some(InterfaceSample {
                received_bytes: traffic.sent_bytes,
                received_packets: traffic.sent_packets,
                sent_bytes: traffic.received_bytes,
                sent_packets: traffic.received_packets,
                ..named
            })
        };
        attachments.iter().filter_map(sample).collect()
    }
}

impl Sample {
    /// Reads the host's side for a machine in `state`, and adds what its interfaces and its guest say.
    pub fn take(state: &State, interfaces: Vec<InterfaceSample>, guest: Option<Capacity>) -> Sample {
        let known = [state.monitor, state.hypervisor, state.rootfs].into_iter().flatten();
        let known = known.filter(|id: &ProcessId| id.is_alive()).map(|id| id.pid);
        let with_descendants = |pid| descendants(pid).into_iter().chain([pid]);
        let processes: BTreeSet<u32> = known.flat_map(with_descendants).collect();
        let mut sample = Sample {
            cpu_ms: 0,
            resident_bytes: 0,
            overhead_bytes: 0,
            guest_total_bytes: guest.as_ref().map(|g| g.memory_total_bytes),
            guest_used_bytes: guest
                .as_ref()
                .map(|g| g.memory_total_bytes.saturating_sub(g.memory_available_bytes)),
            guest_cpu_ms: guest.as_ref().map(|g| g.cpu_busy_ms),
            block_read_bytes: 0,
            block_written_bytes: 0,
            image_read_bytes: state.rootfs_counters.bytes_read,
            image_fetched_bytes: state.rootfs_counters.bytes_fetched,
            network_received_bytes: interfaces.iter().map(|i| i.received_bytes).sum(),
            network_sent_bytes: interfaces.iter().map(|i| i.sent_bytes).sum(),
            network_received_packets: interfaces.iter().map(|i| i.received_packets).sum(),
            network_sent_packets: interfaces.iter().map(|i| i.sent_packets).sum(),
            interfaces,
        };
        for pid in processes {
            sample.cpu_ms += cpu_time(pid).unwrap_or(Duration::ZERO).as_millis() as u64;
            let proc =
                |name: &str| file::read_text(Path::new(&format!("/proc/{pid}/{name}")), 64 * 1024).unwrap_or_default();
            let memory = Memory::parse(&proc("status"));
            sample.resident_bytes += match Some(pid) == state.hypervisor.map(|id| id.pid) {
                // The guest's memory, which the servers of its devices share, is counted once.
                true => memory.private_bytes + memory.shared_bytes,
                false => memory.private_bytes,
            };
            sample.overhead_bytes += memory.private_bytes;
            let io = proc("io");
            sample.block_read_bytes += field(&io, "read_bytes:").unwrap_or(0);
            sample.block_written_bytes += field(&io, "write_bytes:").unwrap_or(0);
        }
        sample
    }
}

/// The sum of samples: what all machines use together.
pub fn total<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Sample {
    let mut sum = Sample::take(
        &State::created(jiff::Timestamp::UNIX_EPOCH, Vec::new()),
        Vec::new(),
        None,
    );
    for sample in samples {
        sum.cpu_ms += sample.cpu_ms;
        sum.resident_bytes += sample.resident_bytes;
        sum.overhead_bytes += sample.overhead_bytes;
        for (sum, part) in [
            (&mut sum.guest_total_bytes, sample.guest_total_bytes),
            (&mut sum.guest_used_bytes, sample.guest_used_bytes),
            (&mut sum.guest_cpu_ms, sample.guest_cpu_ms),
        ] {
            if let Some(part) = part {
                *sum = Some(sum.unwrap_or(0) + part);
            }
        }
        sum.block_read_bytes += sample.block_read_bytes;
        sum.block_written_bytes += sample.block_written_bytes;
        sum.image_read_bytes += sample.image_read_bytes;
        sum.image_fetched_bytes += sample.image_fetched_bytes;
        sum.network_received_bytes += sample.network_received_bytes;
        sum.network_sent_bytes += sample.network_sent_bytes;
        sum.network_received_packets += sample.network_received_packets;
        sum.network_sent_packets += sample.network_sent_packets;
    }
    sum
}

/// Resident memory of a process by kind. Guest memory is shared (a memfd), all else is not.
struct Memory {
    private_bytes: u64,
    shared_bytes: u64,
}

impl Memory {
    fn parse(status: &str) -> Memory {
        let kib = |name: &str| field(status, name).unwrap_or(0) * 1024;
        Memory {
            private_bytes: kib("RssAnon:") + kib("RssFile:"),
            shared_bytes: kib("RssShmem:"),
        }
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

struct Traffic {
    received_bytes: u64,
    received_packets: u64,
    sent_bytes: u64,
    sent_packets: u64,
}

impl Traffic {
    /// From `/proc/net/dev`: eight columns of receiving, eight of sending.
    fn parse(devices: &str, interface: &str) -> Option<Traffic> {
        let line = devices
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
        let columns: Vec<u64> = line
            .split_whitespace()
            .filter_map(|column| column.parse().ok())
            .collect();
        Some(Traffic {
            received_bytes: *columns.first()?,
            received_packets: *columns.get(1)?,
            sent_bytes: *columns.get(8)?,
            sent_packets: *columns.get(9)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_device_table_is_read() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n zt0a: 100 2 0 0 0 0 0 0 300 4 0 0 0 0 0 0\n";
        let traffic = Traffic::parse(text, "zt0a").unwrap();
        assert_eq!(
            (traffic.received_bytes, traffic.sent_bytes, traffic.sent_packets),
            (100, 300, 4)
        );
        assert!(Traffic::parse(text, "zt0").is_none());
    }

    #[test]
    fn this_process_uses_memory_and_samples_add_up() {
        let mut state = State::created(jiff::Timestamp::UNIX_EPOCH, Vec::new());
        state.monitor = Some(ProcessId::current());
        let guest = Capacity {
            memory_total_bytes: 100,
            memory_available_bytes: 60,
            cpu_busy_ms: 5,
            uptime_ms: 9,
            cpus: 1,
        };
        let sample = Sample::take(&state, Vec::new(), Some(guest));
        assert!(
            sample.resident_bytes >= sample.overhead_bytes && sample.overhead_bytes > 1 << 20,
            "{sample:?}"
        );
        let sum = total([&sample, &sample]);
        assert_eq!(sum.resident_bytes, 2 * sample.resident_bytes);
        assert_eq!((sum.guest_used_bytes, sum.guest_total_bytes), (Some(80), Some(200)));
    }
    #[test]
    fn what_a_process_of_the_machine_has_started_counts_as_the_courier_of_the_root_disk_does() {
        let mut server = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = server.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        let broker = ProcessId::of(line.trim().parse().unwrap()).unwrap();
        let private = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            Memory::parse(&status).private_bytes
        };
        let mut state = State::created(jiff::Timestamp::UNIX_EPOCH, Vec::new());
        state.rootfs = ProcessId::of(server.id());
        let both = || private(server.id()) + private(broker.pid);
        let sampled = || Sample::take(&state, Vec::new(), None).overhead_bytes;
        // Until both have become what they are: the memory of a program that starts is one thing now and another one in a moment.
        let is_sum = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            sampled() == both()
        });
        assert!(is_sum, "{} is not {}", sampled(), both());
        assert!(private(broker.pid) > 0);
        broker.signal(9).unwrap();
        server.wait().unwrap();
    }
}
