//! Images, the server in its sandbox and under a real guest: one program, so the crate is linked once.

mod guest;
mod images;
mod jail;
mod sandbox;
mod support;
