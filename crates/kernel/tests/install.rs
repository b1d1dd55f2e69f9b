//! Installing real kernels: from Debian's archive when it can be reached, else skipped with the reason.

use std::path::Path;

use zmachine_kernel::{Kernel, KernelError, KernelLibrary, KernelSource};

/// The kernel's package, if the host's package sources give it. One download serves all tests of this file.
fn debian_kernel(library: &KernelLibrary) -> Option<Kernel> {
    if std::env::var_os("ZMACHINE_TEST_DOWNLOAD").is_none() {
        zmachine_testkit::skip("downloads 34 MB; set ZMACHINE_TEST_DOWNLOAD=1");
        return None;
    }
    Some(
        library
            .install(&KernelSource::Debian, None, &mut |p| eprintln!("{p:?}"))
            .unwrap(),
    )
}

#[test]
fn the_debian_kernel_is_treated_and_becomes_the_default() {
    let home = tempfile::tempdir().unwrap();
    let library = KernelLibrary::open(home.path()).unwrap();
    let Some(kernel) = debian_kernel(&library) else { return };
    assert_eq!(library.default().unwrap(), kernel);
    assert!(std::fs::read(kernel.vmlinux()).unwrap().starts_with(b"\x7fELF"));
    let boot: Vec<_> = kernel.description.boot_modules().collect();
    let at = |name: &str| {
        boot.iter()
            .position(|m| *m == name)
            .unwrap_or_else(|| panic!("{name} in {boot:?}"))
    };
    assert!(at("net_failover.ko") < at("virtio_net.ko") && at("libcrc32c.ko") < at("erofs.ko"));
    for module in &kernel.description.modules {
        let bytes = std::fs::read(kernel.dir.join("modules").join(&module.file)).unwrap();
        assert!(
            bytes.starts_with(b"\x7fELF") && !bytes.ends_with(b"appended~\n"),
            "{}",
            module.file
        );
    }
    let again = library.install(&KernelSource::Debian, Some(kernel.name()), &mut |_| {});
    assert!(matches!(again, Err(KernelError::Exists { .. })), "{again:?}");
    let agent = home.path().join("agent");
    std::fs::write(&agent, "first").unwrap();
    let first = library.initramfs(&kernel, &agent, &[]).unwrap();
    assert_eq!(library.initramfs(&kernel, &agent, &[]).unwrap(), first);
    for n in 0..9 {
        std::fs::write(&agent, format!("another {n}")).unwrap();
        library.initramfs(&kernel, &agent, &[]).unwrap();
    }
    assert!(!first.exists());
    library.remove(kernel.name()).unwrap();
    assert!(matches!(library.default(), Err(KernelError::NoDefault { .. })));
}

#[test]
fn a_failed_install_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let library = KernelLibrary::open(home.path()).unwrap();
    let source = KernelSource::Deb(Path::new("/dev/null").into());
    let error = library.install(&source, Some("broken"), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("/dev/null"), "{error}");
    assert!(library.list().unwrap().is_empty());
    assert!(!library.dir().join(".new-install").exists());
}

#[test]
fn what_an_interrupted_install_left_is_swept_by_the_next() {
    let home = tempfile::tempdir().unwrap();
    let library = KernelLibrary::open(home.path()).unwrap();
    std::fs::create_dir_all(library.dir().join(".new-install/kernel/modules")).unwrap();
    let source = KernelSource::Files {
        kernel: "/dev/null".into(),
        modules: None,
    };
    library.install(&source, Some("x"), &mut |_| {}).unwrap_err();
    assert!(library.list().unwrap().is_empty());
    assert!(!library.dir().join(".new-install").exists());
}

#[test]
fn a_source_that_is_missing_is_named() {
    let home = tempfile::tempdir().unwrap();
    let library = KernelLibrary::open(home.path()).unwrap();
    let source = KernelSource::Deb("nowhere/linux.deb".into());
    let error = library.install(&source, None, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "cannot read nowhere/linux.deb");
}
