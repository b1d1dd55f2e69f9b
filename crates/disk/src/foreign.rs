//! Files that are a disk in a form that is not read here, or are compressed: what they are, and what to do with them.
//!
//! Sources: `block/vmdk.c`, `vdi.c`, `vpc.c` and `vhdx.c` of QEMU; the magic numbers of the compressed formats.

use std::fmt;
use std::io;

use crate::source::Source;

/// A form of a disk image, by its first bytes or its last ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// VMware's, in one file or described by a text.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Microsoft's older one; one of fixed size is a raw disk with a footer.
    Vhd,
    /// Microsoft's newer one.
    Vhdx,
    /// Compressed, by the name of the program that undoes it.
    Compressed(&'static str),
    /// QEMU's own, in the place of a raw disk.
    Qcow2,
    /// A disk of other tools of QEMU, by its name.
    Other(&'static str),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, format) = match self {
            Foreign::Compressed(program) => {
                return write!(
                    f,
                    "a compressed file: unpack it with '{program}' and give what comes out"
                );
            }
            Foreign::Vmdk => ("a VMDK disk image", "vmdk"),
            Foreign::Vdi => ("a VDI disk image", "vdi"),
            Foreign::Vhd => ("a VHD disk image", "vpc"),
            Foreign::Vhdx => ("a VHDX disk image", "vhdx"),
            Foreign::Qcow2 => ("a qcow2 disk image", "qcow2"),
            Foreign::Other(format) => ("a disk image of another kind", *format),
        };
        write!(
            f,
            "{name}: make a raw one of it with 'qemu-img convert -f {format} -O raw IN OUT'"
        )
    }
}

impl Foreign {
    /// What a file is; `None` for what may be the disk itself.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(source: &mut dyn Source) -> io::Result<Option<Foreign>> {
        let len = source.len();
        let mut head = vec![0; len.min(1024) as usize];
        source.read_at(&mut head, 0)?;
        let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
        let known: [(usize, &[u8], Foreign); 15] = [
            (0, b"KDMV", Foreign::Vmdk),
            (0, b"COWD", Foreign::Vmdk),
            (0, b"# Disk DescriptorFile", Foreign::Vmdk),
            (64, &[0x7f, 0x10, 0xda, 0xbe], Foreign::Vdi),
            (0, b"conectix", Foreign::Vhd),
            (0, b"vhdxfile", Foreign::Vhdx),
            (0, b"QFI\xfb", Foreign::Qcow2),
            (0, b"QED\0", Foreign::Other("qed")),
            (0, b"WithoutFreeSpace", Foreign::Other("parallels")),
            (0, &[0x1f, 0x8b], Foreign::Compressed("gunzip")),
            (0, b"\xfd7zXZ\0", Foreign::Compressed("unxz")),
            (0, &[0x28, 0xb5, 0x2f, 0xfd], Foreign::Compressed("unzstd")),
            (0, b"BZh", Foreign::Compressed("bunzip2")),
            (0, b"PK\x03\x04", Foreign::Compressed("unzip")),
            (0, b"7z\xbc\xaf\x27\x1c", Foreign::Compressed("7z x")),
        ];
        // A disk that firmware starts begins with a program and ends its first sector with a word of its own.
        let is_disk = has(510, &[0x55, 0xaa]);
        let found = known.iter().find(|(at, magic, _)| has(*at, magic));
        if let Some((_, _, foreign)) = found.filter(|_| !is_disk) {
            return Ok(Some(*foreign));
        }
        let mut tail = [0; 8];
        if len >= 1024 {
            source.read_at(&mut tail, len - 512)?;
        }
        Ok((tail == *b"conectix").then_some(Foreign::Vhd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(bytes: &[u8]) -> Option<String> {
        Foreign::of(&mut bytes.to_vec())
            .unwrap()
            .map(|foreign| foreign.to_string())
    }

    #[test]
    fn compressed_files_name_their_program_and_disks_are_none() {
        for (magic, program) in [
            (&b"\x1f\x8b\x08"[..], "gunzip"),
            (b"\xfd7zXZ\0", "unxz"),
            (b"\x28\xb5\x2f\xfd", "unzstd"),
            (b"BZh9", "bunzip2"),
        ] {
            assert!(reported(magic).unwrap().contains(program));
        }
        let mut disk = vec![0; 1 << 20];
        assert_eq!(reported(&disk), None);
        assert_eq!(reported(&[]), None);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[..2].copy_from_slice(&[0x1f, 0x8b]);
        assert_eq!(reported(&disk), None, "a program may begin with anything");
    }
}
