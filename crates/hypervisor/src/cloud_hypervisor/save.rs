//! Saving a machine that runs, and going on from there: the hypervisor writes three files into a folder, and reads them there.
//!
//! ```text
//! <saves>/{config.json, state.json, memory-ranges}     as the hypervisor makes them, in the machine's own folder; there for the moment alone
//! state of the snapshot      one line of JSON ([`Header`]) | state.json | from the next multiple of 4096 on: memory-ranges, with its holes
//! ```
//! The memory is part of the state, since the hypervisor has it to itself.
//!
//! # Invariants
//! Whoever has taken the hypervisor over can put anything there, and an archive of a snapshot may come from anywhere: only regular files are
//! read, as large as they may be, and the description that the hypervisor is given is this start's own. Of the saved one the ids of the
//! interfaces are kept, which have to be the same.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zmachine_sys::{mount, sparse};

const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
const MEMORY: &str = "memory-ranges";

/// The longest description and state, in bytes: they are some ten and some hundred KB.
const LONGEST: u64 = 64 << 20;

/// Where memory begins in the file.
const PAGE: u64 = 4096;

/// What a guest's memory may be larger than it is said to be, in bytes: ranges that belong to firmware.
const SPARE: u64 = 64 << 20;

/// What the slowest disk takes of it in a second, in bytes.
const SLOWEST: u64 = 32 << 20;

/// The folder in which the hypervisor saves and finds its machine.
#[derive(Debug)]
pub(super) struct Saves {
    path: PathBuf,
    mount: Option<OwnedFd>,
    memory_bytes: u64,
}

/// What a saved machine is, in the first line of its file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// The ids of its interfaces.
    nets: Vec<String>,
    state_bytes: u64,
    memory_bytes: u64,
}

impl Saves {
    /// Makes an empty folder at `path`, for a process in a jail of `user`.
    ///
    /// # Errors
    /// The system's reason.
    pub(super) fn make(path: &Path, user: Option<u32>, memory_bytes: u64) -> io::Result<Saves> {
        remove(path)?;
        fs::DirBuilder::new().mode(0o700).create(path)?;
        let mut saves = Saves {
            path: path.to_owned(),
            mount: None,
            memory_bytes,
        };
        if let Some(user) = user {
            match mount::owned_by(user, path, false) {
                Ok(mount) => saves.mount = Some(mount),
                Err(_) => rustix::fs::chown(path, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?,
            }
        }
        Ok(saves)
    }

    /// The folder as the hypervisor sees it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is to be mounted there for the hypervisor; `None`: it is what it is.
    pub(super) fn mount(&self) -> Option<RawFd> {
        self.mount.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The folder as the hypervisor is told of it.
    pub(super) fn url(&self) -> String {
        format!("file://{}", self.path.display())
    }

    /// How long its memory may take to be written or read.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(60 + self.memory_bytes / SLOWEST)
    }

    /// How large a file the hypervisor writes there.
    pub(super) fn largest(&self) -> u64 {
        self.memory_bytes + SPARE
    }

    /// Moves what the hypervisor has saved into the empty file `to`.
    ///
    /// # Errors
    /// When it is not what it should be, or cannot be written.
    pub(super) fn pack(&self, to: OwnedFd) -> io::Result<()> {
        let done = self.packed(&File::from(to));
        self.clear()?;
        done
    }

    fn packed(&self, to: &File) -> io::Result<()> {
        let config: Value = serde_json::from_slice(&self.read(CONFIG)?)?;
        let nets = config["net"].as_array().into_iter().flatten();
        let nets = nets.filter_map(|net| net["id"].as_str().map(str::to_owned)).collect();
        let state = self.read(STATE)?;
        let memory = self.open(MEMORY)?;
        let memory_bytes = memory.metadata()?.len();
        if memory_bytes > self.largest() {
            return Err(io::Error::other("it has more memory than it should"));
        }
        let header = Header {
            nets,
            state_bytes: state.len() as u64,
            memory_bytes,
        };
        let mut front = serde_json::to_vec(&header)?;
        front.push(b'\n');
        front.extend(state);
        let begin = (front.len() as u64).next_multiple_of(PAGE);
        to.write_all_at(&front, 0)?;
        to.set_len(begin + memory_bytes)?;
        sparse::copy_part(&memory, 0, to, begin, memory_bytes)
    }

    /// Puts a saved machine there for the hypervisor, which is told that it is `config`. The ids of the interfaces that it was saved with.
    ///
    /// # Errors
    /// When the file is none of ours, or cannot be read or written.
    pub(super) fn unpack(&self, from: OwnedFd, config: &Value) -> io::Result<Vec<String>> {
        let mut from = File::from(from);
        let mut line = Vec::new();
        from.seek(SeekFrom::Start(0))?;
        BufReader::new(Read::take(&from, LONGEST)).read_until(b'\n', &mut line)?;
        let Header {
            nets,
            state_bytes,
            memory_bytes,
        } = serde_json::from_slice(&line)?;
        if state_bytes > LONGEST || memory_bytes > self.largest() {
            return Err(io::Error::other("it is larger than such a machine is"));
        }
        let mut state = vec![0; state_bytes as usize];
        from.read_exact_at(&mut state, line.len() as u64)?;
        self.create(CONFIG)?.write_all_at(&serde_json::to_vec(config)?, 0)?;
        self.create(STATE)?.write_all_at(&state, 0)?;
        let memory = self.create(MEMORY)?;
        memory.set_len(memory_bytes)?;
        let begin = (line.len() as u64 + state_bytes).next_multiple_of(PAGE);
        sparse::copy_part(&from, begin, &memory, 0, memory_bytes)?;
        Ok(nets)
    }

    /// Removes what is there.
    ///
    /// # Errors
    /// The system's reason.
    pub(super) fn clear(&self) -> io::Result<()> {
        for name in [CONFIG, STATE, MEMORY] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.open(name)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
        match read as u64 <= LONGEST {
            true => Ok(bytes),
            false => Err(io::Error::other(format!("{name} is larger than {LONGEST} bytes"))),
        }
    }

    /// Opens a file that the hypervisor has made, and nothing else.
    fn open(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(CWD, self.path.join(name), flags, Mode::empty())?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other(format!("{name} is no file"))),
        }
    }

    /// Makes a file for the hypervisor: whoever owns the folder owns it.
    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(
            CWD,
            self.path.join(name),
            flags,
            Mode::RUSR | Mode::WUSR,
        )?);
        let folder = fs::metadata(&self.path)?;
        rustix::fs::fchown(
            &file,
            Some(Uid::from_raw(folder.uid())),
            Some(Gid::from_raw(folder.gid())),
        )?;
        Ok(file)
    }
}

impl Drop for Saves {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
