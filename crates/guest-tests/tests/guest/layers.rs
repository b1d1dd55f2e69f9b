//! What a container writes goes to: a disk that gives back what is deleted, a volume that overlayfs works on, and the same
//! above an unpacked image.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use zmachine_testkit::TestHome;

use crate::shares::{home_with_virtiofsd, kill, servers};
use crate::support::{Checks, exec_output, home_with_box, phase, sh, until, zmachine};

/// What a file of the home takes on this host, in MiB.
fn taken(home: &TestHome, file: &str) -> u64 {
    let metadata = home.path().join(file).metadata();
    let blocks = metadata.unwrap_or_else(|e| panic!("{file}: {e}")).blocks();
    (blocks * 512) >> 20
}

#[test]
fn the_host_gets_back_what_a_guest_deletes_and_a_volume_bears_an_overlay() {
    let Some((home, image)) = home_with_box() else { return };
    let mut checks = Checks::default();
    let words = [
        "run",
        "-d",
        "--name",
        "m",
        "--network",
        "none",
        "-v",
        "docker:/var/lib/docker:size=256M",
        &image,
        "sleep",
        "10000",
    ];
    zmachine(&home, &words).expect_success();
    let disks = ["machines/by-name/m/root.img", "volumes/docker/data.img"];
    checks.that("the space of deleted files is the host's again", || {
        let write =
            "for d in /root /var/lib/docker; do dd if=/dev/urandom of=$d/big bs=1M count=64 2>/dev/null; done; sync";
        exec_output(&home, "m", write);
        for disk in disks {
            assert!(taken(&home, disk) >= 64, "{disk}: {}", taken(&home, disk));
        }
        exec_output(&home, "m", "rm /root/big /var/lib/docker/big; sync");
        for disk in disks {
            until(&format!("{disk} is small"), Duration::from_secs(30), || {
                (taken(&home, disk) < 24).then_some(())
            });
        }
    });
    checks.that("overlayfs works on a volume, as docker uses it", || {
        let script = "cd /var/lib/docker && mkdir l u w m && echo low > l/a && mkdir l/d && \
             mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m && mv m/a m/c && echo up > m/d/e && \
             rm m/c && mknod m/null c 1 3 && cat m/d/e && ls u && umount m";
        assert_eq!(exec_output(&home, "m", script), "up\na\nd\nnull");
    });
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
    zmachine(&home, &["volume", "rm", "docker"]).expect_success();
}

#[test]
fn an_unpacked_image_can_be_the_root() {
    let Some((home, image)) = home_with_virtiofsd() else {
        return;
    };
    let mut checks = Checks::default();
    let words = [
        "run",
        "-d",
        "--name",
        "t",
        "--network",
        "none",
        "--rootfs",
        "virtiofs",
        &image,
        "sleep",
        "10000",
    ];
    zmachine(&home, &words).expect_success();
    checks.that(
        "the image is served as a tree, and what is written is on a disk of the wanted size",
        || {
            assert_eq!(servers(&home, "t").len(), 1);
            let kib = exec_output(&home, "t", "df -k / | tail -n 1 | tr -s ' ' | cut -d' ' -f2");
            assert!((400 << 10..512 << 10).contains(&kib.parse().unwrap_or(0)), "{kib}");
            exec_output(
                &home,
                "t",
                "echo kept > /kept && mv /bin /bin2 && /bin2/busybox mv /bin2 /bin && sync",
            );
        },
    );
    checks.that("what it wrote is there after a stop and a start", || {
        zmachine(&home, &["stop", "-t", "1", "t"]).expect_success();
        zmachine(&home, &["start", "t"]).expect_success();
        assert_eq!(exec_output(&home, "t", "cat /kept"), "kept");
    });
    checks.that(
        "the end of its server is the end of the run, and nothing is lost",
        || {
            kill(servers(&home, "t")[0]);
            until("the machine has failed", Duration::from_secs(20), || {
                (phase(&home, "t") == "failed").then_some(())
            });
            zmachine(&home, &["start", "t"]).expect_success();
            assert_eq!(exec_output(&home, "t", "cat /kept"), "kept");
            zmachine(&home, &["rm", "-f", "t"]).expect_success();
        },
    );
    checks.that("a sealed root bears neither layer nor file", || {
        let words = [
            "run",
            "-d",
            "--name",
            "r",
            "--network",
            "none",
            "--rootfs",
            "virtiofs",
            "--read-only",
            &image,
            "sleep",
            "10000",
        ];
        zmachine(&home, &words).expect_success();
        sh(&home, "r", "touch /x").expect_code(1);
        sh(&home, "r", "mount -o remount,rw /lower").expect_code(1);
        assert!(!home.path().join("machines/by-name/r/root.img").exists());
        zmachine(&home, &["rm", "-f", "r"]).expect_success();
    });
}
