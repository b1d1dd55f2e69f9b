//! Prints the initramfs of a kernel's folder for an init: `initramfs KERNEL_DIR INIT`. For trying this crate out without the rest.

use std::path::Path;

use zmachine_kernel::{Kernel, KernelError};

fn main() -> Result<(), KernelError> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [kernel, init] = &args[..] else {
        eprintln!("usage: initramfs KERNEL_DIR INIT");
        std::process::exit(2);
    };
    println!(
        "{}",
        Kernel::read(Path::new(kernel))?
            .initramfs(Path::new(init), &[])?
            .display()
    );
    Ok(())
}
