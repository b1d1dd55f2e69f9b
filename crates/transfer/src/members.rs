//! The entries of a stream one by one, with their long names. However long a hostile stream says a name is, no more than a
//! name's length is kept.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use tar::{Entries, Entry, EntryType};

use crate::TransferError;

/// The longest path that Linux takes, with its final NUL.
const PATH_MAX: u64 = 4096;

/// An entry and what its names are.
pub(crate) struct Member<'a, R: Read> {
    pub(crate) entry: Entry<'a, R>,
    pub(crate) path: PathBuf,
    /// What a link leads to.
    pub(crate) target: PathBuf,
}

/// Reads entries as they are: the `tar` crate's own way to long names would read as much as the stream says.
pub(crate) struct Members<'a, R: Read> {
    entries: Entries<'a, R>,
}

impl<'a, R: Read> Members<'a, R> {
    pub(crate) fn new(archive: &'a mut tar::Archive<R>) -> Result<Members<'a, R>, TransferError> {
        let entries = archive.entries().map_err(TransferError::Stream)?.raw(true);
        Ok(Members { entries })
    }

    /// The next entry that is not only the name of one; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Member<'a, R>>, TransferError> {
        let (mut long_path, mut long_target) = (None, None);
        for entry in self.entries.by_ref() {
            let mut entry = entry.map_err(TransferError::Stream)?;
            match entry.header().entry_type() {
                EntryType::GNULongName => long_path = Some(name(&mut entry)?),
                EntryType::GNULongLink => long_target = Some(name(&mut entry)?),
                _ => {
                    let short = |bytes: Option<Cow<'_, [u8]>>| {
                        PathBuf::from(OsString::from_vec(bytes.map_or_else(Vec::new, Cow::into_owned)))
                    };
                    let path = long_path.unwrap_or_else(|| short(Some(entry.header().path_bytes())));
                    let target = long_target.unwrap_or_else(|| short(entry.header().link_name_bytes()));
                    return Ok(Some(Member { entry, path, target }));
                }
            }
        }
        Ok(None)
    }
}

fn name(entry: &mut Entry<'_, impl Read>) -> Result<PathBuf, TransferError> {
    let mut bytes = Vec::new();
    let length = entry.size();
    if length > PATH_MAX {
        let message = format!("a name of {length} bytes, where no path is longer than {PATH_MAX}");
        return Err(TransferError::Stream(io::Error::new(
            io::ErrorKind::InvalidData,
            message,
        )));
    }
    entry
        .take(PATH_MAX)
        .read_to_end(&mut bytes)
        .map_err(TransferError::Stream)?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(OsString::from_vec(bytes).into())
}
