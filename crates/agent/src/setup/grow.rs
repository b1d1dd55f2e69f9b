//! Grows a file system to the size of its device, with the file system's own request to the kernel: no tool is needed.
//!
//! Sources: `include/uapi/linux/ext4.h`, `include/uapi/linux/btrfs.h`, `fs/xfs/libxfs/xfs_fs.h` of Linux 6.12.

#![allow(unsafe_code)]

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, unmount};

use super::disks::{APPEAR, Disk};
use super::error::SetupError;
use super::root::mount_at;
use crate::modules;

/// `_IOW('f', 16, __u64)`: the new number of blocks.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
/// `_IOW(0x94, 3, struct btrfs_ioctl_vol_args)`: `fd` and a text.
const BTRFS_IOC_RESIZE: libc::Ioctl = 0x5000_9403;
/// `_IOR('X', 126, struct xfs_fsop_geom)`.
const XFS_IOC_FSGEOMETRY: libc::Ioctl = 0x8100_587e_u32 as libc::Ioctl;
/// `_IOW('X', 110, struct xfs_growfs_data)`.
const XFS_IOC_FSGROWFSDATA: libc::Ioctl = 0x4010_586e;

/// Below this the kernel refuses every change of a btrfs's size, one that changes nothing included (`btrfs_ioctl_resize`).
const BTRFS_LEAST: u64 = 256 << 20;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct BtrfsVolumeArguments {
    fd: i64,
    name: [u8; 4088],
}

/// `struct xfs_fsop_geom`, of which the first fields are read.
#[repr(C)]
struct XfsGeometry {
    block_bytes: u32,
    _before: [u32; 6],
    max_inode_percent: u32,
    data_blocks: u64,
    _after: [u8; 216],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct XfsGrow {
    new_blocks: u64,
    max_inode_percent: u32,
    _padding: u32,
}

/// Where a file system is mounted while it grows, in the initramfs.
const MOUNT_POINT: &str = "/grow";

/// Grows the file system `fstype` on the disk with `serial`, or on its partition: where it is mounted, or, when the agent
/// `is_init` of the guest, mounted for the moment. `proc` is the agent's own `/proc`; the disk is given time to become
/// `disk_bytes` long.
///
/// # Errors
/// [`SetupError`] naming the disk or the device.
pub(crate) fn grow(
    proc: &OwnedFd,
    is_init: bool,
    serial: &str,
    partition: Option<u32>,
    fstype: &str,
    disk_bytes: u64,
) -> Result<(), SetupError> {
    if is_init {
        // An appliance is asked before anything has been configured, which is when they are loaded otherwise.
        modules::load_for_disks()?;
    }
    let disk = Disk::wait_for(serial)?;
    let deadline = Instant::now() + APPEAR;
    while device_bytes(&disk.device()).is_ok_and(|bytes| bytes < disk_bytes) && Instant::now() < deadline {
        sleep(Duration::from_millis(1));
    }
    let device = partition.map_or_else(|| disk.device(), |number| disk.partition(number));
    if let Some(mounted) = mount_point(proc, &device) {
        return grow_mounted(&device, &mounted, fstype);
    }
    if !is_init {
        // What an operating system of its own has not mounted, it may have for something else.
        return Err(SetupError::NotMounted {
            device: device.display().to_string(),
        });
    }
    if let Some(order) = modules::order_of(fstype) {
        modules::load_all(order)?;
    }
    let _ = fs::create_dir(MOUNT_POINT);
    mount_at(&device, MOUNT_POINT, fstype, MountFlags::NOATIME, "")?;
    let grown = grow_mounted(&device, MOUNT_POINT, fstype);
    let gone = unmount(MOUNT_POINT, UnmountFlags::empty());
    grown?;
    gone.map_err(|source| failed(&device, fstype, source))
}

/// Grows the file system that is mounted at `target`; one that fills `device` already is left alone.
///
/// # Errors
/// [`SetupError::Grow`] with the kernel's reason.
pub(super) fn grow_mounted(device: &Path, target: &str, fstype: &str) -> Result<(), SetupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let at = |source| failed(device, fstype, source);
    let root = rustix::fs::openat(CWD, target, flags, Mode::empty()).map_err(at)?;
    match fstype {
        "ext4" => grow_ext4(&root, device),
        "btrfs" => grow_btrfs(&root, device),
        "xfs" => grow_xfs(&root, device),
        _ => return Err(SetupError::NotGrowable { fstype: fstype.into() }),
    }
    .map_err(at)
}

