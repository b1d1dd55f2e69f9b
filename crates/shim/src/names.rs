//! Names of Linux in OCI specifications, and their numbers.

use zmachine_agent_protocol::Capabilities;
use zmachine_spec::guest::{CAPABILITIES, RESOURCES};

use crate::error::ShimError;
use crate::oci;

/// Options of mounts, the flag of mount(2), and whether it is set or taken back.
const FLAGS: [(&str, u64, bool); 22] = [
    ("ro", 1, true),
    ("rw", 1, false),
    ("nosuid", 2, true),
    ("suid", 2, false),
    ("nodev", 4, true),
    ("dev", 4, false),
    ("noexec", 8, true),
    ("exec", 8, false),
    ("sync", 16, true),
    ("async", 16, false),
    ("dirsync", 128, true),
    ("noatime", 1024, true),
    ("atime", 1024, false),
    ("nodiratime", 2048, true),
    ("diratime", 2048, false),
    ("relatime", 1 << 21, true),
    ("norelatime", 1 << 21, false),
    ("strictatime", 1 << 24, true),
    ("nostrictatime", 1 << 24, false),
    ("nosymfollow", 256, true),
    ("defaults", 0, true),
    ("silent", 1 << 15, true),
];

const RECURSIVE: u64 = 16384;

/// Kinds of propagation.
const PROPAGATION: [(&str, u64); 8] = [
    ("private", 1 << 18),
    ("rprivate", 1 << 18 | RECURSIVE),
    ("slave", 1 << 19),
    ("rslave", 1 << 19 | RECURSIVE),
    ("shared", 1 << 20),
    ("rshared", 1 << 20 | RECURSIVE),
    ("unbindable", 1 << 17),
    ("runbindable", 1 << 17 | RECURSIVE),
];

/// The sets of an OCI process.
///
/// # Errors
/// For a name that is none.
pub(crate) fn capabilities(named: &oci::Capabilities) -> Result<Capabilities, ShimError> {
    let set = |names: &[String]| {
        names.iter().try_fold(0u64, |set, name| {
            let short = name.strip_prefix("CAP_").unwrap_or(name);
            let number = CAPABILITIES.iter().position(|known| *known == short);
            let unknown = || ShimError::Invalid(format!("there is no capability '{name}'"));
            Ok::<u64, ShimError>(set | 1u64 << number.ok_or_else(unknown)?)
        })
    };
    Ok(Capabilities {
        bounding: set(&named.bounding)?,
        effective: set(&named.effective)?,
        permitted: set(&named.permitted)?,
        inheritable: set(&named.inheritable)?,
        ambient: set(&named.ambient)?,
    })
}

/// The number of a resource limit.
///
/// # Errors
/// For a name that is none.
pub(crate) fn limit(name: &str) -> Result<u8, ShimError> {
    let short = name.strip_prefix("RLIMIT_").unwrap_or(name).to_ascii_lowercase();
    let number = RESOURCES.iter().position(|known| *known == short);
    let unknown = || ShimError::Invalid(format!("there is no resource limit '{name}'"));
    number.map(|number| number as u8).ok_or_else(unknown)
}

/// Read-only with all that is mounted below.
const ALL_READ_ONLY: &str = "rro";

/// Every option of mounts that is understood here, and not by a file system.
pub(crate) fn known_mount_options() -> Vec<&'static str> {
    let flags = FLAGS.iter().map(|(name, ..)| *name);
    let propagation = PROPAGATION
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !is_shared(name));
    flags
        .chain(propagation)
        .chain(["bind", "rbind", ALL_READ_ONLY])
        .collect()
}

fn is_shared(name: &str) -> bool {
    matches!(name, "shared" | "rshared")
}

/// What the options of a mount mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// For mount(2).
    pub(crate) flags: u64,
    /// For a second call.
    pub(crate) propagation: u64,
    /// It is a bind; with what is mounted in it.
    pub(crate) bind: Option<bool>,
    /// It is read-only with all that is mounted in it.
    pub(crate) read_only_below: bool,
    /// For the file system, separated by commas.
    pub(crate) data: String,
}

/// `MS_RDONLY`, `MS_SLAVE` and `MS_SHARED`.
pub(crate) const READ_ONLY: u64 = 1;
pub(crate) const SLAVE: u64 = 1 << 19;
pub(crate) const SHARED: u64 = 1 << 20;

/// Sorts the options of a mount.
pub(crate) fn mount_options(options: &[String]) -> MountOptions {
    let mut sorted = MountOptions::default();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        if let Some((_, flag, is_set)) = FLAGS.iter().find(|(name, ..)| name == option) {
            match is_set {
                true => sorted.flags |= flag,
                false => sorted.flags &= !flag,
            }
        } else if let Some((_, kind)) = PROPAGATION.iter().find(|(name, _)| name == option) {
            sorted.propagation = *kind;
        } else {
            match option.as_str() {
                "bind" => sorted.bind = Some(sorted.bind.unwrap_or(false)),
                "rbind" => sorted.bind = Some(true),
                ALL_READ_ONLY => {
                    sorted.flags |= READ_ONLY;
                    sorted.read_only_below = true;
                }
                other => data.push(other),
            }
        }
    }
    sorted.data = data.join(",");
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_the_kernel() {
        let named = oci::Capabilities {
            bounding: vec![
                "CAP_CHOWN".into(),
                "CAP_NET_RAW".into(),
                "CAP_CHECKPOINT_RESTORE".into(),
            ],
            ..oci::Capabilities::default()
        };
        assert_eq!(capabilities(&named).unwrap().bounding, 1 | 1 << 13 | 1 << 40);
        assert_eq!(limit("RLIMIT_NOFILE").unwrap(), 7);
        assert_eq!(limit("RLIMIT_RTTIME").unwrap(), 15);
        assert!(limit("RLIMIT_NONE").is_err());
        let unknown = oci::Capabilities {
            effective: vec!["CAP_X".into()],
            ..oci::Capabilities::default()
        };
        assert!(capabilities(&unknown).unwrap_err().to_string().contains("CAP_X"));
    }

    #[test]
    fn options_are_flags_propagation_or_the_file_systems_own() {
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let tmpfs = mount_options(&words("nosuid,strictatime,mode=755,size=65536k"));
        assert_eq!(tmpfs.flags, 2 | 1 << 24);
        assert_eq!((tmpfs.data.as_str(), tmpfs.bind), ("mode=755,size=65536k", None));
        let bind = mount_options(&words("rbind,rprivate,ro"));
        assert_eq!((bind.bind, bind.flags), (Some(true), 1));
        assert_eq!(bind.propagation, 1 << 18 | 16384);
        assert_eq!(mount_options(&words("ro,rw,bind")).flags, 0);
        let all = mount_options(&words("rbind,rro"));
        assert_eq!((all.flags, all.read_only_below), (READ_ONLY, true));
    }
}
