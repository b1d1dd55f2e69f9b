//! A file of an image, read at any place: its blocks come when they are needed.

use std::io;

use zmachine_flist::{BlockRef, Flist};

use crate::fetch::Fetcher;

/// One regular file.
pub struct FileReader {
    fetcher: Fetcher,
    blocks: Vec<BlockRef>,
    /// Where each block begins.
    starts: Vec<u64>,
    len: u64,
    /// The block that was read last.
    last: Option<(usize, Vec<u8>)>,
}

impl FileReader {
    /// The file at `path` of `flist`, links followed inside of it; `None` when there is no regular file.
    pub fn new(flist: &Flist, path: &str, fetcher: Fetcher) -> Option<FileReader> {
        let node = flist.tree.resolve(path.as_bytes()).ok()?;
        let (len, blocks) = flist.tree.get(node).content()?;
        let starts = blocks
            .iter()
            .scan(0, |next, block| {
                let start = *next;
                *next += u64::from(block.len);
                Some(start)
            })
            .collect();
        Some(FileReader {
            fetcher,
            blocks: blocks.to_vec(),
            starts,
            len,
            last: None,
        })
    }

    /// Length of the file in bytes.
    #[allow(clippy::len_without_is_empty)] // a length to compare with, not a collection
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` from `offset` on; both are inside of the file.
    ///
    /// # Errors
    /// When a block cannot be had; the reason is the error's source.
    pub fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let index = self.starts.partition_point(|start| *start <= at).checked_sub(1);
            let index = index.ok_or(io::ErrorKind::UnexpectedEof)?;
            let within = (at - self.starts[index]) as usize;
            let bytes = self.block(index)?;
            let piece = bytes.get(within..).filter(|piece| !piece.is_empty());
            let piece = piece.ok_or(io::ErrorKind::UnexpectedEof)?;
            let n = piece.len().min(buffer.len() - done);
            buffer[done..done + n].copy_from_slice(&piece[..n]);
            done += n;
        }
        Ok(())
    }

    fn block(&mut self, index: usize) -> io::Result<&[u8]> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != index) {
            let block = &self.blocks[index];
            let fetched = self.fetcher.fetch(block).map_err(io::Error::other)?;
            self.last = Some((index, fetched.into_bytes(block.len)?));
        }
        Ok(self.last.as_ref().map_or(&[], |(_, bytes)| bytes))
    }
}
