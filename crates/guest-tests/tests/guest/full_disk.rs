//! A disk that is full, at every write there is: nothing is half-made, everything is told, and all works when there is
//! room again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use zmachine_testkit::{Finished, TestHome};

use crate::support::{Checks, home_with_box, until};

/// Size of the small disk. A tmpfs gives it out in whole pages, so it can be full before each of them.
const SIZE: &str = "size=80m";

/// A home on a disk of its own, small enough to be filled.
struct Small<'a> {
    home: &'a TestHome,
    path: PathBuf,
}

impl Small<'_> {
    fn new(home: &TestHome) -> Small<'_> {
        let path = home.file("small");
        std::fs::create_dir(&path).expect("a folder");
        let options = std::ffi::CString::new(SIZE).expect("options");
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), options.as_c_str()).expect("a small disk");
        let kernels = home.path().join("kernels").canonicalize().expect("the kernels");
        std::os::unix::fs::symlink(kernels, path.join("kernels")).expect("a link");
        Small { home, path }
    }

    fn zmachine(&self, args: &[&str]) -> Finished {
        self.home.zmachine(args).env("ZMACHINE_HOME", &self.path).finish()
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Leaves `pages` pages.
    fn leave(&self, pages: u64) {
        self.make_room();
        let file = File::create(self.filler()).expect("the filler");
        // A machine that runs may write meanwhile.
        until("the disk is filled", Duration::from_secs(10), || {
            let free = statvfs(&self.path).expect("the disk").f_bfree;
            let length = free.saturating_sub(pages) * 4096;
            (length > 0 && fallocate(&file, FallocateFlags::empty(), 0, length).is_ok()).then_some(())
        });
    }

    fn make_room(&self) {
        let _ = std::fs::remove_file(self.filler());
    }

    fn leases(&self) -> usize {
        let leases = self.path.join("networks/default/leases");
        std::fs::read_dir(leases).map_or(0, Iterator::count)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        self.make_room();
        for name in self.zmachine(&["ps", "-a", "-q"]).stdout().lines() {
            self.zmachine(&["rm", "-f", name]);
        }
        unmount(&self.path, UnmountFlags::DETACH).expect("unmount");
    }
}

fn machines(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("machines")).expect("the folder of machines");
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "by-name" && name != ".lock").collect()
}

#[test]
fn a_full_disk_at_every_write_is_told_and_leaves_nothing_half_made() {
    let Some((home, image)) = home_with_box() else { return };
    let small = Small::new(&home);
    // Image and network are there, so that every page counts for the machine alone.
    small.zmachine(&["create", "--name", "first", &image]).expect_success();
    small.zmachine(&["rm", "first"]).expect_success();
    let mut checks = Checks::default();
    checks.that("create, with one page more each time", || {
        let before = small.leases();
        let mut refused = 0;
        for pages in 0..200 {
            small.leave(pages);
            let made = small.zmachine(&["create", "--name", "m", &image]);
            if made.code == 0 {
                break;
            }
            assert!(
                made.expect_code(1).stderr().contains("No space left on device"),
                "{made}"
            );
            refused += 1;
            assert_eq!(small.zmachine(&["ps", "-a", "-q"]).expect_success().stdout(), "");
            small.make_room();
            small.zmachine(&["ps"]).expect_success();
            assert_eq!(
                (machines(&small.path), small.leases()),
                (vec![], before),
                "with {pages} pages"
            );
        }
        println!("    {refused} places where the disk was full");
        assert!(refused > 2);
    });
    checks.that("start, with one page more each time", || {
        let mut refused = 0;
        for pages in 0..60 {
            small.leave(pages);
            let started = small.zmachine(&["start", "m"]);
            if started.code == 0 {
                break;
            }
            refused += 1;
            assert!(
                started.expect_code(1).stderr().contains("No space left on device"),
                "{started}"
            );
            small.zmachine(&["ps", "-a"]).expect_success();
        }
        println!("    {refused} places where the disk was full");
        small.make_room();
        small.zmachine(&["rm", "-f", "m"]).expect_success();
    });
    checks.that("a machine that runs goes on, and its log tells what it lost", || {
        let script = "echo before; sleep 3; echo lost; sleep 3; echo after; sleep 1000";
        small
            .zmachine(&["run", "-d", "--name", "r", "--read-only", &image, "sh", "-c", script])
            .expect_success();
        small.leave(0);
        std::thread::sleep(Duration::from_secs(5));
        small.make_room();
        until("it goes on", Duration::from_secs(60), || {
            small.zmachine(&["logs", "r"]).stdout().contains("after").then_some(())
        });
        small.zmachine(&["stop", "-t", "0", "r"]).expect_success();
        small.zmachine(&["rm", "r"]).expect_success();
    });
    checks.that("a guest that writes waits for room, and nothing is lost", || {
        small
            .zmachine(&["run", "-d", "--name", "w", &image, "sleep", "1000"])
            .expect_success();
        small.leave(64);
        let script = "dd if=/dev/zero of=/big bs=1M count=8 conv=fsync && wc -c < /big";
        let exec = home
            .zmachine(["exec", "w", "sh", "-c", script])
            .env("ZMACHINE_HOME", &small.path);
        let writing = crate::life::in_background(exec);
        std::thread::sleep(Duration::from_secs(8));
        assert!(!writing.is_finished(), "it wrote more than there is");
        assert!(small.zmachine(&["ps"]).expect_success().stdout().contains('w'));
        small.make_room();
        let written = writing.join().expect("exec");
        assert_eq!(written.expect_success().stdout(), "8388608\n", "{written}");
        let inspected = small.zmachine(&["inspect", "w"]);
        assert!(
            inspected.expect_success().stdout().contains("\"running\""),
            "{inspected}"
        );
        small.zmachine(&["rm", "-f", "w"]).expect_success();
    });
    checks.that("rm frees the disk when it is full", || {
        small.zmachine(&["create", "--name", "full", &image]).expect_success();
        small.leave(0);
        small.zmachine(&["rm", "full"]).expect_success();
        assert!(machines(&small.path).is_empty());
    });
    drop(small);
    home.assert_host_clean();
}
