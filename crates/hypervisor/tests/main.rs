//! The drivers against recorded, hostile and real hypervisors: one program, so the crate is linked once.

mod ch_hostile;
mod ch_recordings;
mod cloud_hypervisor;
mod qemu;
