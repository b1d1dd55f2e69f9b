//! The reading side of a log: over all its files, as one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Entry, numbered, numbered_path, path};

/// A place between two entries of a log. It is good for as long as the file with that number is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Number of the file; the one that is written has the number it will get.
    pub number: u64,
    /// Bytes from its start.
    pub offset: u64,
}

/// Reads a log; at the end it can be asked again for what came since, also after a rotation.
#[derive(Debug)]
pub struct LogReader {
    machine: PathBuf,
    /// The open file; `None` before the log has one.
    open: Option<Open>,
    /// Where to go on.
    position: Position,
    partial: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    reader: BufReader<File>,
    inode: u64,
    /// It has its number already, so nothing is appended to it any more.
    is_full: bool,
}

impl LogReader {
    /// A reader at the oldest entry of a machine's folder. A log that is not there is empty.
    pub fn open(machine: &Path) -> LogReader {
        LogReader::open_at(machine, Position::default())
    }

    /// A reader at `position`, or at the oldest entry after it that is kept.
    pub fn open_at(machine: &Path, position: Position) -> LogReader {
        LogReader {
            machine: machine.to_owned(),
            open: None,
            position,
            partial: Vec::new(),
        }
    }

    /// A reader at the first file that may have entries at or after `since`.
    pub fn open_since(machine: &Path, since: Timestamp) -> LogReader {
        let is_before = |path: &PathBuf| {
            let modified = path.metadata().and_then(|m| m.modified());
            modified.is_ok_and(|at| Timestamp::try_from(at).is_ok_and(|at| at < since))
        };
        let files = numbered(machine);
        let number = match files.iter().find(|(_, path)| !is_before(path)) {
            Some((number, _)) => *number,
            None => files.last().map_or(0, |(number, _)| number + 1),
        };
        LogReader::open_at(machine, Position { number, offset: 0 })
    }

    /// The numbers of the files of a log, oldest first, the one that is written last.
    pub fn numbers(machine: &Path) -> Vec<u64> {
        let mut numbers: Vec<u64> = numbered(machine).into_iter().map(|(number, _)| number).collect();
        numbers.push(numbers.last().map_or(1, |number| number + 1));
        numbers
    }

    /// Where the next entry begins.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next entry, or `None` at the end for now. Lines that are no entries are passed over.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            let Some(open) = &mut self.open else {
                match self.open_next()? {
                    true => continue,
                    false => return Ok(None),
                }
            };
            let n = open.reader.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() == Some(&b'\n') {
                self.position.offset += self.partial.len() as u64;
                let entry = Entry::parse(&self.partial[..self.partial.len() - 1]);
                self.partial.clear();
                match entry {
                    Some(entry) => return Ok(Some(entry)),
                    None => continue,
                }
            }
            if n > 0 && !open.is_full {
                continue;
            }
            if open.is_full {
                // Its end, and no more will come: on to the next file.
                self.partial.clear();
                self.position = Position {
                    number: self.position.number + 1,
                    offset: 0,
                };
                self.open = None;
                continue;
            }
            if !self.was_rotated()? {
                return Ok(None);
            }
        }
    }

    /// Whether the open file got its number since it was opened. What was appended before that is still to be read.
    fn was_rotated(&mut self) -> io::Result<bool> {
        let Some(open) = &mut self.open else { return Ok(false) };
        match path(&self.machine).metadata() {
            Ok(now) if now.ino() == open.inode => Ok(false),
            Ok(_) => {
                open.is_full = true;
                Ok(true)
            }
            // In the middle of a rotation, or the machine is removed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Opens the file of the position, or the next one that is there; `false` when there is none.
    fn open_next(&mut self) -> io::Result<bool> {
        // A rotation may come between the look at the directory and the opening: look again then.
        for _ in 0..16 {
            let files = numbered(&self.machine);
            let next = files
                .iter()
                .map(|(number, _)| *number)
                .find(|n| *n >= self.position.number);
            let (number, file_path, is_full) = match next {
                Some(number) => (number, numbered_path(&self.machine, number), true),
                None => (files.last().map_or(1, |(n, _)| n + 1), path(&self.machine), false),
            };
            let mut file = match File::open(&file_path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound && !is_full => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if !is_full && numbered(&self.machine).last() != files.last() {
                continue;
            }
            let metadata = file.metadata()?;
            let offset = match number == self.position.number {
                true => self.position.offset.min(metadata.len()),
                false => 0,
            };
            file.seek(SeekFrom::Start(offset))?;
            self.position = Position { number, offset };
            self.open = Some(Open {
                // There may be many readers of a log at a time.
                reader: BufReader::with_capacity(16 * 1024, file),
                inode: metadata.ino(),
                is_full,
            });
            return Ok(true);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{LogWriter, Source};
    use zmachine_spec::LogLimits;

    fn small() -> LogLimits {
        LogLimits {
            file_bytes: 4096,
            files: 1000,
            ..LogLimits::default()
        }
    }

    fn numbers_of(reader: &mut LogReader) -> Vec<u64> {
        std::iter::from_fn(|| reader.next_entry().unwrap())
            .map(|entry| String::from_utf8(entry.bytes).unwrap().parse().unwrap())
            .collect()
    }

    #[test]
    fn a_follower_sees_everything_once_across_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), small()).unwrap();
        let mut reader = LogReader::open(dir.path());
        let mut seen = Vec::new();
        for n in 0..3000 {
            log.note(Source::Agent, &n.to_string());
            if n % 37 == 0 || n % 501 == 0 {
                seen.extend(numbers_of(&mut reader));
            }
        }
        seen.extend(numbers_of(&mut reader));
        assert!(numbered(dir.path()).len() > 20);
        assert_eq!(seen, (0..3000).collect::<Vec<_>>());
    }

    #[test]
    fn a_reader_opened_at_a_position_goes_on_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), small()).unwrap();
        (0..500).for_each(|n| log.note(Source::Agent, &n.to_string()));
        let mut reader = LogReader::open(dir.path());
        let mut position = Position::default();
        let mut seen = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            seen.push(entry.bytes);
            if seen.len() % 7 == 0 {
                position = reader.position();
                reader = LogReader::open_at(dir.path(), position);
            }
        }
        assert!(position.number > 1 && seen.len() == 500);
        assert_eq!(seen[499], b"499");
    }

    #[test]
    fn files_from_before_a_time_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), small()).unwrap();
        (0..200).for_each(|n| log.note(Source::Agent, &n.to_string()));
        let later = Timestamp::now() + jiff::SignedDuration::from_secs(60);
        let mut reader = LogReader::open_since(dir.path(), later);
        let read = numbers_of(&mut reader);
        assert!(read.len() < 100 && read.last() == Some(&199), "{read:?}");
    }

    #[test]
    fn a_reader_before_the_first_line_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = LogReader::open(dir.path());
        assert!(reader.next_entry().unwrap().is_none());
        LogWriter::open(dir.path(), small()).unwrap().note(Source::Agent, "7");
        assert_eq!(numbers_of(&mut reader), [7]);
    }
}
