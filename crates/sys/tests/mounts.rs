//! Mounts that are nowhere yet, as a jail gets them. All of it takes root.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use zmachine_sys::mount;

/// A user that no machine of this host has: theirs begin at 2,000,000,000.
const USER: u32 = 1_999_999_996;

fn is_root() -> bool {
    let lack = zmachine_testkit::lacking(&[zmachine_testkit::Need::Root]);
    if let Some(lack) = &lack {
        zmachine_testkit::skip(lack);
    }
    lack.is_none()
}

#[test]
fn a_file_is_anothers_in_its_mount_and_roots_everywhere_else() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let shown = match mount::owned_by(USER, &path, true) {
        Ok(shown) => shown,
        Err(error) => {
            let reason = format!("the file system of {} has none: {error}", path.display());
            return zmachine_testkit::skip(&reason);
        }
    };
    let seen = rustix::fs::fstat(&shown).unwrap();
    assert_eq!((seen.st_uid, seen.st_gid, seen.st_mode & 0o777), (USER, USER, 0o600));
    assert_eq!(fs::metadata(&path).unwrap().uid(), 0);
    // By the mount it can be read and not written, whatever the file's own mode says of root.
    let by_mount = format!("/proc/self/fd/{}", shown.as_raw_fd());
    assert_eq!(fs::read(&by_mount).unwrap(), b"x");
    let refused = File::options().write(true).open(&by_mount).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    File::options().write(true).open(&path).unwrap();
}

#[test]
fn a_file_system_without_such_mounts_says_so() {
    if !is_root() {
        return;
    }
    mount::owned_by(USER, "/proc/version".as_ref(), true).unwrap_err();
    let gone = mount::owned_by(USER, "/nonexistent/disk".as_ref(), true).unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_file_system_in_memory_belongs_to_its_user_and_holds_little() {
    if !is_root() {
        return;
    }
    let mount = mount::in_memory(USER, 64 << 10, 8).unwrap();
    let root = rustix::fs::fstat(&mount).unwrap();
    assert_eq!((root.st_uid, root.st_gid, root.st_mode & 0o777), (USER, USER, 0o700));
    let inside = |name: &str| format!("/proc/self/fd/{}/{name}", mount.as_raw_fd());
    fs::write(inside("small"), "x").unwrap();
    fs::write(inside("large"), vec![1; 1 << 20]).unwrap_err();
    let made = (0..16).filter(|number| fs::write(inside(&number.to_string()), "").is_ok());
    assert!(made.count() < 8);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&USER.to_string()), "it is in no table of the host");
}
