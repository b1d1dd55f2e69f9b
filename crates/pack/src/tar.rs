//! Reading tar archives as a stream: the GNU and POSIX forms that tar, docker, podman and buildah write.
//!
//! Long names (GNU `L` and `K`, pax `path` and `linkpath`), large numbers, nanoseconds, extended attributes (pax `SCHILY.xattr.*`), access
//! control lists as text (`acl`) and members with holes (`sparse`) are understood. Everything is bounded: a hostile archive can take time
//! in its own length and that of its holes ([`HOLE_BYTES`]), and [`EXTENSION_BYTES`] of memory and the map of a file's holes, nothing
//! else. Names are not judged here.

mod acl;
mod sparse;

use std::io::{self, Read};

use sparse::{Map, Next};

const BLOCK: usize = 512;

/// The longest set of extensions of one member, in bytes.
const EXTENSION_BYTES: u64 = 1 << 20;

/// The most bytes of holes in one archive: what is in no archive costs memory all the same, 72 bytes for each 512 KiB.
const HOLE_BYTES: u64 = 1 << 40;

/// The most bytes between the contents of two files, when they are kept: a member that is no file may say that it has content.
const FRAME_BYTES: usize = 16 << 20;

/// The owner of files whose own the kernel cannot have, as it shows them itself.
const NOBODY: u32 = 65534;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MemberKind {
    Regular,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// A member of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: MemberKind,
    /// Target of a link.
    pub(crate) target: Vec<u8>,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) device: (u32, u32),
    /// Bytes of content.
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control lists that could not be read, or name somebody whose number the archive does not tell.
    pub(crate) lost_acls: u64,
}

/// An archive that is read from its beginning to its end.
pub(crate) struct Archive<R> {
    reader: R,
    /// Bytes of the current member that were not read yet, and its padding.
    left: u64,
    padding: u64,
    /// Bytes read so far.
    position: u64,
    /// Of a member with holes.
    map: Option<Map>,
    /// Bytes of holes that may still come.
    holes_left: u64,
    names: acl::Names,
    /// What is no content, as far as nobody has taken it.
    frame: Option<Vec<u8>>,
}

