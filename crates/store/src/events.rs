//! What happened to the machines of a home, to its images, volumes and networks, in order: what `events` tells.
//!
//! # Format (`data/events.jsonl`, and the file before it `data/events.jsonl.1`)
//! ```text
//! {"time":"2026-11-23T03:05:01.1Z","id":"0123456789ab","name":"web","event":"stopped","exit_code":3}
//! ```
//! # Invariants
//! A line is one `write` to a file opened for appending, so lines of several processes never mix. Two files of at most
//! [`FULL`] bytes are kept. An event that cannot be written never stops what it tells of.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zmachine_spec::{HealthStatus, Home, Phase, State};
use zmachine_sys::lock::FileLock;

/// Bytes after which a new file is begun.
pub const FULL: u64 = 4 << 20;

/// What something happened to, when that is no machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// An image: `pulled`, `loaded`, `tagged`, `untagged`.
    Image,
    /// A volume: `created`, `removed`.
    Volume,
    /// A network: `created`, `removed`, `connected`, `disconnected`; the detail of the last two is the id of the machine.
    Network,
}

impl Object {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Object::Image => "image",
            Object::Volume => "volume",
            Object::Network => "network",
        }
    }
}

/// Something that happened to a machine, or to what `object` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// What it happened to; `None` for a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    /// The machine's id; that of a network, the digest of an image, the name of a volume.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `created`, `removed`, `health_status`, or the phase it went to: `starting`, `running`, `paused`, `stopping`, `stopped`,
    /// `failed`, `restarting`.
    pub event: String,
    /// The status of a run that ended, as a shell shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Why it failed, when it starts again, or what its health is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Event {
    /// An event without more to tell.
    pub fn new(id: &str, name: &str, event: &str) -> Event {
        Event {
            time: Timestamp::now(),
            object: None,
            id: id.to_owned(),
            name: name.to_owned(),
            event: event.to_owned(),
            exit_code: None,
            detail: None,
        }
    }

    /// An event of something else than a machine.
    pub fn of(object: Object, id: &str, name: &str, event: &str) -> Event {
        Event {
            object: Some(object),
            ..Event::new(id, name, event)
        }
    }

    /// That a machine's health is another one now.
    pub fn of_health(id: &str, name: &str, status: HealthStatus) -> Event {
        Event {
            detail: Some(status.word().to_owned()),
            ..Event::new(id, name, "health_status")
        }
    }

    /// That a machine is in the phase of `state` now.
    pub fn of_phase(id: &str, name: &str, state: &State) -> Event {
        let mut event = Event::new(id, name, state.phase.word());
        match &state.phase {
            Phase::Stopped { exit } => event.exit_code = Some(exit.shell_code()),
            Phase::Failed { step, failure } => event.detail = Some(format!("{step}: {failure}")),
            Phase::Restarting { after, at } => event.detail = Some(format!("{after}; it starts again at {at:.0}")),
            _ => {}
        }
        event
    }
}

fn path(home: &Home) -> PathBuf {
    home.data().join("events.jsonl")
}

fn earlier_path(home: &Home) -> PathBuf {
    home.data().join("events.jsonl.1")
}

/// Writes an event down.
pub fn record(home: &Home, event: &Event) {
    let written = || -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let path = path(home);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        file.write_all(&line)?;
        if file.metadata()?.len() > FULL {
            rotate(home)?;
        }
        Ok(())
    };
    let _ = written();
}

fn rotate(home: &Home) -> io::Result<()> {
    let lock = home.data().join("events.lock");
    let Ok(Some(_turn)) = FileLock::try_exclusive(&lock) else {
        return Ok(());
    };
    match path(home).metadata() {
        Ok(now) if now.len() > FULL => fs::rename(path(home), earlier_path(home)),
        _ => Ok(()),
    }
}

/// Reads events from the oldest on; at the end it can be asked again.
#[derive(Debug)]
pub struct EventReader {
    home: Home,
    open: Option<(BufReader<File>, u64)>,
    partial: Vec<u8>,
    begun: bool,
}

impl EventReader {
    /// A reader at the oldest event.
    pub fn open(home: &Home) -> EventReader {
        EventReader {
            home: home.clone(),
            open: None,
            partial: Vec::new(),
            begun: false,
        }
    }

    /// The next event, or `None` at the end for now. Lines that are no events are passed over.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            if self.open.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some((reader, inode)) = &mut self.open else {
                return Ok(None);
            };
            // Asked before reading: what was appended before the rotation is read after this.
            let is_last = path(&self.home).metadata().map_or(true, |now| now.ino() == *inode);
            reader.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() != Some(&b'\n') {
                if is_last {
                    return Ok(None);
                }
                self.partial.clear();
                self.open = None;
                continue;
            }
            let event = serde_json::from_slice(&self.partial);
            self.partial.clear();
            if let Ok(event) = event {
                return Ok(Some(event));
            }
        }
    }

    fn open_next(&mut self) -> io::Result<bool> {
        let first = !std::mem::replace(&mut self.begun, true);
        let candidates = if first {
            vec![earlier_path(&self.home), path(&self.home)]
        } else {
            vec![path(&self.home)]
        };
        for path in candidates {
            match File::open(&path) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    self.open = Some((BufReader::new(file), inode));
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_followed_in_order_across_files_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
        let mut reader = EventReader::open(&home);
        assert!(reader.next_event().unwrap().is_none());
        let detail = "x".repeat(10_000);
        let mut seen = 0;
        for n in 0..1500 {
            let mut event = Event::new(&n.to_string(), "web", "failed");
            event.detail = Some(detail.clone());
            record(&home, &event);
            if n % 100 == 0 {
                while let Some(event) = reader.next_event().unwrap() {
                    assert_eq!(event.id, seen.to_string());
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, 1401);
        let kept = earlier_path(&home).metadata().unwrap().len() + path(&home).metadata().unwrap().len();
        assert!(kept < 2 * FULL + 20_000, "{kept}");
        let first = EventReader::open(&home).next_event().unwrap().unwrap();
        assert!(first.id.parse::<u32>().unwrap() > 0);
    }
}
