//! From an image to a guest root device: EROFS, lazy disk, vhost-user-blk.