/// What extensions say about the next member.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    user: Option<Vec<u8>>,
    group: Option<Vec<u8>>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names of the attributes that lists become, and their texts.
    acls: Vec<(&'static [u8], Vec<u8>)>,
    sparse: sparse::Records,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the tar archive is broken: {what}"))
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(reader: R) -> Archive<R> {
        Archive {
            reader,
            left: 0,
            padding: 0,
            position: 0,
            map: None,
            holes_left: HOLE_BYTES,
            names: acl::Names::default(),
            frame: None,
        }
    }

    /// An archive that keeps what is no content of regular files, for [`Archive::take_frame`].
    pub(crate) fn with_frame(reader: R) -> Archive<R> {
        Archive {
            frame: Some(Vec::new()),
            ..Archive::new(reader)
        }
    }

    /// What came since the last time that is no content of regular files: headers, extensions, padding.
    pub(crate) fn take_frame(&mut self) -> Vec<u8> {
        self.frame.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Of a member with holes, where the data that the archive has belong in its content; `None` for others.
    pub(crate) fn data_pieces(&self) -> Option<Vec<(u64, u64)>> {
        self.map.as_ref().map(Map::pieces)
    }

    /// The content of the current member is somewhere else: what comes next in this archive is its padding.
    pub(crate) fn content_is_elsewhere(&mut self) {
        self.left = 0;
        self.map = None;
    }

    /// Where the archive comes from.
    pub(crate) fn reader_mut(&mut self) -> &mut R {
        &mut self.reader
    }

    fn keep_frame(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(frame) = &mut self.frame else { return Ok(()) };
        if frame.len() + bytes.len() > FRAME_BYTES {
            return Err(broken("it has too much that belongs to no file"));
        }
        frame.extend_from_slice(bytes);
        Ok(())
    }

    /// Where the content of the current member begins, in bytes from the start.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The reader behind the end of the archive, which may have more.
    pub(crate) fn into_inner(self) -> R {
        self.reader
    }

    /// The next member; `None` at the end.
    pub(crate) fn next_member(&mut self) -> io::Result<Option<Member>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            self.map = None;
            self.set_size(number(&header[124..136])?)?;
            match header[156] {
                b'L' => extensions.path = Some(self.text()?),
                b'K' => extensions.target = Some(self.text()?),
                b'x' => {
                    let records = self.extension()?;
                    extensions.read_pax(&records)?;
                }
                b'g' => {}
                _ => return self.member(&header, extensions).map(Some),
            }
        }
    }

    fn member(&mut self, header: &[u8; BLOCK], mut extensions: Extensions) -> io::Result<Member> {
        if let Some(size) = extensions.size {
            self.set_size(size)?;
        }
        let records = std::mem::take(&mut extensions.sparse);
        if let Some(name) = &records.name {
            extensions.path = Some(until_nul(name).to_vec());
        }
        let map = match header[156] {
            b'S' => Some(self.old_map(header)?),
            b'0' | 0 | b'7' if records.is_some() => Some(self.pax_map(records)?),
            _ => None,
        };
        let size = map.as_ref().map_or(self.left, Map::size);
        let mut member = member(header, &mut extensions, size)?;
        self.note_names(header, &extensions, &member);
        for (name, text) in extensions.acls {
            match acl::attribute(&text, &self.names) {
                _ if member.xattrs.iter().any(|(other, _)| other == name) => {}
                Some(value) if value.is_empty() => {}
                Some(value) => member.xattrs.push((name.to_vec(), value)),
                None => member.lost_acls += 1,
            }
        }
        member.xattrs.sort();
        if let Some(map) = &map {
            let holes = map.size() - map.data();
            self.holes_left = self
                .holes_left
                .checked_sub(holes)
                .ok_or_else(|| broken("its sparse members have more than 1 TiB of holes"))?;
            if map.data() != self.left {
                return Err(broken("the map of a sparse member is not about its data"));
            }
        }
        self.map = map;
        // Some writers give links the size of what they lead to, and no content.
        if matches!(member.kind, MemberKind::HardLink | MemberKind::Symlink) {
            (self.left, self.padding) = (0, 0);
        }
        Ok(member)
    }

    /// The map of a member of kind `S`, whose blocks are between header and data.
    fn old_map(&mut self, header: &[u8; BLOCK]) -> io::Result<Map> {
        let mut pieces = Vec::new();
        let mut has_more = sparse::old_pairs(header, true, &mut pieces)?;
        while has_more {
            let block = self.block()?;
            has_more = sparse::old_pairs(&block, false, &mut pieces)?;
        }
        Map::new(pieces, number(&header[483..495])?)
    }

    fn pax_map(&mut self, records: sparse::Records) -> io::Result<Map> {
        let mut pieces = None;
        if records.is_in_front() {
            // It counts as content.
            pieces = Some(sparse::front_pairs(|| {
                self.left = self
                    .left
                    .checked_sub(BLOCK as u64)
                    .ok_or_else(|| broken("the map of a sparse member"))?;
                self.block()
            })?);
        }
        records.into_map(pieces, self.left)
    }

    /// A block that belongs to a header.
    fn block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.reader.read_exact(&mut block).map_err(cut)?;
        self.position += BLOCK as u64;
        self.keep_frame(&block)?;
        Ok(block)
    }

    /// Keeps in mind whose names stand for which numbers, for lists that have names alone.
    fn note_names(&mut self, header: &[u8; BLOCK], extensions: &Extensions, member: &Member) {
        /// More users than that are no users.
        const MOST: usize = 10_000;
        let is_ustar = header[257..262] == *b"ustar";
        let field = |range: std::ops::Range<usize>| if is_ustar { until_nul(&header[range]) } else { b"" };
        let user = extensions.user.as_deref().unwrap_or(field(265..297));
        let group = extensions.group.as_deref().unwrap_or(field(297..329));
        for (known, name, number) in [
            (&mut self.names.users, user, member.uid),
            (&mut self.names.groups, group, member.gid),
        ] {
            if !name.is_empty() && known.len() < MOST && known.get(name) != Some(&number) {
                known.insert(name.to_vec(), number);
            }
        }
    }

    fn set_size(&mut self, size: u64) -> io::Result<()> {
        if size > i64::MAX as u64 {
            return Err(broken("a size is out of range"));
        }
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(())
    }

    /// Whether the current member has holes, so that its content is in no one piece.
    pub(crate) fn is_sparse(&self) -> bool {
        self.map.is_some()
    }

    /// Bytes of a hole at the place that [`Archive::read_content`] has come to.
    pub(crate) fn hole(&self) -> u64 {
        match self.map.as_ref().and_then(Map::next) {
            Some(Next::Hole(bytes)) => bytes,
            _ => 0,
        }
    }

    /// Goes on by so many bytes of a hole.
    pub(crate) fn skip_hole(&mut self, bytes: u64) {
        let bytes = bytes.min(self.hole());
        if let Some(map) = &mut self.map {
            map.advance(bytes);
        }
    }

    /// Reads content of the current member until `buffer` is full or the content ends; the bytes read. Holes are zeros.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = &mut buffer[filled..];
            let next = match &self.map {
                None => return Ok(filled + self.read_data(rest)?),
                Some(map) => map.next(),
            };
            let Some(Next::Hole(bytes) | Next::Data(bytes)) = next else {
                break;
            };
            let bytes = bytes.min(rest.len() as u64);
            let rest = &mut rest[..bytes as usize];
            match next {
                Some(Next::Data(_)) => {
                    self.read_data(rest)?;
                }
                _ => rest.fill(0),
            }
            if let Some(map) = &mut self.map {
                map.advance(bytes);
            }
            filled += bytes as usize;
        }
        Ok(filled)
    }

    /// Reads what the archive has of the current member.
    fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = self.left.min(buffer.len() as u64) as usize;
        self.reader.read_exact(&mut buffer[..wanted]).map_err(cut)?;
        self.left -= wanted as u64;
        self.position += wanted as u64;
        Ok(wanted)
    }

    /// Goes past what is left of the current member. The padding behind the last one may be missing, as `umoci insert`
    /// leaves it out.
    fn skip(&mut self) -> io::Result<()> {
        let wanted = self.left + self.padding;
        let skipped = match self.frame.is_some() {
            false => io::copy(&mut self.reader.by_ref().take(wanted), &mut io::sink())?,
            true => {
                let mut bytes = Vec::new();
                let most = wanted.min(FRAME_BYTES as u64 + 1);
                let read = self.reader.by_ref().take(most).read_to_end(&mut bytes)?;
                self.keep_frame(&bytes)?;
                read as u64
            }
        };
        self.position += skipped;
        let is_cut = skipped < self.left;
        (self.left, self.padding) = (0, 0);
        if is_cut {
            return Err(broken("it is cut short"));
        }
        Ok(())
    }

    /// The next header; `None` at a block of zeros or the end of the stream.
    fn header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut header = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(broken("it is cut short")),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.position += BLOCK as u64;
        self.keep_frame(&header)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // Some old programs have added the bytes as signed ones.
        let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { *byte };
        let bytes = || header.iter().enumerate().map(byte);
        let sums = [
            bytes().map(i64::from).sum(),
            bytes().map(|byte| i64::from(byte as i8)).sum(),
        ];
        let output = signed(&header[148..156]);
        if !output.is_ok_and(|output| sums.contains(&output)) {
            return Err(broken("a header has a wrong checksum"));
        }
        Ok(Some(header))
    }

    /// The whole content of an extension member.
    fn extension(&mut self) -> io::Result<Vec<u8>> {
        if self.left > EXTENSION_BYTES {
            return Err(broken("an extension is too long"));
        }
        let mut bytes = vec![0; self.left as usize];
        self.read_data(&mut bytes)?;
        self.keep_frame(&bytes)?;
        Ok(bytes)
    }

    fn text(&mut self) -> io::Result<Vec<u8>> {
        let bytes = self.extension()?;
        Ok(until_nul(&bytes).to_vec())
    }
}

fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => broken("it is cut short"),
        _ => error,
    }
}

impl Extensions {
    /// Records `LENGTH KEY=VALUE\n`, where the length counts itself and values may hold any bytes.
    fn read_pax(&mut self, mut records: &[u8]) -> io::Result<()> {
        while !records.is_empty() {
            let space = records
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or_else(|| broken("a pax record"))?;
            let length: Option<usize> = std::str::from_utf8(&records[..space])
                .ok()
                .and_then(|text| text.parse().ok());
            let length = length.filter(|length| *length > space + 1 && *length <= records.len());
            let (record, rest) = records.split_at(length.ok_or_else(|| broken("the length of a pax record"))?);
            let record = record[space + 1..]
                .strip_suffix(b"\n")
                .ok_or_else(|| broken("a pax record"))?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(|| broken("a pax record"))?;
            self.record(&record[..equals], &record[equals + 1..])?;
            records = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let text = || std::str::from_utf8(value).unwrap_or_default();
        let bad = || broken("the value of a pax record");
        // What is empty takes back what was said before, so that the header counts. An attribute may be empty.
        let some = |value: &[u8]| Some(value.to_vec()).filter(|value| !value.is_empty());
        let parsed = |parse: fn(&str) -> Option<u32>| match value {
            [] => Ok(None),
            _ => parse(text()).map(Some).ok_or_else(bad),
        };
        match key {
            b"path" => self.path = some(until_nul(value)),
            b"linkpath" => self.target = some(until_nul(value)),
            b"size" if value.is_empty() => self.size = None,
            b"size" => self.size = Some(text().parse().map_err(|_| bad())?),
            b"uid" => self.uid = parsed(owner)?,
            b"gid" => self.gid = parsed(owner)?,
            b"uname" => self.user = some(value),
            b"gname" => self.group = some(value),
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(text()).ok_or_else(bad)?),
            b"SCHILY.acl.access" => self.acl(b"system.posix_acl_access", value),
            b"SCHILY.acl.default" => self.acl(b"system.posix_acl_default", value),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(other, _)| other != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.record(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn acl(&mut self, attribute: &'static [u8], text: &[u8]) {
        self.acls.retain(|(other, _)| *other != attribute);
        if !text.is_empty() {
            self.acls.push((attribute, text.to_vec()));
        }
    }
}

/// An owner as a pax record has it.
fn owner(text: &str) -> Option<u32> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| owner_of(text.parse().unwrap_or(i64::MAX)))
}

/// Negative numbers are those that C programs print for the largest ones: -2 is 4294967294. What is no owner for Linux is nobody; -1
/// among it, which means to it that the owner stays who it is.
fn owner_of(number: i64) -> u32 {
    let wrapped = match number {
        0.. => u32::try_from(number).ok(),
        _ => i32::try_from(number).ok().map(i32::cast_unsigned),
    };
    wrapped.filter(|number| *number != u32::MAX).unwrap_or(NOBODY)
}

/// Seconds with an optional fraction.
fn time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if fraction.is_empty() {
        return Some((seconds, 0));
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if !whole.starts_with('-') || nanoseconds == 0 {
        return Some((seconds, nanoseconds));
    }
    Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds))
}

