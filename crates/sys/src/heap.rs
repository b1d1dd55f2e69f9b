//! How much memory the allocator keeps, for processes of which there is one per machine.

/// Keeps the heap of a process with a few threads small: all threads share one arena, freed memory above 128 KiB goes
/// back to the kernel at once, and so do blocks of 64 KiB and more (each is a mapping of its own). Does nothing where the
/// C library is not glibc.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes numbers only and changes nothing but the allocator's own settings.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
    }
}

/// Gives freed memory back to the kernel. Does nothing where the C library is not glibc.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` only releases pages that no live allocation uses.
    unsafe {
        libc::malloc_trim(0);
    }
}
