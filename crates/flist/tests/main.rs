//! The formats against recorded, arbitrary and hostile files: one program, so the crate is linked once.

mod support;
mod tree_paths;
mod v1_recorded;
mod v2_hostile;
mod v2_properties;
mod v2_recorded;
