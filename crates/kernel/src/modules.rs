//! Which modules a machine needs, in which order, and in which shape. Pure.
//!
//! A module is stored decompressed and without its appended signature: the kernel loads it all the same (it says once that
//! it is tainted), and not checking signatures removes 84-89 % of the work of loading (measured under emulation).
//! The order comes from the modules' own `.modinfo`, because Debian's packages bring no `modules.dep`.
//! Source of the signature's layout: `kernel/module/signing.c` and `include/linux/module_signature.h`.

use std::collections::{BTreeMap, BTreeSet};

use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};

use crate::KernelError;
use crate::compression::decompress;
use crate::deb::KernelFiles;

/// What the initramfs brings, so each one costs boot time: the disks, the two file systems of the root, the report of a
/// panic, and the network, which only machines with an interface load. Not the power button: nobody listens to it in a
/// container machine, which is stopped through its agent, and its driver walks all of ACPI (14 ms).
const BOOT: &[&str] = &["virtio_blk", "erofs", "overlay", "pvpanic_pci", "virtio_net"];

/// What must be there as a module or built in, or no container machine can run.
const REQUIRED: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "erofs",
    "overlay",
    "ext4",
    "pvpanic_pci",
];

/// What some machines load later. `blake2b_generic`, `sha256_generic` and `xxhash_generic` are what btrfs asks for by
/// request, which finds nothing in a guest without modprobe.
const LATER: &[&str] = &[
    "button",
    "evdev",
    "virtio_balloon",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "fuse",
    "virtiofs",
    "virtio_mem",
    "virtio_pmem",
    "crc32c_intel",
    "loop",
    "dm_mod",
    "squashfs",
    "isofs",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859_1",
    "nls_utf8",
    "blake2b_generic",
    "sha256_generic",
    "xxhash_generic",
    "btrfs",
    "xfs",
    "tun",
];

/// What programs that run containers inside of a machine ask for (docker, podman, containerd, k3s): bridges and pairs of
/// interfaces, and netfilter as both `iptables` and `nft` use it. By request, which finds nothing in a guest without modprobe.
pub(crate) const NESTED: &[&str] = &[
    "bridge",
    "br_netfilter",
    "veth",
    "macvlan",
    "ipvlan",
    "vxlan",
    "fuse",
    "tun",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_reject_inet",
    "ip_tables",
    "iptable_filter",
    "iptable_mangle",
    "iptable_nat",
    "ip6_tables",
    "ip6table_filter",
    "ip6table_mangle",
    "ip6table_nat",
    "ipt_REJECT",
    "ip6t_REJECT",
    "ip_set",
    "ip_vs",
    "ip_vs_rr",
    "xt_MASQUERADE",
    "xt_REDIRECT",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_ipvs",
    "xt_limit",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_set",
    "xt_statistic",
    "xt_tcpudp",
];

const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
/// `struct module_signature`: five bytes, three of padding, and the signature's length as a big-endian u32.
const SIGNATURE_TRAILER_BYTES: usize = 12;

/// A module ready to be stored.
#[derive(Debug)]
pub(crate) struct StrippedModule {
    /// Its name, with `_`.
    pub(crate) name: String,
    /// The modules it needs directly.
    pub(crate) needs: Vec<String>,
    /// Whether every container loads it.
    pub(crate) boot: bool,
    /// The plain ELF without a signature.
    pub(crate) content: Vec<u8>,
}

/// The modules to keep, each after everything it needs, those of the boot first.
pub(crate) fn select(files: &KernelFiles, what: &str) -> Result<Vec<StrippedModule>, KernelError> {
    if files.modules.is_empty() && files.builtin.is_none() {
        return Ok(Vec::new()); // a kernel with everything built in, and nobody to ask
    }
    let builtin: BTreeSet<&str> = files.builtin.iter().flatten().map(String::as_str).collect();
    let known = |name: &str| files.modules.contains_key(name) || builtin.contains(name);
    if let Some(missing) = REQUIRED.iter().find(|m| !known(m)) {
        return Err(KernelError::MissingModule {
            what: what.into(),
            module: (*missing).into(),
        });
    }
    let mut selection = Selection {
        files,
        builtin,
        what,
        done: BTreeSet::new(),
        stripped: Vec::new(),
    };
    for (names, boot) in [(BOOT, true), (LATER, false), (NESTED, false)] {
        for name in names.iter().filter(|m| files.modules.contains_key(**m)) {
            selection.add(name, boot, 0)?;
        }
    }
    Ok(selection.stripped)
}

