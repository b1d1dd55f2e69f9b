//! What long operations tell about how far they are; the command line draws it.

/// Listens to a long operation. Called from any thread.
pub trait Progress: Send + Sync {
    /// A step begins: `what` in a few words, `total` in the unit of [`Progress::advance`] when it is known.
    fn begin(&self, total: Option<u64>, what: &str);
    /// `amount` more of the step is done: bytes for a download, blocks for a prefetch.
    fn advance(&self, amount: u64);
    /// Something worth a line that is no error.
    fn message(&self, text: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _total: Option<u64>, _what: &str) {}
    fn advance(&self, _amount: u64) {}
    fn message(&self, _text: &str) {}
}
