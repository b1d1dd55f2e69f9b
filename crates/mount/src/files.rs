//! The answers to the kernel.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use zmachine_flist::{BlockRef, Node, NodeId, NodeKind, Tree};
use zmachine_image::Fetcher;

/// Nothing ever changes.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// Unit of sizes in `statfs` and of `st_blksize`, in bytes.
const UNIT: u32 = 4096;

pub(crate) struct Files {
    tree: Arc<Tree>,
    fetcher: Fetcher,
    tell: Box<dyn Fn(&str) + Send + Sync>,
    /// For each node: the entries that lead to it, and the directory it is in (one of them).
    places: Vec<Place>,
    file_bytes: u64,
}

#[derive(Clone, Copy)]
struct Place {
    links: u32,
    parent: NodeId,
}

impl Files {
    pub(crate) fn new(tree: Arc<Tree>, fetcher: Fetcher, tell: Box<dyn Fn(&str) + Send + Sync>) -> Files {
        let empty = Place {
            links: 0,
            parent: NodeId::ROOT,
        };
        let mut places = vec![empty; tree.len()];
        for index in 0..tree.len() {
            let directory = NodeId(index as u32);
            let children = tree.children(directory);
            for (_, child) in children {
                let place = &mut places[child.0 as usize];
                place.links += 1;
                place.parent = directory;
            }
        }
        let file_bytes = tree.counts().file_bytes;
        Files {
            tree,
            fetcher,
            tell,
            places,
            file_bytes,
        }
    }

    fn node(&self, number: INodeNo) -> Result<NodeId, Errno> {
        let index = u64::from(number).checked_sub(1);
        let known = index.filter(|index| *index < self.tree.len() as u64);
        known.map(|index| NodeId(index as u32)).ok_or(Errno::ENOENT)
    }

    fn attributes(&self, id: NodeId) -> FileAttr {
        let Node { metadata, kind } = self.tree.get(id);
        let size = match kind {
            NodeKind::Regular { size, .. } => *size,
            NodeKind::Symlink(target) => target.len() as u64,
            NodeKind::Directory(entries) => entries.len() as u64,
            _ => 0,
        };
        let mtime = time(metadata.mtime, metadata.mtime_nsec);
        FileAttr {
            ino: number(id),
            size,
            blocks: size.div_ceil(512),
            atime: mtime,
            mtime,
            ctime: time(metadata.ctime, 0),
            crtime: mtime,
            kind: file_type(kind),
            perm: metadata.mode,
            nlink: self.links(id),
            uid: metadata.uid,
            gid: metadata.gid,
            rdev: device_number(kind),
            blksize: UNIT,
            flags: 0,
        }
    }

    /// As other file systems count: a directory has its entry, its `.`, and the `..` of each one below.
    fn links(&self, id: NodeId) -> u32 {
        let is_directory = |id: &NodeId| matches!(self.tree.get(*id).kind, NodeKind::Directory(_));
        if !is_directory(&id) {
            return self.places[id.0 as usize].links;
        }
        let below = self.tree.children(id).iter().filter(|(_, child)| is_directory(child));
        2 + below.count() as u32
    }

    fn content(&self, id: NodeId) -> Result<(u64, &[BlockRef]), Errno> {
        self.tree.get(id).content().ok_or(Errno::EINVAL)
    }

