//! The writing side of a log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use zmachine_spec::LogLimits;
use zmachine_sys::file::FileError;

use super::{Source, numbered, numbered_path, path};

/// How much of a file's end is looked at for an entry that a crash tore.
const TORN_MAX: u64 = 1 << 20;

/// Appends to a log.
#[derive(Debug)]
pub struct LogWriter {
    machine: PathBuf,
    limits: LogLimits,
    file: File,
    /// Bytes in the file: where a failed write is taken back to.
    length: u64,
    /// When the file was begun, by the clock that never jumps.
    begun: std::time::Instant,
    /// What the file was already old when it was opened.
    age_at_open: Duration,
    buffer: Vec<u8>,
    /// Bytes that could not be written, and why.
    lost: Option<(u64, String)>,
}

impl LogWriter {
    /// Opens the log of a machine's folder, and makes it when missing. An entry torn by a crash is cut off.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn open(machine: &Path, limits: LogLimits) -> Result<LogWriter, FileError> {
        let path = path(machine);
        zmachine_sys::file::make_dirs(path.parent().unwrap_or(machine))?;
        let file = open_active(&path).map_err(|e| FileError::io("open log", &path, e))?;
        let length = cut_torn_end(&file).map_err(|e| FileError::io("repair log", &path, e))?;
        let mut writer = LogWriter {
            machine: machine.to_owned(),
            limits,
            age_at_open: age(&file),
            file,
            length,
            begun: std::time::Instant::now(),
            buffer: Vec::new(),
            lost: None,
        };
        writer.remove_old();
        Ok(writer)
    }

    /// Appends bytes of one source, cut into lines.
    ///
    /// # Errors
    /// When the disk is full; the log is as it was before then, and the loss is told in it later.
    pub fn write(&mut self, source: Source, bytes: &[u8], at: Timestamp) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.is_full() {
            // A log that cannot be rotated grows: better than losing what comes.
            let _ = self.rotate();
        }
        self.buffer.clear();
        if let Some((count, why)) = &self.lost {
            let name = Source::Monitor.name();
            writeln!(
                self.buffer,
                "{at:.9} {name} F {count} bytes of the log before this line were lost: {why}"
            )?;
        }
        // Formatting the time is what a flood of short lines costs most: once for all lines that came together.
        let stamp = format!("{at:.9} {} ", source.name());
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (mark, text) = match piece.strip_suffix(b"\n") {
                Some(line) => (b"F ", line),
                None => (b"P ", piece),
            };
            self.buffer.extend_from_slice(stamp.as_bytes());
            self.buffer.extend_from_slice(mark);
            self.buffer.extend_from_slice(text);
            self.buffer.push(b'\n');
        }
        match self.file.write_all(&self.buffer) {
            Ok(()) => {
                self.length += self.buffer.len() as u64;
                self.lost = None;
                Ok(())
            }
            Err(error) => {
                let _ = self.file.set_len(self.length);
                let before = self.lost.take().map_or(0, |(count, _)| count);
                self.lost = Some((before + bytes.len() as u64, error.to_string()));
                Err(error)
            }
        }
    }

    /// Appends one line of ours.
    pub fn note(&mut self, source: Source, line: &str) {
        // A log that cannot be written must not stop the machine it is about.
        let _ = self.write(source, format!("{}\n", line.trim_end()).as_bytes(), Timestamp::now());
    }

    /// Bytes in the file that is written.
    pub fn length(&self) -> u64 {
        self.length
    }

    fn is_full(&self) -> bool {
        let age = self.age_at_open + self.begun.elapsed();
        self.length >= self.limits.file_bytes || (self.length > 0 && age >= self.limits.file_age())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let next = numbered(&self.machine).last().map_or(1, |(number, _)| number + 1);
        let active = path(&self.machine);
        fs::rename(&active, numbered_path(&self.machine, next))?;
        let opened = open_active(&active);
        if opened.is_err() {
            // Go on in the old file, under its old name.
            fs::rename(numbered_path(&self.machine, next), &active)?;
        }
        self.file = opened?;
        self.length = 0;
        self.begun = std::time::Instant::now();
        self.age_at_open = Duration::ZERO;
        self.remove_old();
        Ok(())
    }

    fn remove_old(&mut self) {
        let files = numbered(&self.machine);
        let too_many = files.len().saturating_sub(self.limits.files.saturating_sub(1) as usize);
        let last = files.len().saturating_sub(1);
        for (index, (_, path)) in files.iter().enumerate() {
            let is_old = File::open(path).is_ok_and(|file| age(&file) >= self.limits.keep());
            if index >= too_many && !is_old {
                continue;
            }
            // Whoever reads it now reads it to its end: the file lives as long as it is open.
            let _ = match index == last {
                false => fs::remove_file(path),
                true => empty(path),
            };
        }
    }
}

