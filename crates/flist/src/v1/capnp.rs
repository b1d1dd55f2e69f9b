//! Reading Cap'n Proto messages in stream framing: multiple segments, far and double-far pointers.
//!
//! The encoding is that of <https://capnproto.org/encoding.html>. Every access is checked against the segment it is in,
//! and a message may be read through at most [`READ_FACTOR`] times its own length: pointers that overlap cannot be used to
//! read one list again and again.

use std::cell::Cell;

/// How often every word may be read on average. A tree without shared parts needs 1.
const READ_FACTOR: u64 = 4;

/// Segments of one message; the largest known directory has 191 for 5000 entries.
const SEGMENTS: usize = 1 << 16;

const WORD: usize = 8;

/// What is wrong with a message.
pub(super) type Problem = &'static str;

/// A message whose framing was checked.
pub(super) struct Message<'a> {
    segments: Vec<&'a [u8]>,
    /// Words that may still be read.
    budget: Cell<u64>,
}

/// A struct in a message. Fields beyond its sections read as zero or null: older writers did not know them.
#[derive(Clone, Copy)]
pub(super) struct Struct<'m> {
    message: &'m Message<'m>,
    segment: usize,
    /// First word.
    at: usize,
    data_words: usize,
    pointers: usize,
}

/// Where a pointer leads: the describing word, and the segment and word of the content.
struct Target {
    tag: u64,
    segment: usize,
    at: usize,
}

impl<'a> Message<'a> {
    /// Takes a whole value: the segment table, then the segments.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Message<'a>, Problem> {
        let u32_at = |at: usize| -> Result<usize, Problem> {
            let field = bytes.get(at..at + 4).ok_or("it is cut short")?;
            Ok(u32::from_le_bytes(field.try_into().unwrap_or_default()) as usize)
        };
        let count = u32_at(0)?.saturating_add(1);
        if count > SEGMENTS {
            return Err("it has too many segments");
        }
        let mut rest = bytes
            .get((4 + 4 * count).next_multiple_of(WORD)..)
            .ok_or("it is cut short")?;
        let mut segments = Vec::with_capacity(count.min(bytes.len() / 4));
        for number in 0..count {
            let length = u32_at(4 + 4 * number)?.saturating_mul(WORD);
            let (segment, behind) = rest.split_at_checked(length).ok_or("it is cut short")?;
            segments.push(segment);
            rest = behind;
        }
        let budget = Cell::new(READ_FACTOR * (bytes.len() / WORD) as u64 + 64);
        Ok(Message { segments, budget })
    }

    /// The struct that the message is.
    pub(super) fn root(&self) -> Result<Struct<'_>, Problem> {
        self.structure(0, 0)?.ok_or("it is empty")
    }

    fn word(&self, segment: usize, at: usize) -> Result<u64, Problem> {
        let word = self.slice(segment, at, 1)?;
        Ok(u64::from_le_bytes(word.try_into().unwrap_or_default()))
    }

    fn slice(&self, segment: usize, at: usize, words: usize) -> Result<&[u8], Problem> {
        let out = "a pointer leads out of it";
        let segment = self.segments.get(segment).ok_or(out)?;
        let end = at.checked_add(words).and_then(|end| end.checked_mul(WORD)).ok_or(out)?;
        segment.get(at * WORD..end).ok_or(out)
    }

    fn spend(&self, words: usize) -> Result<(), Problem> {
        let left = self.budget.get().checked_sub(words as u64 + 1);
        self.budget
            .set(left.ok_or("its pointers lead to the same words too often")?);
        Ok(())
    }

    /// Follows the pointer at a word; `None` for null.
    fn follow(&self, segment: usize, at: usize) -> Result<Option<Target>, Problem> {
        let pointer = self.word(segment, at)?;
        if pointer == 0 {
            return Ok(None);
        }
        if pointer & 3 != 2 {
            return near(pointer, segment, at).map(Some);
        }
        let (landing_segment, landing) = far(pointer);
        let word = self.word(landing_segment, landing)?;
        if pointer & 4 == 0 {
            return near(word, landing_segment, landing).map(Some);
        }
        // Double far: a far pointer to the content, then the word that describes it.
        if word & 7 != 2 {
            return Err("a far pointer has a broken landing pad");
        }
        let (segment, at) = far(word);
        let tag = self.word(landing_segment, landing + 1)?;
        Ok(Some(Target { tag, segment, at }))
    }

    fn structure(&self, segment: usize, at: usize) -> Result<Option<Struct<'_>>, Problem> {
        let Some(target) = self.follow(segment, at)? else {
            return Ok(None);
        };
        if target.tag & 3 != 0 {
            return Err("a list is where a struct should be");
        }
        let found = self.at(&target, target.at);
        let words = found.data_words + found.pointers;
        self.spend(words)?;
        self.slice(found.segment, found.at, words)?;
        Ok(Some(found))
    }

    /// The struct that a describing word says is at `at`; its range is not checked here.
    fn at(&self, target: &Target, at: usize) -> Struct<'_> {
        Struct {
            message: self,
            segment: target.segment,
            at,
            data_words: (target.tag >> 32) as u16 as usize,
            pointers: (target.tag >> 48) as usize,
        }
    }

    fn structs(&self, segment: usize, at: usize) -> Result<Vec<Struct<'_>>, Problem> {
        let Some(target) = self.follow(segment, at)? else {
            return Ok(Vec::new());
        };
        if target.tag & 3 != 1 || (target.tag >> 32) & 7 != 7 {
            return Err("a list of structs is encoded as something else");
        }
        let words = (target.tag >> 35) as usize;
        self.spend(words)?;
        self.slice(target.segment, target.at, words + 1)?;
        let tag = self.word(target.segment, target.at)?;
        let count = (tag as u32 >> 2) as usize;
        let element = Target { tag, ..target };
        let first = self.at(&element, target.at + 1);
        let step = first.data_words + first.pointers;
        if tag & 3 != 0 || step.checked_mul(count).is_none_or(|all| all > words) || (step == 0 && count > 0) {
            return Err("a list is longer than its words");
        }
        Ok((0..count)
            .map(|index| self.at(&element, first.at + index * step))
            .collect())
    }

    fn bytes(&self, segment: usize, at: usize) -> Result<&[u8], Problem> {
        let Some(target) = self.follow(segment, at)? else {
            return Ok(&[]);
        };
        if target.tag & 3 != 1 || (target.tag >> 32) & 7 != 2 {
            return Err("bytes are encoded as something else");
        }
        let count = (target.tag >> 35) as usize;
        self.spend(count.div_ceil(WORD))?;
        let words = self.slice(target.segment, target.at, count.div_ceil(WORD))?;
        Ok(&words[..count])
    }
}

