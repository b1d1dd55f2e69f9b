//! Logs of a machine: every line with its time and source, in files of a bounded size.
//!
//! # Format (`logs/machine.log`, and `logs/machine.log.000001` and so on, the older the lower)
//! The log format of the Kubernetes container runtime interface, with more sources:
//! ```text
//! 2026-11-23T03:05:01.123456789Z stdout F a whole line
//! 2026-11-23T03:05:01.223456789Z stdout P a piece of a line; more of the same source follows
//! ```
//! `F` ends a line, `P` does not, so the bytes of a source come back exactly: pieces joined, `\n` after each `F`.
//! Sources are kept apart by name; nothing is escaped, since the only byte with a meaning, `\n`, ends the entry.
//!
//! # Rotation
//! The file that is written has no number; rotation renames it to the next one. So a file's number never changes, and
//! (number, offset) is a [`Position`] for as long as the file is kept. A file is full at `LogLimits::file_bytes` or after
//! `LogLimits::file_age`; the oldest go when there are more than `LogLimits::files` or they are older than
//! `LogLimits::keep`. The newest numbered file is emptied rather than removed, which keeps the count.
//!
//! # Invariants
//! Whoever writes holds the machine's lock. Entries are whole: a write that fails is taken back, and the bytes it lost
//! are told in the log as soon as it can be written again.

mod forward;
mod read;
mod tail;
mod write;

pub use self::forward::Forwarder;
pub use self::forward::Sender;
pub use self::read::{LogReader, Position};
pub use self::tail::tail;
pub use self::write::LogWriter;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use zmachine_spec::Kind;

/// Where an entry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The entrypoint's standard output, or its terminal.
    Stdout,
    /// The entrypoint's standard error.
    Stderr,
    /// The guest's serial console: kernel messages.
    Console,
    /// The guest agent.
    Agent,
    /// The hypervisor's own messages.
    Hypervisor,
    /// The monitor and the rootfs server.
    Monitor,
}

impl Source {
    /// All sources.
    pub const ALL: [Source; 6] = [
        Source::Stdout,
        Source::Stderr,
        Source::Console,
        Source::Agent,
        Source::Hypervisor,
        Source::Monitor,
    ];

    /// Where what a guest's programs write is: a VM writes to its console, where a container has its kernel's messages alone.
    pub fn of_programs(kind: Kind) -> &'static [Source] {
        match kind {
            Kind::Container => &[Source::Stdout, Source::Stderr],
            Kind::Vm => &[Source::Console],
        }
    }

    /// Its name in the file and in `--source`.
    pub fn name(self) -> &'static str {
        match self {
            Source::Stdout => "stdout",
            Source::Stderr => "stderr",
            Source::Console => "console",
            Source::Agent => "agent",
            Source::Hypervisor => "hypervisor",
            Source::Monitor => "monitor",
        }
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        Source::ALL.into_iter().find(|s| s.name() == text).ok_or_else(|| {
            let names: Vec<_> = Source::ALL.iter().map(|s| s.name()).collect();
            format!("'{text}' is not a log source: use {}", names.join(", "))
        })
    }
}

/// The log file of a machine's folder.
pub fn path(machine: &Path) -> PathBuf {
    machine.join("logs").join("machine.log")
}

/// The numbered files beside the one that is written, oldest first.
fn numbered(machine: &Path) -> Vec<(u64, PathBuf)> {
    let active = path(machine);
    let Some(dir) = active.parent() else { return Vec::new() };
    let number = |entry: &std::fs::DirEntry| -> Option<u64> {
        let name = entry.file_name();
        name.to_str()?.strip_prefix("machine.log.")?.parse().ok()
    };
    let mut files: Vec<(u64, PathBuf)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((number(&entry)?, entry.path())))
        .collect();
    files.sort();
    files
}

fn numbered_path(machine: &Path, number: u64) -> PathBuf {
    let mut name = path(machine).into_os_string();
    name.push(format!(".{number:06}"));
    name.into()
}

/// One entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When the bytes came.
    pub at: Timestamp,
    /// From where.
    pub source: Source,
    /// Whether a newline follows the bytes.
    pub ends_line: bool,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Entry {
    fn parse(line: &[u8]) -> Option<Entry> {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let mut word = || std::str::from_utf8(parts.next()?).ok();
        let at = word()?.parse().ok()?;
        let source = word()?.parse().ok()?;
        let ends_line = match word()? {
            "F" => true,
            "P" => false,
            _ => return None,
        };
        Some(Entry {
            at,
            source,
            ends_line,
            bytes: parts.next()?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zmachine_spec::LogLimits;

    #[test]
    fn the_bytes_of_a_source_come_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), LogLimits::default()).unwrap();
        let pieces: [&[u8]; 5] = [
            b"one\ntw",
            b"o\n\n",
            b"\x00\xff binary\r\n",
            b" P F stdout\n",
            b"no end",
        ];
        for piece in pieces {
            log.write(Source::Stdout, piece, Timestamp::now()).unwrap();
            log.write(Source::Stderr, b"noise\n", Timestamp::now()).unwrap();
        }
        let mut reader = LogReader::open(dir.path());
        let mut got = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            if entry.source == Source::Stdout {
                got.extend_from_slice(&entry.bytes);
                got.extend(entry.ends_line.then_some(b'\n'));
            }
        }
        assert_eq!(got, pieces.concat());
    }

    #[test]
    fn an_entry_has_its_golden_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let at: Timestamp = "2026-11-23T03:05:01.123456789Z".parse().unwrap();
        LogWriter::open(dir.path(), LogLimits::default())
            .unwrap()
            .write(Source::Console, b"boot\nok", at)
            .unwrap();
        let text = std::fs::read_to_string(path(dir.path())).unwrap();
        assert_eq!(
            text,
            "2026-11-23T03:05:01.123456789Z console F boot\n2026-11-23T03:05:01.123456789Z console P ok\n"
        );
    }

    #[test]
    fn a_reader_at_the_end_sees_what_is_appended() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), LogLimits::default()).unwrap();
        let mut reader = LogReader::open(dir.path());
        assert!(reader.next_entry().unwrap().is_none());
        log.note(Source::Agent, "hello");
        assert_eq!(reader.next_entry().unwrap().unwrap().bytes, b"hello");
    }
}
