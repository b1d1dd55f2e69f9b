//! Reading the kernel, its modules and its version out of a Debian package, in one pass and without running anything of it.
//!
//! A package is an `ar` archive of `debian-binary`, `control.tar.*` and `data.tar.*` (deb(5)). Names within are only
//! compared, never used as paths to write to.

use std::collections::BTreeMap;
use std::io::Read;

use crate::compression::reader;
use crate::{KernelError, Package};

/// What a kernel package holds, still compressed the way it was packed.
#[derive(Debug, Default)]
pub(crate) struct KernelFiles {
    /// The package's own name and version, when the source is a package.
    pub(crate) package: Option<Package>,
    /// The kernel's release, as in `uname -r`.
    pub(crate) release: String,
    /// The bzImage or ELF.
    pub(crate) kernel: Vec<u8>,
    /// Module file by module name (with `_`), as packed.
    pub(crate) modules: BTreeMap<String, Vec<u8>>,
    /// The names (with `_`) of what is compiled in; `None` when nobody tells.
    pub(crate) builtin: Option<Vec<String>>,
}

/// One member of an `ar` archive by the beginning of its name.
fn ar_member<'a>(archive: &'a [u8], prefix: &str, what: &str) -> Result<&'a [u8], KernelError> {
    let bad = |reason: String| KernelError::bad_input(what, reason);
    let mut rest = archive
        .strip_prefix(b"!<arch>\n")
        .ok_or_else(|| bad("not a Debian package".into()))?;
    // Each header is 60 bytes: name 16, date 12, owner 6, group 6, mode 8, size 10 (decimal), end 2; members are even.
    while let Some((header, body)) = rest.split_first_chunk::<60>() {
        let name = String::from_utf8_lossy(&header[..16]);
        let size = String::from_utf8_lossy(&header[48..58]);
        let size: usize = size
            .trim()
            .parse()
            .map_err(|_| bad(format!("bad size of member {}", name.trim())))?;
        let member = body
            .get(..size)
            .ok_or_else(|| bad(format!("cut in member {}", name.trim())))?;
        if name.starts_with(prefix) {
            return Ok(member);
        }
        rest = body.get(size + size % 2..).unwrap_or_default();
    }
    Err(bad(format!("it has no {prefix}*")))
}

/// Calls `each` with path and content of every regular file of a `.tar.*` whose path `wanted` accepts.
fn tar_files(
    member: &[u8],
    what: &str,
    wanted: impl Fn(&str) -> bool,
    mut each: impl FnMut(&str, Vec<u8>),
) -> Result<(), KernelError> {
    let bad = |e: std::io::Error| KernelError::bad_input(what, e);
    let mut archive = tar::Archive::new(reader(member, what)?);
    for entry in archive.entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        let path = String::from_utf8_lossy(&entry.path_bytes())
            .trim_start_matches("./")
            .to_owned();
        if entry.header().entry_type().is_file() && wanted(&path) {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(bad)?;
            each(&path, content);
        }
    }
    Ok(())
}

/// The module's name from its file's path: `kernel/fs/vfat.ko.xz` is `vfat`, `virtio-rng.ko` is `virtio_rng`.
pub(crate) fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (stem, ending) = file.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

/// The names in the text of a `modules.builtin`.
pub(crate) fn builtin_names(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text).lines().filter_map(module_name).collect()
}

/// Everything of a kernel that is in the package `deb`.
pub(crate) fn read_kernel(deb: &[u8], what: &str) -> Result<KernelFiles, KernelError> {
    let mut files = KernelFiles {
        package: Some(control(deb, what)?),
        ..Default::default()
    };
    let kernel_path = |p: &str| p.starts_with("boot/vmlinuz-");
    let module_path = |p: &str| {
        let p = p.strip_prefix("usr/").unwrap_or(p);
        p.starts_with("lib/modules/") && (module_name(p).is_some() || p.ends_with("/modules.builtin"))
    };
    tar_files(
        ar_member(deb, "data.tar", what)?,
        what,
        |p| kernel_path(p) || module_path(p),
        |path, content| {
            if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
                files.release = release.to_owned();
                files.kernel = content;
            } else if path.ends_with("/modules.builtin") {
                files.builtin = Some(builtin_names(&content));
            } else if let Some(name) = module_name(path) {
                files.modules.insert(name, content);
            }
        },
    )?;
    if files.kernel.is_empty() {
        return Err(KernelError::bad_input(
            what,
            "it has no boot/vmlinuz-*, so it is not a kernel's package",
        ));
    }
    Ok(files)
}

/// The one regular file of the package whose path ends with `ending`, for example a source archive.
pub(crate) fn read_file(deb: &[u8], ending: &str, what: &str) -> Result<Vec<u8>, KernelError> {
    let mut found = None;
    tar_files(
        ar_member(deb, "data.tar", what)?,
        what,
        |p| p.ends_with(ending),
        |_, content| found = Some(content),
    )?;
    found.ok_or_else(|| KernelError::bad_input(what, format!("it has no file *{ending}")))
}

fn control(deb: &[u8], what: &str) -> Result<Package, KernelError> {
    let mut text = String::new();
    let part = ar_member(deb, "control.tar", what)?;
    tar_files(
        part,
        what,
        |p| p == "control",
        |_, content| text = String::from_utf8_lossy(&content).into_owned(),
    )?;
    let field = |key: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(key))
            .map(|v| v.trim().to_owned())
    };
    let (name, version) = field("Package:")
        .zip(field("Version:"))
        .ok_or_else(|| KernelError::bad_input(what, "its control file lacks Package or Version"))?;
    Ok(Package { name, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_come_from_file_names() {
        assert_eq!(
            module_name("kernel/drivers/char/hw_random/virtio-rng.ko.xz").as_deref(),
            Some("virtio_rng")
        );
        assert_eq!(module_name("kernel/fs/erofs/erofs.ko").as_deref(), Some("erofs"));
        assert_eq!(module_name("modules.order"), None);
        assert_eq!(module_name("kernel/fs/erofs/erofs.kox"), None);
    }

    #[test]
    fn a_file_that_is_no_package_is_named_in_the_error() {
        let error = read_kernel(b"PK\x03\x04", "photos.zip").unwrap_err();
        assert_eq!(
            error.to_string(),
            "photos.zip is damaged or of an unknown kind: not a Debian package"
        );
    }

    #[test]
    fn a_member_cut_short_is_an_error() {
        let mut deb = b"!<arch>\ncontrol.tar.xz  0           0     0     100644  999       `\n".to_vec();
        deb.extend_from_slice(b"short");
        let error = read_kernel(&deb, "cut.deb").unwrap_err();
        assert!(error.to_string().contains("cut in member control.tar.xz"), "{error}");
    }
}
