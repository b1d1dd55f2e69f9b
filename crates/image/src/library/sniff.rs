//! Telling what a file is that should be a flist, so that the error can say what to do with it.

/// How much of the beginning of a file [`sniff`] wants to see, in bytes: up to the magic number of btrfs at 64 KiB + 64.
pub(crate) const SNIFF_LEN: usize = 65_536 + 72;

/// Something that is no flist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) found: &'static str,
    pub(crate) advice: &'static str,
}

const PACK_DISK: &str =
    "put it into a directory as image.raw and pack that: 'zmachine flist pack DIR -o FILE.fl --store URL'";
const CONVERT_DISK: &str =
    "convert it first: 'qemu-img convert -O raw IN image.raw', then pack the directory with 'zmachine flist pack'";
const IMPORT_COMPRESSED: &str = "make a flist of it: 'zmachine flist import docker-archive:FILE -o FILE.fl --store URL' or 'oci-archive:FILE' for a \
     container image, 'zmachine flist pack FILE -o FILE.fl --store URL' for another archive";
const IMPORT_DOCKER: &str = "make a flist of it: 'zmachine flist import docker-archive:FILE -o FILE.fl --store URL'";
const IMPORT_OCI: &str = "make a flist of it: 'zmachine flist import oci-archive:FILE -o FILE.fl --store URL'";
const PACK_TAR: &str = "make a flist of it: 'zmachine flist pack FILE.tar -o FILE.fl --store URL'";

/// What the file is whose first bytes are `head` and whose name ends as `name` does; `None` when it may be a flist.
pub(crate) fn sniff(name: &str, head: &[u8]) -> Option<Foreign> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    // A flist of format 1 is gzip data like many others: its reader tells.
    if at(0, b"SQLite format 3\0") || (at(0, b"\x1f\x8b") && !name.contains(".tar") && !name.ends_with(".tgz")) {
        return None;
    }
    if at(257, b"ustar") && has(head, b"flistdb.sqlite3") {
        return None;
    }
    let (found, advice) = if head.is_empty() {
        ("an empty file", "get it again: nothing arrived")
    } else if at(0, b"\x1f\x8b") || at(0, b"\x28\xb5\x2f\xfd") || at(0, b"\xfd7zXZ") {
        ("a compressed archive", IMPORT_COMPRESSED)
    } else if at(257, b"ustar") {
        tar(head)
    } else if at(0, b"QFI\xfb") {
        ("a qcow2 disk image", CONVERT_DISK)
    } else if at(0, b"KDMV") || at(0, b"COWD") || at(0, b"# Disk DescriptorFile") {
        ("a VMDK disk image", CONVERT_DISK)
    } else if at(0, b"vhdxfile") || at(0, b"conectix") {
        ("a VHD disk image", CONVERT_DISK)
    } else if at(64, b"\x7f\x10\xda\xbe") {
        ("a VDI disk image", CONVERT_DISK)
    } else if at(512, b"EFI PART") || at(510, b"\x55\xaa") {
        ("a raw disk image", PACK_DISK)
    } else if at(0x438, b"\x53\xef") || at(0x10040, b"_BHRfS_M") || at(0, b"XFSB") {
        ("a file system image", PACK_DISK)
    } else if at(1024, b"\xe2\xe1\xf5\xe0") || at(0, b"hsqs") {
        (
            "a read-only file system image",
            "unpack it into a directory and pack that with 'zmachine flist pack'",
        )
    } else if at(0, b"\x7fELF") {
        (
            "a program or kernel",
            "pack the directory that has it with 'zmachine flist pack'",
        )
    } else if is_web_page(head) {
        (
            "a web page",
            "check the URL: the server sent a page instead of the file",
        )
    } else {
        (
            "of no kind that is known here",
            "images are flists, archives of docker, podman or skopeo (.tar), and disk images (qcow2, raw)",
        )
    };
    Some(Foreign { found, advice })
}

fn has(head: &[u8], needle: &[u8]) -> bool {
    head.windows(needle.len()).any(|window| window == needle)
}

fn is_web_page(head: &[u8]) -> bool {
    let start: Vec<u8> = head
        .iter()
        .copied()
        .skip_while(u8::is_ascii_whitespace)
        .take(14)
        .collect();
    let start = start.to_ascii_lowercase();
    start.starts_with(b"<!doctype html") || start.starts_with(b"<html") || start.starts_with(b"<?xml")
}

/// A tar archive by the name of its first entries: images of other engines are tars with an index in them.
fn tar(head: &[u8]) -> (&'static str, &'static str) {
    let has = |needle| has(head, needle);
    // What docker saves today is both; its own index is found first where it comes first.
    if has(b"manifest.json") || has(b"/layer.tar") {
        ("a docker image archive", IMPORT_DOCKER)
    } else if has(b"oci-layout") || has(b"blobs/sha256") {
        ("an OCI image archive", IMPORT_OCI)
    } else {
        ("a tar archive", PACK_TAR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, head: &[u8]) -> &'static str {
        sniff(name, head).expect("foreign").found
    }

    fn with(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; offset];
        head.extend_from_slice(magic);
        head
    }

    #[test]
    fn a_database_may_be_a_flist() {
        assert_eq!(sniff("a.fl", b"SQLite format 3\0rest"), None);
        assert_eq!(sniff("a.flist", b"\x1f\x8b\x08"), None);
    }

    #[test]
    fn each_foreign_kind_is_told_by_its_magic() {
        assert_eq!(found("a", b""), "an empty file");
        assert_eq!(found("a.tar.gz", b"\x1f\x8b\x08"), "a compressed archive");
        assert_eq!(found("a", b"QFI\xfb\0\0\0\x03"), "a qcow2 disk image");
        assert_eq!(found("a", b"KDMV"), "a VMDK disk image");
        assert_eq!(found("a", &with(64, b"\x7f\x10\xda\xbe")), "a VDI disk image");
        assert_eq!(found("a", &with(510, b"\x55\xaa")), "a raw disk image");
        assert_eq!(found("a", &with(0x438, b"\x53\xef")), "a file system image");
        assert_eq!(found("a", b"\n<!DOCTYPE HTML><html>"), "a web page");
        assert_eq!(found("a", b"hello"), "of no kind that is known here");
    }

    #[test]
    fn archives_of_other_engines_are_told_from_plain_ones() {
        let mut oci = with(257, b"ustar");
        oci[..10].copy_from_slice(b"oci-layout");
        assert_eq!(found("a.tar", &oci), "an OCI image archive");
        assert!(sniff("a.tar", &oci).unwrap().advice.contains("oci-archive:FILE"));
        let mut docker = with(257, b"ustar");
        docker.extend(b"manifest.json");
        assert!(sniff("a.tar", &docker).unwrap().advice.contains("docker-archive:FILE"));
        assert_eq!(found("a.tar", &with(257, b"ustar")), "a tar archive");
    }
}
