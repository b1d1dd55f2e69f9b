//! Installing: from a package or files to a treated folder that appears as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use zmachine_sys::file;

use crate::deb::{self, KernelFiles};
use crate::description::FORMAT_VERSION;
use crate::error::AtPath;
use crate::library::{DEFAULT_LINK, check_name};
use crate::modules::StrippedModule;
use crate::{Description, Kernel, KernelError, KernelLibrary, Module, apt, image, modules};

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelSource {
    /// The newest 6.12 cloud kernel in the host's Debian package sources; downloaded, never installed on the host.
    Debian,
    /// A kernel's package file.
    Deb(PathBuf),
    /// The folder of a kernel that was prepared already, as a library has it.
    Prepared(PathBuf),
    /// A bare kernel.
    Files {
        /// A bzImage, or an uncompressed ELF.
        kernel: PathBuf,
        /// A folder with its modules below it (as `/lib/modules/<release>`); none when everything is built in.
        modules: Option<PathBuf>,
    },
}

/// What an install or a build is doing; each is reported once, when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// A package is being downloaded.
    Downloading {
        /// Its name.
        package: String,
    },
    /// A package or folder is being read.
    Reading {
        /// Its path.
        path: PathBuf,
    },
    /// Kernel and modules are being decompressed and stripped.
    Treating {
        /// The kernel's release.
        release: String,
    },
    /// The kernel's source is being unpacked.
    Unpacking {
        /// The archive.
        path: PathBuf,
    },
    /// The kernel's source is being configured.
    Configuring,
    /// The kernel is being compiled, which takes about 1,250 CPU seconds.
    Compiling {
        /// Compilers at work at once.
        jobs: usize,
    },
}

