//! Installs a kernel: `install HOME [FILE.deb | VMLINUX]`. For trying this crate out without the rest.

use zmachine_kernel::{KernelError, KernelLibrary, KernelSource};

fn main() -> Result<(), KernelError> {
    let mut args = std::env::args_os().skip(1);
    let home = args.next().unwrap_or_else(|| "zmachine-home".into());
    let source = match args.next().map(std::path::PathBuf::from) {
        None => KernelSource::Debian,
        Some(file) if file.extension().is_some_and(|e| e == "deb") => KernelSource::Deb(file),
        Some(kernel) => KernelSource::Files {
            kernel,
            modules: args.next().map(Into::into),
        },
    };
    let kernel = KernelLibrary::open(home.as_ref())?.install(&source, None, &mut |p| println!("{p:?}"))?;
    println!("{}", kernel.dir.display());
    Ok(())
}
