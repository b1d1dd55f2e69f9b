//! `install-units`: systemd units that start machines at boot.

use zmachine_spec::Failure;
use zmachine_sys::file;

use crate::args::InstallUnitsArgs;
use crate::{context, output};

/// One unit for all machines with a restart policy, and a template for one machine by its name.
fn units(program: &str, environment: &str) -> [(&'static str, String); 2] {
    // KillMode=process: monitors are no part of the unit's work. They outlive its stop and an upgrade of the program;
    // at shutdown systemd sends them SIGTERM, which stops their machines in an orderly way.
    let service = format!(
        "Type=oneshot\nRemainAfterExit=yes\nKillMode=process\nTimeoutStartSec=infinity\nTimeoutStopSec=180\n{environment}"
    );
    let all = format!(
        "[Unit]\nDescription=Zmachines with a restart policy\nAfter=network-online.target\nWants=network-online.target\n\n\
         [Service]\n{service}ExecStart={program} start --all-enabled\n\n[Install]\nWantedBy=multi-user.target\n"
    );
    let one = format!(
        "[Unit]\nDescription=Zmachine %i\nAfter=network-online.target\nWants=network-online.target\n\n\
         [Service]\n{service}ExecStart={program} start %i\nExecStop={program} stop %i\n\n\
         [Install]\nWantedBy=multi-user.target\n"
    );
    [("zmachine-enabled.service", all), ("zmachine@.service", one)]
}

/// Writes the units and says how to enable them.
pub(crate) fn install(args: &InstallUnitsArgs) -> Result<u8, Failure> {
    let program = std::env::current_exe()?;
    let environment = match std::env::var(context::HOME_VARIABLE) {
        Ok(home) if !home.is_empty() => {
            let home = std::path::absolute(home)?;
            format!("Environment=\"{}={}\"\n", context::HOME_VARIABLE, home.display())
        }
        _ => String::new(),
    };
    file::make_dirs(&args.dir)?;
    for (name, text) in units(&program.display().to_string(), &environment) {
        let path = args.dir.join(name);
        file::replace(&path, text.as_bytes())?;
        // systemd refuses nothing, but warns of units that others cannot read.
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        output::print(&format!("{}\n", path.display()))?;
    }
    eprintln!("all machines with --restart at boot: systemctl daemon-reload && systemctl enable zmachine-enabled");
    eprintln!("one machine as a service:            systemctl enable --now zmachine@NAME");
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_their_golden_form() {
        let [(_, all), (_, one)] = units("/usr/bin/zmachine", "Environment=\"ZMACHINE_HOME=/srv/z\"\n");
        assert_eq!(all, include_str!("../../tests/golden/zmachine-enabled.service"));
        assert_eq!(one, include_str!("../../tests/golden/zmachine@.service"));
    }
}
