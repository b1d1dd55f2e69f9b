//! One run of a program with a deadline, its output captured.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::terminal::Terminal;

/// Guests boot in seconds under emulation; a busy machine may need many times that.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(180);

/// How long a program's output may stay open after it ended: nothing it started may hold on to it.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(5);

/// A command about to run.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    line: String,
    input: Vec<u8>,
    patience: Duration,
}

/// A command that has run.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    /// Its exit code; 128 + n when signal n ended it.
    pub code: i32,
    /// The bytes of its standard output.
    pub stdout_bytes: Vec<u8>,
    /// The bytes of its standard error.
    pub stderr_bytes: Vec<u8>,
    /// From start to end.
    pub took: Duration,
}

impl Invocation {
    /// `program` with `args`, an empty standard input and a deadline of three minutes.
    pub fn new(program: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Invocation {
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let mut line = program
            .file_name()
            .unwrap_or(program.as_os_str())
            .to_string_lossy()
            .into_owned();
        args.iter()
            .for_each(|arg| line.push_str(&format!(" {}", arg.to_string_lossy())));
        let mut command = Command::new(program);
        // A group of its own, so a deadline ends what it started too, and a terminal's ctrl-c does not reach guests first.
        command.args(args).process_group(0);
        Invocation {
            command,
            line,
            input: Vec::new(),
            patience: DEFAULT_TIMEOUT,
        }
    }

    /// With the environment variable `key`.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Invocation {
        self.command.env(key, value);
        self
    }

    /// In the folder `folder`.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Invocation {
        self.command.current_dir(folder);
        self
    }

    /// With `bytes` on standard input, then its end.
    #[must_use]
    pub fn input(mut self, bytes: &[u8]) -> Invocation {
        self.input = bytes.to_vec();
        self
    }

    /// With another deadline.
    #[must_use]
    pub fn deadline(mut self, patience: Duration) -> Invocation {
        self.patience = patience;
        self
    }

    /// Starts it and returns at once, with pipes for all three streams: for tests that talk to a running command. Who
    /// calls this ends it and waits for it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut self) -> Child {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.line))
    }

    /// Starts it on a terminal of its own, for tests of what a user at a keyboard sees.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn on_terminal(self) -> Terminal {
        Terminal::start(&self.command, &self.line)
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started, misses its deadline (it and its children are killed), or leaves its output open to a
    /// process that outlives it. All with the output so far.
    pub fn finish(mut self) -> Finished {
        let (line, patience, input) = (self.line.clone(), self.patience, std::mem::take(&mut self.input));
        let started = Instant::now();
        let mut child = self.start();
        let mut stdin = child.stdin.take();
        // A thread, or a command that reads late would block us; one that never reads breaks the pipe, which is fine.
        std::thread::spawn(move || stdin.take().map(|mut pipe| pipe.write_all(&input)));
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let status = wait(&mut child, started + patience);
        let took = started.elapsed();
        let (stdout_bytes, stdout_closed) = stdout.finish();
        let (stderr_bytes, stderr_closed) = stderr.finish();
        let code = status.map_or(-1, |s| s.code().unwrap_or_else(|| 128 + s.signal().unwrap_or(0)));
        let finished = Finished {
            line,
            code,
            stdout_bytes,
            stderr_bytes,
            took,
        };
        assert!(status.is_some(), "missed its deadline of {patience:?}: {finished}");
        assert!(
            stdout_closed && stderr_closed,
            "ended, but a process it started holds its output open: {finished}"
        );
        finished
    }
}

impl Finished {
    /// Standard output as text.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout_bytes).into_owned()
    }

    /// Standard error as text.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr_bytes).into_owned()
    }

    /// This run, which must have ended with `code`.
    ///
    /// # Panics
    /// When it ended otherwise; the message has its output.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Finished {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// This run, which must have ended with 0.
    ///
    /// # Panics
    /// When it ended otherwise; the message has its output.
    #[track_caller]
    pub fn expect_success(&self) -> &Finished {
        self.expect_code(0)
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "'{}' ended with {} after {:.1} s",
            self.line,
            self.code,
            self.took.as_secs_f32()
        )?;
        write!(f, "--- stdout\n{}--- stderr\n{}---", self.stdout(), self.stderr())
    }
}

/// Waits for `child` until `deadline`, then kills its group; `None` when that was needed.
fn wait(child: &mut Child, deadline: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// Bytes that a thread reads from a pipe.
struct Collected(Receiver<Vec<u8>>);

fn collect(pipe: Option<impl Read + Send + 'static>) -> Collected {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut chunk = [0; 8192];
        let Some(mut pipe) = pipe else { return };
        while let Ok(count @ 1..) = pipe.read(&mut chunk) {
            if sender.send(chunk[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    Collected(receiver)
}

impl Collected {
    /// What was read, and whether the pipe was closed in time.
    fn finish(self) -> (Vec<u8>, bool) {
        let deadline = Instant::now() + OUTPUT_TIMEOUT;
        let mut bytes = Vec::new();
        loop {
            match self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => bytes.extend(chunk),
                Err(RecvTimeoutError::Disconnected) => return (bytes, true),
                Err(RecvTimeoutError::Timeout) => return (bytes, false),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Invocation {
        Invocation::new(Path::new("/bin/sh"), ["-c", script])
    }

    #[test]
    fn output_input_and_exit_code_are_those_of_the_command() {
        let run = sh("cat; echo bad >&2; exit 7").input(b"good").finish();
        assert_eq!(
            (run.code, run.stdout(), run.stderr()),
            (7, "good".to_owned(), "bad\n".to_owned())
        );
    }

    #[test]
    fn an_end_by_a_signal_is_128_and_its_number() {
        assert_eq!(sh("kill -9 $$").finish().code, 137);
    }

    #[test]
    fn a_missed_deadline_ends_the_command_and_its_children() {
        let pipes =
            std::panic::catch_unwind(|| sh("sleep 60 & sleep 60").deadline(Duration::from_millis(100)).finish());
        let message = *pipes.unwrap_err().downcast::<String>().unwrap();
        // The child's copy of the output would have been open for a minute: it was killed too.
        assert!(message.contains("missed its deadline"), "{message}");
    }

    #[test]
    fn a_child_that_keeps_the_output_open_is_reported() {
        let left = std::panic::catch_unwind(|| sh("sleep 7 & true").finish());
        assert!(
            left.unwrap_err()
                .downcast::<String>()
                .unwrap()
                .contains("holds its output open")
        );
    }
}