impl KernelLibrary {
    /// Installs a kernel under `name`, or under `debian-<version>`, `kernel-<release>` and the like when none is given. The first one
    /// becomes the default. An interrupted install leaves nothing that counts as a kernel; the next one cleans up.
    ///
    /// # Errors
    /// Every [`KernelError`] except those about descriptions; nothing is left behind.
    pub fn install(
        &self,
        source: &KernelSource,
        name: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Kernel, KernelError> {
        if let Some(name) = name {
            self.check_free(name)?;
        }
        let _lock = self.lock()?;
        self.sweep()?;
        let work = self.dir().join(".new-install");
        fs::create_dir(&work).at("create", &work)?;
        let installed = self.install_in(&work, source, name, progress);
        if installed.is_err() {
            let _ = fs::remove_dir_all(&work); // what cannot be removed now is swept by the next install
        }
        installed
    }

    fn install_in(
        &self,
        work: &Path,
        source: &KernelSource,
        name: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Kernel, KernelError> {
        if let KernelSource::Prepared(folder) = source {
            progress(Progress::Reading { path: folder.clone() });
            let (new, prepared) = (work.join("kernel"), Kernel::read(folder)?);
            let name = name.unwrap_or(&prepared.description.name);
            self.check_free(name)?;
            let description = copy_prepared(&prepared, &new, name)?;
            return self.publish(work, &new, description);
        }
        let (mut files, origin) = gather(source, work, progress)?;
        if files.release.is_empty() {
            files.release = image::release(&image::vmlinux(&files.kernel, &origin)?).unwrap_or_default();
        }
        progress(Progress::Treating {
            release: files.release.clone(),
        });
        let name = name.map_or_else(|| derived_name(&files), str::to_owned);
        self.check_free(&name)?;
        let new = work.join("kernel");
        let description = write_treated(&new, &files, &origin, &name)?;
        self.publish(work, &new, description)
    }

    /// Gives the kernel in the folder `new` its place.
    fn publish(&self, work: &Path, new: &Path, description: Description) -> Result<Kernel, KernelError> {
        let name = description.name.clone();
        let dir = self.dir().join(&name);
        fs::rename(new, &dir).at("rename", &dir)?;
        file::sync_dir(self.dir())?;
        let _ = fs::remove_dir_all(work);
        let link = self.dir().join(DEFAULT_LINK);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(&name, &link).at("write", &link)?;
        }
        Ok(Kernel { dir, description })
    }

    fn check_free(&self, name: &str) -> Result<(), KernelError> {
        check_name(name)?;
        let dir = self.dir().join(name);
        if fs::symlink_metadata(&dir).is_ok() {
            Err(KernelError::Exists { name: name.into() })
        } else {
            Ok(())
        }
    }
}

/// Reads everything the source has into memory (a package is about 35 MB) and says where it came from.
fn gather(
    source: &KernelSource,
    work: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(KernelFiles, String), KernelError> {
    match source {
        KernelSource::Prepared(_) => unreachable!("it is copied as it is"),
        KernelSource::Debian => {
            let package = apt::newest_kernel_package()?;
            progress(Progress::Downloading {
                package: package.clone(),
            });
            let path = apt::download(&package, work)?;
            let deb = fs::read(&path).at("read", &path)?;
            Ok((deb::read_kernel(&deb, &package)?, package))
        }
        KernelSource::Deb(path) => {
            progress(Progress::Reading { path: path.clone() });
            let deb = fs::read(path).at("read", path)?;
            Ok((
                deb::read_kernel(&deb, &path.display().to_string())?,
                path.display().to_string(),
            ))
        }
        KernelSource::Files { kernel, modules } => {
            progress(Progress::Reading { path: kernel.clone() });
            let mut files = KernelFiles {
                kernel: fs::read(kernel).at("read", kernel)?,
                ..Default::default()
            };
            if let Some(dir) = modules {
                read_modules_below(dir, &mut files, 0)?;
            }
            Ok((files, kernel.display().to_string()))
        }
    }
}

/// Copies a prepared kernel, each file held against its digest.
fn copy_prepared(from: &Kernel, to: &Path, name: &str) -> Result<Description, KernelError> {
    let modules = to.join("modules");
    fs::create_dir_all(&modules).at("create", &modules)?;
    for (file, digest) in &from.description.files {
        let is_module = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('/');
        if file != "vmlinux" && !file.strip_prefix("modules/").is_some_and(is_module) {
            return Err(KernelError::BadDescription {
                path: from.dir.join("kernel.json"),
                reason: format!("a kernel has no file {file:?}"),
            });
        }
        let path = from.dir.join(file);
        let content = fs::read(&path).at("read", &path)?;
        if hex(&Sha256::digest(&content)) != *digest {
            let damaged = std::io::Error::new(std::io::ErrorKind::InvalidData, "it is damaged");
            return Err(damaged).at("read", &path);
        }
        write_synced(&to.join(file), &content)?;
    }
    let description = Description {
        name: name.to_owned(),
        ..from.description.clone()
    };
    file::replace_json(&to.join("kernel.json"), &description)?;
    file::sync_dir(&modules)?;
    file::sync_dir(to)?;
    Ok(description)
}

fn read_modules_below(dir: &Path, files: &mut KernelFiles, depth: usize) -> Result<(), KernelError> {
    for entry in fs::read_dir(dir).at("read", dir)? {
        let path = entry.at("read", dir)?.path();
        let text = path.to_string_lossy();
        // Links (such as `build`) are not followed: they lead out of the folder.
        if fs::symlink_metadata(&path).at("read", &path)?.is_dir() {
            if depth < 32 {
                read_modules_below(&path, files, depth + 1)?;
            }
        } else if text.ends_with("/modules.builtin") {
            files.builtin = Some(deb::builtin_names(&fs::read(&path).at("read", &path)?));
            files.release = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        } else if let Some(name) = deb::module_name(&text) {
            files.modules.insert(name, fs::read(&path).at("read", &path)?);
        }
    }
    Ok(())
}

/// `debian-6.12.117` from a package, `kernel-<release>` or `kernel` from files.
fn derived_name(files: &KernelFiles) -> String {
    let version = files.release.split(['+', '-']).next().unwrap_or_default();
    match (&files.package, version) {
        (Some(_), version) => format!("debian-{version}"),
        (None, "") => "kernel".into(),
        (None, version) => format!("kernel-{version}"),
    }
}

/// Writes the treated kernel into the new folder `dir`, everything synced.
fn write_treated(dir: &Path, files: &KernelFiles, origin: &str, name: &str) -> Result<Description, KernelError> {
    let vmlinux = image::vmlinux(&files.kernel, origin)?;
    let selected = modules::select(files, origin)?;
    let modules_dir = dir.join("modules");
    fs::create_dir_all(&modules_dir).at("create", &modules_dir)?;
    let mut digests = BTreeMap::new();
    let mut store = |relative: String, content: &[u8]| -> Result<(), KernelError> {
        write_synced(&dir.join(&relative), content)?;
        digests.insert(relative, hex(&Sha256::digest(content)));
        Ok(())
    };
    store("vmlinux".into(), &vmlinux)?;
    for module in &selected {
        store(format!("modules/{}.ko", module.name), &module.content)?;
    }
    let description = Description {
        version: FORMAT_VERSION,
        name: name.to_owned(),
        release: files.release.clone(),
        source: origin.to_owned(),
        package: files.package.clone(),
        created_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        files: digests,
        modules: selected.iter().map(described).collect(),
    };
    file::replace_json(&dir.join("kernel.json"), &description)?;
    file::sync_dir(&modules_dir)?;
    file::sync_dir(dir)?;
    Ok(description)
}

fn described(module: &StrippedModule) -> Module {
    let file_of = |name: &String| format!("{name}.ko");
    Module {
        file: file_of(&module.name),
        needs: module.needs.iter().map(file_of).collect(),
        boot: module.boot,
    }
}

fn write_synced(path: &Path, content: &[u8]) -> Result<(), KernelError> {
    let mut file = File::create_new(path).at("create", path)?;
    file.write_all(content).and_then(|()| file.sync_all()).at("write", path)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
