//! From whatever a kernel file is (ELF or bzImage) to the uncompressed ELF that a hypervisor enters through PVH. Pure.
//!
//! Sources: the boot protocol (`Documentation/arch/x86/boot.rst`: `setup_sects` at 0x1f1, `HdrS` at 0x202, the version at
//! 0x206, `payload_offset` at 0x248 and `payload_length` at 0x24c since 2.08) and `xen/interface/elfnote.h`
//! (`XEN_ELFNOTE_PHYS32_ENTRY` = 18, owner `Xen`).

use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, ProgramHeader};

use crate::KernelError;
use crate::compression::decompress;

const XEN_ELFNOTE_PHYS32_ENTRY: object::elf::NoteType = object::elf::NoteType(18);

/// The uncompressed ELF kernel within `file`, checked for its PVH entry. `what` names it in errors.
pub(crate) fn vmlinux(file: &[u8], what: &str) -> Result<Vec<u8>, KernelError> {
    let elf = if file.starts_with(b"\x7fELF") {
        file.to_vec()
    } else {
        from_bzimage(file, what)?
    };
    if !has_pvh_entry(&elf, what)? {
        return Err(KernelError::NoPvhEntry { what: what.into() });
    }
    Ok(elf)
}

/// The release that an uncompressed kernel says it has, in its banner (`linux_banner` of `init/version-timestamp.c`), as
/// `uname -r` prints it; `None` for one that does not.
pub(crate) fn release(vmlinux: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    /// Bytes of a field of `struct new_utsname`, with the final NUL.
    const LONGEST: usize = 65;
    let mut rest = vmlinux;
    while let Some(at) = rest.windows(BANNER.len()).position(|window| window == BANNER) {
        rest = &rest[at + BANNER.len()..];
        let word = rest
            .iter()
            .take(LONGEST)
            .position(|byte| *byte == b' ')
            .map(|end| &rest[..end]);
        let text = word.and_then(|word| std::str::from_utf8(word).ok());
        // The format that the banner is printed with begins alike.
        if let Some(text) = text.filter(|text| text.starts_with(|c: char| c.is_ascii_digit())) {
            return text
                .bytes()
                .all(|byte| byte.is_ascii_graphic())
                .then(|| text.to_owned());
        }
    }
    None
}

