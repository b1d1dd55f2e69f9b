//! Images that qemu-img writes.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use zmachine_disk::{Qcow2, Source};

use crate::has;

fn qemu_img(args: &[&str]) {
    let ran = Command::new("qemu-img").args(args).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

fn raw(dir: &Path) -> Vec<u8> {
    let mut image = vec![0; 3 << 20];
    image[..100].fill(1);
    (0..300_000).for_each(|n| image[1_000_000 + n] = (n * n % 251) as u8);
    std::fs::write(dir.join("raw"), &image).unwrap();
    image
}

#[test]
fn images_of_qemu_are_read_as_qemu_wrote_them() {
    if !has("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = raw(dir.path());
    let (from, to) = (dir.path().join("raw"), dir.path().join("q"));
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    for options in [
        &["-O", "qcow2"][..],
        &["-c", "-O", "qcow2"],
        &["-O", "qcow2", "-o", "compat=0.10"],
        &["-O", "qcow2", "-o", "cluster_size=4096"],
    ] {
        let args = [&["convert", "-f", "raw"], options, &[from, to]].concat();
        qemu_img(&args);
        let mut disk = Qcow2::new(File::open(to).unwrap()).unwrap();
        let mut read = vec![0; image.len()];
        disk.read_at(&mut read, 0).unwrap();
        assert!(read == image, "{options:?}");
        assert!(disk.next_data(2 << 20).unwrap().is_none(), "{options:?}");
    }
}

#[test]
fn an_image_that_leads_to_other_files_is_refused() {
    if !has("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    raw(dir.path());
    let path = dir.path().join("q");
    let backing = dir.path().join("raw");
    let args = [
        "create",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        backing.to_str().unwrap(),
        path.to_str().unwrap(),
    ];
    qemu_img(&args);
    assert!(
        Qcow2::new(File::open(&path).unwrap())
            .unwrap_err()
            .contains("backing file")
    );
    let data = format!("data_file={}", dir.path().join("d").display());
    qemu_img(&["create", "-f", "qcow2", "-o", &data, path.to_str().unwrap(), "1M"]);
    assert!(
        Qcow2::new(File::open(&path).unwrap())
            .unwrap_err()
            .contains("another file")
    );
}

#[test]
fn every_cut_of_a_header_is_refused_or_reads_without_harm() {
    if !has("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    raw(dir.path());
    let (from, to) = (dir.path().join("raw"), dir.path().join("q"));
    qemu_img(&["convert", "-O", "qcow2", from.to_str().unwrap(), to.to_str().unwrap()]);
    let whole = std::fs::read(&to).unwrap();
    for spoil in 0..112 {
        for value in [0u8, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[spoil] = value;
            std::fs::write(&to, &bytes).unwrap();
            if let Ok(mut disk) = Qcow2::new(File::open(&to).unwrap()) {
                let mut buffer = vec![0; 65536.min(disk.len() as usize)];
                let _ = disk.read_at(&mut buffer, 0);
            }
        }
    }
}
