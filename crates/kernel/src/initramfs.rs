//! The initramfs of a container machine: the agent as `/init`, the boot's modules, one device node. Nothing else.
//!
//! Format: newc cpio (`Documentation/driver-api/early-userspace/buffer-format.rst`), not compressed: it is 2 to 5 MB, and
//! decompressing inside an emulated guest costs more than reading it.
//!
//! ```text
//! /dev /proc /sys /lib /lib/modules   empty folders, 0755
//! /dev/console                        character device 5:1, so that init has a standard output from its first moment
//! /init                               the agent, 0755
//! /lib/modules/<file>.ko              the modules of the boot
//! /lib/modules/order                  the file names of those that every machine loads, one per line, each after
//!                                     everything it needs
//! /lib/modules/order.network          the same for those that a machine with a network interface loads besides
//! /lib/modules/order.<file system>    the same for a file system's driver, in the archives that are made with it
//! /lib/modules/order.vsock            the same for the virtual socket; that it is there, if only empty, tells the agent to
//!                                     call its host over that
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use zmachine_sys::file::{self, NewFile};

use crate::description::FsDriver;
use crate::error::AtPath;
use crate::install::hex;
use crate::{Kernel, KernelError, KernelLibrary, known_digest};

/// Changes when the layout changes, so that a cached file of an older program is not used.
const LAYOUT: &str = "zmachine initramfs 4\n";
/// How many initramfs files are kept per kernel: those in use, by their drivers, and what older programs on the same home
/// use.
const KEEP: usize = 8;

impl KernelLibrary {
    /// The initramfs of `kernel` with the agent binary `agent` and the `drivers` of further file systems: made when it is not
    /// there yet. Its name has the first 12 hex digits of the SHA-256 over the layout's version, the drivers and the digest of the agent.
    ///
    /// # Errors
    /// When the agent or a module cannot be read, or the file cannot be written.
    pub fn initramfs(&self, kernel: &Kernel, agent: &Path, drivers: &[FsDriver]) -> Result<PathBuf, KernelError> {
        kernel.initramfs(agent, drivers)
    }
}

impl Kernel {
    /// As [`KernelLibrary::initramfs`].
    ///
    /// # Errors
    /// When the agent or a module cannot be read, or the file cannot be written.
    pub fn initramfs(&self, agent: &Path, drivers: &[FsDriver]) -> Result<PathBuf, KernelError> {
        let drivers: BTreeSet<FsDriver> = drivers.iter().copied().collect();
        let known = known_digest::sha256(agent, &self.dir.join("agent.json")).at("read", agent)?;
        let mut digest = Sha256::new().chain_update(LAYOUT);
        for driver in &drivers {
            digest.update(format!("{}\n", driver.name()));
        }
        let digest = hex(&digest.chain_update(&known).finalize());
        let path = self.dir.join(format!("initramfs-{}.cpio", &digest[..12]));
        if path.try_exists().at("read", &path)? {
            return Ok(path);
        }
        let init = fs::read(agent).at("read", agent)?;
        if hex(&Sha256::digest(&init)) != known {
            return Err(io::Error::other("it was replaced meanwhile: try again")).at("read", agent);
        }
        let network = self.description.network_modules();
        let plain = self.description.boot_modules().filter(|name| !network.contains(name));
        let mut orders = vec![
            ("order".to_owned(), plain.collect()),
            ("order.network".to_owned(), network.clone()),
        ];
        for driver in drivers {
            orders.push((
                format!("order.{}", driver.name()),
                self.description.driver_modules(driver),
            ));
        }
        let mut modules = BTreeMap::new();
        for name in orders.iter().flat_map(|(_, names)| names) {
            let module = self.dir.join("modules").join(name);
            modules.insert(*name, fs::read(&module).at("read", &module)?);
        }
        let new = NewFile::create(&self.dir, 0o644)?;
        new.file()
            .write_all(&archive(&init, &modules, &orders))
            .at("write", &path)?;
        new.publish_new(&path, true)?;
        self.prune_initramfs()?;
        Ok(path)
    }

    /// Removes the oldest initramfs files beyond [`KEEP`]; a hypervisor that runs has read its one already.
    fn prune_initramfs(&self) -> Result<(), KernelError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).at("read", &self.dir)? {
            let entry = entry.at("read", &self.dir)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("initramfs-") && name.ends_with(".cpio") {
                let time = entry
                    .metadata()
                    .and_then(|m| m.modified())
                    .unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((time, entry.path()));
            }
        }
        found.sort();
        for (_, path) in &found[..found.len().saturating_sub(KEEP)] {
            file::remove_if_there(path)?;
        }
        Ok(())
    }
}

/// The whole archive. Pure and reproducible: no times, no owners.
fn archive(init: &[u8], modules: &BTreeMap<&str, Vec<u8>>, orders: &[(String, Vec<&str>)]) -> Vec<u8> {
    const DIR: u32 = 0o040_755;
    const FILE: u32 = 0o100_644;
    let mut cpio = Cpio::default();
    for dir in ["dev", "proc", "sys", "lib", "lib/modules"] {
        cpio.entry(dir, DIR, (0, 0), &[]);
    }
    cpio.entry("dev/console", 0o020_600, (5, 1), &[]);
    cpio.entry("init", 0o100_755, (0, 0), init);
    for (name, content) in modules {
        cpio.entry(&format!("lib/modules/{name}"), FILE, (0, 0), content);
    }
    for (file, names) in orders {
        let order: String = names.iter().map(|name| format!("{name}\n")).collect();
        cpio.entry(&format!("lib/modules/{file}"), FILE, (0, 0), order.as_bytes());
    }
    cpio.finish()
}

#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let size = content.len() as u32;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn an_independent_cpio_lists_what_was_written() {
        let modules = BTreeMap::from([("failover.ko", vec![1; 5]), ("virtio_net.ko", vec![2; 7])]);
        let bytes = archive(
            b"#!agent",
            &modules,
            &[("order".into(), vec!["failover.ko", "virtio_net.ko"])],
        );
        let Ok(mut child) = Command::new("busybox")
            .args(["cpio", "-tv"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        else {
            return zmachine_testkit::skip(zmachine_testkit::Lack::provided("needs busybox"));
        };
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let listed = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        for expected in [
            "-rwxr-xr-x",
            "crw-------",
            "lib/modules/virtio_net.ko",
            "lib/modules/order",
        ] {
            assert!(listed.contains(expected), "{expected} in {listed}");
        }
    }

    #[test]
    fn the_order_files_name_the_modules_line_by_line() {
        let orders = [
            ("order".into(), vec!["b.ko", "a.ko"]),
            ("order.network".into(), vec!["c.ko"]),
        ];
        let bytes = archive(b"", &BTreeMap::new(), &orders);
        assert!(bytes.windows(11).any(|w| w == b"b.ko\na.ko\n\0"));
        assert!(bytes.windows(6).any(|w| w == b"c.ko\n\0"));
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(
            archive(b"x", &BTreeMap::new(), &[]),
            archive(b"x", &BTreeMap::new(), &[])
        );
    }
}
