//! The tar around the database.
//!
//! Members are found by the last component of their name and read to a temporary file or into memory; no member is
//! ever written under a name of its own. What is not one of the two is skipped. Old or unknown kinds of members are data
//! to skip as well, so a hostile header can cost time in the length of the file, nothing else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use tempfile::NamedTempFile;

use crate::error::OpenError;

/// The longest uncompressed archive, in bytes. The database has about 150 bytes per file.
const ARCHIVE_BYTES: u64 = 2 << 30;

/// The longest `router.yaml`, in bytes.
const ROUTER_BYTES: u64 = 64 << 10;

const BLOCK: usize = 512;

/// The members that count.
pub(super) struct Members {
    /// The database, in a file that vanishes with this value.
    pub(super) database: NamedTempFile,
    pub(super) router: Option<String>,
}

/// Whether a file that begins with `head` may be of format 1: gzip data, or a tar.
pub(crate) fn looks_like(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b]) || head.get(257..262) == Some(b"ustar")
}

/// Reads the archive at `path`.
pub(super) fn members(path: &Path) -> Result<Members, OpenError> {
    let read_error = |source| OpenError::Read {
        path: path.into(),
        source,
    };
    let not_a_flist = |found: &str| OpenError::NotAFlist {
        path: path.into(),
        found: found.into(),
    };
    let open = || -> Result<File, OpenError> {
        let file = crate::file::open_regular(path).map_err(read_error)?;
        file.ok_or_else(|| not_a_flist("it is not a regular file"))
    };
    let mut file = open()?;
    let mut magic = [0; 2];
    let compressed = match file.read_exact(&mut magic) {
        Ok(()) => magic == [0x1f, 0x8b],
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(read_error(error)),
    };
    let file = open()?;
    let stream: Box<dyn Read> = match compressed {
        true => Box::new(MultiGzDecoder::new(io::BufReader::new(file))),
        false => Box::new(io::BufReader::new(file)),
    };
    let scanned = scan(&mut stream.take(ARCHIVE_BYTES));
    let (database, router) = scanned.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            not_a_flist(&format!("as an archive of format 1 it is broken ({error})"))
        }
        _ => read_error(error),
    })?;
    let database = database.ok_or_else(|| not_a_flist("the archive has no flistdb.sqlite3"))?;
    Ok(Members { database, router })
}

type Found = (Option<NamedTempFile>, Option<String>);

/// Goes over the members.
fn scan(stream: &mut io::Take<Box<dyn Read>>) -> io::Result<Found> {
    let (mut database, mut router) = (None, None);
    let mut header = [0; BLOCK];
    loop {
        if !read_header(stream, &mut header)? {
            break;
        }
        let size = number(&header[124..136]).ok_or_else(|| broken("a member has no size"))?;
        let is_file = matches!(header[156], b'0' | 0);
        let mut member = stream.take(size);
        match base_name(&header[..100]) {
            b"flistdb.sqlite3" if is_file && database.is_none() => database = Some(to_file(&mut member)?),
            b"router.yaml" if is_file && router.is_none() && size <= ROUTER_BYTES => {
                let mut text = String::new();
                member.read_to_string(&mut text)?;
                router = Some(text);
            }
            _ => {}
        }
        io::copy(&mut member, &mut io::sink())?;
        let missing = member.limit();
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        if missing > 0 || io::copy(&mut stream.take(padding), &mut io::sink())? < padding {
            return Err(broken("it is cut short, or larger than any flist"));
        }
    }
    Ok((database, router))
}

/// The next header; `false` at the end, which a block of zeros or the end of the stream is.
fn read_header(stream: &mut impl Read, header: &mut [u8; BLOCK]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < BLOCK {
        match stream.read(&mut header[filled..])? {
            0 if filled == 0 => return Ok(false),
            0 => return Err(broken("it is cut short")),
            read => filled += read,
        }
    }
    if header.iter().all(|byte| *byte == 0) {
        return Ok(false);
    }
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
        .sum();
    if number(&header[148..156]) != Some(sum) {
        return Err(broken("it is no tar archive"));
    }
    Ok(true)
}

fn to_file(member: &mut impl Read) -> io::Result<NamedTempFile> {
    let mut file = NamedTempFile::with_prefix("flist-")?;
    io::copy(member, &mut file)?;
    file.flush()?;
    Ok(file)
}

/// A number of a header: octal digits, or binary with the highest bit set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let zeros = high
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == 0 || (at == 0 && *byte == 0x80));
        return zeros.then(|| low.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
}

fn base_name(field: &[u8]) -> &[u8] {
    let name = field.split(|byte| *byte == 0).next().unwrap_or_default();
    name.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
