//! `ssh`: the host's client, told where the machine is and which key it knows.

use std::os::unix::process::CommandExt;
use std::process::Command;

use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure};

use crate::args::SshArgs;

/// Becomes the client.
pub(crate) fn ssh(engine: &Engine, args: &SshArgs) -> Result<u8, Failure> {
    let (user, name) = args.name.split_once('@').unwrap_or((&args.user, &args.name));
    let target = engine.ssh_target(name, user)?;
    let options = args.command.iter().take_while(|word| word.starts_with('-')).count();
    let (options, command) = args.command.split_at(options);
    let mut client = Command::new("ssh");
    client
        .arg("-i")
        .arg(args.identity.as_ref().unwrap_or(&target.key))
        // Machines come and go at the same addresses; what is remembered is the machine.
        .arg("-o")
        .arg(format!("HostKeyAlias={}", target.alias))
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", target.known_hosts.display()))
        .args(["-o", "StrictHostKeyChecking=accept-new", "-o", "IdentitiesOnly=yes"])
        .args(["-p", &target.port.to_string(), "-l", user])
        .args(options)
        .arg(target.address.to_string())
        .args(command);
    let error = client.exec();
    let failure = Failure::from_error(Class::Unsupported, &error).context("cannot start ssh");
    Err(failure.hint("install OpenSSH's client (Debian: openssh-client)"))
}