/// Puts an empty file in the place of `path`, so that its readers keep what they have open.
fn empty(path: &Path) -> io::Result<()> {
    if path.metadata()?.len() == 0 {
        return Ok(());
    }
    fs::remove_file(path)?;
    open_active(path).map(drop)
}

fn open_active(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Time since the file was last written. A clock that was set back makes it new.
fn age(file: &File) -> Duration {
    let modified = file.metadata().and_then(|m| m.modified());
    let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    age.unwrap_or_default()
}

/// Cuts off what follows the last newline; the length that is left.
fn cut_torn_end(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.size();
    let from = length.saturating_sub(TORN_MAX);
    let mut reader = file;
    reader.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    reader.read_to_end(&mut end)?;
    if end.last().is_none_or(|b| *b == b'\n') {
        return Ok(length);
    }
    let whole = end.iter().rposition(|b| *b == b'\n').map_or(0, |at| at as u64 + 1);
    file.set_len(from + whole)?;
    Ok(from + whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogReader;

    fn small(files: u32) -> LogLimits {
        LogLimits {
            file_bytes: 4096,
            files,
            ..LogLimits::default()
        }
    }

    fn lines(machine: &Path) -> Vec<String> {
        let mut reader = LogReader::open(machine);
        let mut lines = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            lines.push(String::from_utf8(entry.bytes).unwrap());
        }
        lines
    }

    #[test]
    fn files_stay_small_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), small(4)).unwrap();
        for n in 0..1000 {
            log.write(Source::Stdout, format!("{n}\n").as_bytes(), Timestamp::now())
                .unwrap();
        }
        assert_eq!(numbered(dir.path()).len(), 3);
        for (_, path) in numbered(dir.path()) {
            assert!((4096..4200).contains(&path.metadata().unwrap().len()));
        }
        let kept = lines(dir.path());
        let first: usize = kept[0].parse().unwrap();
        assert!(first > 0 && kept.len() > 250);
        assert!(kept.iter().zip(first..).all(|(line, n)| *line == n.to_string()));
        assert_eq!(kept.last().unwrap(), "999");
    }

    #[test]
    fn a_writer_goes_on_with_the_count_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        for run in 0..5 {
            let mut log = LogWriter::open(dir.path(), small(100)).unwrap();
            (0..100).for_each(|n| log.note(Source::Agent, &format!("{}", run * 100 + n)));
        }
        assert_eq!(lines(dir.path()), (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn files_past_their_time_go_and_the_count_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), small(100)).unwrap();
        (0..300).for_each(|n| log.note(Source::Agent, &n.to_string()));
        let before = numbered(dir.path());
        let long_ago = SystemTime::now() - Duration::from_secs(40 * 86_400);
        for (_, path) in &before {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_modified(long_ago)
                .unwrap();
        }
        drop(log);
        let mut log = LogWriter::open(dir.path(), small(100)).unwrap();
        let after = numbered(dir.path());
        assert_eq!(after, before[before.len() - 1..]);
        assert_eq!(after[0].1.metadata().unwrap().len(), 0);
        (0..100).for_each(|n| log.note(Source::Agent, &n.to_string()));
        assert_eq!(numbered(dir.path())[1].0, after[0].0 + 1);
    }

    #[test]
    fn a_torn_entry_is_cut_off_and_the_next_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        LogWriter::open(dir.path(), LogLimits::default())
            .unwrap()
            .note(Source::Agent, "one");
        let mut file = OpenOptions::new().append(true).open(path(dir.path())).unwrap();
        file.write_all(b"2026-11-23T03:05:01.1Z stdout F ha").unwrap();
        LogWriter::open(dir.path(), LogLimits::default())
            .unwrap()
            .note(Source::Agent, "two");
        assert_eq!(lines(dir.path()), ["one", "two"]);
    }

    #[test]
    fn a_full_disk_loses_bytes_but_no_entry_is_broken_and_the_loss_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), LogLimits::default()).unwrap();
        log.note(Source::Agent, "one");
        let real = std::mem::replace(
            &mut log.file,
            OpenOptions::new().append(true).open("/dev/full").unwrap(),
        );
        assert!(log.write(Source::Stdout, b"lost\n", Timestamp::now()).is_err());
        assert!(log.write(Source::Stdout, b"lost too\n", Timestamp::now()).is_err());
        log.file = real;
        log.note(Source::Agent, "two");
        let lines = lines(dir.path());
        assert_eq!((lines[0].as_str(), lines[2].as_str(), lines.len()), ("one", "two", 3));
        assert!(
            lines[1].starts_with("14 bytes of the log before this line were lost: No space left"),
            "{lines:?}"
        );
    }
}
