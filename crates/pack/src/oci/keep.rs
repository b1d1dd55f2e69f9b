//! From a layer's stream to blocks and a frame on this host.
//!
//! Each layer has three threads: one that downloads ahead, one that unpacks and cuts, one that hashes and writes. Memory is bounded by what
//! is between them: [`AHEAD`] chunks and [`BATCHES`] batches.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use zmachine_flist::BlockRef;
use zmachine_image::Library;
use zmachine_image::cache::{CacheError, Keeper};
use zmachine_image::library::{Layer, ResolveError};
use zmachine_image::progress::Progress;

use super::Problem;
use super::frame::FrameWriter;
use super::layer::LayerStream;
use super::manifest::Descriptor;
use super::source::Source;
use crate::tar::{Archive, MemberKind};

/// Bytes that are read at once, and how many such chunks a download is ahead.
const CHUNK: usize = 256 << 10;
const AHEAD: usize = 16;

/// Plaintexts that are hashed together: as many large blocks as gain by it.
const BATCH: usize = 4 * BlockRef::SIZE;
/// Batches between cutting and writing.
const BATCHES: usize = 2;

/// Pieces of files, one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where each piece ends.
    ends: Vec<usize>,
}

impl Batch {
    fn filled(&self) -> usize {
        self.ends.last().copied().unwrap_or_default()
    }

    fn plains(&self) -> Vec<&[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.bytes[start..*end])
            .collect()
    }
}

/// What a download thread has to say.
type Chunk = io::Result<Vec<u8>>;

/// What another thread downloads.
struct Ahead {
    chunks: Receiver<Chunk>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.chunks.recv() {
                Ok(chunk) => (self.chunk, self.at) = (chunk?, 0),
                Err(_) => return Ok(0),
            }
        }
        let read = buffer.len().min(self.chunk.len() - self.at);
        buffer[..read].copy_from_slice(&self.chunk[self.at..self.at + read]);
        self.at += read;
        Ok(read)
    }
}

/// Reads a blob to its end, or until nobody wants it.
fn download(
    source: &dyn Source,
    layer: &Descriptor,
    to: &SyncSender<Chunk>,
    reported: &dyn Fn(u64),
) -> Result<(), Problem> {
    let mut blob = source.blob(layer)?;
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        // What is there is passed on, small pieces together.
        while filled < CHUNK {
            match blob.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let _ = to.send(Err(error));
                    return Ok(());
                }
            }
        }
        chunk.truncate(filled);
        reported(filled as u64);
        let is_end = filled < CHUNK;
        if filled > 0 && to.send(Ok(chunk)).is_err() || is_end {
            return Ok(());
        }
    }
}

/// Cuts the files of an archive into batches.
struct Cutter {
    batch: Batch,
    full: SyncSender<Batch>,
    spare: Receiver<Batch>,
    /// Pieces cut so far.
    serial: usize,
    /// The serial number of a whole block of zeros.
    zeros: Option<usize>,
}

impl Cutter {
    fn content<R: Read>(&mut self, archive: &mut Archive<R>, size: u64) -> io::Result<Vec<usize>> {
        let mut content = Vec::with_capacity(size.div_ceil(BlockRef::SIZE as u64).min(1 << 16) as usize);
        let mut left = size;
        while left > 0 {
            let length = left.min(BlockRef::SIZE as u64);
            left -= length;
            let is_hole = length == BlockRef::SIZE as u64 && archive.hole() >= length;
            if let (true, Some(zeros)) = (is_hole, self.zeros) {
                archive.skip_hole(length);
                content.push(zeros);
                continue;
            }
            let start = self.batch.filled();
            let end = start + length as usize;
            if self.batch.bytes.len() < end {
                self.batch.bytes.resize(end, 0);
            }
            let read = archive.read_content(&mut self.batch.bytes[start..end])?;
            if read < length as usize {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the tar archive is broken: it is cut short",
                ));
            }
            self.batch.ends.push(end);
            if is_hole {
                self.zeros = Some(self.serial);
            }
            content.push(self.serial);
            self.serial += 1;
            if self.batch.filled() + BlockRef::SIZE > BATCH || self.batch.ends.len() >= 1024 {
                self.hand_over()?;
            }
        }
        Ok(content)
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let next = self.spare.try_recv().unwrap_or_default();
        let batch = std::mem::replace(&mut self.batch, next);
        // Why nobody takes it is known by whoever should have.
        let gone = |_| io::Error::other("the blocks cannot be written");
        self.full.send(batch).map_err(gone)
    }
}

