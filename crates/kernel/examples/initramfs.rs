//! Prints the initramfs of a kernel's folder for an init: `initramfs KERNEL_DIR INIT [btrfs|xfs|virtiofs|vsock]...`. For trying this crate out without the rest.

use std::path::Path;

use zmachine_kernel::{FsDriver, Kernel, KernelError};

fn main() -> Result<(), KernelError> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [kernel, init, drivers @ ..] = &args[..] else {
        eprintln!("usage: initramfs KERNEL_DIR INIT [DRIVER]...");
        std::process::exit(2);
    };
    let driver = |name: &std::ffi::OsString| match name.to_str() {
        Some("vsock") => Some(FsDriver::Vsock),
        name => FsDriver::of(name.unwrap_or_default()),
    };
    let drivers: Vec<FsDriver> = drivers.iter().filter_map(driver).collect();
    println!(
        "{}",
        Kernel::read(Path::new(kernel))?
            .initramfs(Path::new(init), &drivers)?
            .display()
    );
    Ok(())
}
