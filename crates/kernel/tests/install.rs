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

#[test]
fn a_prepared_kernel_is_copied_and_held_against_its_digests() {
    use sha2::Digest as _;
    let folder = tempfile::tempdir().unwrap();
    let hex = |bytes: &[u8]| -> String {
        sha2::Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    std::fs::create_dir(folder.path().join("modules")).unwrap();
    std::fs::write(folder.path().join("vmlinux"), "the kernel").unwrap();
    std::fs::write(folder.path().join("modules/a.ko"), "a module").unwrap();
    let description = format!(
        r#"{{"version": 1, "name": "debian-6.12.1", "release": "6.12.1-cloud-amd64", "source": "linux-image",
        "package": null, "created_unix": 1, "files": {{"vmlinux": "{}", "modules/a.ko": "{}"}},
        "modules": [{{"file": "a.ko", "needs": [], "boot": true}}]}}"#,
        hex(b"the kernel"),
        hex(b"a module")
    );
    std::fs::write(folder.path().join("kernel.json"), description).unwrap();
    let home = tempfile::tempdir().unwrap();
    let library = KernelLibrary::open(home.path()).unwrap();
    let source = KernelSource::Prepared(folder.path().to_owned());
    let kernel = library.install(&source, None, &mut |_| {}).unwrap();
    assert_eq!(
        (kernel.name(), library.default().unwrap()),
        ("debian-6.12.1", kernel.clone())
    );
    assert_eq!(std::fs::read(kernel.dir.join("modules/a.ko")).unwrap(), b"a module");
    let other = library.install(&source, Some("other"), &mut |_| {}).unwrap();
    assert_eq!((other.name(), library.get("other").unwrap()), ("other", other.clone()));
    assert!(matches!(
        library.install(&source, None, &mut |_| {}),
        Err(KernelError::Exists { .. })
    ));

    std::fs::write(folder.path().join("vmlinux"), "another one").unwrap();
    let damaged = library.install(&source, Some("third"), &mut |_| {}).unwrap_err();
    assert!(format!("{damaged:?}").contains("damaged"), "{damaged:?}");
    assert!(library.get("third").is_err());
    let path = folder.path().join("kernel.json");
    let leads_out = std::fs::read_to_string(&path)
        .unwrap()
        .replace("modules/a.ko", "modules/../../a");
    std::fs::write(path, leads_out).unwrap();
    let refused = library.install(&source, Some("third"), &mut |_| {}).unwrap_err();
    assert!(matches!(refused, KernelError::BadDescription { .. }), "{refused:?}");
}
