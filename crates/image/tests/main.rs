//! Stores, the cache and images from every place: one program, so the crate is linked once.

mod fetch;
mod library;
mod shared;
mod stores;
mod support;
mod trim;
mod zdb;
