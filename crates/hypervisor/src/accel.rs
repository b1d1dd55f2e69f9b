//! Which accelerator a host can really offer. Facts are gathered apart from the decision, which is pure.
//!
//! "`/dev/kvm` opens" proves nothing: the software variant of KVM (`kvm_pvm`) opens too, and then `-cpu host` aborts and no
//! unmodified 64-bit kernel reaches user space (a system call stays in ring 3, and its emulator of kernel mode lacks
//! instructions). So hardware virtualisation must be seen as well.

use std::fs::{self, OpenOptions};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Accel;

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Requested {
    /// The best that works.
    #[default]
    Auto,
    /// Hardware virtualisation or an error.
    Kvm,
    /// Emulation, also where better is there.
    Tcg,
}

/// What was seen on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccelFacts {
    /// Why `/dev/kvm` cannot be opened for reading and writing; `None` when it can.
    pub kvm_device_error: Option<String>,
    /// Whether the module `kvm_pvm` is loaded.
    pub software_kvm: bool,
    /// Whether the CPU shows `vmx` or `svm`.
    pub hardware_virtualisation: bool,
}

impl AccelFacts {
    /// Looks at this host.
    pub fn gather() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        Self {
            kvm_device_error: device.err().map(|e| e.to_string()),
            software_kvm: Path::new("/sys/module/kvm_pvm").exists(),
            hardware_virtualisation: has_virtualisation_flag(&cpuinfo),
        }
    }

    /// Why KVM cannot be used, if so.
    fn obstacle(&self) -> Option<String> {
        if let Some(error) = &self.kvm_device_error {
            return Some(format!("/dev/kvm cannot be opened: {error}"));
        }
        if self.software_kvm {
            return Some("this host's KVM is a software variant (module kvm_pvm), which cannot run the guests".into());
        }
        (!self.hardware_virtualisation).then(|| "the CPU shows neither vmx nor svm".into())
    }
}

fn has_virtualisation_flag(cpuinfo: &str) -> bool {
    let flags = cpuinfo
        .lines()
        .find_map(|l| l.strip_prefix("flags"))
        .unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// The accelerator that was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// It.
    pub accel: Accel,
    /// Why, for people.
    pub why: String,
}

/// KVM was asked for and is not to be had. The host cannot do it: no other command line will help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this host cannot run machines with kvm: {reason}")]
pub struct KvmUnavailable {
    /// What is in the way.
    pub reason: String,
}

impl KvmUnavailable {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        "leave the choice to the host, or use tcg; machines are slower then. For kvm, enable virtualisation in the firmware \
         (or nested virtualisation), load kvm_intel or kvm_amd, and give this user access to /dev/kvm"
    }
}

/// Decides.
///
/// # Errors
/// [`KvmUnavailable`] when KVM was asked for by name and cannot be used.
pub fn choose(requested: Requested, facts: &AccelFacts) -> Result<Choice, KvmUnavailable> {
    let (accel, why) = match (requested, facts.obstacle()) {
        (Requested::Tcg, _) => (Accel::Tcg, "asked for".into()),
        (Requested::Kvm, None) => (Accel::Kvm, "asked for".into()),
        (Requested::Kvm, Some(reason)) => return Err(KvmUnavailable { reason }),
        (Requested::Auto, None) => (Accel::Kvm, "the host has it".into()),
        (Requested::Auto, Some(reason)) => (Accel::Tcg, reason),
    };
    Ok(Choice { accel, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> AccelFacts {
        AccelFacts {
            kvm_device_error: None,
            software_kvm: false,
            hardware_virtualisation: true,
        }
    }

    #[test]
    fn kvm_is_taken_where_it_is_real() {
        assert_eq!(choose(Requested::Auto, &good()).unwrap().accel, Accel::Kvm);
        assert_eq!(choose(Requested::Tcg, &good()).unwrap().accel, Accel::Tcg);
    }

    #[test]
    fn a_software_kvm_that_opens_is_not_taken() {
        let facts = AccelFacts {
            software_kvm: true,
            ..good()
        };
        let choice = choose(Requested::Auto, &facts).unwrap();
        assert_eq!(choice.accel, Accel::Tcg);
        assert!(choice.why.contains("kvm_pvm"), "{}", choice.why);
    }

    #[test]
    fn asking_for_kvm_by_name_fails_clearly() {
        let facts = AccelFacts {
            kvm_device_error: Some("Permission denied".into()),
            ..good()
        };
        let error = choose(Requested::Kvm, &facts).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("/dev/kvm cannot be opened: Permission denied"),
            "{error}"
        );
        let facts = AccelFacts {
            hardware_virtualisation: false,
            ..good()
        };
        choose(Requested::Kvm, &facts).unwrap_err();
    }

    #[test]
    fn only_whole_flags_count() {
        assert!(has_virtualisation_flag("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(!has_virtualisation_flag("flags : fpu vmx_x svm_lock\nbugs : vmx\n"));
    }
}