/// Hashes and writes batches until no more come; the blocks in their order.
fn write(keeper: &Keeper, full: &Receiver<Batch>, spare: &Sender<Batch>) -> Result<Vec<BlockRef>, CacheError> {
    let mut blocks = Vec::new();
    for mut batch in full {
        blocks.extend(keeper.keep(&batch.plains())?);
        batch.ends.clear();
        // Nobody may want it any more.
        let _ = spare.send(batch);
    }
    Ok(blocks)
}

/// Why a layer could not be kept.
pub(super) enum Unkept {
    Problem(Problem),
    Here(ResolveError),
}

impl From<Problem> for Unkept {
    fn from(problem: Problem) -> Unkept {
        Unkept::Problem(problem)
    }
}

impl From<io::Error> for Unkept {
    fn from(error: io::Error) -> Unkept {
        Unkept::Problem(error.into())
    }
}

impl From<ResolveError> for Unkept {
    fn from(error: ResolveError) -> Unkept {
        Unkept::Here(error)
    }
}

/// Brings a layer here, whose tar has the SHA-256 `name` (in hexadecimal digits). `reported` hears of bytes that came.
pub(super) fn keep_layer(
    library: &Library,
    source: &dyn Source,
    layer: &Descriptor,
    name: &str,
    reported: &(dyn Fn(u64) + Sync),
) -> Result<Layer, Unkept> {
    let keeper = library.cache().keeper().map_err(ResolveError::from)?;
    let new = library.new_layer()?;
    let frame = FrameWriter::new(new.frame()?);
    let (to, chunks) = sync_channel::<Chunk>(AHEAD);
    let (full, batches) = sync_channel::<Batch>(BATCHES);
    let (to_spare, spare) = channel::<Batch>();
    let (cut, downloaded, written) = std::thread::scope(|scope| {
        let downloading = scope.spawn(move || download(source, layer, &to, &|bytes| reported(bytes)));
        let writing = scope.spawn(|| {
            // Taken along, so that the other ends see it end.
            let (batches, to_spare) = (batches, to_spare);
            write(&keeper, &batches, &to_spare)
        });
        let cutter = Cutter {
            batch: Batch::default(),
            full,
            spare,
            serial: 0,
            zeros: None,
        };
        let ahead = Ahead {
            chunks,
            chunk: Vec::new(),
            at: 0,
        };
        let cut = cut(ahead, layer, name, cutter, frame);
        (
            cut,
            downloading
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    // What failed first is the reason why the others did.
    let blocks = written.map_err(ResolveError::from)?;
    downloaded?;
    let file = cut?;
    keeper.settle().map_err(ResolveError::from)?;
    Ok(new.publish(name, &file, blocks)?)
}

/// Unpacks and cuts; the file with the frame.
fn cut(
    ahead: Ahead,
    layer: &Descriptor,
    name: &str,
    mut cutter: Cutter,
    mut frame: FrameWriter,
) -> Result<std::fs::File, Problem> {
    let mut stream = LayerStream::new(Box::new(ahead), layer, &format!("sha256:{name}"))?;
    let mut archive = Archive::with_frame(&mut stream);
    while let Some(member) = archive.next_member()? {
        if member.kind == MemberKind::Regular && member.size > 0 {
            frame.bytes(&archive.take_frame())?;
            let pieces = archive.data_pieces();
            let content = cutter.content(&mut archive, member.size)?;
            frame.content(&content, pieces.as_deref())?;
        }
    }
    frame.bytes(&archive.take_frame())?;
    drop(archive);
    if !cutter.batch.ends.is_empty() {
        cutter.hand_over()?;
    }
    drop(cutter);
    // What is behind the archive is part of its digest.
    let mut rest = vec![0; CHUNK];
    loop {
        match stream.read(&mut rest)? {
            0 => break,
            read => frame.bytes(&rest[..read])?,
        }
    }
    stream.finish()?;
    Ok(frame.finish()?)
}

/// Tells both the whole and a part of it.
pub(super) fn telling<'a>(progress: &'a dyn Progress, part: usize) -> impl Fn(u64) + Sync + 'a {
    move |bytes| {
        progress.advance(bytes);
        progress.advance_part(part, bytes);
    }
}
