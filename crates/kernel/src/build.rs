//! Compiling an own kernel from Debian's source: everything a machine needs built in, nothing else. Optional; about 1,250
//! CPU seconds once, for 0.7-0.8 s less per boot under emulation.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{self, run};
use crate::compression::reader;
use crate::error::AtPath;
use crate::{Kernel, KernelError, KernelLibrary, KernelSource, Progress, deb};

/// The options of our own kernel, for `make KCONFIG_ALLCONFIG=… allnoconfig` of Linux 6.12 on x86-64.
pub const DEFAULT_FRAGMENT: &str = include_str!("../kernel.fragment");

const TOOLS: &str = "gcc make bc bison flex binutils libelf-dev libssl-dev";
/// What the kernel's own build starts and never names well when it is missing, and the headers of its host programs.
const NEEDED: [&str; 6] = ["gcc", "make", "bc", "bison", "flex", "strip"];
const HEADERS: [&str; 2] = ["/usr/include/gelf.h", "/usr/include/openssl/opensslv.h"];
const SOURCE_PACKAGE: &str = "linux-source-6.12";

/// Where the source of a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildSource {
    /// The host's Debian package sources (`linux-source-6.12`, 150 MB), downloaded and never installed.
    Debian,
    /// A `linux-source-*.deb`, or a `linux-*.tar.{xz,gz,zst}`.
    File(PathBuf),
}

