//! Packing, unpacking and importing: one program, so the crate is linked once.

mod kept;
mod lazy;
mod oci;
mod pack;
mod registry;
mod roundtrip;
