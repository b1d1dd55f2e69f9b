//! Guest kernels as named folders: install, initramfs, build.
