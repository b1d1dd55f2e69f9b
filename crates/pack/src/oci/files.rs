//! Files by their names, in a directory or in a tar archive: what both image layouts on disk are made of.
//!
//! An archive's members are found in one pass over the headers and then read where they are. One that is compressed as a whole is
//! unpacked into a file without a name first. Whatever is no regular file is refused.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use zmachine_sys::file::{NewFile, open_regular};

use super::{DOCUMENT_BYTES, Problem};
use crate::compression::Decompressed;
use crate::tar::{Archive, MemberKind};

/// Named files.
pub(super) enum Files {
    Directory(PathBuf),
    Archive(Members),
}

/// The members of an archive.
pub(super) struct Members {
    file: File,
    places: BTreeMap<String, Place>,
}

enum Place {
    At { offset: u64, size: u64 },
    Link(String),
}

/// A part of a file.
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = self.left.min(buffer.len() as u64) as usize;
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Files {
    /// Opens an archive; `temporary` is where a compressed one is unpacked.
    pub(super) fn of_archive(path: &Path, temporary: &Path) -> Result<Files, Problem> {
        let file = open_regular(path)?;
        let file = match Decompressed::new(&file)? {
            Decompressed::Plain(_) => file,
            mut compressed => {
                let unpacked = NewFile::create(temporary, 0o600).map_err(io::Error::other)?;
                io::copy(&mut compressed, &mut unpacked.file())?;
                unpacked.file().try_clone()?
            }
        };
        let places = places(&file)?;
        Ok(Files::Archive(Members { file, places }))
    }

    pub(super) fn open(&self, name: &str) -> Result<Box<dyn Read + '_>, Problem> {
        match self {
            Files::Directory(root) => Ok(Box::new(open_regular(&root.join(name))?)),
            Files::Archive(members) => {
                let (at, left) = members.find(name)?;
                let file = &members.file;
                Ok(Box::new(Part { file, at, left }))
            }
        }
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Files::Directory(root) => root.join(name).is_file(),
            Files::Archive(members) => members.find(name).is_ok(),
        }
    }

    /// Length of a member of an archive, 0 for a file.
    pub(super) fn size(&self, name: &str) -> Result<u64, Problem> {
        match self {
            Files::Directory(root) => Ok(root.join(name).metadata()?.len()),
            Files::Archive(members) => members.find(name).map(|(_, size)| size),
        }
    }

    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        self.open(name)?.take(DOCUMENT_BYTES + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > DOCUMENT_BYTES {
            true => Err(Problem::Broken(format!("its file {name} is too long"))),
            false => Ok(bytes),
        }
    }
}

impl Members {
    /// Where a member is and its length, through the links that older archives have for equal layers.
    fn find(&self, name: &str) -> Result<(u64, u64), Problem> {
        let mut at = name;
        for _ in 0..8 {
            match self.places.get(at) {
                Some(Place::At { offset, size }) => return Ok((*offset, *size)),
                Some(Place::Link(target)) => at = target,
                None => break,
            }
        }
        Err(Problem::Broken(format!("the archive has no member {name:?}")))
    }
}

fn places(file: &File) -> Result<BTreeMap<String, Place>, Problem> {
    let mut archive = Archive::new(BufReader::new(Part {
        file,
        at: 0,
        left: u64::MAX,
    }));
    let mut places = BTreeMap::new();
    while let Some(member) = archive.next_member()? {
        let name = String::from_utf8_lossy(&member.path)
            .trim_start_matches("./")
            .to_owned();
        let place = match member.kind {
            MemberKind::Regular if archive.is_sparse() => {
                return Err(Problem::Broken(format!(
                    "its member {name:?} has holes: make it without --sparse"
                )));
            }
            MemberKind::Regular => Place::At {
                offset: archive.position(),
                size: member.size,
            },
            MemberKind::Symlink => Place::Link(beside(&name, &String::from_utf8_lossy(&member.target))),
            MemberKind::HardLink => {
                let target = String::from_utf8_lossy(&member.target);
                Place::Link(target.trim_start_matches("./").to_owned())
            }
            _ => continue,
        };
        places.insert(name, place);
    }
    Ok(places)
}

/// The member that a relative link of a member leads to.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
