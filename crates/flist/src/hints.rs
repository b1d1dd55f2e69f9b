//! Which blocks an image's start needs, in the order it needs them: kept in one tag of a flist, and in files.
//!
//! ```text
//! # comments and empty lines are left out
//! /usr/bin/python3.11                 all blocks of a file
//! /usr/lib/x86_64/libc.so.6 0-2       only its blocks 0, 1 and 2
//! /usr/share/data 7                   only its block 7
//! ```
//! A byte of a path that is not printable ASCII, a blank and a backslash are written `\xHH`. Files are named by path, so a
//! list goes on being of use when the tree is packed anew with some files changed. It is only advice: what a tree does not
//! have is passed over, and readers of old see a tag that they do not know.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use crate::block::BlockRef;
use crate::tree::{NodeId, Tree};

/// The tag that holds the list.
pub const TAG: &str = "zmachine.prefetch";
/// Lines of a list at most; so many blocks are two gigabytes.
pub const LINES_MAX: usize = 4096;
/// Bytes of a list at most.
const BYTES_MAX: usize = 1 << 20;

/// Some blocks of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// Absolute path in the tree.
    pub path: Vec<u8>,
    /// The first block, counted from 0.
    pub first: u32,
    /// The last one; blocks that the file does not have are passed over.
    pub last: u32,
}

/// A list of blocks, those needed first first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints(pub Vec<Hint>);

/// A list that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HintsError {
    /// One line is wrong.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It is longer than any start needs.
    #[error("the list has more than {LINES_MAX} lines or 1 MiB")]
    TooLong,
}

impl Hints {
    /// Reads a list.
    ///
    /// # Errors
    /// When it is too long or a line is not a path with blocks.
    pub fn parse(text: &str) -> Result<Hints, HintsError> {
        if text.len() > BYTES_MAX {
            return Err(HintsError::TooLong);
        }
        let mut hints = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if hints.len() == LINES_MAX {
                return Err(HintsError::TooLong);
            }
            let hint = parse_line(line);
            hints.push(hint.map_err(|what| HintsError::Line { line: number + 1, what })?);
        }
        Ok(Hints(hints))
    }

    /// The list among the tags of a flist. One that cannot be read is as good as none: it is only advice.
    pub fn from_tags(tags: &BTreeMap<String, String>) -> Hints {
        tags.get(TAG)
            .and_then(|text| Hints::parse(text).ok())
            .unwrap_or_default()
    }

    /// Puts the list among the tags; the empty one leaves no tag.
    pub fn store(&self, tags: &mut BTreeMap<String, String>) {
        match self.0.is_empty() {
            true => drop(tags.remove(TAG)),
            false => drop(tags.insert(TAG.into(), self.to_string())),
        }
    }

    /// The list that names `blocks` by the files of `tree`, in their order. Blocks that no file has are left out.
    pub fn of_blocks(tree: &Tree, blocks: &[BlockRef]) -> Hints {
        let wanted: HashSet<&BlockRef> = blocks.iter().collect();
        let mut places: HashMap<BlockRef, (Vec<u8>, u32)> = HashMap::new();
        each_file(tree, &mut |path, node| {
            let content = tree.get(node).content().map_or(&[][..], |(_, blocks)| blocks);
            for (index, block) in content.iter().enumerate().filter(|(_, block)| wanted.contains(block)) {
                let place = || (path.to_vec(), index as u32);
                places.entry(*block).or_insert_with(place);
            }
        });
        let mut hints: Vec<Hint> = Vec::new();
        for (path, index) in blocks.iter().filter_map(|block| places.get(block)) {
            let is_next = |hint: &&mut Hint| hint.path == *path && hint.last.checked_add(1) == Some(*index);
            if let Some(hint) = hints.last_mut().filter(is_next) {
                hint.last = *index;
                continue;
            }
            if hints.len() == LINES_MAX {
                break;
            }
            hints.push(Hint {
                path: path.clone(),
                first: *index,
                last: *index,
            });
        }
        Hints(hints)
    }

    /// The blocks that `tree` has of the list, each once, and how many lines name nothing in it.
    pub fn blocks_in(&self, tree: &Tree) -> (Vec<BlockRef>, usize) {
        let (mut found, mut seen, mut lost) = (Vec::new(), HashSet::new(), 0);
        for hint in &self.0 {
            let content = find(tree, &hint.path).and_then(|node| tree.get(node).content());
            let (first, last) = (hint.first as usize, hint.last as usize);
            let blocks = content.and_then(|(_, all)| all.get(first..=last.min(all.len().checked_sub(1)?)));
            let blocks = blocks.filter(|blocks| !blocks.is_empty());
            lost += usize::from(blocks.is_none());
            let new = blocks.unwrap_or_default().iter().filter(|block| seen.insert(**block));
            found.extend(new.copied());
        }
        (found, lost)
    }
}

impl std::fmt::Display for Hints {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for hint in &self.0 {
            let mut path = String::with_capacity(hint.path.len());
            for byte in &hint.path {
                match byte {
                    b'!'..=b'~' if *byte != b'\\' => path.push(char::from(*byte)),
                    _ => write!(path, "\\x{byte:02x}")?,
                }
            }
            match (hint.first, hint.last) {
                (0, u32::MAX) => writeln!(out, "{path}")?,
                (first, last) if first == last => writeln!(out, "{path} {first}")?,
                (first, last) => writeln!(out, "{path} {first}-{last}")?,
            }
        }
        Ok(())
    }
}

