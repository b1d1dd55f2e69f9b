//! How settings of a machine are written on the command line: failures name settings, and this says which flags those are.

use zmachine_spec::Setting;

/// The flag of `run` and `create`, or their argument.
pub(crate) fn flag(setting: Setting) -> &'static str {
    match setting {
        Setting::Name => "--name",
        Setting::Flist => "IMAGE",
        Setting::Cpus => "--cpus",
        Setting::Memory => "--memory",
        Setting::Size => "--size",
        Setting::Env => "--env",
        Setting::Entrypoint => "--entrypoint",
        Setting::Workdir => "--workdir",
        Setting::User => "--user",
        Setting::Hostname => "--hostname",
        Setting::Networks => "--network",
        Setting::NetworkAliases => "--network-alias",
        Setting::Publish => "--publish",
        Setting::Dns => "--dns",
        Setting::Terminal => "--tty",
        Setting::ReadOnly => "--read-only",
        Setting::Init => "--init",
        Setting::Kernel => "--kernel",
        Setting::Accel => "--accel",
        Setting::Hypervisor => "--hypervisor",
        Setting::StopSignal => "--stop-signal",
        Setting::Stores => "--store",
        Setting::Mode => "--mode",
        Setting::Volumes => "--volume",
        Setting::UserData => "--user-data",
        Setting::Reinstall => "--reinstall",
        Setting::Rootfs => "--rootfs",
        Setting::Restart => "--restart",
        Setting::LogLimits => "--log-opt",
        Setting::LogTo => "--log-to",
        Setting::Secrets => "--secret",
        Setting::Tmpfs => "--tmpfs",
        Setting::Hosts => "--add-host",
        Setting::Sysctls => "--sysctl",
        Setting::Ulimits => "--ulimit",
        Setting::Capabilities => "--cap-drop",
        Setting::Health => "--health-cmd",
        Setting::CpuSet => "--cpuset-cpus",
        Setting::Snapshots => "--snapshots",
        Setting::IdleTimeout => "--idle-timeout",
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn every_setting_is_a_flag_of_run() {
        let mut command = Cli::command();
        command.build();
        let run = command.find_subcommand("run").unwrap();
        let flags: Vec<&str> = run.get_arguments().filter_map(|arg| arg.get_long()).collect();
        for setting in Setting::ALL {
            let flag = flag(setting);
            let is_known = flag
                .strip_prefix("--")
                .map_or(flag == "IMAGE", |long| flags.contains(&long));
            assert!(is_known, "{flag}");
        }
    }
}
