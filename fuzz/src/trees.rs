//! Any tree as an EROFS image, which `fsck.erofs` must accept with all its data.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufWriter;
use std::process::Command;

use arbitrary::{Result, Unstructured};
use zmachine_flist::{BlockId, BlockKey, BlockRef, Digest, Metadata, Node, NodeId, NodeKind, Tree, TreeBuilder};
use zmachine_rootfs::erofs::layout;

use crate::scratch;

/// A tree.
///
/// # Panics
/// When `fsck.erofs` is not installed, and when it refuses the image.
pub fn erofs(input: &[u8]) {
    let Some(tree) = tree(&mut Unstructured::new(input)).ok().flatten() else {
        return;
    };
    // What no image can have is refused; everything else must be right.
    let Ok(image) = layout(&tree, *b"0123456789abcdef") else {
        return;
    };
    let folder = scratch::folder();
    let path = folder.path().join("image");
    let file = File::create(&path).expect("an image");
    image.write_metadata(BufWriter::new(&file)).expect("metadata");
    assert_eq!(file.metadata().expect("length").len(), image.metadata_blocks() * 4096);
    // The data are holes: where they are is what is to be right.
    file.set_len(image.device_blocks() * 4096).expect("length");
    let checked = Command::new("fsck.erofs").arg("--extract").arg(&path).output();
    let checked = checked.expect("fsck.erofs: run scripts/setup");
    let reported = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    assert!(
        checked.status.success() && !reported.contains("<E>"),
        "fsck.erofs: {reported}"
    );
}

/// `None` when it is no tree after all.
fn tree(input: &mut Unstructured<'_>) -> Result<Option<Tree>> {
    let mut builder = TreeBuilder::new(metadata(input)?);
    let (mut directories, mut others, mut taken) = (vec![NodeId::ROOT], Vec::new(), HashSet::new());
    while !input.is_empty() && taken.len() < 3000 {
        let parent = *input.choose(&directories)?;
        let name = name(input)?;
        if !taken.insert((parent, name.clone())) {
            continue;
        }
        if !others.is_empty() && input.ratio(1, 8)? {
            let _ = builder.link(parent, name, *input.choose(&others)?);
            continue;
        }
        // A row of siblings, so that directories have more than one block.
        let siblings = if input.ratio(1, 16)? {
            input.int_in_range(1..=300)?
        } else {
            0
        };
        let node = Node {
            metadata: metadata(input)?,
            kind: kind(input)?,
        };
        for number in 0..siblings {
            let name = [&name[..name.len().min(200)], format!("~{number}").as_bytes()].concat();
            if taken.insert((parent, name.clone())) {
                let _ = builder.add(parent, name, node.clone());
            }
        }
        let is_directory = matches!(node.kind, NodeKind::Directory(_));
        if let Ok(id) = builder.add(parent, name, node) {
            if is_directory {
                directories.push(id)
            } else {
                others.push(id)
            }
        }
    }
    Ok(builder.finish().ok())
}

fn name(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = if input.ratio(1, 10)? {
        input.int_in_range(1..=255)?
    } else {
        input.int_in_range(1..=12)?
    };
    let byte: u8 = input.arbitrary()?;
    let mut name = vec![byte; length];
    let own = input.bytes(length.min(4).min(input.len()))?;
    name[..own.len()].copy_from_slice(own);
    name.iter_mut()
        .filter(|byte| matches!(byte, 0 | b'/'))
        .for_each(|byte| *byte = b'x');
    if matches!(name.as_slice(), b"." | b"..") {
        name = b"dots".to_vec();
    }
    Ok(name)
}

fn metadata(input: &mut Unstructured<'_>) -> Result<Metadata> {
    let mut xattrs = Vec::new();
    while xattrs.len() < 8 && input.ratio(1, 6)? {
        let prefix = *input.choose(&[
            "user.",
            "trusted.",
            "security.capability",
            "system.posix_acl_access",
            "",
        ])?;
        let name = [prefix.as_bytes(), &name(input)?].concat();
        let length = if input.ratio(1, 8)? {
            input.int_in_range(0..=9000)?
        } else {
            input.int_in_range(0..=40)?
        };
        xattrs.push((name, vec![input.arbitrary()?; length]));
    }
    xattrs.sort();
    xattrs.dedup_by(|a, b| a.0 == b.0);
    Ok(Metadata {
        mode: input.int_in_range(0..=0o7777)?,
        uid: input.arbitrary()?,
        gid: input.arbitrary()?,
        mtime: input.arbitrary()?,
        mtime_nsec: input.int_in_range(0..=999_999_999)?,
        ctime: 0,
        xattrs,
    })
}

fn kind(input: &mut Unstructured<'_>) -> Result<NodeKind> {
    Ok(match input.int_in_range(0..=9)? {
        0..=2 => NodeKind::Directory(Vec::new()),
        3..=5 => content(input)?,
        6 => {
            let length = if input.ratio(1, 4)? {
                input.int_in_range(1..=4095)?
            } else {
                input.int_in_range(1..=60)?
            };
            NodeKind::Symlink(vec![input.int_in_range(1..=255)?; length])
        }
        7 => NodeKind::CharDevice {
            major: input.arbitrary()?,
            minor: input.arbitrary()?,
        },
        8 => NodeKind::BlockDevice {
            major: input.arbitrary()?,
            minor: input.arbitrary()?,
        },
        _ => match input.arbitrary()? {
            true => NodeKind::Fifo,
            false => NodeKind::Socket,
        },
    })
}

/// A file whose blocks have few different contents, so that addresses are shared.
fn content(input: &mut Unstructured<'_>) -> Result<NodeKind> {
    let count = if input.ratio(1, 20)? {
        input.int_in_range(0..=300)?
    } else {
        input.int_in_range(0..=3)?
    };
    let last = if input.ratio(1, 3)? {
        BlockRef::SIZE as u32
    } else {
        input.int_in_range(1..=BlockRef::SIZE as u32)?
    };
    let mut blocks = Vec::with_capacity(count);
    for at in 0..count {
        let len = if at + 1 == count { last } else { BlockRef::SIZE as u32 };
        let seed = [&[input.int_in_range(0..=7u8)?][..], &len.to_le_bytes()].concat();
        blocks.push(BlockRef {
            id: BlockId(Digest::blake2b_32(&seed)),
            key: BlockKey(Digest::blake2b_32(&[&seed[..], b"key"].concat())),
            len,
        });
    }
    Ok(NodeKind::Regular {
        size: blocks.iter().map(|block| u64::from(block.len)).sum(),
        blocks,
    })
}