/// Target of a struct or list pointer at a word.
fn near(pointer: u64, segment: usize, at: usize) -> Result<Target, Problem> {
    if pointer & 3 > 1 {
        return Err("a pointer is of an unknown kind");
    }
    let offset = i64::from(pointer as u32 as i32 >> 2);
    let to = at as i64 + 1 + offset;
    Ok(Target {
        tag: pointer,
        segment,
        at: usize::try_from(to).map_err(|_| "a pointer leads out of it")?,
    })
}

/// Segment and word of a far pointer.
fn far(pointer: u64) -> (usize, usize) {
    ((pointer >> 32) as usize, (pointer as u32 >> 3) as usize)
}

impl<'m> Struct<'m> {
    /// `N` bytes of the data section from byte `at`; zeros where the section is shorter.
    fn data<const N: usize>(&self, at: usize) -> [u8; N] {
        let section = self.message.slice(self.segment, self.at, self.data_words);
        let field = section.ok().and_then(|section| section.get(at..at + N));
        field.and_then(|field| field.try_into().ok()).unwrap_or([0; N])
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.data(at))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.data(at))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.data(at))
    }

    /// The word of pointer `index`; `None` when the section is shorter.
    fn pointer(&self, index: usize) -> Option<usize> {
        (index < self.pointers).then_some(self.at + self.data_words + index)
    }

    /// The struct behind pointer `index`, `None` for null.
    pub(super) fn structure(&self, index: usize) -> Result<Option<Struct<'m>>, Problem> {
        match self.pointer(index) {
            Some(at) => self.message.structure(self.segment, at),
            None => Ok(None),
        }
    }

    /// The elements of a list of structs; none for null.
    pub(super) fn structs(&self, index: usize) -> Result<Vec<Struct<'m>>, Problem> {
        match self.pointer(index) {
            Some(at) => self.message.structs(self.segment, at),
            None => Ok(Vec::new()),
        }
    }

    /// Data; empty for null.
    pub(super) fn bytes(&self, index: usize) -> Result<&'m [u8], Problem> {
        match self.pointer(index) {
            Some(at) => self.message.bytes(self.segment, at),
            None => Ok(&[]),
        }
    }

    /// Text without its final NUL; empty for null.
    pub(super) fn text(&self, index: usize) -> Result<&'m [u8], Problem> {
        let bytes = self.bytes(index)?;
        Ok(bytes.strip_suffix(&[0]).unwrap_or(bytes))
    }
}