struct Selection<'a> {
    files: &'a KernelFiles,
    builtin: BTreeSet<&'a str>,
    what: &'a str,
    done: BTreeSet<String>,
    stripped: Vec<StrippedModule>,
}

impl Selection<'_> {
    fn add(&mut self, name: &str, boot: bool, depth: usize) -> Result<(), KernelError> {
        if self.done.contains(name) || self.builtin.contains(name) {
            return Ok(());
        }
        let missing = || KernelError::MissingModule {
            what: self.what.into(),
            module: name.into(),
        };
        let packed = self.files.modules.get(name).ok_or_else(missing)?;
        let file = format!("module {name} in {}", self.what);
        if depth > 32 {
            return Err(KernelError::bad_input(file, "its dependencies go in a circle"));
        }
        let content = without_signature(decompress(packed, &file)?);
        let needs = needs(&content, &file)?;
        for needed in &needs {
            self.add(needed, boot, depth + 1)?;
        }
        self.done.insert(name.to_owned());
        let needs = needs
            .into_iter()
            .filter(|n| !self.builtin.contains(n.as_str()))
            .collect();
        self.stripped.push(StrippedModule {
            name: name.to_owned(),
            needs,
            boot,
            content,
        });
        Ok(())
    }
}

/// Cuts the signature that `sign-file` appends; a module without one is returned as it is.
fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    if let Some(body) = module.strip_suffix(SIGNATURE_MAGIC)
        && let Some((rest, trailer)) = body.split_last_chunk::<SIGNATURE_TRAILER_BYTES>()
    {
        let signature = u32::from_be_bytes([trailer[8], trailer[9], trailer[10], trailer[11]]) as usize;
        if let Some(length) = rest.len().checked_sub(signature) {
            module.truncate(length);
        }
    }
    module
}

/// The names behind `depends=` in the module's `.modinfo`.
fn needs(module: &[u8], file: &str) -> Result<Vec<String>, KernelError> {
    let info = modinfo(module).map_err(|e| KernelError::bad_input(file, e))?;
    let depends = info.get("depends").map(String::as_str).unwrap_or_default();
    Ok(depends
        .split(',')
        .filter(|d| !d.is_empty())
        .map(|d| d.replace('-', "_"))
        .collect())
}

/// The `key=value` strings of a module's `.modinfo` section; of a repeated key the last one counts.
fn modinfo(module: &[u8]) -> Result<BTreeMap<String, String>, object::read::Error> {
    let header = FileHeader64::<Endianness>::parse(module)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, module)?;
    let Some((_, section)) = sections.section_by_name(endian, b".modinfo") else {
        return Ok(BTreeMap::new());
    };
    let text = String::from_utf8_lossy(section.data(endian, module)?).into_owned();
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    Ok(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(plain: &[u8], signature: &[u8]) -> Vec<u8> {
        let mut file = [plain, signature, &[0, 0, 2, 0, 0, 0, 0, 0]].concat();
        file.extend_from_slice(&(signature.len() as u32).to_be_bytes());
        file.extend_from_slice(SIGNATURE_MAGIC);
        file
    }

    #[test]
    fn the_appended_signature_is_cut_off() {
        assert_eq!(without_signature(signed(b"ELF body", &[7; 256])), b"ELF body");
    }

    #[test]
    fn a_module_without_a_signature_stays_as_it_is() {
        assert_eq!(without_signature(b"ELF body".to_vec()), b"ELF body");
    }

    #[test]
    fn a_signature_longer_than_the_file_is_not_believed() {
        let mut file = signed(b"x", b"");
        let length_at = file.len() - SIGNATURE_MAGIC.len() - 4;
        file[length_at] = 0xff;
        assert_eq!(without_signature(file.clone()), file);
    }

    #[test]
    fn a_package_without_overlayfs_is_refused_by_name() {
        let builtin = REQUIRED
            .iter()
            .filter(|m| **m != "overlay")
            .map(|m| (*m).to_owned())
            .collect();
        let files = KernelFiles {
            builtin: Some(builtin),
            ..Default::default()
        };
        let error = select(&files, "tiny.deb").unwrap_err();
        assert_eq!(
            error.to_string(),
            "tiny.deb has no module 'overlay', and it is not built in"
        );
    }

    #[test]
    fn a_kernel_with_everything_built_in_needs_no_modules() {
        let builtin = REQUIRED.iter().map(|m| (*m).to_owned()).collect();
        let files = KernelFiles {
            builtin: Some(builtin),
            ..Default::default()
        };
        assert!(select(&files, "own").unwrap().is_empty());
    }
}
