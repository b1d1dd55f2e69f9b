//! Inputs of a hostile peer: recorded ones, changed at random in the ways that find most.
//!
//! Random by a seed, so that what was found once is found again. For promises that hold for any bytes.

use std::time::{Duration, Instant};

/// Makes inputs.
#[derive(Debug, Clone)]
pub struct Mutator {
    seeds: Vec<Vec<u8>>,
    state: u64,
}

/// Numbers that lengths and counters go wrong at.
const NUMBERS: [&[u8]; 6] = [
    &[0xff; 4],
    &[0, 0, 0, 0x80],
    &[0; 4],
    b"18446744073709551615",
    b"-1",
    b"4194305",
];

impl Mutator {
    /// From these inputs; `seed` decides the rest.
    ///
    /// # Panics
    /// When there are none.
    pub fn new(seeds: Vec<Vec<u8>>, seed: u64) -> Self {
        assert!(!seeds.is_empty(), "there is nothing to begin with");
        Self { seeds, state: seed | 1 }
    }

    /// How long tests try: 2 s, or the seconds in `ZMACHINE_FUZZ_SECONDS`.
    pub fn time() -> Duration {
        let asked = std::env::var("ZMACHINE_FUZZ_SECONDS").ok();
        Duration::from_secs(asked.and_then(|text| text.parse().ok()).unwrap_or(2))
    }

    /// Gives inputs to `test` for [`Mutator::time`]; how many.
    pub fn run(mut self, mut test: impl FnMut(&[u8])) -> u64 {
        let end = Instant::now() + Self::time();
        let mut count = 0;
        while Instant::now() < end {
            test(&self.input());
            count += 1;
        }
        count
    }

    /// A number below `limit`, or 0.
    pub fn below(&mut self, limit: usize) -> usize {
        // xorshift64*, by S. Vigna.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        number as usize % limit.max(1)
    }

    /// The next input.
    pub fn input(&mut self) -> Vec<u8> {
        let at = self.below(self.seeds.len());
        let mut bytes = self.seeds[at].clone();
        for _ in 0..=self.below(4) {
            self.change(&mut bytes);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let length = self.below(32).min(bytes.len() - at.min(bytes.len()));
        match self.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = self.below(256) as u8,
            2 => drop(bytes.drain(at..at + length)),
            3 => {
                let part = bytes[at..at + length].to_vec();
                bytes.splice(at..at, part.repeat(1 + self.below(8)));
            }
            4 => bytes.truncate(at),
            5 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let end = (at + number.len()).min(bytes.len());
                bytes.splice(at..end, number.iter().copied());
            }
            _ => {
                let other = self.below(self.seeds.len());
                let from = self.below(self.seeds[other].len());
                bytes.truncate(at);
                bytes.extend_from_slice(&self.seeds[other][from..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_differ_and_are_the_same_for_the_same_seed() {
        let made = |seed| {
            let mut mutator = Mutator::new(vec![b"HTTP/1.1 200 \r\n".to_vec(), vec![]], seed);
            (0..200).map(|_| mutator.input()).collect::<Vec<_>>()
        };
        assert_eq!(made(7), made(7));
        let mut all = made(7);
        all.sort();
        all.dedup();
        assert!(all.len() > 100, "{}", all.len());
    }
}
