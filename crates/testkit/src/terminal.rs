//! A command on a pseudo-terminal: what a user at a keyboard sees and types.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// How long an expected text may take to appear.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A running command and the terminal it believes to be on. Dropping it ends the command.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    child: Child,
    output: Receiver<Vec<u8>>,
    line: String,
    /// Everything shown so far.
    shown: Vec<u8>,
    /// How much of it [`Terminal::expect`] has passed.
    passed: usize,
}

impl Terminal {
    /// Starts `command`, whose streams are replaced, as the leader of a session with a terminal of 80 columns and 24 rows.
    pub(crate) fn start(command: &Command, line: &str) -> Terminal {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&keyboard).expect("a terminal of ours");
        unlockpt(&keyboard).expect("an unlocked terminal");
        let name = ptsname(&keyboard, Vec::new()).expect("the terminal's name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let screen = File::from(rustix::fs::open(name, flags, Mode::empty()).expect("the terminal's other side"));
        let keyboard = File::from(keyboard);
        // As a login has them: in the background of a script, ctrl-c is ignored, and so it would be here.
        let mut session = Command::new("env");
        // `setsid` does not fork here, since its process leads no group yet: the child is the command itself.
        session
            .args(["--default-signal", "setsid", "--ctty"])
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => session.env(key, value),
                None => session.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            session.current_dir(folder);
        }
        let copy = || Stdio::from(screen.try_clone().expect("a descriptor"));
        session.stdin(copy()).stdout(copy()).stderr(copy());
        set_size(&keyboard, 24, 80);
        let child = session.spawn().unwrap_or_else(|e| panic!("{line}: {e}"));
        let output = follow(keyboard.try_clone().expect("a descriptor"));
        Terminal {
            keyboard,
            child,
            output,
            line: line.to_owned(),
            shown: Vec::new(),
            passed: 0,
        }
    }

    /// Types `text`; `\r` is the enter key, `\x03` ctrl-c.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_in(&mut self, text: &str) {
        let typed = self.keyboard.write_all(text.as_bytes());
        typed.unwrap_or_else(|e| panic!("{}: {e}\n{}", self.line, self.screen()));
    }

    /// Waits until `text` is shown, after everything expected before.
    ///
    /// # Panics
    /// When it does not appear within a minute, with what is shown instead.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let found = self.shown[self.passed..]
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(at) = found {
                self.passed += at + text.len();
                return;
            }
            match self
                .output
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(chunk) => self.shown.extend(chunk),
                Err(why) => panic!("{}: no {text:?} was shown ({why}):\n{}", self.line, self.screen()),
            }
        }
    }

    /// Gives the terminal another size, as dragging a window's corner does.
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.keyboard, rows, columns);
    }

    /// Waits until the command has ended: its exit code (128 + n for signal n), and everything that was shown.
    ///
    /// # Panics
    /// When it does not end within a minute.
    #[track_caller]
    pub fn finish(mut self) -> (i32, String) {
        let deadline = Instant::now() + TIMEOUT;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                _ => panic!("{} does not end:\n{}", self.line, self.screen()),
            }
        };
        loop {
            match self.output.recv_timeout(Duration::from_secs(2)) {
                Ok(chunk) => self.shown.extend(chunk),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("{} ended, but its terminal is still in use", self.line),
            }
        }
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        (code, self.screen())
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("a size for the terminal");
}

/// What is shown, until the other side is closed by all (the kernel says EIO then).
fn follow(mut terminal: File) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = terminal.read(&mut chunk) {
            if sender.send(chunk[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::command::Invocation;

    #[test]
    fn a_command_on_a_terminal_sees_its_size_keys_and_signals() {
        let mut terminal = Invocation::new(Path::new("/bin/sh"), ["-c", "stty size; cat"]).on_terminal();
        terminal.expect("24 80");
        terminal.type_in("hello\r");
        terminal.expect("hello\r\nhello");
        terminal.type_in("\x03");
        assert_eq!(terminal.finish().0, 130);
    }
}
