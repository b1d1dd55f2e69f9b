//! The flist formats and the block codec.
