//! Landlock over a jail's view: a second wall behind the mount namespace, and the first where there is none.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};

use super::{Access, Device, Jail};

/// The newest version whose rights are named here.
const NEWEST: ABI = ABI::V6;

/// Restricts the calling thread to the view and the devices of `jail`; what the kernel does not know is left out.
pub(super) fn restrict(jail: &Jail) -> Result<(), RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    let seen = jail.view.iter().map(|view| {
        let rights = match view.access {
            Access::Execute => read | AccessFs::Execute,
            Access::Read => read,
            Access::Write => AccessFs::from_all(NEWEST) & !AccessFs::Execute,
        };
        (view.path.clone(), rights)
    });
    let device = |device: &Device| {
        let rights = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        (Path::new("/dev").join(device.name()), rights)
    };
    let own = [(PathBuf::from("/proc"), read | AccessFs::WriteFile)];
    for (path, rights) in seen.chain(jail.devices.iter().map(device)).chain(own) {
        if let Some(rule) = beneath(&path, rights) {
            rules = rules.add_rule(rule)?;
        }
    }
    rules.restrict_self()?;
    Ok(())
}

fn beneath(path: &Path, rights: BitFlags<AccessFs>) -> Option<PathBeneath<PathFd>> {
    let rights = match path.is_dir() {
        true => rights,
        false => rights & AccessFs::from_file(NEWEST),
    };
    PathFd::new(path).ok().map(|fd| PathBeneath::new(fd, rights))
}
