//! Logs of a machine: one file, every line with its time and source.
//!
//! # Format (`logs/machine.log`)
//! The log format of the Kubernetes container runtime interface, with more sources:
//! ```text
//! 2026-11-23T03:05:01.123456789Z stdout F a whole line
//! 2026-11-23T03:05:01.223456789Z stdout P a piece of a line; more of the same source follows
//! ```
//! `F` ends a line, `P` does not, so the bytes of a source come back exactly: pieces joined, `\n` after each `F`.
//! Sources are kept apart by name; nothing is escaped, since the only byte with a meaning, `\n`, ends the entry.
//!
//! # Invariants
//! An entry is written by one `write` to a file opened for appending: entries of several writers never mix.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use zmachine_sys::file::FileError;

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

/// Appends to a log.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Opens the log of a machine's folder, and makes it when missing.
    ///
    /// # Errors
    /// When it can not be made or opened.
    pub fn open(machine: &Path) -> Result<LogWriter, FileError> {
        let path = path(machine);
        zmachine_sys::file::make_dirs(path.parent().unwrap_or(machine))?;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| FileError::io("open log", &path, e))?;
        Ok(LogWriter {
            file,
            buffer: Vec::new(),
        })
    }

    /// Appends bytes of one source, cut into lines.
    ///
    /// # Errors
    /// When the disk is full; what did not fit is lost, the log stays readable.
    pub fn write(&mut self, source: Source, bytes: &[u8], at: Timestamp) -> io::Result<()> {
        self.buffer.clear();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (mark, text) = match piece.strip_suffix(b"\n") {
                Some(line) => ('F', line),
                None => ('P', piece),
            };
            write!(self.buffer, "{at:.9} {} {mark} ", source.name())?;
            self.buffer.extend_from_slice(text);
            self.buffer.push(b'\n');
        }
        self.file.write_all(&self.buffer)
    }

    /// Appends one line of ours.
    pub fn note(&mut self, source: Source, line: &str) {
        // A log that can not be written must not stop the machine it is about.
        let _ = self.write(source, format!("{}\n", line.trim_end()).as_bytes(), Timestamp::now());
    }
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

/// Reads a log from its beginning; at the end it can be asked again for what came since.
#[derive(Debug)]
pub struct LogReader {
    reader: BufReader<File>,
    partial: Vec<u8>,
}

impl LogReader {
    /// Opens the log of a machine's folder; `None` when nothing was ever logged.
    ///
    /// # Errors
    /// When it is there and can not be opened.
    pub fn open(machine: &Path) -> Result<Option<LogReader>, FileError> {
        let path = path(machine);
        match File::open(&path) {
            Ok(file) => Ok(Some(LogReader {
                reader: BufReader::new(file),
                partial: Vec::new(),
            })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(FileError::io("open log", &path, e)),
        }
    }

    /// The next entry, or `None` at the end for now. Lines that are no entries are passed over.
    ///
    /// # Errors
    /// When the file can not be read.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if self.reader.read_until(b'\n', &mut self.partial)? == 0 || self.partial.last() != Some(&b'\n') {
                return Ok(None);
            }
            let line = std::mem::take(&mut self.partial);
            if let Some(entry) = Entry::parse(&line[..line.len() - 1]) {
                return Ok(Some(entry));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_source_come_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path()).unwrap();
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
        let mut reader = LogReader::open(dir.path()).unwrap().unwrap();
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
        LogWriter::open(dir.path())
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
        let mut log = LogWriter::open(dir.path()).unwrap();
        let mut reader = LogReader::open(dir.path()).unwrap().unwrap();
        assert!(reader.next_entry().unwrap().is_none());
        log.note(Source::Agent, "hello");
        assert_eq!(reader.next_entry().unwrap().unwrap().bytes, b"hello");
    }
}
