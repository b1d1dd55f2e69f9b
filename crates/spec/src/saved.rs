//! What a machine's monitor says of a machine that it saved while it ran, and what has to fit for going on from there.

use serde::{Deserialize, Serialize};

use crate::volume::{Content, Fs};

/// Bytes of memory that have one checksum: the unit in which memory is kept.
pub const CHUNK: u64 = 1 << 20;

/// A machine that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Name and version of the hypervisor, whose next version may not read what this one wrote.
    pub hypervisor: String,
    /// The host it ran on.
    pub host: HostMark,
    /// Its entrypoint had been started.
    pub has_entrypoint: bool,
    /// The state of its devices.
    pub state: FileMark,
    /// Its memory.
    pub memory: MemoryMark,
    /// The memory is part of the state, as it was shared with other machines: what goes on begins with zeros that are its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_memory_in_state: bool,
    /// Bytes of the file of its writable disk, where it has one.
    pub disk_bytes: Option<u64>,
    /// Bytes of the file of its firmware's variables, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_bytes: Option<u64>,
    /// Its volumes, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<SavedVolume>,
    /// How long it stood still, in microseconds.
    pub paused_us: u64,
    /// What `CLOCK_MONOTONIC` of its guest showed, in nanoseconds. Absent where its agent does not tell, which then has to be asked for
    /// one thing after the other when it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_monotonic: Option<u64>,
    /// Its agent is told who it is before a connection begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_thawed_first: bool,
}

/// The disks of a machine that were saved without its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisks {
    /// Bytes of the file of its own writable disk, where it has one.
    pub disk_bytes: Option<u64>,
    /// Bytes of the file of its firmware's variables, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_bytes: Option<u64>,
    /// Its volumes, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<SavedVolume>,
    /// It ran meanwhile, and its guest did not write.
    pub was_running: bool,
    /// How long nobody could write, in microseconds.
    pub paused_us: u64,
}

/// A volume of a machine that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVolume {
    /// Its name then.
    pub name: String,
    /// The file system that it was made for.
    pub fs: Fs,
    /// What it held.
    pub content: Content,
    /// Bytes of its disk.
    pub bytes: u64,
    /// When its disk was written to last, in nanoseconds since 1970, for one that the machine only read: there is no copy of it, and a guest
    /// that goes on relies on it being the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_at: Option<u64>,
}

impl SavedVolume {
    /// Whether a copy of its disk was saved.
    pub fn is_copied(&self) -> bool {
        self.written_at.is_none()
    }
}

/// What a guest knows of its host's CPUs, and cannot be told anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMark {
    /// Model and digest of the features, where the guest has the host's CPUs themselves.
    pub cpu: Option<String>,
    /// Frequency of the time stamp counter in kHz, where it is known.
    pub tsc_khz: Option<u32>,
}

impl HostMark {
    /// This host's. `has_its_cpus`: guests have the host's CPUs, and not emulated ones.
    pub fn of_this_host(has_its_cpus: bool) -> HostMark {
        HostMark {
            cpu: has_its_cpus.then(zmachine_sys::host::cpu_mark),
            tsc_khz: zmachine_sys::clock::tsc_khz(),
        }
    }

    /// What of this host does not fit a machine that was saved on `other`.
    pub fn differs_from(&self, other: &HostMark) -> Option<String> {
        let unknown = || "unknown".to_owned();
        if self.cpu != other.cpu {
            let (here, there) = (self.cpu.clone(), other.cpu.clone());
            return Some(format!(
                "it was saved with the CPU '{}', and this host's is '{}'",
                there.unwrap_or_else(unknown),
                here.unwrap_or_else(unknown)
            ));
        }
        match (self.tsc_khz, other.tsc_khz) {
            // Two measurements of one counter are a few millionths apart.
            (Some(here), Some(there)) if u64::from(here.abs_diff(there)) * 1000 > u64::from(there) => Some(format!(
                "its clock was made for a counter of {there} kHz, and this host's has {here} kHz"
            )),
            _ => None,
        }
    }
}

/// Length and checksum (CRC-32C) of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// Its length.
    pub bytes: u64,
    /// Of all of it.
    pub crc32c: u32,
}

/// What a file of memory has in it. Everything that is not listed is zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMark {
    /// Its length.
    pub bytes: u64,
    /// Number and checksum (CRC-32C) of each [`CHUNK`] that is not all zeros.
    pub chunks: Vec<(u32, u32)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_of_a_host_is_named() {
        let here = HostMark {
            cpu: Some("Xeon (flags 12ab)".into()),
            tsc_khz: Some(2_000_000),
        };
        assert_eq!(here.differs_from(&here), None);
        let measured_again = HostMark {
            tsc_khz: Some(2_000_020),
            ..here.clone()
        };
        assert_eq!(here.differs_from(&measured_again), None);
        let slower = HostMark {
            tsc_khz: Some(1_900_000),
            ..here.clone()
        };
        assert!(here.differs_from(&slower).unwrap().contains("1900000 kHz"));
        let other = HostMark {
            cpu: None,
            ..here.clone()
        };
        assert!(here.differs_from(&other).unwrap().contains("'unknown'"));
    }
}
