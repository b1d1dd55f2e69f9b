//! The seed as other programs see it.

use std::process::Command;

use zmachine_disk::seed::{Seed, SeedInterface, image};

use crate::has;

fn seed() -> Seed {
    Seed {
        instance_id: "0123456789ab".into(),
        hostname: "box".into(),
        interfaces: vec![SeedInterface {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: None,
            addresses: vec!["10.1.1.3/24".into()],
            routes: vec![("0.0.0.0/0".into(), "10.1.1.1".parse().unwrap())],
            nameservers: vec![],
            search: vec![],
        }],
        mounts: vec![],
        ssh_keys: vec!["ssh-ed25519 AAAA me".into()],
        env: vec![],
        command: vec![],
        user_data: None,
    }
}

#[test]
fn other_programs_find_the_disk_whole() {
    if !has("mkfs.vfat") || !has("blkid") {
        return;
    }
    let disk = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(disk.path(), image(&seed()).unwrap()).unwrap();
    let checked = Command::new("/usr/sbin/fsck.vfat").arg("-n").arg(disk.path()).output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let mut blkid = Command::new("/usr/sbin/blkid");
    let blkid = blkid.args(["-p", "-o", "export"]).arg(disk.path()).output().unwrap();
    let reported = String::from_utf8_lossy(&blkid.stdout).into_owned();
    assert!(
        reported.contains("LABEL=cidata") && reported.contains("TYPE=vfat") && !reported.contains("PTTYPE"),
        "{reported}"
    );
}
