//! `docs/from-docker.md`: what every command and every `run` flag of docker is here, made of this program's own definitions.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command as Program;

use clap::CommandFactory;

use crate::args::Cli;
use crate::args::guest::GuestArgs;
use zmachine_term::foreign::{COMMANDS, FLAGS};

const HEAD: &str = "# From docker\nWhat docker's commands and the flags of `docker run` are here. Containers are virtual machines: each has a kernel of its \
own, so some flags change nothing, and what would share a kernel is not there. `zmachine COMMAND --help` and [cli.md](cli.md) say more. This page is made of the program's own \
definitions; a test compares it with them, and with the flags of the docker on the PATH.\n";

/// The long flags of `docker run`, of versions 20.10 to 28.
const DOCKER_FLAGS: &str = "--add-host --annotation --attach --blkio-weight --blkio-weight-device --cap-add --cap-drop --cgroup-parent --cgroupns \
--cidfile --cpu-period --cpu-quota --cpu-rt-period --cpu-rt-runtime --cpu-shares --cpus --cpuset-cpus --cpuset-mems --detach --detach-keys --device \
--device-cgroup-rule --device-read-bps --device-read-iops --device-write-bps --device-write-iops --disable-content-trust --dns --dns-option \
--dns-search --domainname --entrypoint --env --env-file --expose --gpus --group-add --health-cmd --health-interval --health-retries \
--health-start-interval --health-start-period --health-timeout --help --hostname --init --interactive --ip --ip6 --ipc --isolation --kernel-memory \
--label --label-file --link --link-local-ip --log-driver --log-opt --mac-address --memory --memory-reservation --memory-swap --memory-swappiness \
--mount --name --network --network-alias --no-healthcheck --oom-kill-disable --oom-score-adj --pid --pids-limit --platform --privileged --publish \
--publish-all --pull --quiet --read-only --restart --rm --runtime --security-opt --shm-size --sig-proxy --stop-signal --stop-timeout --storage-opt \
--sysctl --tmpfs --tty --ulimit --use-api-socket --user --userns --uts --volume --volume-driver --volumes-from --workdir";

/// docker's commands for containers, images, networks and volumes.
const DOCKER_COMMANDS: &str = "attach build commit compose container cp create diff events exec export history image images import info inspect kill \
load login logout logs network pause port ps pull push rename restart rm rmi run save search start stats stop system tag top unpause update version \
volume wait";

/// What a flag of docker's is here; `None` for one that nobody has thought of.
fn flag(name: &str) -> Option<String> {
    let mut command = Cli::command();
    command.build();
    if let Some((_, why)) = GuestArgs::ignored().iter().find(|(ignored, _)| *ignored == name) {
        return Some(format!("changes nothing: {why}"));
    }
    let run = command.find_subcommand("run")?;
    let known = run
        .get_arguments()
        .find(|arg| arg.get_long() == name.strip_prefix("--"));
    if let Some(known) = known {
        let help = known.get_help().map(ToString::to_string).unwrap_or_default();
        return Some(help.lines().next().unwrap_or_default().to_owned());
    }
    let (_, hint) = FLAGS.iter().find(|(theirs, _)| *theirs == name)?;
    Some(format!("not there: {hint}"))
}

fn command(name: &str) -> Option<String> {
    let command = Cli::command();
    if let Some(known) = command.find_subcommand(name) {
        let about = known.get_about().map(ToString::to_string).unwrap_or_default();
        return Some(match known.get_name() == name {
            true => about,
            false => format!("`zmachine {}`: {about}", known.get_name()),
        });
    }
    let (_, hint) = COMMANDS.iter().find(|(theirs, _)| *theirs == name)?;
    Some(format!("not there: {hint}"))
}

fn table(title: &str, names: &str, what: impl Fn(&str) -> Option<String>) -> String {
    let mut text = format!("\n## {title}\n| docker | here |\n|---|---|\n");
    for name in names.split_whitespace() {
        let meaning = what(name).unwrap_or_else(|| panic!("{name} is nothing here: add it, or its hint to usage.rs"));
        let meaning = meaning.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ");
        let _ = writeln!(text, "| `{name}` | {meaning} |");
    }
    text
}

#[test]
fn the_page_names_every_command_and_flag_of_docker() {
    let page = [
        HEAD.to_owned(),
        table("Commands", DOCKER_COMMANDS, command),
        table("Flags of run", DOCKER_FLAGS, flag),
    ]
    .concat();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/from-docker.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == page,
        "docs/from-docker.md is out of date: run UPDATE_DOCS=1 cargo test --bin zmachine from_docker"
    );
}

#[test]
fn the_docker_on_the_path_has_no_flag_that_is_unknown_here() {
    let Some(docker) = zmachine_testkit::command_path("docker") else {
        return zmachine_testkit::skip("docker is not on the PATH");
    };
    let help = Program::new(docker).args(["run", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let theirs: BTreeSet<&str> = help
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")))
        .collect();
    assert!(theirs.len() > 80, "{help}");
    let unknown: Vec<_> = theirs.into_iter().filter(|name| flag(name).is_none()).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
