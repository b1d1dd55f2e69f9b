//! Which hypervisor runs a machine: facts are gathered apart from the decision, which is pure.
//!
//! `auto` takes Cloud Hypervisor where KVM really works, a version that the driver knows is installed, and the machine has
//! nothing that it cannot do; else QEMU. QEMU is always there: without it nothing here runs at all.

use serde::{Deserialize, Serialize};

use crate::cloud_hypervisor::{self, CloudHypervisor};
use crate::qemu::Qemu;
use crate::{Accel, Driver};

/// Where hypervisors are looked for: monitors have no other search path, whoever starts them.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    /// QEMU.
    #[default]
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
}

impl Hypervisor {
    /// Its driver, with what can be seen of it without running it.
    pub fn driver(self) -> Box<dyn Driver> {
        match self {
            Self::Qemu => Box::new(Qemu::unasked(None)),
            Self::CloudHypervisor => Box::new(CloudHypervisor::unasked(None)),
        }
    }

    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => cloud_hypervisor::BINARY,
        }
    }
}

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Requested {
    /// The best that works.
    #[default]
    Auto,
    /// QEMU.
    Qemu,
    /// Cloud Hypervisor or an error.
    CloudHypervisor,
}

impl Requested {
    /// Whether nothing was asked for.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// What was seen of Cloud Hypervisor on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Why it cannot be used; `None` when it can.
    pub obstacle: Option<String>,
    /// Its program and version, when there is one.
    pub version: Option<(u32, u32)>,
}

impl Found {
    /// Looks at this host, in [`SEARCH_PATH`]. Runs the program for its version, if there is one.
    pub fn gather() -> Self {
        let folders = std::env::split_paths(SEARCH_PATH);
        let Some(binary) = folders.map(|f| f.join(cloud_hypervisor::BINARY)).find(|b| b.is_file()) else {
            return Self {
                obstacle: Some("Cloud Hypervisor is not installed".to_owned()),
                version: None,
            };
        };
        match cloud_hypervisor::probe(Some(&binary)) {
            Ok(found) => Self {
                obstacle: None,
                version: Some(found.version),
            },
            Err(error) => Self {
                obstacle: Some(error.to_string()),
                version: None,
            },
        }
    }
}

/// The hypervisor that was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// It.
    pub driver: Hypervisor,
    /// Why, for people.
    pub why: String,
}

impl Default for Choice {
    /// What plans were made for before there was a choice.
    fn default() -> Self {
        Self {
            driver: Hypervisor::Qemu,
            why: "there was no choice when the machine was planned".to_owned(),
        }
    }
}

impl Choice {
    /// Whether the machine was planned before there was a choice.
    pub fn was_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Cloud Hypervisor was asked for and cannot be had for this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cloud Hypervisor cannot run this machine: {reason}")]
pub struct Unavailable {
    /// What is in the way.
    pub reason: String,
    /// It is the host, and not the machine.
    pub is_host: bool,
}

impl Unavailable {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self.is_host {
            true => {
                "leave the choice to the host, or use qemu. Cloud Hypervisor needs a host whose KVM works, and its \
                 static binary of v53 or later in the search path; 'zmachine doctor' says what is missing"
            }
            false => "leave the choice to the host, or use qemu",
        }
    }
}

/// Decides. `accel` is what the machine will be executed by, and why; `lacks` what the machine has and Cloud Hypervisor
/// cannot do.
///
/// # Errors
/// [`Unavailable`] when Cloud Hypervisor was asked for by name.
pub fn choose(
    requested: Requested,
    accel: &crate::accel::Choice,
    found: &Found,
    lacks: Option<&str>,
) -> Result<Choice, Unavailable> {
    let no_kvm =
        (accel.accel != Accel::Kvm).then(|| format!("it needs kvm, and guests are emulated here: {}", accel.why));
    let host = no_kvm.or_else(|| found.obstacle.clone());
    let obstacle = match (host, lacks) {
        (Some(reason), _) => Some((reason, true)),
        (None, Some(reason)) => Some((reason.to_owned(), false)),
        (None, None) => None,
    };
    let (driver, why) = match (requested, obstacle) {
        (Requested::Qemu, _) => (Hypervisor::Qemu, "asked for".to_owned()),
        (Requested::CloudHypervisor, None) => (Hypervisor::CloudHypervisor, "asked for".to_owned()),
        (Requested::CloudHypervisor, Some((reason, is_host))) => return Err(Unavailable { reason, is_host }),
        (Requested::Auto, None) => {
            let (major, minor) = found.version.unwrap_or_default();
            let why = format!("kvm works here, and Cloud Hypervisor {major}.{minor} is installed");
            (Hypervisor::CloudHypervisor, why)
        }
        (Requested::Auto, Some((reason, _))) => (Hypervisor::Qemu, format!("not Cloud Hypervisor: {reason}")),
    };
    Ok(Choice { driver, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accel(accel: Accel) -> crate::accel::Choice {
        crate::accel::Choice {
            accel,
            why: "of the weather".into(),
        }
    }

    fn found() -> Found {
        Found {
            obstacle: None,
            version: Some((53, 0)),
        }
    }

    #[test]
    fn cloud_hypervisor_is_taken_where_kvm_works_and_it_is_installed() {
        let choice = choose(Requested::Auto, &accel(Accel::Kvm), &found(), None).unwrap();
        assert_eq!(choice.driver, Hypervisor::CloudHypervisor);
        assert_eq!(choice.why, "kvm works here, and Cloud Hypervisor 53.0 is installed");
    }

    #[test]
    fn everywhere_else_qemu_is_taken_and_says_why() {
        let missing = Found {
            obstacle: Some("it is not installed".into()),
            version: None,
        };
        for (accel, found, lacks, why) in [
            (accel(Accel::Tcg), found(), None, "emulated here: of the weather"),
            (accel(Accel::Kvm), missing, None, "it is not installed"),
            (
                accel(Accel::Kvm),
                found(),
                Some("it has no firmware"),
                "it has no firmware",
            ),
        ] {
            let choice = choose(Requested::Auto, &accel, &found, lacks).unwrap();
            assert_eq!(choice.driver, Hypervisor::Qemu);
            assert!(choice.why.ends_with(why), "{}", choice.why);
        }
    }

    #[test]
    fn asking_for_it_by_name_fails_clearly_where_it_can_not_be() {
        let error = choose(Requested::CloudHypervisor, &accel(Accel::Tcg), &found(), None).unwrap_err();
        assert!(error.is_host && error.hint().contains("use qemu"), "{error}");
        let error = choose(Requested::CloudHypervisor, &accel(Accel::Kvm), &found(), Some("x")).unwrap_err();
        assert_eq!(error.to_string(), "Cloud Hypervisor cannot run this machine: x");
        let choice = choose(Requested::Qemu, &accel(Accel::Kvm), &found(), None).unwrap();
        assert_eq!(choice.driver, Hypervisor::Qemu);
    }
}
