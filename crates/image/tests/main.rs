//! Packing, stores, the cache and images from every place: one program, so the crate is linked once.

mod fetch;
mod library;
mod pack;
mod registry;
mod roundtrip;
mod servers;
mod shared;
mod stores;
mod support;
mod trim;
mod zdb;
