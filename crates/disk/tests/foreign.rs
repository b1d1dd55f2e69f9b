//! Formats of disk images that are not read here, as qemu-img writes them.

use std::process::Command;

use zmachine_disk::foreign::Foreign;

use crate::has;

#[test]
fn what_qemu_img_makes_is_known_by_its_name_and_how_to_convert_it() {
    if !has("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (format, options) in [
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vdi", ""),
        ("vpc", "subformat=dynamic"),
        ("vpc", "subformat=fixed"),
        ("vhdx", ""),
        ("qcow2", ""),
    ] {
        let path = dir.path().join(format!("disk.{format}"));
        let mut make = Command::new("qemu-img");
        make.args(["create", "-q", "-f", format]);
        if !options.is_empty() {
            make.args(["-o", options]);
        }
        let made = make.arg(&path).arg("16M").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let known = Foreign::of(&mut std::fs::read(&path).unwrap()).unwrap();
        let reported = known.expect("a format that has a name").to_string();
        assert!(
            reported.contains(&format!("-f {format} ")),
            "{format} {options}: {reported}"
        );
    }
}
