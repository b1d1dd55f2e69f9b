//! The file systems that are made on a fresh volume, by the tools of the host. They only ever see a file of zeros.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use zmachine_spec::volume::Fs;
use zmachine_spec::{Class, Failure};
use zmachine_sys::process::{ChildSetup, prepare_child};

/// Where distributions keep the tools; a user's search path often lacks these.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];

/// What is told to the tool of each file system: quiet, whatever is there, a label, no discard of a file of holes.
struct Tool {
    program: &'static str,
    package: &'static str,
    arguments: &'static [&'static str],
    label: &'static str,
    label_bytes: usize,
}

const EXT4: Tool = Tool {
    program: "mkfs.ext4",
    package: "e2fsprogs",
    // -m 0, because nobody needs a reserve on a data disk.
    arguments: &[
        "-q",
        "-F",
        "-m",
        "0",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
    ],
    label: "-L",
    label_bytes: 16,
};
const BTRFS: Tool = Tool {
    program: "mkfs.btrfs",
    package: "btrfs-progs",
    arguments: &["-q", "-f", "-K"],
    label: "-L",
    label_bytes: 255,
};
const XFS: Tool = Tool {
    program: "mkfs.xfs",
    package: "xfsprogs",
    arguments: &["-q", "-f", "-K"],
    label: "-L",
    label_bytes: 12,
};

/// Makes `fs` on the file `path`, which is all zeros, and makes it durable.
///
/// # Errors
/// [`Class::Unsupported`] when the tool is not installed, else what the tool says.
pub(super) fn make(fs: Fs, path: &Path, name: &str) -> Result<(), Failure> {
    let Some(tool) = tool(fs) else { return Ok(()) };
    let label: String = name.chars().take(tool.label_bytes).collect();
    let program = find(&tool)?;
    let mut command = Command::new(&program);
    command
        .args(tool.arguments)
        .args([tool.label, &label])
        .arg("--")
        .arg(path)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    // It goes with whoever has the volume's lock: nobody else may find it at work.
    prepare_child(
        &mut command,
        ChildSetup {
            die_with_parent: true,
            ..ChildSetup::default()
        },
    );
    let output = command
        .output()
        .map_err(|e| Failure::from(e).context(format!("cannot run {program}")))?;
    if !output.status.success() {
        let reported = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        let message = format!("no {fs} file system could be made on the volume '{name}': {reported}");
        return Err(Failure::new(Class::Failed, message));
    }
    let file = File::open(path).map_err(|e| Failure::from(e).context(format!("volume '{name}'")))?;
    file.sync_all()
        .map_err(|e| Failure::from(e).context(format!("volume '{name}'")))
}

/// Checks that `fs` could be made here.
///
/// # Errors
/// [`Class::Unsupported`] when its tool is not installed.
pub fn check(fs: Fs) -> Result<(), Failure> {
    tool(fs).map_or(Ok(()), |tool| find(&tool).map(drop))
}

fn tool(fs: Fs) -> Option<Tool> {
    match fs {
        Fs::Ext4 => Some(EXT4),
        Fs::Btrfs => Some(BTRFS),
        Fs::Xfs => Some(XFS),
        Fs::None => None,
    }
}

fn find(tool: &Tool) -> Result<String, Failure> {
    let paths = FOLDERS.iter().map(|folder| format!("{folder}/{}", tool.program));
    paths.into_iter().find(|path| Path::new(path).exists()).ok_or_else(|| {
        let message = format!(
            "{} is needed to make this volume's file system and is not installed",
            tool.program
        );
        Failure::new(Class::Unsupported, message).hint(format!("apt-get install {}", tool.package))
    })
}