fn member(header: &[u8; BLOCK], extensions: &mut Extensions, size: u64) -> io::Result<Member> {
    let narrow = |field: &[u8]| -> io::Result<u32> {
        u32::try_from(number(field)?).map_err(|_| broken("a number of a header is out of range"))
    };
    let name = until_nul(&header[..100]);
    let is_posix = &header[257..263] == b"ustar\0";
    let prefix = if is_posix { until_nul(&header[345..500]) } else { b"" };
    let short = match prefix.is_empty() {
        true => name.to_vec(),
        false => [prefix, b"/", name].concat(),
    };
    let path = extensions.path.take().unwrap_or(short);
    let kind = match header[156] {
        // Archives older than the kinds mark directories by their name alone.
        0 | b'0' if path.ends_with(b"/") => MemberKind::Directory,
        0 | b'0' | b'7' | b'S' => MemberKind::Regular,
        b'1' => MemberKind::HardLink,
        b'2' => MemberKind::Symlink,
        b'3' => MemberKind::CharDevice,
        b'4' => MemberKind::BlockDevice,
        b'5' => MemberKind::Directory,
        b'6' => MemberKind::Fifo,
        other => return Err(broken(&format!("a member is of the unknown kind {other:#04x}"))),
    };
    let (mtime, mtime_nsec) = match extensions.mtime {
        Some(time) => time,
        None => (signed(&header[136..148])?, 0),
    };
    let device = match kind {
        MemberKind::CharDevice | MemberKind::BlockDevice => (narrow(&header[329..337])?, narrow(&header[337..345])?),
        _ => (0, 0),
    };
    let owner = |field: &[u8]| signed_or_large(field).map(owner_of);
    Ok(Member {
        path,
        kind,
        target: extensions
            .target
            .take()
            .unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
        mode: (number(&header[100..108])? & 0o7777) as u16,
        uid: extensions.uid.map_or_else(|| owner(&header[108..116]), Ok)?,
        gid: extensions.gid.map_or_else(|| owner(&header[116..124]), Ok)?,
        mtime,
        mtime_nsec,
        device,
        size,
        xattrs: std::mem::take(&mut extensions.xattrs),
        lost_acls: 0,
    })
}

