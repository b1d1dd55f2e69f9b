//! The folder `kernels/` of a home directory: what is in it, and who may change it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use crate::error::AtPath;
use crate::{Description, FsDriver, KernelError};

/// No description is longer than this: 4 MiB.
const MAX_DESCRIPTION_BYTES: u64 = 4 << 20;
pub(crate) const DEFAULT_LINK: &str = "default";

/// The installed guest kernels of one home directory.
#[derive(Clone, Debug)]
pub struct KernelLibrary {
    dir: PathBuf,
}

/// An installed kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its folder.
    pub dir: PathBuf,
    /// What it is.
    pub description: Description,
}

impl Kernel {
    /// The uncompressed ELF kernel to boot.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The files of a driver's modules beyond those of the boot, in loading order; none when the kernel has it built in.
    pub fn driver_files(&self, driver: FsDriver) -> Vec<PathBuf> {
        let folder = self.dir.join("modules");
        let names = self.description.driver_modules(driver);
        names.into_iter().map(|name| folder.join(name)).collect()
    }

    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// Reads the kernel in the folder `dir`, which need not be in a library.
    ///
    /// # Errors
    /// [`KernelError::Io`], [`KernelError::BadDescription`].
    pub fn read(dir: &Path) -> Result<Self, KernelError> {
        let path = dir.join("kernel.json");
        let text = file::read_text(&path, MAX_DESCRIPTION_BYTES)?;
        Ok(Self {
            dir: dir.to_owned(),
            description: Description::parse(&text, &path)?,
        })
    }
}

impl KernelLibrary {
    /// The library of the home directory `home`; its folder is made when it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(home: &Path) -> Result<Self, KernelError> {
        let dir = home.join("kernels");
        file::make_dirs(&dir)?;
        Ok(Self { dir })
    }

    /// The library's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All installed kernels by name. One whose description cannot be read is an error in its place, never hidden.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Result<Kernel, KernelError>>, KernelError> {
        let mut dirs = Vec::new();
        for entry in fs::read_dir(&self.dir).at("read", &self.dir)? {
            let entry = entry.at("read", &self.dir)?;
            let is_kernel = entry.file_type().at("read", &entry.path())?.is_dir();
            if is_kernel && !entry.file_name().to_string_lossy().starts_with('.') {
                dirs.push(entry.path());
            }
        }
        dirs.sort();
        Ok(dirs.iter().map(|dir| Kernel::read(dir)).collect())
    }

    /// The kernel called `name`.
    ///
    /// # Errors
    /// [`KernelError::BadName`], [`KernelError::NotFound`], [`KernelError::BadDescription`].
    pub fn get(&self, name: &str) -> Result<Kernel, KernelError> {
        check_name(name)?;
        let dir = self.dir.join(name);
        match dir.try_exists() {
            Ok(false) => Err(KernelError::NotFound { name: name.into() }),
            _ => Kernel::read(&dir),
        }
    }

    /// The kernel to use when none is named: the first one that was installed, or what [`Self::set_default`] said.
    ///
    /// # Errors
    /// [`KernelError::NoDefault`], [`KernelError::BadDescription`].
    pub fn default(&self) -> Result<Kernel, KernelError> {
        match fs::read_link(self.dir.join(DEFAULT_LINK)) {
            Ok(target) => self.get(&target.to_string_lossy()),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(KernelError::NoDefault { dir: self.dir.clone() }),
            Err(e) => Err(e).at("read", &self.dir.join(DEFAULT_LINK)),
        }
    }

    /// Makes `name` the default.
    ///
    /// # Errors
    /// As [`Self::get`], or when the link cannot be written.
    pub fn set_default(&self, name: &str) -> Result<(), KernelError> {
        self.get(name)?;
        let (new, link) = (self.dir.join(".new-default"), self.dir.join(DEFAULT_LINK));
        let _lock = self.lock()?;
        file::remove_if_there(&new)?;
        std::os::unix::fs::symlink(name, &new).at("write", &new)?;
        fs::rename(&new, &link).at("rename", &link)?;
        Ok(file::sync_dir(&self.dir)?)
    }

    /// Removes the kernel `name`; running machines are not affected, stopped ones that need it will not start.
    ///
    /// # Errors
    /// [`KernelError::BadName`], [`KernelError::NotFound`], or when the folder cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), KernelError> {
        check_name(name)?;
        let _lock = self.lock()?;
        let dir = self.dir.join(name);
        if !dir.try_exists().at("read", &dir)? {
            return Err(KernelError::NotFound { name: name.into() });
        }
        let link = self.dir.join(DEFAULT_LINK);
        if fs::read_link(&link).is_ok_and(|target| target == Path::new(name)) {
            file::remove_if_there(&link)?;
        }
        Ok(file::remove_dir_all(&dir)?)
    }

    /// Held by whoever changes the library, so that what is half made can be told from what was left half made.
    pub(crate) fn lock(&self) -> Result<FileLock, KernelError> {
        Ok(FileLock::exclusive(&self.dir.join(".lock"))?)
    }

    /// Removes what interrupted installs and removals left. Only with the lock held.
    pub(crate) fn sweep(&self) -> Result<(), KernelError> {
        for entry in fs::read_dir(&self.dir).at("read", &self.dir)? {
            let entry = entry.at("read", &self.dir)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".new-") || name.starts_with(".gone-") {
                let path = entry.path();
                let is_dir = entry.file_type().at("read", &path)?.is_dir();
                if is_dir {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                }
                .at("remove", &path)?;
            }
        }
        Ok(())
    }
}

/// Refuses a name that is not a plain folder name.
pub(crate) fn check_name(name: &str) -> Result<(), KernelError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = name.starts_with(plain)
        && name.len() <= 64
        && name.chars().all(|c| plain(c) || matches!(c, '.' | '_' | '+' | '-'))
        && name != DEFAULT_LINK;
    if good {
        Ok(())
    } else {
        Err(KernelError::BadName { name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_or_reserved_are_refused() {
        for name in ["", "..", "a/b", "default", ".new-x", "Upper", &"a".repeat(65)] {
            assert!(matches!(check_name(name), Err(KernelError::BadName { .. })), "{name}");
        }
        check_name("debian-6.12.117+deb12_x").unwrap();
    }

    #[test]
    fn an_empty_library_says_how_to_get_a_kernel() {
        let home = tempfile::tempdir().unwrap();
        let error = KernelLibrary::open(home.path()).unwrap().default().unwrap_err();
        assert!(error.hint().unwrap().contains("kernel install"));
    }

    #[test]
    fn a_damaged_description_is_listed_as_an_error_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let library = KernelLibrary::open(home.path()).unwrap();
        fs::create_dir(library.dir().join("broken")).unwrap();
        fs::write(library.dir().join("broken/kernel.json"), "{").unwrap();
        let listed = library.list().unwrap();
        assert!(
            matches!(&listed[..], [Err(KernelError::BadDescription { .. })]),
            "{listed:?}"
        );
        assert!(library.dir().join("broken/kernel.json").exists());
    }
}
