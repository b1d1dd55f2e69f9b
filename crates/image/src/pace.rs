//! A deadline for a whole transfer that follows from its size: whoever sends a byte a second holds up nobody for long.
//!
//! The time in which the sender is waited for may be the grace, and one second more for every `BYTES_PER_SECOND` that have arrived.
//! A transfer of `n` bytes so ends within `grace + n / BYTES_PER_SECOND` of waiting, and one that hardly moves within the grace. What the
//! reader does with the bytes meanwhile does not count: a slow disk is not the sender's fault. A single read must have a time limit of
//! its own.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use crate::store::Timeouts;

/// The slowest transfer that is waited for: less than any line has that people use.
const BYTES_PER_SECOND: u64 = 8 << 10;

/// Requests' time limits in a grace: as long as it takes to be sure.
const GRACE: u32 = 3;

/// How long has been waited for what.
#[derive(Debug)]
pub struct Pace {
    grace: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Nothing has been waited for yet.
    pub fn new(timeouts: Timeouts) -> Pace {
        Pace {
            grace: timeouts.request * GRACE,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Reads, and holds the time that took against what has arrived so far.
    ///
    /// # Errors
    /// Those of the reader, and [`io::ErrorKind::TimedOut`] when the transfer is too slow.
    pub fn read(&mut self, reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
        let began = Instant::now();
        let read = reader.read(buffer);
        self.waited += began.elapsed();
        let read = read?;
        self.bytes += read as u64;
        if read > 0 && self.is_over() {
            return Err(self.too_slow());
        }
        Ok(read)
    }

    /// Whether nothing more is waited for.
    pub fn is_over(&self) -> bool {
        self.waited > self.grace + Duration::from_secs(self.bytes / BYTES_PER_SECOND)
    }

    /// The error of a transfer that is.
    pub fn too_slow(&self) -> io::Error {
        let what = format!(
            "only {} bytes arrived in {} seconds",
            self.bytes,
            self.waited.as_secs_f32().ceil()
        );
        io::Error::new(io::ErrorKind::TimedOut, what)
    }
}

/// A reader with its pace.
pub struct Paced<R> {
    reader: R,
    pace: Pace,
}

impl<R: Read> Paced<R> {
    /// `reader`, of which nothing has been read yet.
    pub fn new(reader: R, timeouts: Timeouts) -> Paced<R> {
        Paced {
            reader,
            pace: Pace::new(timeouts),
        }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pace.read(&mut self.reader, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives so many bytes at a time, each time after a pause.
    struct Drip(usize, Duration);

    impl Read for Drip {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(self.1);
            let read = self.0.min(buffer.len());
            buffer[..read].fill(1);
            Ok(read)
        }
    }

    fn timeouts() -> Timeouts {
        Timeouts {
            request: Duration::from_millis(20),
            ..Timeouts::default()
        }
    }

    #[test]
    fn a_drip_ends_and_a_steady_stream_does_not() {
        let mut drip = Paced::new(Drip(1, Duration::from_millis(5)), timeouts());
        let error = io::copy(&mut drip, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("bytes arrived"), "{error}");
        // As long, and each read as late.
        let steady = Paced::new(Drip(64 << 10, Duration::from_millis(5)), timeouts());
        assert_eq!(io::copy(&mut steady.take(3 << 20), &mut io::sink()).unwrap(), 3 << 20);
    }

    #[test]
    fn what_the_reader_does_between_two_reads_is_not_the_senders_time() {
        let mut paced = Paced::new(Drip(1, Duration::ZERO), timeouts());
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(10));
            assert_eq!(paced.read(&mut [0]).unwrap(), 1);
        }
    }
}