/// A number of a header, or the largest there is for one that is larger.
fn signed_or_large(field: &[u8]) -> io::Result<i64> {
    let is_binary = field[0] & 0x80 != 0;
    signed(field).or_else(|error| if is_binary { Ok(i64::MAX) } else { Err(error) })
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn number(field: &[u8]) -> io::Result<u64> {
    u64::try_from(signed(field)?).map_err(|_| broken("a number of a header is negative"))
}

/// A number of a header: octal digits, or two's complement with the highest bit set.
fn signed(field: &[u8]) -> io::Result<i64> {
    if field[0] & 0x80 == 0 {
        let text = std::str::from_utf8(field).unwrap_or("x").trim_matches([' ', '\0']);
        if text.is_empty() {
            return Ok(0);
        }
        return i64::from_str_radix(text, 8).map_err(|_| broken("a number of a header"));
    }
    let first = if field[0] & 0x40 != 0 {
        i128::from(field[0] as i8)
    } else {
        i128::from(field[0] & 0x7f)
    };
    let value = field[1..]
        .iter()
        .fold(first, |value, byte| value << 8 | i128::from(*byte));
    i64::try_from(value).map_err(|_| broken("a number of a header is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_on_both_sides_of_zero() {
        for (text, expected) in [
            ("5", Some((5, 0))),
            ("5.25", Some((5, 250_000_000))),
            ("-5.25", Some((-6, 750_000_000))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("x", None),
            ("1.x", None),
        ] {
            assert_eq!(time(text), expected, "{text}");
        }
    }

    #[test]
    fn pax_values_may_hold_line_ends() {
        let mut extensions = Extensions::default();
        extensions
            .read_pax(b"30 SCHILY.xattr.user.a=one\ntwo\n9 uid=70\n")
            .unwrap_err();
        let record = b"SCHILY.xattr.user.a=one\ntwo\n";
        let mut records = format!("{} ", record.len() + 3).into_bytes();
        records.extend(record);
        let mut extensions = Extensions::default();
        extensions.read_pax(&records).unwrap();
        assert_eq!(extensions.xattrs, [(b"user.a".to_vec(), b"one\ntwo".to_vec())]);
        for bad in [&b"5 a=b\n7"[..], b"x a=b\n", b"6 a=bc", b"99 a=b\n", b"3 \n"] {
            assert!(Extensions::default().read_pax(bad).is_err());
        }
    }

    #[test]
    fn what_a_pax_record_leaves_empty_is_said_by_the_header_again() {
        let mut extensions = Extensions::default();
        extensions
            .read_pax(b"9 uid=70\n7 uid=\n10 path=a\n8 path=\n9 mtime=\n8 size=\n")
            .unwrap();
        assert_eq!(
            (extensions.uid, extensions.path, extensions.mtime, extensions.size),
            (None, None, None, None)
        );
        let mut extensions = Extensions::default();
        extensions.read_pax(b"24 SCHILY.xattr.user.a=\n").unwrap();
        assert_eq!(extensions.xattrs, [(b"user.a".to_vec(), Vec::new())]);
    }

    #[test]
    fn owners_of_any_size_are_somebody() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4294967294", Some(4_294_967_294)),
            ("-2", Some(4_294_967_294)),
            ("-1", Some(NOBODY)),
            ("4294967295", Some(NOBODY)),
            ("4294967296", Some(NOBODY)),
            ("99999999999999999999", Some(NOBODY)),
            ("x", None),
            ("-", None),
        ] {
            assert_eq!(owner(text), expected, "{text}");
        }
        assert_eq!(
            signed_or_large(b"\xff\xff\xff\xff\xff\xff\xff\xfe")
                .map(owner_of)
                .unwrap(),
            4_294_967_294
        );
        assert_eq!(
            signed_or_large(&[0x80, 1, 1, 1, 1, 1, 1, 1, 1, 1])
                .map(owner_of)
                .unwrap(),
            NOBODY
        );
    }

    /// A header for a file, with the checksum that `sum` makes of its bytes.
    fn header(name: &str, sum: fn(u8) -> i64) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[148..156].fill(b' ');
        let sum: i64 = header.iter().map(|byte| sum(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    #[test]
    fn a_checksum_may_be_of_signed_bytes() {
        for sum in [|byte| i64::from(byte), |byte| i64::from(byte as i8)] {
            let bytes = header("na\u{ef}ve", sum);
            let member = Archive::new(&bytes[..]).next_member().unwrap().unwrap();
            assert_eq!(member.path, "na\u{ef}ve".as_bytes());
        }
        assert!(
            Archive::new(&header("naive", |byte| i64::from(byte) + 1)[..])
                .next_member()
                .is_err()
        );
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"\x80\0\0\x01\0\0\0\0").unwrap(), 1 << 32);
        assert_eq!(signed(&[0xff; 12]).unwrap(), -1);
        assert!(number(&[0xff; 12]).is_err() && number(b"xyz").is_err());
    }
}
