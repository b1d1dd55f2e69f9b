//! What a host says first that takes a machine over from another one.

/// The first bytes of every greeting.
const MARK: [u8; 17] = *b"zmachine takeover";

/// Bytes of a host's choice, which tell its greeting from every other.
pub type Nonce = [u8; 16];

/// Length of a greeting in bytes.
pub const LEN: usize = MARK.len() + 1 + size_of::<Nonce>();

/// One of the greetings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// Is anybody there?
    Hello(Nonce),
    /// What follows is the connection.
    Begin(Nonce),
    /// What follows is one frame, a [`crate::Thaw`], and then the connection. The answer is the greeting and one frame as well,
    /// [`crate::Reply::Thawed`] or an error. An agent takes this whose [`crate::Reply::Clock`] says so.
    Thaw(Nonce),
}

impl Greeting {
    /// Its bytes.
    pub fn to_bytes(self) -> [u8; LEN] {
        let (kind, nonce) = match self {
            Greeting::Hello(nonce) => (b'?', nonce),
            Greeting::Begin(nonce) => (b'!', nonce),
            Greeting::Thaw(nonce) => (b'>', nonce),
        };
        let mut bytes = [0; LEN];
        bytes[..MARK.len()].copy_from_slice(&MARK);
        bytes[MARK.len()] = kind;
        bytes[MARK.len() + 1..].copy_from_slice(&nonce);
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Greeting> {
        let rest = bytes.strip_prefix(&MARK)?;
        let (kind, nonce) = rest.split_first()?;
        let nonce = nonce.try_into().ok()?;
        match kind {
            b'?' => Some(Greeting::Hello(nonce)),
            b'!' => Some(Greeting::Begin(nonce)),
            b'>' => Some(Greeting::Thaw(nonce)),
            _ => None,
        }
    }
}

/// Finds greetings among other bytes.
#[derive(Debug, Default)]
pub struct Finder {
    buffer: Vec<u8>,
}

impl Finder {
    /// Takes bytes as they come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What came behind the last greeting.
    pub fn into_rest(self) -> Vec<u8> {
        self.buffer
    }

    /// The next greeting; `None` until more bytes are pushed. What is before it is dropped.
    pub fn next_greeting(&mut self) -> Option<Greeting> {
        let found = self
            .buffer
            .windows(LEN)
            .enumerate()
            .find_map(|(at, window)| Some((at, Greeting::parse(window)?)));
        match found {
            Some((at, greeting)) => {
                self.buffer.drain(..at + LEN);
                Some(greeting)
            }
            None => {
                // The beginning of one may be at the end of what came.
                let rest = self.buffer.len().saturating_sub(LEN - 1);
                self.buffer.drain(..rest);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_are_found_among_rubbish_however_it_is_cut() {
        let all = [
            Greeting::Hello([1; 16]),
            Greeting::Hello([2; 16]),
            Greeting::Begin([2; 16]),
            Greeting::Thaw([3; 16]),
        ];
        let mut bytes = b"zmachine takeover#zmachine takeov".to_vec();
        for greeting in all {
            bytes.extend(greeting.to_bytes());
            bytes.extend(b"zmachine takeover");
        }
        for step in [1, 3, LEN - 1, LEN, bytes.len()] {
            let mut finder = Finder::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(step) {
                finder.push(piece);
                found.extend(std::iter::from_fn(|| finder.next_greeting()));
            }
            assert_eq!(found, all, "step {step}");
            assert!(finder.buffer.len() < LEN);
        }
    }
}