/// Checks that `file` is a kernel or firmware that a hypervisor can start: an ELF for x86-64 with a PVH entry and all its
/// segments, or a bzImage with all its parts. `what` names it in errors.
///
/// # Errors
/// [`KernelError::BadInput`] or [`KernelError::NoPvhEntry`].
pub fn check_bootable(file: &[u8], what: &str) -> Result<(), KernelError> {
    let bad = |reason: &str| Err(KernelError::bad_input(what, reason));
    if file.starts_with(b"\x7fELF") {
        if !has_pvh_entry(file, what)? {
            return Err(KernelError::NoPvhEntry { what: what.into() });
        }
        let read = |e: object::read::Error| KernelError::bad_input(what, e);
        let header = FileHeader64::<Endianness>::parse(file).map_err(read)?;
        let endian = header.endian().map_err(read)?;
        for segment in header.program_headers(endian, file).map_err(read)? {
            if segment.data(endian, file).is_err() {
                return bad("a segment is cut off");
            }
        }
        return Ok(());
    }
    if file.get(0x202..0x206) != Some(b"HdrS") {
        return bad("neither an ELF file nor a bzImage");
    }
    // `syssize` at 0x1f4 counts the part after the setup sectors in 16 bytes.
    let word = |at: usize| Some(u32::from_le_bytes(*file.get(at..at + 4)?.first_chunk()?) as usize);
    let setup = match file[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    match word(0x1f4) {
        Some(paragraphs) if file.len() >= (setup + 1) * 512 + paragraphs.saturating_sub(1) * 16 => Ok(()),
        _ => bad("it is cut off"),
    }
}

fn from_bzimage(file: &[u8], what: &str) -> Result<Vec<u8>, KernelError> {
    let bad = |reason: &str| KernelError::bad_input(what, reason);
    if file.get(0x202..0x206) != Some(b"HdrS") {
        return Err(bad("neither an ELF file nor a bzImage"));
    }
    let version = u16::from_le_bytes([
        file[0x206],
        *file.get(0x207).ok_or_else(|| bad("cut in the setup header"))?,
    ]);
    if version < 0x0208 {
        return Err(bad(
            "its boot protocol is older than 2.08 and does not say where the kernel is",
        ));
    }
    let word =
        |at: usize| -> Option<usize> { Some(u32::from_le_bytes(*file.get(at..at + 4)?.first_chunk()?) as usize) };
    let setup_sectors = match file[0x1f1] {
        0 => 4, // what the boot protocol says zero means
        n => usize::from(n),
    };
    let (offset, length) = word(0x248)
        .zip(word(0x24c))
        .ok_or_else(|| bad("cut in the setup header"))?;
    let start = (setup_sectors + 1) * 512 + offset;
    let payload = file
        .get(start..start.saturating_add(length))
        .ok_or_else(|| bad("cut in the compressed kernel"))?;
    let elf = decompress(payload, &format!("the compressed kernel in {what}"))?;
    if !elf.starts_with(b"\x7fELF") {
        return Err(bad(
            "its kernel is compressed in a way that is not supported (supported: gzip, xz, zstd, lz4)",
        ));
    }
    Ok(elf)
}

fn has_pvh_entry(elf: &[u8], what: &str) -> Result<bool, KernelError> {
    let bad = |e: object::read::Error| KernelError::bad_input(what, e);
    let header = FileHeader64::<Endianness>::parse(elf).map_err(bad)?;
    let endian = header.endian().map_err(bad)?;
    if header.e_machine(endian) != object::elf::EM_X86_64 {
        return Err(KernelError::bad_input(what, "not a kernel for x86-64"));
    }
    for segment in header.program_headers(endian, elf).map_err(bad)? {
        let Some(mut notes) = segment.notes(endian, elf).map_err(bad)? else {
            continue;
        };
        while let Some(note) = notes.next().map_err(bad)? {
            if note.name() == b"Xen" && note.n_type(endian) == XEN_ELFNOTE_PHYS32_ENTRY {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_banners() {
        let kernel = b"\x7fELF..Linux version %s (%s)\0..Linux version 6.12.117-own (me@here) (gcc) #1 SMP\n\0";
        assert_eq!(release(kernel).as_deref(), Some("6.12.117-own"));
        for none in [&b"Linux version "[..], b"Linux version 6", b"Linux version %s ", b""] {
            assert_eq!(release(none), None);
        }
    }

    #[test]
    fn a_text_file_is_not_a_kernel() {
        let error = vmlinux(b"hello", "greeting.txt").unwrap_err();
        assert!(error.to_string().contains("greeting.txt"), "{error}");
        assert!(
            error.to_string().contains("neither an ELF file nor a bzImage"),
            "{error}"
        );
    }

    #[test]
    fn an_elf_without_the_note_is_refused() {
        let mut elf = vec![0; 64];
        elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        elf[18] = 62; // x86-64
        elf[20] = 1;
        elf[52] = 64;
        assert!(matches!(vmlinux(&elf, "plain"), Err(KernelError::NoPvhEntry { .. })));
    }

    #[test]
    fn a_guest_kernel_that_is_cut_anywhere_is_refused() {
        let mut file = vec![0; 5 * 512 + 4096];
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x1f4..0x1f8].copy_from_slice(&256u32.to_le_bytes());
        check_bootable(&file, "k").unwrap();
        for cut in [0, 10, 0x203, 0x300, 5 * 512, file.len() - 17] {
            assert!(
                matches!(check_bootable(&file[..cut], "k"), Err(KernelError::BadInput { .. })),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_bzimage_whose_payload_is_beyond_its_end_is_refused() {
        let mut file = vec![0; 4096];
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        file[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = vmlinux(&file, "cut").unwrap_err();
        assert!(error.to_string().contains("cut in the compressed kernel"), "{error}");
    }
}
