//! The standard streams of a process: from the machine to the files that containerd names, and back.
//!
//! # Invariants
//! A fifo is opened for both directions: so it opens without its other end, and a containerd that starts again in the middle costs
//! nothing. Output waits for whoever reads it, and the process with it; that of a process which has ended waits for a while only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use zmachine_agent_protocol::{ExitStatus, Frame, Reply};
use zmachine_engine::attach::{ProcessInput, ProcessOutput};

use crate::error::ShimError;

/// How long nobody may read the output of a process that has ended.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Input that is taken at once, in bytes.
const PIECE: usize = 32 * 1024;

/// The files of a process, as containerd names them; an empty one is nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Where output goes.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    stdout: Option<File>,
    stderr: Option<File>,
}

/// Where a name leads to; none for nowhere.
fn path_of(name: &str) -> Result<Option<PathBuf>, ShimError> {
    match name.split_once("://") {
        _ if name.is_empty() => Ok(None),
        None => Ok(Some(name.into())),
        Some(("fifo" | "file", path)) => Ok(Some(path.split('?').next().unwrap_or_default().into())),
        Some((scheme, _)) => Err(ShimError::Unsupported(format!(
            "output cannot go to '{scheme}://': use a file or a fifo"
        ))),
    }
}

impl Outputs {
    /// Opens those of `files`.
    ///
    /// # Errors
    /// Naming the file.
    pub(crate) fn open(files: &Files) -> Result<Outputs, ShimError> {
        let open = |name: &str| {
            path_of(name)?
                .map(|path| open_output(&path).map_err(|e| ShimError::failed(&format!("cannot open {name}"), e)))
                .transpose()
        };
        Ok(Outputs {
            stdout: open(&files.stdout)?,
            stderr: open(&files.stderr)?,
        })
    }
}

fn open_output(path: &Path) -> io::Result<File> {
    let no_wait = OFlags::NONBLOCK.bits().cast_signed();
    let is_fifo = path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    match is_fifo {
        true => OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(no_wait)
            .open(path),
        false => OpenOptions::new().append(true).create(true).mode(0o640).open(path),
    }
}

/// Brings the output of a process to its files until it has ended; how, if somebody said so. `has_ended` tells that it has, when the
/// end cannot be seen behind output that nobody reads.
pub(crate) fn carry_output(mut from: ProcessOutput, outputs: Outputs, has_ended: &AtomicBool) -> Option<ExitStatus> {
    let Outputs { mut stdout, mut stderr } = outputs;
    while let Ok(Some(frame)) = from.next_frame() {
        let (sink, bytes) = match &frame {
            Frame::Stdout(bytes) => (&mut stdout, bytes),
            Frame::Stderr(bytes) => (&mut stderr, bytes),
            Frame::Message(_) => match frame.parse::<Reply>() {
                Ok(Reply::Exited(status)) => return Some(status),
                _ => continue,
            },
            _ => continue,
        };
        if let Some(file) = sink
            && write_all(file, bytes, has_ended).is_err()
        {
            *sink = None;
        }
    }
    None
}

fn write_all(file: &mut File, mut bytes: &[u8], has_ended: &AtomicBool) -> io::Result<()> {
    let mut stalled = None;
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                stalled = None;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let second = Timespec { tv_sec: 1, tv_nsec: 0 };
                let _ = poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&second));
                if has_ended.load(Ordering::Relaxed) && stalled.get_or_insert_with(Instant::now).elapsed() > STALL {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Ends the input of a process when it is dropped.
#[derive(Debug)]
pub(crate) struct InputEnd {
    _pipe: OwnedFd,
}

/// Brings the input of a process to the machine, in a thread that ends with the returned value.
///
/// # Errors
/// Naming the file.
pub(crate) fn start_input(files: &Files, to: ProcessInput) -> Result<Option<InputEnd>, ShimError> {
    let Some(path) = path_of(&files.stdin)? else {
        return Ok(None);
    };
    let no_wait = OFlags::NONBLOCK.bits().cast_signed();
    let is_fifo = path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    let opened = OpenOptions::new()
        .read(true)
        .write(is_fifo)
        .custom_flags(no_wait)
        .open(&path);
    let failed = |error: io::Error| ShimError::failed(&format!("cannot open {}", files.stdin), error);
    let file = opened.map_err(failed)?;
    let (end, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let spawned = std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || carry_input(file, end, to));
    spawned.map_err(failed)?;
    Ok(Some(InputEnd { _pipe: writer }))
}

fn carry_input(mut file: File, end: OwnedFd, mut to: ProcessInput) {
    let mut buffer = vec![0; PIECE];
    loop {
        let is_over = {
            let mut watched = [PollFd::new(&file, PollFlags::IN), PollFd::new(&end, PollFlags::IN)];
            if poll(&mut watched, None).is_err() {
                continue;
            }
            watched[1].revents().intersects(PollFlags::HUP | PollFlags::ERR)
        };
        // All that was written before the end is the process's.
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                if to.send(&Frame::Stdin(buffer[..length].to_vec())).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if is_over {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    let _ = to.send(&Frame::StdinEof);
}

/// A flag that several threads see.
pub(crate) type Flag = Arc<AtomicBool>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_files_or_nowhere() {
        assert_eq!(path_of("").unwrap(), None);
        assert_eq!(path_of("/run/f").unwrap(), Some("/run/f".into()));
        assert_eq!(path_of("file:///var/log/x?a=b").unwrap(), Some("/var/log/x".into()));
        assert!(
            path_of("binary:///usr/bin/logger")
                .unwrap_err()
                .to_string()
                .contains("binary")
        );
    }

    #[test]
    fn output_that_nobody_reads_is_given_up_once_its_process_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let mut file = open_output(&path).unwrap();
        let flag = AtomicBool::new(true);
        let begun = Instant::now();
        let error = write_all(&mut file, &vec![0; 1 << 20], &flag).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= STALL);
    }
}
