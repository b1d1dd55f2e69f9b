//! Lines from a process that may be taken over: none takes more memory than its limit, whether it ever ends or not.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Reads lines of at most a certain length.
#[derive(Debug)]
pub struct Lines<R> {
    inner: BufReader<R>,
    line: Vec<u8>,
    limit: usize,
    /// The rest of a line that was too long is passed over.
    skips: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Lines of `inner`, each cut after `limit` bytes.
    pub fn new(inner: R, limit: usize) -> Lines<R> {
        Lines {
            inner: BufReader::new(inner),
            line: Vec::new(),
            limit,
            skips: false,
        }
    }

    /// The next line without its end; `None` at the end of the stream. What is not UTF-8 is replaced. Dropping the future
    /// loses nothing.
    ///
    /// # Errors
    /// When the stream cannot be read.
    pub async fn next_line(&mut self) -> io::Result<Option<String>> {
        loop {
            let available = self.inner.fill_buf().await?;
            if available.is_empty() {
                return Ok((!self.line.is_empty()).then(|| self.take()));
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            if !self.skips {
                let room = self.limit - self.line.len();
                self.line.extend_from_slice(&part[..part.len().min(room)]);
            }
            let is_full = !self.skips && self.line.len() == self.limit;
            let used = part.len() + usize::from(end.is_some());
            self.inner.consume(used);
            match (end, is_full) {
                // The rest of one that was given already.
                (Some(_), _) if std::mem::take(&mut self.skips) => {}
                (Some(_), _) => return Ok(Some(self.take())),
                // Given now: its end may never come.
                (None, true) => {
                    self.skips = true;
                    return Ok(Some(self.take()));
                }
                (None, false) => {}
            }
        }
    }

    fn take(&mut self) -> String {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        text.trim_end_matches('\r').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(bytes: &[u8], limit: usize) -> Vec<String> {
        let mut lines = Lines::new(bytes, limit);
        let mut all = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            assert!(lines.line.capacity() <= 2 * limit.max(8));
            all.push(line);
        }
        all
    }

    #[tokio::test]
    async fn lines_come_whole_and_long_ones_are_cut_without_taking_their_memory() {
        assert_eq!(all(b"one\ntwo\r\n\nthree", 100).await, ["one", "two", "", "three"]);
        assert_eq!(all(b"123456\nab\n", 4).await, ["1234", "ab"]);
        assert_eq!(all(b"1234\nab\n", 4).await, ["1234", "ab"]);
        let endless = vec![b'x'; 1 << 20];
        assert_eq!(all(&endless, 16).await, ["x".repeat(16)]);
        let ended = [endless, b"\nnext\n".to_vec()].concat();
        assert_eq!(all(&ended, 16).await, ["x".repeat(16), "next".to_owned()]);
    }
}
