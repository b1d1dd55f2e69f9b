//! Finding the UEFI firmware of this host.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A UEFI firmware: its code, and the variables that a new machine starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    /// The code, which machines share.
    pub code: PathBuf,
    /// The variables, of which each machine gets a copy.
    pub variables: PathBuf,
}

/// Where distributions put OVMF without secure boot, code and variables: Debian and Ubuntu (4 MiB, then the older 2 MiB),
/// Fedora, Arch, openSUSE.
const PLACES: [(&str, &str); 5] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-4m-code.bin",
        "/usr/share/qemu/ovmf-x86_64-4m-vars.bin",
    ),
];

impl Firmware {
    /// The firmware of this host; `None` when none is installed.
    pub fn find() -> Option<Firmware> {
        let is_there = |(code, variables): &&(&str, &str)| Path::new(code).is_file() && Path::new(variables).is_file();
        let (code, variables) = PLACES.iter().find(is_there)?;
        Some(Firmware {
            code: code.into(),
            variables: variables.into(),
        })
    }
}
