//! Volumes: disks with a life of their own, that machines use and never destroy.
//!
//! ```text
//! data/volumes/.lock                 held while a volume is made or removed
//! data/volumes/<name>/volume.json    what it is for and what it holds: written before the data it speaks of changes
//! data/volumes/<name>/data.img       the disk: a sparse raw file of the volume's size
//! data/volumes/<name>/lock           held exclusively by the one writer, shared by readers, for as long as they run
//! ```
//!
//! # Invariants
//! * The host never mounts a volume and reads no more of it than the fields that tell one file system from another.
//! * A volume in a transitional state ([`Content::Formatting`], [`Content::Installing`]) has no data of a user: what was
//!   interrupted is done again from the start.
//! * What a volume holds is written down before a guest can write to it, so data is never taken for an empty disk.
//!
//! | module | owns |
//! |---|---|
//! | [`record`] | `volume.json` |
//! | [`store`] | making, finding, growing, removing, locking |
//! | [`wanted`] | what the volumes in the spec of a machine stand for, before anything is made |
//! | [`shared`] | the directories of the host among them |
//! | [`mod@format`] | the file systems that are made on a fresh volume |

pub mod format;
pub mod record;
pub mod shared;
pub mod store;
pub mod wanted;

pub use record::{Content, Fs, Record};
pub use shared::SharedDirectory;
pub use store::{DEFAULT_SIZE, Held, NewVolume, Volume, Volumes};
pub use wanted::Wanted;

use sha2::{Digest, Sha256};

use crate::failure::{Class, Failure};

/// Bytes of a virtio disk's serial number.
const SERIAL_BYTES: usize = 20;

/// Serial numbers that begin so belong to the disks of the machine itself.
const RESERVED: &str = "zm-";

/// Name of the volume that the machine `id` has for number `index` of its spec's volumes, when the user gives it none.
pub fn anonymous(id: &str, index: usize) -> String {
    format!("{id}-{index}")
}

/// The serial number by which a guest finds the volume `name` (`/sys/block/vd*/serial`): the name, or its first eleven
/// bytes and a digest when it is longer than the 20 bytes of a serial number.
pub fn serial(name: &str) -> String {
    if name.len() <= SERIAL_BYTES {
        return name.to_owned();
    }
    let digest = Sha256::digest(name.as_bytes());
    let hex: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    // Names are ASCII, so any byte is a character's end.
    format!("{}-{hex}", &name[..11])
}

/// Checks a volume's name: as a machine's, and not one of the serial numbers that a machine's own disks have.
///
/// # Errors
/// [`Class::Usage`] that says which rule is broken.
pub fn check_name(name: &str) -> Result<(), Failure> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if !first || name.len() > 63 || !name.chars().all(legal) {
        let message = format!("'{name}' can not be a volume's name");
        return Err(Failure::new(Class::Usage, message).hint(
            "use letters, digits, '_', '.' and '-', starting with a letter or digit, at most 63 characters; a directory of the host starts with '/' or './'",
        ));
    }
    if name.starts_with(RESERVED) {
        let message = format!("'{name}' can not be a volume's name: '{RESERVED}' marks a machine's own disks");
        return Err(Failure::new(Class::Usage, message).hint("choose a name that starts otherwise"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_the_name_or_a_stable_short_form_of_it() {
        assert_eq!(serial("data"), "data");
        assert_eq!(serial(&"a".repeat(20)), "a".repeat(20));
        let (one, other) = (serial("customer-database-one"), serial("customer-database-two"));
        assert_eq!(one.len(), SERIAL_BYTES);
        assert!(one.starts_with("customer-da-"));
        assert_ne!(one, other);
        assert_eq!(one, serial("customer-database-one"));
    }

    #[test]
    fn names_that_are_paths_flags_or_taken_are_refused() {
        for bad in ["", "-a", "../x", "a b", "a/b", "zm-root", &"a".repeat(64)] {
            assert_eq!(check_name(bad).unwrap_err().class, Class::Usage, "{bad}");
        }
        check_name("data-1.prod_x").unwrap();
    }
}
