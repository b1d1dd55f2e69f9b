//! A layer's tar without the contents of its files, from which the layer can be put together again to the byte: its digest is part of
//! what an image is.
//!
//! ```text
//! snappy's framing format over records, each with its kind in front:
//! 1  length (4 bytes), so many bytes of the tar
//! 2  the content of a file comes here: number of runs (4), then of each the first block's serial number (4) and how many (4)
//! 3  the same of a file with holes, then number of pieces (4), and of each its offset (8) and length (8) in the content
//! 0  the end
//! ```
//! Numbers are little-endian. Serial numbers count the list of the layer's blocks.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use snap::read::FrameDecoder;
use snap::write::FrameEncoder;
use zmachine_flist::BlockRef;
use zmachine_image::BlockCache;

use crate::pack::{Assembly, Content};
use crate::tar::{Archive, MemberKind};

/// The most runs or pieces of one file; a file of 1 TiB without holes has one run.
const MOST: u32 = 1 << 20;

/// Bytes of the tar in one record.
const CHUNK: usize = 64 << 10;

fn broken(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the frame of a layer is broken: {what}"),
    )
}

/// Writes a frame.
pub(super) struct FrameWriter {
    out: FrameEncoder<BufWriter<File>>,
}

impl FrameWriter {
    pub(super) fn new(file: File) -> FrameWriter {
        FrameWriter {
            out: FrameEncoder::new(BufWriter::with_capacity(CHUNK, file)),
        }
    }

    /// Bytes that are no content.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(CHUNK) {
            self.out.write_all(&[1])?;
            self.number(chunk.len() as u32)?;
            self.out.write_all(chunk)?;
        }
        Ok(())
    }

    /// The content of a file; `pieces` are the parts of it that the tar has, when it has holes.
    pub(super) fn content(&mut self, content: &[usize], pieces: Option<&[(u64, u64)]>) -> io::Result<()> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for serial in content {
            let serial = u32::try_from(*serial).map_err(|_| broken("too many blocks"))?;
            match runs.last_mut() {
                Some((first, count)) if *first + *count == serial => *count += 1,
                _ => runs.push((serial, 1)),
            }
        }
        self.out.write_all(&[if pieces.is_some() { 3 } else { 2 }])?;
        self.number(runs.len() as u32)?;
        for (first, count) in runs {
            self.number(first)?;
            self.number(count)?;
        }
        if let Some(pieces) = pieces {
            self.number(pieces.len() as u32)?;
            for (offset, length) in pieces {
                self.out.write_all(&offset.to_le_bytes())?;
                self.out.write_all(&length.to_le_bytes())?;
            }
        }
        Ok(())
    }

    fn number(&mut self, number: u32) -> io::Result<()> {
        self.out.write_all(&number.to_le_bytes())
    }

    /// The file, with all of the frame in it.
    pub(super) fn finish(mut self) -> io::Result<File> {
        self.out.write_all(&[0])?;
        let buffer = self.out.into_inner().map_err(|e| io::Error::other(e.to_string()))?;
        buffer.into_inner().map_err(|e| e.into_error())
    }
}

/// Content of a file in a frame.
struct Placed {
    serials: Vec<usize>,
    pieces: Option<Vec<(u64, u64)>>,
}

enum Record {
    Bytes(usize),
    Content(Placed),
    End,
}

/// A frame; as a stream, what is no content. Content that nobody takes ends the stream with an error.
struct FrameReader<R> {
    inner: R,
    left: usize,
    content: Option<Placed>,
    is_over: bool,
}

impl FrameReader<FrameDecoder<BufReader<File>>> {
    fn open(file: File) -> Self {
        FrameReader {
            inner: FrameDecoder::new(BufReader::with_capacity(CHUNK, file)),
            left: 0,
            content: None,
            is_over: false,
        }
    }
}

impl<R: Read> FrameReader<R> {
    fn record(&mut self) -> io::Result<Record> {
        let [kind] = self.bytes()?;
        match kind {
            0 => Ok(Record::End),
            1 => Ok(Record::Bytes(self.number()? as usize)),
            2 | 3 => {
                let mut serials = Vec::new();
                for _ in 0..self.count()? {
                    let (first, count) = (self.number()?, self.number()?);
                    if count > MOST || serials.len() > 1 << 24 {
                        return Err(broken("a file is too long"));
                    }
                    serials
                        .extend((u64::from(first)..u64::from(first) + u64::from(count)).map(|serial| serial as usize));
                }
                let mut pieces = None;
                if kind == 3 {
                    let count = self.count()?;
                    let piece = |_| Ok((u64::from_le_bytes(self.bytes()?), u64::from_le_bytes(self.bytes()?)));
                    pieces = Some((0..count).map(piece).collect::<io::Result<_>>()?);
                }
                Ok(Record::Content(Placed { serials, pieces }))
            }
            _ => Err(broken("a record of an unknown kind")),
        }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn count(&mut self) -> io::Result<u32> {
        Some(self.number()?)
            .filter(|count| *count <= MOST)
            .ok_or_else(|| broken("a file has too many pieces"))
    }

    fn take_content(&mut self) -> io::Result<Placed> {
        if let Some(content) = self.content.take() {
            return Ok(content);
        }
        match self.record()? {
            Record::Content(content) if self.left == 0 => Ok(content),
            _ => Err(broken("the content of a file is missing")),
        }
    }
}

impl<R: Read> Read for FrameReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            if self.is_over {
                return Ok(0);
            }
            match self.record()? {
                Record::Bytes(length) => self.left = length,
                Record::End => self.is_over = true,
                Record::Content(content) => {
                    self.content = Some(content);
                    return Err(broken("a content that belongs to no file"));
                }
            }
        }
        let wanted = self.left.min(buffer.len());
        let read = self.inner.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(broken("it is cut short"));
        }
        self.left -= read;
        Ok(read)
    }
}