impl KernelLibrary {
    /// Compiles a kernel with the options `fragment` and installs it as `name`. Needs about 2 GB in the folder `work`, which
    /// is ours alone: what an interrupted build left there is removed first, and everything at the end, failed or not.
    ///
    /// # Errors
    /// [`KernelError::NoTool`] before anything is downloaded, [`KernelError::Tool`] from the compilers, else as
    /// [`KernelLibrary::install`].
    pub fn build(
        &self,
        source: &BuildSource,
        fragment: &str,
        name: &str,
        work: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Kernel, KernelError> {
        check_tools()?;
        remove(work)?;
        let kernel = self.build_in(source, fragment, name, work, progress);
        remove(work)?;
        kernel
    }

    fn build_in(
        &self,
        source: &BuildSource,
        fragment: &str,
        name: &str,
        work: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Kernel, KernelError> {
        let tree = unpack(source, work, progress)?;
        progress(Progress::Configuring);
        let out = configure(&tree, fragment, work)?;
        let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
        progress(Progress::Compiling { jobs });
        let vmlinux = compile(&tree, &out, jobs)?;
        let source = KernelSource::Files {
            kernel: vmlinux,
            modules: None,
        };
        self.install(&source, Some(name), progress)
    }
}

fn remove(work: &Path) -> Result<(), KernelError> {
    match fs::remove_dir_all(work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", work),
        _ => Ok(()),
    }
}

/// Whether everything is here that the build needs: it takes 150 MB of downloads and minutes to find out otherwise.
fn check_tools() -> Result<(), KernelError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let tools = NEEDED.into_iter().filter(|tool| !found(tool));
    let headers = HEADERS.into_iter().filter(|header| !Path::new(header).is_file());
    match tools.chain(headers).next() {
        None => Ok(()),
        Some(missing) => Err(KernelError::NoTool {
            tool: missing.to_owned(),
            packages: TOOLS,
            source: io::ErrorKind::NotFound.into(),
        }),
    }
}

/// Unpacks the source below `work` and gives its top folder.
fn unpack(source: &BuildSource, work: &Path, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, KernelError> {
    fs::create_dir_all(work).at("create", work)?;
    let path = match source {
        BuildSource::File(path) => path.clone(),
        BuildSource::Debian => {
            progress(Progress::Downloading {
                package: SOURCE_PACKAGE.into(),
            });
            apt::download(SOURCE_PACKAGE, work)?
        }
    };
    progress(Progress::Unpacking { path: path.clone() });
    let what = path.display().to_string();
    let mut bytes = fs::read(&path).at("read", &path)?;
    if path.extension().is_some_and(|e| e == "deb") {
        bytes = deb::read_file(&bytes, ".tar.xz", &what)?;
    }
    let tree = work.join("source");
    tar::Archive::new(reader(&bytes, &what)?)
        .unpack(&tree)
        .at("unpack into", &tree)?;
    let top = fs::read_dir(&tree).at("read", &tree)?.flatten().map(|e| e.path());
    let mut top = top.filter(|p| p.join("Kconfig").exists());
    top.next()
        .ok_or_else(|| KernelError::bad_input(what, "it holds no kernel source"))
}

/// Makes the configuration and checks that every option of the fragment is in it; gives the build folder.
fn configure(tree: &Path, fragment: &str, work: &Path) -> Result<PathBuf, KernelError> {
    let (out, options) = (work.join("out"), work.join("kernel.fragment"));
    fs::create_dir_all(&out).at("create", &out)?;
    fs::write(&options, fragment).at("write", &options)?;
    let mut make = make(tree, &out);
    run(
        make.arg(format!("KCONFIG_ALLCONFIG={}", options.display()))
            .arg("allnoconfig"),
        TOOLS,
    )?;
    let config = out.join(".config");
    let made = fs::read_to_string(&config).at("read", &config)?;
    match refused_options(fragment, &made).as_slice() {
        [] => Ok(out),
        refused => Err(KernelError::bad_input(
            "the kernel's options",
            format!("not accepted: {}", refused.join(" ")),
        )),
    }
}

fn compile(tree: &Path, out: &Path, jobs: usize) -> Result<PathBuf, KernelError> {
    run(make(tree, out).arg(format!("-j{jobs}")).arg("vmlinux"), TOOLS)?;
    let (full, stripped) = (out.join("vmlinux"), out.join("vmlinux.stripped"));
    run(Command::new("strip").arg("-o").args([&stripped, &full]), "binutils")?;
    Ok(stripped)
}

fn make(tree: &Path, out: &Path) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", "10", "make", "-C"])
        .arg(tree)
        .arg(format!("O={}", out.display()));
    command
}

/// The lines of the fragment that the configuration made from it does not have: misspelt, or an unmet dependency.
fn refused_options(fragment: &str, config: &str) -> Vec<String> {
    let set = |line: &str| config.lines().any(|l| l == line);
    let wanted = fragment
        .lines()
        .filter_map(|l| l.trim().split_once('=').filter(|_| l.starts_with("CONFIG_")));
    let refused = wanted.filter(|(key, value)| match *value {
        "n" => config
            .lines()
            .any(|l| l.strip_prefix(*key).is_some_and(|rest| rest.starts_with('='))),
        _ => !set(&format!("{key}={value}")),
    });
    refused.map(|(key, value)| format!("{key}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_did_not_take_are_named() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\n";
        let fragment = "# text\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=n\nCONFIG_D=y\n";
        assert_eq!(refused_options(fragment, config), ["CONFIG_C=n", "CONFIG_D=y"]);
    }

    #[test]
    fn the_fragment_has_what_every_machine_needs() {
        for option in [
            "PVH",
            "VIRTIO_BLK",
            "VIRTIO_NET",
            "VIRTIO_CONSOLE",
            "EROFS_FS",
            "OVERLAY_FS",
            "EXT4_FS",
            "PVPANIC_PCI",
        ] {
            assert!(
                DEFAULT_FRAGMENT.lines().any(|l| l == format!("CONFIG_{option}=y")),
                "{option}"
            );
        }
    }

    #[test]
    fn debians_source_accepts_every_option_of_the_fragment() {
        let Some(source) = std::env::var_os("ZMACHINE_TEST_KERNEL_SOURCE") else {
            return zmachine_testkit::skip(
                "needs a linux-source-6.12 package, its name in ZMACHINE_TEST_KERNEL_SOURCE",
            );
        };
        let work = tempfile::tempdir().unwrap();
        let tree = unpack(&BuildSource::File(source.into()), work.path(), &mut |_| {}).unwrap();
        let out = configure(&tree, DEFAULT_FRAGMENT, work.path()).unwrap();
        assert!(out.join(".config").exists());
        let error = configure(&tree, "CONFIG_NO_SUCH_OPTION=y\n", work.path()).unwrap_err();
        assert!(error.to_string().contains("CONFIG_NO_SUCH_OPTION=y"), "{error}");
    }
}
