//! Reads into memory that is shared with a guest.