    fn read_at(&self, id: NodeId, offset: u64, want: usize) -> Result<Vec<u8>, Errno> {
        let (size, blocks) = self.content(id)?;
        let end = offset.saturating_add(want as u64).min(size);
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        // All blocks but the last have the same length.
        let stride = blocks.first().map_or(1, |block| u64::from(block.len).max(1));
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = at % stride;
            let block = blocks.get((at / stride) as usize).ok_or(Errno::EIO)?;
            let left = u64::from(block.len).saturating_sub(within);
            let piece = (bytes.len() - done).min(left as usize);
            if piece == 0 {
                return Err(Errno::EIO);
            }
            let fetched = self.fetcher.fetch(block).map_err(|e| self.failed(id, &e))?;
            fetched
                .read_exact_at(&mut bytes[done..done + piece], within)
                .map_err(|e| self.failed(id, &e))?;
            done += piece;
        }
        Ok(bytes)
    }

    fn failed(&self, id: NodeId, why: &dyn std::error::Error) -> Errno {
        let path = self.tree.path_of(id).unwrap_or_default();
        (self.tell)(&format!("/{}: {why}", String::from_utf8_lossy(&path)));
        Errno::EIO
    }

    /// Answers with `value` as the kernel asks for attributes: its length first.
    fn give(value: &[u8], room: u32, reply: ReplyXattr) {
        match room as usize {
            0 => reply.size(value.len() as u32),
            room if room < value.len() => reply.error(Errno::ERANGE),
            _ => reply.data(value),
        }
    }
}

fn number(id: NodeId) -> INodeNo {
    INodeNo(u64::from(id.0) + 1)
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let moved = match seconds {
        0.. => UNIX_EPOCH.checked_add(whole),
        _ => UNIX_EPOCH.checked_sub(whole),
    };
    let moved = moved.and_then(|at| at.checked_add(Duration::from_nanos(nanoseconds.into())));
    moved.unwrap_or(UNIX_EPOCH)
}

fn file_type(kind: &NodeKind) -> FileType {
    match kind {
        NodeKind::Directory(_) => FileType::Directory,
        NodeKind::Regular { .. } => FileType::RegularFile,
        NodeKind::Symlink(_) => FileType::Symlink,
        NodeKind::CharDevice { .. } => FileType::CharDevice,
        NodeKind::BlockDevice { .. } => FileType::BlockDevice,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
    }
}

/// As the kernel's `new_encode_dev`: 12 bits of major number amid 20 of minor number.
fn device_number(kind: &NodeKind) -> u32 {
    match kind {
        NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
            (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
        }
        _ => 0,
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.node(parent).map(|parent| self.tree.child(parent, name.as_bytes()));
        match found {
            Ok(Some(id)) => reply.entry(&FOREVER, &self.attributes(id), Generation(0)),
            Ok(None) => reply.error(Errno::ENOENT),
            Err(e) => reply.error(e),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino) {
            Ok(id) => reply.attr(&FOREVER, &self.attributes(id)),
            Err(e) => reply.error(e),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.node(ino).map(|id| &self.tree.get(id).kind) {
            Ok(NodeKind::Symlink(target)) => reply.data(target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(e) => reply.error(e),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.node(ino).and_then(|id| self.read_at(id, offset, size as usize)) {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(e),
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        );
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let id = match self.node(ino) {
            Ok(id) => id,
            Err(e) => return reply.error(e),
        };
        let dots = [(&b"."[..], id), (&b".."[..], self.places[id.0 as usize].parent)];
        let below = self.tree.children(id).iter().map(|(name, child)| (&name[..], *child));
        let entries = dots.into_iter().chain(below).enumerate();
        for (index, (name, child)) in entries.skip(offset as usize) {
            let kind = file_type(&self.tree.get(child).kind);
            if reply.add(number(child), index as u64 + 1, kind, OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = self.file_bytes.div_ceil(UNIT.into());
        reply.statfs(blocks, 0, 0, self.tree.len() as u64, 0, UNIT, 255, UNIT);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let xattrs = self.node(ino).map(|id| &self.tree.get(id).metadata.xattrs);
        let found = xattrs.map(|all| all.iter().find(|(known, _)| known == name.as_bytes()));
        match found {
            Ok(Some((_, value))) => Files::give(value, size, reply),
            Ok(None) => reply.error(Errno::ENODATA),
            Err(e) => reply.error(e),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.node(ino).map(|id| &self.tree.get(id).metadata.xattrs) {
            Ok(all) => {
                let mut names = Vec::new();
                for (name, _) in all {
                    names.extend_from_slice(name);
                    names.push(0);
                }
                Files::give(&names, size, reply);
            }
            Err(e) => reply.error(e),
        }
    }
}