fn parse_line(line: &str) -> Result<Hint, &'static str> {
    let (path, blocks) = match line.split_once(char::is_whitespace) {
        Some((path, blocks)) => (path, Some(blocks.trim())),
        None => (line, None),
    };
    if !path.starts_with('/') {
        return Err("a path starts with '/'");
    }
    let number = |text: &str| text.parse::<u32>().map_err(|_| "blocks are written N or N-M");
    let (first, last) = match blocks.map(|blocks| blocks.split_once('-').ok_or(blocks)) {
        None => (0, u32::MAX),
        Some(Err(one)) => (number(one)?, number(one)?),
        Some(Ok((first, last))) => (number(first)?, number(last)?),
    };
    if first > last {
        return Err("the last block comes before the first");
    }
    Ok(Hint {
        path: unescape(path)?,
        first,
        last,
    })
}

fn unescape(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        if *byte != b'\\' {
            bytes.push(*byte);
            rest = after;
            continue;
        }
        let hex = after
            .strip_prefix(b"x")
            .and_then(|digits| std::str::from_utf8(digits.get(..2)?).ok());
        let escaped = hex.filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let escaped = escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(escaped.ok_or("a backslash is followed by xHH")?);
        rest = &after[3..];
    }
    Ok(bytes)
}

/// The node at an absolute path; links are not followed.
fn find(tree: &Tree, path: &[u8]) -> Option<NodeId> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    names.into_iter().try_fold(NodeId::ROOT, |node, name| {
        tree.get(node).entries()?;
        tree.child(node, name)
    })
}

fn each_file(tree: &Tree, visit: &mut impl FnMut(&[u8], NodeId)) {
    let mut pending = vec![(Vec::new(), NodeId::ROOT)];
    while let Some((directory, node)) = pending.pop() {
        for (name, child) in tree.children(node) {
            let path = [&directory[..], b"/", name].concat();
            match tree.get(*child).entries() {
                Some(_) => pending.push((path, *child)),
                None => visit(&path, *child),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Metadata, Node, NodeKind, TreeBuilder};

    fn block(content: &str) -> BlockRef {
        // All but the last block of a file are whole ones.
        BlockRef::seal(&content.as_bytes()[..1].repeat(BlockRef::SIZE)).0
    }

    fn tree(files: &[(&str, &[&str])]) -> Tree {
        let mut tree = TreeBuilder::new(Metadata::default());
        let directory = NodeKind::Directory(Vec::new());
        let metadata = Metadata::default;
        let bin = Node {
            metadata: metadata(),
            kind: directory,
        };
        let bin = tree.add(NodeId::ROOT, b"bin".to_vec(), bin).unwrap();
        for (name, content) in files {
            let kind = NodeKind::Regular {
                size: (content.len() * BlockRef::SIZE) as u64,
                blocks: content.iter().map(|part| block(part)).collect(),
            };
            let file = Node {
                metadata: metadata(),
                kind,
            };
            tree.add(bin, name.as_bytes().to_vec(), file).unwrap();
        }
        tree.finish().unwrap()
    }

    #[test]
    fn a_list_survives_its_text_whatever_the_names_are() {
        let hint = |path: &[u8], first, last| Hint {
            path: path.to_vec(),
            first,
            last,
        };
        let hints = Hints(vec![
            hint(b"/bin/a", 0, 3),
            hint(b"/b \\\n\xff", 2, 2),
            hint(b"/c", 0, u32::MAX),
        ]);
        let text = hints.to_string();
        assert_eq!(text, "/bin/a 0-3\n/b\\x20\\x5c\\x0a\\xff 2\n/c\n");
        assert_eq!(Hints::parse(&text).unwrap(), hints);
        let mut tags = BTreeMap::new();
        hints.store(&mut tags);
        assert_eq!(Hints::from_tags(&tags), hints);
        Hints::default().store(&mut tags);
        assert!(tags.is_empty());
    }

    #[test]
    fn a_wrong_line_is_told_by_its_number() {
        for (text, line) in [
            ("bin/a", 1),
            ("# fine\n\n/a x", 3),
            ("/a 3-1", 1),
            ("/a 1-", 1),
            ("/a\\x+1", 1),
            ("/a\\", 1),
            ("/a 1 2", 1),
            ("/a 99999999999", 1),
        ] {
            let error = Hints::parse(text).unwrap_err();
            assert!(
                matches!(error, HintsError::Line { line: at, .. } if at == line),
                "{text}: {error}"
            );
        }
        assert_eq!(Hints::parse(&"/a\n".repeat(LINES_MAX + 1)), Err(HintsError::TooLong));
        assert_eq!(Hints::from_tags(&BTreeMap::from([(TAG.into(), "x".into())])).0, []);
    }

    #[test]
    fn blocks_become_files_and_files_blocks_in_their_order() {
        let before = tree(&[("a", &["1", "2", "3"]), ("b", &["2", "4"])]);
        let blocks = ["4", "1", "2", "gone", "3"].map(block);
        let hints = Hints::of_blocks(&before, &blocks);
        assert_eq!(hints.to_string(), "/bin/b 1\n/bin/a 0-2\n");
        let (found, lost) = hints.blocks_in(&before);
        assert_eq!((found, lost), (["4", "1", "2", "3"].map(block).to_vec(), 0));
        // The same list and a tree in which one file is gone and another one shorter.
        let (found, lost) = hints.blocks_in(&tree(&[("a", &["1", "9"])]));
        assert_eq!((found, lost), (["1", "9"].map(block).to_vec(), 1));
        let odd = Hints::parse("/\n/bin\n/bin/a/x\n/bin/a 7\n").unwrap();
        assert_eq!(odd.blocks_in(&before), (vec![], 4));
    }
}
