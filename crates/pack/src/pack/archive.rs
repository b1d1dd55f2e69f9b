//! Packing tar archives: one as it is, or the layers of a container image on top of each other.

use std::io::{self, Read};

use zmachine_flist::{BlockRef, Flist, RouteTable};
use zmachine_image::progress::Progress;
use zmachine_image::store::BlockStore;

use super::assemble::{Assembly, Content};
use super::pipe::{self, Pipe};
use super::{PackError, PackOptions, PackReport, Packer};
use crate::compression::Decompressed;
use crate::tar::{Archive, MemberKind};

/// Packs a tar archive from a stream, plain or compressed with gzip, zstd or xz. Nothing of it is kept on disk but blocks in the
/// store; progress is told in bytes.
///
/// # Errors
/// [`PackError::Archive`] for what the archive cannot be (nothing at all is what a program leaves that failed before a
/// pipe), and as [`super::pack`].
pub fn pack_tar(
    reader: impl Read,
    store: &dyn BlockStore,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<(Flist, PackReport), PackError> {
    progress.begin(None, "packing");
    pack_layers(store, options, progress, false, |layers| {
        let mut archive = Archive::new(Decompressed::new(reader)?);
        layers.add(&mut archive)?;
        if archive.position() == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is empty"));
        }
        // Padding behind the end is part of many archives; a writer at the other end of a pipe wants it read.
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        Ok(())
    })
}

/// Takes archives, the lowest first.
pub(crate) struct Layers<'a> {
    assembly: Assembly,
    pipe: &'a mut Pipe,
    hard_links: u64,
    lost_acls: u64,
    /// The serial number of a whole block of zeros, of which holes are made.
    zeros: Option<usize>,
}

impl Layers<'_> {
    /// Puts an archive on top of what there is.
    pub(crate) fn add<R: Read>(&mut self, archive: &mut Archive<R>) -> io::Result<()> {
        self.assembly.next_layer();
        while let Some(member) = archive.next_member()? {
            let content = match member.kind {
                MemberKind::Regular => self.content(archive, member.size)?,
                _ => Content::default(),
            };
            self.hard_links += u64::from(member.kind == MemberKind::HardLink);
            self.lost_acls += member.lost_acls;
            self.assembly.add(member, content)?;
        }
        Ok(())
    }

    fn content<R: Read>(&mut self, archive: &mut Archive<R>, size: u64) -> io::Result<Content> {
        let mut content = Content::default();
        let mut left = size;
        while left > 0 {
            let length = left.min(BlockRef::SIZE as u64);
            left -= length;
            // Holes may be far longer than the archive: a block of them is sealed once.
            let is_hole = length == BlockRef::SIZE as u64 && archive.hole() >= length;
            if let (true, Some(zeros)) = (is_hole, self.zeros) {
                archive.skip_hole(length);
                content.push(zeros);
                continue;
            }
            let mut plain = vec![0; length as usize];
            archive.read_content(&mut plain)?;
            let serial = self.pipe.push(plain);
            let serial = serial.map_err(|_| io::Error::other("the store does not take blocks"))?;
            content.push(serial);
            if is_hole {
                self.zeros = Some(serial);
            }
        }
        Ok(content)
    }
}

/// Packs what `feed` puts into the layers.
pub(crate) fn pack_layers(
    store: &dyn BlockStore,
    options: &PackOptions,
    progress: &dyn Progress,
    has_whiteouts: bool,
    feed: impl FnOnce(&mut Layers<'_>) -> io::Result<()>,
) -> Result<(Flist, PackReport), PackError> {
    let packer = Packer::new(store, &options.known, progress);
    let fed = pipe::run(&packer, options.threads, |pipe| {
        let mut layers = Layers {
            assembly: Assembly::new(has_whiteouts),
            pipe,
            hard_links: 0,
            lost_acls: 0,
            zeros: None,
        };
        feed(&mut layers).map(|()| (layers.assembly, layers.hard_links, layers.lost_acls))
    });
    let (fed, blocks) = fed.map_err(|source| PackError::Flush { source })?;
    let (assembly, hard_links, lost_acls) = fed.map_err(|source| PackError::Archive { source })?;
    let overlay_xattrs = assembly.overlay_xattrs();
    let tree = assembly.finish(&blocks).map_err(|source| PackError::Tree {
        path: "the archive".into(),
        source,
    })?;
    if !blocks.is_empty() {
        store.flush().map_err(|source| PackError::Flush { source })?;
    }
    let counts = tree.counts();
    let report = PackReport {
        files: counts.files,
        nodes: tree.len() as u64,
        bytes: counts.file_bytes,
        blocks: counts.blocks,
        hard_links,
        lost_acls,
        overlay_xattrs,
        ..packer.into_report()
    };
    let flist = Flist {
        tree,
        routes: RouteTable(options.routes.clone()),
        tags: options.tags.clone(),
    };
    Ok((flist, report))
}
