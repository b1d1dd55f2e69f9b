//! Files with holes, of which an archive has only the data: where the data belongs, in the four forms that GNU tar writes.
//!
//! ```text
//! old       a member of kind `S`: 4 pairs (offset, length) in the header, 21 in each block behind it that the one before announces
//! pax 0.0   records GNU.sparse.offset and GNU.sparse.numbytes in turn
//! pax 0.1   a record GNU.sparse.map: offset,length,offset,length...
//! pax 1.0   before the data, padded to a block: the number of pairs, then offsets and lengths, in decimal digits with a line end each
//! ```
//! Source: the manual of GNU tar 1.34, appendix E.

use std::collections::VecDeque;
use std::io;

use super::{BLOCK, broken, number};

/// The most pieces of data of one file: 16 MiB of memory.
const PIECES: usize = 1 << 20;

/// A piece of data: where it belongs, and its length.
pub(super) type Piece = (u64, u64);

/// What pax records say about the holes of the next member.
#[derive(Debug, Default)]
pub(super) struct Records {
    major: u64,
    minor: u64,
    is_sparse: bool,
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Offsets and lengths in turn.
    numbers: Vec<u64>,
}

impl Records {
    /// A record whose key is `GNU.sparse.` and this.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.is_sparse = true;
        match key {
            b"major" => self.major = decimal(value)?,
            b"minor" => self.minor = decimal(value)?,
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"offset" | b"numbytes" => self.numbers.push(decimal(value)?),
            b"map" => {
                self.numbers = value
                    .split(|byte| *byte == b',')
                    .map(decimal)
                    .collect::<io::Result<_>>()?
            }
            _ => {}
        }
        match self.numbers.len() > 2 * PIECES {
            true => Err(too_many()),
            false => Ok(()),
        }
    }

    /// Whether the next member has holes.
    pub(super) fn is_some(&self) -> bool {
        self.is_sparse
    }

    /// Whether the pieces are in front of the data.
    pub(super) fn is_in_front(&self) -> bool {
        (self.major, self.minor) == (1, 0)
    }

    /// The map that records alone make; `size` is that of the member where none is said.
    pub(super) fn into_map(self, pieces: Option<Vec<Piece>>, size: u64) -> io::Result<Map> {
        let pieces = match pieces {
            Some(pieces) => pieces,
            None => pairs(&self.numbers)?,
        };
        Map::new(pieces, self.size.unwrap_or(size))
    }
}

/// What is left to give of a file with holes.
#[derive(Debug)]
pub(super) struct Map {
    pieces: VecDeque<Piece>,
    at: u64,
    size: u64,
}

/// What comes next in a file with holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Hole(u64),
    Data(u64),
}

impl Map {
    /// Pieces must be in order, apart from each other, and within the size.
    pub(super) fn new(pieces: Vec<Piece>, size: u64) -> io::Result<Map> {
        let mut end = 0;
        for (offset, length) in &pieces {
            let next = offset
                .checked_add(*length)
                .filter(|next| *offset >= end && *next <= size);
            end = next.ok_or_else(|| broken("the map of a sparse member"))?;
        }
        Ok(Map {
            pieces: pieces.into_iter().filter(|(_, length)| *length > 0).collect(),
            at: 0,
            size,
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Where the data belong that are still to come.
    pub(super) fn pieces(&self) -> Vec<Piece> {
        self.pieces.iter().copied().collect()
    }

    /// Bytes of data in all.
    pub(super) fn data(&self) -> u64 {
        self.pieces.iter().map(|(_, length)| length).sum()
    }

    /// `None` at the end.
    pub(super) fn next(&self) -> Option<Next> {
        match self.pieces.front() {
            _ if self.at >= self.size => None,
            None => Some(Next::Hole(self.size - self.at)),
            Some((offset, _)) if *offset > self.at => Some(Next::Hole(offset - self.at)),
            Some((offset, length)) => Some(Next::Data(offset + length - self.at)),
        }
    }

    /// Goes on by so many bytes, no more than come next.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.at += bytes;
        if self
            .pieces
            .front()
            .is_some_and(|(offset, length)| offset + length <= self.at)
        {
            self.pieces.pop_front();
        }
    }
}

/// The pairs of a header (from byte 386) or of a block behind it (from byte 0), and whether another block follows.
pub(super) fn old_pairs(block: &[u8; BLOCK], is_header: bool, pieces: &mut Vec<Piece>) -> io::Result<bool> {
    let (start, count, more) = if is_header { (386, 4, 482) } else { (0, 21, 504) };
    for pair in block[start..start + count * 24].chunks_exact(24) {
        // The list ends early with a pair of nothing.
        if pair.iter().all(|byte| *byte == 0) {
            break;
        }
        pieces.push((number(&pair[..12])?, number(&pair[12..])?));
    }
    match pieces.len() > PIECES {
        true => Err(too_many()),
        false => Ok(block[more] != 0),
    }
}

/// Pieces in front of the data, out of `next_block`.
pub(super) fn front_pairs(mut next_block: impl FnMut() -> io::Result<[u8; BLOCK]>) -> io::Result<Vec<Piece>> {
    let (mut digits, mut numbers) = (Vec::new(), Vec::new());
    loop {
        for byte in next_block()? {
            if byte != b'\n' {
                digits.push(byte);
                if digits.len() > 20 {
                    return Err(broken("the map of a sparse member"));
                }
                continue;
            }
            numbers.push(decimal(&digits)?);
            digits.clear();
            if numbers[0] > PIECES as u64 {
                return Err(too_many());
            }
            if numbers.len() as u64 == 1 + 2 * numbers[0] {
                return pairs(&numbers[1..]);
            }
        }
    }
}

fn pairs(numbers: &[u64]) -> io::Result<Vec<Piece>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    match rest.is_empty() {
        true => Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect()),
        false => Err(broken("the map of a sparse member")),
    }
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| broken("a number of a sparse member"))
}

fn too_many() -> io::Error {
    broken("a sparse member has too many pieces")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_gives_holes_and_data_in_turn() {
        let mut map = Map::new(vec![(0, 0), (10, 5), (15, 5), (30, 0)], 30).unwrap();
        assert_eq!((map.size(), map.data()), (30, 10));
        let mut seen = Vec::new();
        while let Some(next) = map.next() {
            let (Next::Hole(bytes) | Next::Data(bytes)) = next;
            seen.push(next);
            map.advance(bytes);
        }
        assert_eq!(seen, [Next::Hole(10), Next::Data(5), Next::Data(5), Next::Hole(10)]);
        assert_eq!(Map::new(Vec::new(), 0).unwrap().next(), None);
    }

    #[test]
    fn maps_that_make_no_sense_are_refused() {
        for (pieces, size) in [
            (vec![(0, 11)], 10),
            (vec![(5, 5), (0, 5)], 10),
            (vec![(0, 6), (5, 5)], 10),
            (vec![(u64::MAX, 2)], 10),
        ] {
            assert!(Map::new(pieces, size).is_err());
        }
        let block = |text: &str| {
            let mut block = [b'0'; BLOCK];
            block[..text.len()].copy_from_slice(text.as_bytes());
            block
        };
        for text in ["x\n", "99999999999\n", "1\n5\nx\n", "-1\n"] {
            assert!(front_pairs(|| Ok(block(text))).is_err(), "{text}");
        }
        assert_eq!(front_pairs(|| Ok(block("1\n5\n7\n"))).unwrap(), [(5, 7)]);
    }
}