fn failed(device: &Path, fstype: &str, source: Errno) -> SetupError {
    SetupError::Grow {
        device: device.display().to_string(),
        fstype: fstype.into(),
        source,
    }
}

fn grow_ext4(root: &OwnedFd, device: &Path) -> Result<(), Errno> {
    let block = rustix::fs::fstatfs(root)?.f_bsize as u64;
    let blocks = device_bytes(device)? / block.max(1);
    // A size that the file system has already is fine for the kernel.
    // SAFETY: the request reads one u64, which lives for the call.
    check(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS, &blocks) })
}

fn grow_btrfs(root: &OwnedFd, device: &Path) -> Result<(), Errno> {
    if device_bytes(device)? < BTRFS_LEAST {
        return Ok(());
    }
    let mut arguments = BtrfsVolumeArguments { fd: 0, name: [0; 4088] };
    arguments.name[..3].copy_from_slice(b"max");
    // SAFETY: the request reads a struct of this layout, which lives for the call.
    check(unsafe { libc::ioctl(root.as_raw_fd(), BTRFS_IOC_RESIZE, &arguments) })
}

fn grow_xfs(root: &OwnedFd, device: &Path) -> Result<(), Errno> {
    // SAFETY: all fields are integers, for which zeros are a value.
    let mut geometry: XfsGeometry = unsafe { std::mem::zeroed() };
    // SAFETY: the request fills a struct of this size (256 bytes, in the request's number).
    check(unsafe { libc::ioctl(root.as_raw_fd(), XFS_IOC_FSGEOMETRY, &mut geometry) })?;
    let new_blocks = device_bytes(device)? / u64::from(geometry.block_bytes.max(512));
    if new_blocks <= geometry.data_blocks {
        return Ok(());
    }
    let request = XfsGrow {
        new_blocks,
        max_inode_percent: geometry.max_inode_percent,
        _padding: 0,
    };
    // SAFETY: the request reads a struct of this layout, which lives for the call.
    check(unsafe { libc::ioctl(root.as_raw_fd(), XFS_IOC_FSGROWFSDATA, &request) })
}

/// The size of a block device in bytes; sysfs counts in sectors of 512 whatever the device's own are.
fn device_bytes(device: &Path) -> Result<u64, Errno> {
    let name = device.file_name().and_then(|name| name.to_str()).ok_or(Errno::INVAL)?;
    let path = format!("/sys/class/block/{name}/size");
    let sectors = fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    Ok(sectors.ok_or(Errno::NODEV)? * 512)
}

/// Where `device` is mounted, by its number or its name: btrfs shows a number of its own, a kernel that mounted its root
/// without an initramfs a name of its own.
pub(super) fn mount_point(proc: &OwnedFd, device: &Path) -> Option<String> {
    let number = fs::metadata(device).ok()?.rdev();
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let mounts = rustix::fs::openat(proc, "self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = Vec::new();
    fs::File::from(mounts).read_to_end(&mut text).ok()?;
    // One path that is no text hides no other one.
    find_mount(&String::from_utf8_lossy(&text), &number, device.to_str()?)
}

/// The mount point in a line of `mountinfo` whose device has the number, or whose source is the name.
fn find_mount(mounts: &str, number: &str, device: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let its_number = left.nth(2)?;
        let point = left.nth(1)?;
        let source = right.split(' ').nth(1)?;
        (its_number == number || source == device).then(|| unescape(point))
    })
}

/// `\040` and its like, which stand for white space and backslashes.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    match result {
        -1 => Err(Errno::from_raw_os_error(
            std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 254:16 / /data/my\\040files rw,noatime - xfs /dev/vdb rw
31 22 0:40 / /backup rw,noatime - btrfs /dev/vdc rw,space_cache=v2
";

    #[test]
    fn a_mount_is_found_by_number_or_by_name() {
        assert_eq!(find_mount(MOUNTS, "254:0", "/dev/vda").as_deref(), Some("/"));
        assert_eq!(
            find_mount(MOUNTS, "254:16", "/dev/vdb").as_deref(),
            Some("/data/my files")
        );
        assert_eq!(find_mount(MOUNTS, "254:32", "/dev/vdc").as_deref(), Some("/backup"));
        assert_eq!(find_mount(MOUNTS, "254:48", "/dev/vdd"), None);
    }

    #[test]
    fn the_structures_are_as_large_as_their_requests_say() {
        assert_eq!(size_of::<BtrfsVolumeArguments>(), 0x1000);
        assert_eq!(size_of::<XfsGeometry>(), 0x100);
        assert_eq!(size_of::<XfsGrow>(), 0x10);
    }
}
