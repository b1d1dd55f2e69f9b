//! The first sector of a disk with a GPT, which tells older programs that all of it is in use (UEFI specification 5.2.3).
//!
//! Some disks have partitions of the old kind in it too, for those programs: such a hybrid is its owner's work and stays as it is.

/// The kind of a partition that stands for a GPT.
const PROTECTIVE: u8 = 0xee;

/// What the partition table of the old kind says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mbr {
    /// There is none, or it is empty.
    Nothing,
    /// The disk has a GPT, and nothing else is said.
    Protective {
        /// Which of the four entries says so.
        entry: usize,
        /// The last sector of the disk it was made for.
        last_lba: u64,
    },
    /// The disk has a GPT, and some of its partitions are named here too.
    Hybrid,
    /// Partitions of the old kind alone.
    Partitions,
}

/// The entries: kind, first sector, number of sectors.
pub(crate) fn entries(sector: &[u8]) -> [(u8, u64, u64); 4] {
    [0, 1, 2, 3].map(|index| {
        let entry = &sector[446 + index * 16..462 + index * 16];
        let le32 = |at: usize| {
            u64::from(u32::from_le_bytes([
                entry[at],
                entry[at + 1],
                entry[at + 2],
                entry[at + 3],
            ]))
        };
        (entry[4], le32(8), le32(12))
    })
}

impl Mbr {
    /// What the first 512 bytes of a disk say.
    pub(crate) fn of(sector: &[u8]) -> Mbr {
        if sector[510..512] != [0x55, 0xaa] {
            return Mbr::Nothing;
        }
        let entries = entries(sector);
        let used = entries.iter().filter(|(kind, ..)| *kind != 0).count();
        match entries.iter().position(|(kind, ..)| *kind == PROTECTIVE) {
            Some(entry) if used == 1 => Mbr::Protective {
                entry,
                last_lba: (entries[entry].1 + entries[entry].2).saturating_sub(1),
            },
            Some(_) => Mbr::Hybrid,
            None if used > 0 => Mbr::Partitions,
            None => Mbr::Nothing,
        }
    }
}

/// Lets the first sector say that the disk of so many sectors has a GPT. What programs have put before the table stays, and so do
/// partitions of the old kind. Whether something was changed.
pub(super) fn protect(sector: &mut [u8; 512], sectors: u64) -> bool {
    let before = *sector;
    let length = u32::try_from(sectors - 1).unwrap_or(u32::MAX).to_le_bytes();
    match Mbr::of(sector) {
        Mbr::Hybrid | Mbr::Partitions => {}
        Mbr::Protective { entry, .. } => sector[446 + entry * 16 + 12..446 + entry * 16 + 16].copy_from_slice(&length),
        Mbr::Nothing => {
            sector[446..510].fill(0);
            sector[446..458].copy_from_slice(&[0, 0, 2, 0, PROTECTIVE, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
            sector[458..462].copy_from_slice(&length);
            sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
    }
    *sector != before
}
