//! Volumes: disks with a life of their own, that machines use and never destroy.
//!
//! ```text
//! data/volumes/.lock                 held while a volume is made or removed
//! data/volumes/<name>/volume.json    what it is for and what it holds: written before the data it speaks of changes
//! data/volumes/<name>/data.img       the disk: a sparse raw file of the volume's size
//! data/volumes/<name>/snapshots/    what it was before: see [`snapshots`]
//! data/volumes/<name>/lock           held exclusively by the one writer, shared by readers, for as long as they run
//! ```
//!
//! # Invariants
//! * The host never mounts a volume and reads no more of it than the fields that tell one file system from another.
//! * A volume in a transitional state (`Content::Formatting`, `Content::Installing`) has no data of a user: what was
//!   interrupted is done again from the start.
//! * What a volume holds is written down before a guest can write to it, so data is never taken for an empty disk.
//!
//! | module | owns |
//! |---|---|
//! | [`record`] | `volume.json` |
//! | [`store`] | making, finding, growing, removing, locking |
//! | [`snapshots`] | the volume as it was at an instant: made, found, restored, removed |
//! | [`saved`] | volumes in snapshots of their machines |
//! | [`handed`] | volumes that a command has for the monitor that it starts |
//! | [`replacing`] | disks that replace others together |
//! | [`wanted`] | what the volumes in the spec of a machine stand for, before anything is made |
//! | [`mod@shared`] | the directories of the host among them |
//! | [`mod@format`] | the file systems that are made on a fresh volume |

pub mod format;
pub mod handed;
pub mod record;
pub mod replacing;
pub mod saved;
pub mod shared;
pub mod snapshots;
pub mod store;
pub mod wanted;

pub use record::Record;
pub use saved::Replacement;
pub use shared::shared;
pub use snapshots::{VolumeName, VolumeSnapshot};
pub use store::{Held, Volume, Volumes, check_new};
pub use wanted::check_mountable;
