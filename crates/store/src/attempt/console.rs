//! The last words of a guest's kernel, picked out of its serial console as they come.

use std::collections::VecDeque;

/// Lines that are kept, and the bytes of each.
const LINES: usize = 40;
const LINE_MAX: usize = 400;

/// What a kernel says of processes it killed for lack of memory.
const OOM: [&str; 3] = ["Out of memory: ", "oom-kill:", "Memory cgroup out of memory"];

/// The end of a serial console, in a bounded amount of memory.
#[derive(Debug, Default)]
pub struct ConsoleTail {
    partial: Vec<u8>,
    lines: VecDeque<String>,
    panic: Vec<String>,
    oom: Vec<String>,
}

impl ConsoleTail {
    /// Takes what the console said.
    pub fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let room = LINE_MAX.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.last() == Some(&b'\n') {
                self.line();
            }
        }
    }

    fn line(&mut self) {
        let bytes = std::mem::take(&mut self.partial);
        let text = String::from_utf8_lossy(&bytes);
        let line = text
            .trim_matches(|c: char| c.is_whitespace() || c.is_control())
            .to_owned();
        if line.is_empty() {
            return;
        }
        let is_panic = !self.panic.is_empty() || line.contains("Kernel panic - not syncing");
        if is_panic && self.panic.len() < LINES {
            self.panic.push(line.clone());
        }
        if OOM.iter().any(|text| line.contains(text)) && self.oom.len() < LINES {
            self.oom.push(line.clone());
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The last lines, oldest first; a line without its end too.
    pub fn lines(&self) -> Vec<String> {
        let partial = String::from_utf8_lossy(&self.partial).trim().to_owned();
        let lines = self.lines.iter().cloned();
        lines.chain((!partial.is_empty()).then_some(partial)).collect()
    }

    /// From the line that tells of a panic on; empty when there was none.
    pub fn panic(&self) -> Vec<String> {
        self.panic.clone()
    }

    /// Lines about processes that were killed for lack of memory.
    pub fn oom(&self) -> Vec<String> {
        self.oom.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_however_they_are_cut() {
        let mut tail = ConsoleTail::default();
        for n in 0..100 {
            let line = format!("line {n}\r\n");
            let (a, b) = line.as_bytes().split_at(n % line.len());
            tail.push(a);
            tail.push(b);
        }
        tail.push(&[b'x'; 10_000]);
        let lines = tail.lines();
        assert_eq!(
            (lines.len(), lines[0].as_str(), lines[39].as_str()),
            (41, "line 60", "line 99")
        );
        assert_eq!(lines[40].len(), LINE_MAX);
        assert!(tail.panic().is_empty() && tail.oom().is_empty());
    }

    #[test]
    fn panics_and_killed_processes_are_picked_out() {
        let mut tail = ConsoleTail::default();
        tail.push(b"[    1.0] Out of memory: Killed process 88 (eater) total-vm:1kB\n");
        tail.push(b"[    2.0] Kernel panic - not syncing: sysrq triggered crash\n[    2.1] CPU: 0 PID: 1\n");
        assert_eq!(tail.oom().len(), 1);
        assert_eq!(tail.panic().len(), 2);
        assert!(tail.panic()[0].ends_with("sysrq triggered crash"));
    }
}