/// What a layer has that is counted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) hard_links: u64,
    pub(super) lost_acls: u64,
}

/// Puts a layer on top of what there is; its blocks count from `base`, and it has `blocks` of them.
pub(super) fn replay(assembly: &mut Assembly, frame: File, base: usize, blocks: usize) -> io::Result<Counts> {
    assembly.next_layer();
    let mut counts = Counts::default();
    let mut archive = Archive::new(FrameReader::open(frame));
    while let Some(member) = archive.next_member()? {
        let mut content = Content::default();
        if member.kind == MemberKind::Regular && member.size > 0 {
            archive.content_is_elsewhere();
            content = archive.reader_mut().take_content()?.serials;
            if content.iter().any(|serial| *serial >= blocks) {
                return Err(broken("a block is missing"));
            }
            content.iter_mut().for_each(|serial| *serial += base);
        }
        counts.hard_links += u64::from(member.kind == MemberKind::HardLink);
        counts.lost_acls += member.lost_acls;
        assembly.add(member, content)?;
    }
    Ok(counts)
}

/// The length of the layer's tar.
pub(super) fn tar_length(frame: File, blocks: &[BlockRef]) -> io::Result<u64> {
    let mut frame = FrameReader::open(frame);
    let mut all = 0;
    loop {
        match frame.record()? {
            Record::End => return Ok(all),
            Record::Bytes(length) => {
                io::copy(&mut (&mut frame.inner).take(length as u64), &mut io::sink())?;
                all += length as u64;
            }
            Record::Content(Placed {
                pieces: Some(pieces), ..
            }) => {
                all += pieces.iter().map(|(_, length)| length).sum::<u64>();
            }
            Record::Content(Placed { serials, .. }) => {
                for serial in serials {
                    let block = blocks.get(serial).ok_or_else(|| broken("a block is missing"))?;
                    all += u64::from(block.len);
                }
            }
        }
    }
}

/// Writes the layer's tar as it was.
pub(super) fn write_tar(frame: File, blocks: &[BlockRef], cache: &BlockCache, out: &mut dyn Write) -> io::Result<()> {
    let mut frame = FrameReader::open(frame);
    loop {
        match frame.record()? {
            Record::End => return Ok(()),
            Record::Bytes(length) => {
                let copied = io::copy(&mut (&mut frame.inner).take(length as u64), out)?;
                if copied < length as u64 {
                    return Err(broken("it is cut short"));
                }
            }
            Record::Content(content) => write_content(&content, blocks, cache, out)?,
        }
    }
}

fn write_content(content: &Placed, blocks: &[BlockRef], cache: &BlockCache, out: &mut dyn Write) -> io::Result<()> {
    let mut pieces = content.pieces.as_ref().map(|pieces| pieces.iter().copied().peekable());
    let mut start = 0;
    for serial in &content.serials {
        let block = blocks.get(*serial).ok_or_else(|| broken("a block is missing"))?;
        let end = start + u64::from(block.len);
        let file = cache.get(block).map_err(io::Error::other)?;
        let mut file = file.ok_or_else(|| io::Error::other(format!("block {} is gone from this host", block.key)))?;
        match &mut pieces {
            None => {
                io::copy(&mut file, out)?;
            }
            Some(pieces) => {
                let mut plain = Vec::with_capacity(block.len as usize);
                file.read_to_end(&mut plain)?;
                while let Some((offset, length)) = pieces.peek().copied().filter(|(offset, _)| *offset < end) {
                    let to = (offset + length).min(end);
                    let from = offset.max(start);
                    let part = plain.get((from - start) as usize..(to - start) as usize);
                    out.write_all(part.ok_or_else(|| broken("a piece of a file"))?)?;
                    if offset + length > end {
                        break;
                    }
                    pieces.next();
                }
            }
        }
        start = end;
    }
    Ok(())
}
