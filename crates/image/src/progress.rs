//! What long operations tell about how far they are; the command line draws it.

/// Listens to a long operation. Called from any thread.
pub trait Progress: Send + Sync {
    /// A step begins: `what` in a few words, `total` in the unit of [`Progress::advance`] when it is known.
    fn begin(&self, total: Option<u64>, what: &str);
    /// `amount` more of the step is done: bytes for a download, blocks for a prefetch.
    fn advance(&self, amount: u64);
    /// Something is waited for that nobody knows the length of: `what` in a few words.
    fn waiting(&self, _what: &str) {}
    /// Something worth a line that is no error.
    fn message(&self, text: &str);
    /// A part of the step begins: a layer of an image among several that come at once. What is told of parts is told of the whole as well,
    /// so that who shows no parts needs none of this.
    fn begin_part(&self, _part: usize, _total: u64, _what: &str) {}
    /// `amount` more of a part is done.
    fn advance_part(&self, _part: usize, _amount: u64) {}
    /// A part is done; `how` in a word or two.
    fn end_part(&self, _part: usize, _how: &str) {}
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _total: Option<u64>, _what: &str) {}
    fn advance(&self, _amount: u64) {}
    fn message(&self, _text: &str) {}
}
