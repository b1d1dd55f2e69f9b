//! The programs under test: where `make build` put them, and whether they are what the sources say.
//!
//! `cargo test` does not build another package's programs, so an old one could be tested without anybody noticing. The
//! dependency files that cargo writes beside a program name all its sources: one of them being newer is an error here.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::command::Invocation;

/// A download of 34 MB and its treatment, on a slow line.
const KERNEL_INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// The built programs, checked.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The host binary.
    pub zmachine: PathBuf,
    /// The guest agent beside it, static.
    pub agent: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
}

/// The programs `make build` made, looked for beside the running test.
///
/// # Panics
/// When one is missing, older than its sources, or the agent is not static; the message says what to do.
pub fn artifacts() -> &'static Artifacts {
    static FOUND: OnceLock<Artifacts> = OnceLock::new();
    FOUND.get_or_init(|| match find() {
        Ok(found) => found,
        Err(problem) => panic!("{problem}; run 'make build' first ('make test' does)"),
    })
}

fn find() -> Result<Artifacts, String> {
    // <target>/release/deps/<test>, or <target>/release/<program>.
    let own = std::env::current_exe().map_err(|e| format!("own path: {e}"))?;
    let release = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let release = release.ok_or_else(|| format!("{} is in no target folder", own.display()))?;
    let target = release.parent().unwrap_or(release).to_owned();
    let zmachine = release.join("zmachine");
    fresh(&zmachine)?;
    let agent = release.join("zmachine-agent");
    fresh(&agent)?;
    if !is_static(&agent) {
        return Err(format!("{} is not a static program", agent.display()));
    }
    Ok(Artifacts {
        zmachine,
        agent,
        target,
    })
}

impl Artifacts {
    /// The folder with the guest kernel for tests: the `kernels/` in which the kernel that `ZMACHINE_TEST_KERNEL` names
    /// lies, else that of a home below the target folder, where one is installed the first time.
    ///
    /// # Panics
    /// When there is none and none can be installed.
    pub(crate) fn kernels(&self) -> PathBuf {
        let given = std::env::var_os("ZMACHINE_TEST_KERNEL").map(PathBuf::from);
        let home = self.target.join("test-home");
        let kernels = match &given {
            Some(kernel) => kernel.parent().unwrap_or(kernel).to_owned(),
            None => home.join("kernels"),
        };
        if !kernels.join("default").exists() {
            assert!(
                given.is_none(),
                "ZMACHINE_TEST_KERNEL: {} has no default kernel",
                kernels.display()
            );
            let install = Invocation::new(&self.zmachine, ["kernel", "install"]).env("ZMACHINE_HOME", &home);
            install.deadline(KERNEL_INSTALL_TIMEOUT).finish().expect_success();
            assert!(
                kernels.join("default").exists(),
                "kernel install made no {}",
                kernels.join("default").display()
            );
        }
        kernels
    }
}

/// That `program` exists and is not older than any source in its dependency file.
fn fresh(program: &Path) -> Result<(), String> {
    let built = modified(program)?;
    let list = program.with_extension("d");
    let list = String::from_utf8_lossy(&read(&list)?).into_owned();
    for source in sources(&list) {
        match modified(&source) {
            Ok(changed) if changed <= built => {}
            Ok(_) => return Err(format!("{} is older than {}", program.display(), source.display())),
            Err(_) => {
                return Err(format!(
                    "{} was built from {}, now gone",
                    program.display(),
                    source.display()
                ));
            }
        }
    }
    Ok(())
}

/// The sources in a dependency file, `PROGRAM: SOURCE SOURCE...` with `\ ` for a space.
fn sources(list: &str) -> Vec<PathBuf> {
    let Some((_, names)) = list.lines().find_map(|line| line.split_once(": ")) else {
        return Vec::new();
    };
    let joined = names.replace("\\ ", "\0");
    joined
        .split_ascii_whitespace()
        .map(|name| PathBuf::from(name.replace('\0', " ")))
        .collect()
}

fn modified(path: &Path) -> Result<SystemTime, String> {
    path.metadata()
        .and_then(|meta| meta.modified())
        .map_err(|e| format!("{}: {e}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Whether `program` is a 64-bit ELF file that asks for no dynamic loader (no `PT_INTERP` among its program headers).
pub fn is_static(program: &Path) -> bool {
    std::fs::read(program).is_ok_and(|bytes| asks_for_no_loader(&bytes).unwrap_or(false))
}

/// `None` when `elf` is no little-endian 64-bit ELF file. Offsets are those of elf(5), `Elf64_Ehdr` and `Elf64_Phdr`.
fn asks_for_no_loader(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| Some(usize::from(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?)));
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?)).ok()?;
    let (entry, count) = (u16_at(54)?, u16_at(56)?);
    for index in 0..count {
        let at = table.checked_add(index * entry)?;
        if u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?) == PT_INTERP {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_loads_libraries_is_not_static() {
        assert!(!is_static(&std::env::current_exe().unwrap()));
        assert!(!is_static(Path::new("/etc/passwd")));
    }

    #[test]
    fn a_dependency_file_names_sources_with_spaces() {
        let found = sources("/t/release/zmachine: /src/a.rs /src/my\\ folder/b.rs\n\n/src/a.rs:\n");
        assert_eq!(
            found,
            [PathBuf::from("/src/a.rs"), PathBuf::from("/src/my folder/b.rs")]
        );
    }

    #[test]
    fn a_program_older_than_one_of_its_sources_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (program, source) = (folder.path().join("prog"), folder.path().join("main.rs"));
        std::fs::write(&program, "").unwrap();
        std::fs::write(&source, "").unwrap();
        std::fs::write(folder.path().join("prog.d"), format!("prog: {}\n", source.display())).unwrap();
        let now = modified(&program).unwrap();
        let set = |to| {
            std::fs::File::options()
                .write(true)
                .open(&source)
                .unwrap()
                .set_modified(to)
                .unwrap()
        };
        set(now - Duration::from_secs(5));
        assert_eq!(fresh(&program), Ok(()));
        set(now + Duration::from_secs(5));
        assert!(fresh(&program).unwrap_err().contains("is older than"));
    }
}
