//! Reading tar archives as a stream: the GNU and POSIX forms that tar, docker, podman and buildah write.
//!
//! Long names (GNU `L` and `K`, pax `path` and `linkpath`), large numbers, nanoseconds and extended attributes (pax
//! `SCHILY.xattr.*`) are understood; sparse members are refused. Everything is bounded: a hostile archive can take time
//! in its own length and [`EXTENSION_BYTES`] of memory, nothing else. Names are not judged here.

use std::io::{self, Read};

const BLOCK: usize = 512;

/// The longest set of extensions of one member, in bytes.
const EXTENSION_BYTES: u64 = 1 << 20;

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
}

/// An archive that is read from its beginning to its end.
pub(crate) struct Archive<R> {
    reader: R,
    /// Bytes of the current member that were not read yet, and its padding.
    left: u64,
    padding: u64,
    /// Bytes read so far.
    position: u64,
}

/// What extensions say about the next member.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
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
        }
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
            self.set_size(number(&header[124..136])?)?;
            match header[156] {
                b'L' => extensions.path = Some(self.text()?),
                b'K' => extensions.target = Some(self.text()?),
                b'x' => {
                    let records = self.extension()?;
                    extensions.read_pax(&records)?;
                }
                b'g' => {}
                _ => {
                    if let Some(size) = extensions.size {
                        self.set_size(size)?;
                    }
                    return member(&header, extensions, self.left).map(|member| {
                        if member.kind != MemberKind::Regular {
                            // Some writers give links the size of what they lead to, and no content.
                            (self.left, self.padding) = match member.kind {
                                MemberKind::HardLink | MemberKind::Symlink => (0, 0),
                                _ => (self.left, self.padding),
                            };
                        }
                        Some(member)
                    });
                }
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

    /// Reads content of the current member until `buffer` is full or the content ends; the bytes read.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
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
        let skipped = io::copy(&mut self.reader.by_ref().take(wanted), &mut io::sink())?;
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
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let byte = |(at, byte): (usize, &u8)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte });
        let sum: u64 = header.iter().enumerate().map(byte).sum();
        if number(&header[148..156]).ok() != Some(sum) {
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
        self.read_content(&mut bytes)?;
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
        match key {
            b"path" => self.path = Some(until_nul(value).to_vec()),
            b"linkpath" => self.target = Some(until_nul(value).to_vec()),
            b"size" => self.size = Some(text().parse().map_err(|_| bad())?),
            b"uid" => self.uid = Some(text().parse().map_err(|_| bad())?),
            b"gid" => self.gid = Some(text().parse().map_err(|_| bad())?),
            b"mtime" => self.mtime = Some(time(text()).ok_or_else(bad)?),
            _ if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(other, _)| other != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn sparse() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "the tar archive has sparse members: make it without --sparse",
    )
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

fn member(header: &[u8; BLOCK], extensions: Extensions, size: u64) -> io::Result<Member> {
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
    let path = extensions.path.unwrap_or(short);
    let kind = match header[156] {
        // Archives older than the kinds mark directories by their name alone.
        0 | b'0' if path.ends_with(b"/") => MemberKind::Directory,
        0 | b'0' | b'7' => MemberKind::Regular,
        b'1' => MemberKind::HardLink,
        b'2' => MemberKind::Symlink,
        b'3' => MemberKind::CharDevice,
        b'4' => MemberKind::BlockDevice,
        b'5' => MemberKind::Directory,
        b'6' => MemberKind::Fifo,
        b'S' => return Err(sparse()),
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
    let mut xattrs = extensions.xattrs;
    xattrs.sort();
    Ok(Member {
        path,
        kind,
        target: extensions
            .target
            .unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
        mode: (number(&header[100..108])? & 0o7777) as u16,
        uid: extensions.uid.map_or_else(|| narrow(&header[108..116]), Ok)?,
        gid: extensions.gid.map_or_else(|| narrow(&header[116..124]), Ok)?,
        mtime,
        mtime_nsec,
        device,
        size,
        xattrs,
    })
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
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"\x80\0\0\x01\0\0\0\0").unwrap(), 1 << 32);
        assert_eq!(signed(&[0xff; 12]).unwrap(), -1);
        assert!(number(&[0xff; 12]).is_err() && number(b"xyz").is_err());
    }
}
