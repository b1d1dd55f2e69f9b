//! `ssh`: the host's client, told where the machine is and which key it knows.

use std::os::unix::process::CommandExt;
use std::process::Command;

use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure};

use crate::args::SshArgs;

/// Options of ssh that have a value, in a word of its own or behind them.
const WITH_VALUE: &str = "BbcDEeFIiJLlmOoPpQRSWw";

/// How many of the words are options of ssh.
fn options(words: &[String]) -> usize {
    let mut count = 0;
    while let Some(word) = words.get(count).filter(|word| word.starts_with('-')) {
        let takes_next = word.len() == 2 && word.ends_with(|letter| WITH_VALUE.contains(letter));
        count += 1 + usize::from(takes_next);
    }
    count.min(words.len())
}

/// Becomes the client.
pub(crate) fn ssh(engine: &Engine, args: &SshArgs) -> Result<u8, Failure> {
    let (user, name) = args.name.split_once('@').unwrap_or((&args.user, &args.name));
    let target = engine.ssh_target(name, user)?;
    let (options, command) = args.command.split_at(options(&args.command));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_ssh_are_told_from_the_command() {
        let count = |words: &str| options(&words.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(count("-v -o LogLevel=ERROR -L8080:localhost:80 uname -a"), 4);
        assert_eq!(count("uname -a"), 0);
        assert_eq!(count("-o"), 1);
    }
}
