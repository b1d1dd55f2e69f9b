//! What is said about a command line that is not understood: what was meant, in this program's words, and nothing that does
//! not exist for users.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, builder::StyledStr};

use crate::args::Cli;

/// Commands of docker, podman, incus and virsh, and what does the same here.
pub(crate) const COMMANDS: [(&str, &str); 15] = [
    (
        "attach-device",
        "'zmachine network connect' adds interfaces; other devices need a new machine",
    ),
    (
        "build",
        "'zmachine flist pack' makes an image of a directory; images of Dockerfiles are imported: 'zmachine flist import'",
    ),
    (
        "container",
        "the commands for machines have no prefix: 'zmachine ps', 'zmachine rm'",
    ),
    (
        "destroy",
        "'zmachine kill' ends a machine at once, 'zmachine rm' removes it",
    ),
    ("dominfo", "'zmachine inspect' shows everything about a machine"),
    (
        "import",
        "'zmachine flist import' makes a flist of a container image, 'zmachine image pull NAME=FILE' names it",
    ),
    ("launch", "'zmachine run' creates and starts a machine"),
    ("list", "'zmachine ps' lists machines"),
    (
        "prune",
        "'zmachine system prune' removes what nobody needs, 'zmachine image prune' images and blocks alone",
    ),
    ("reboot", "'zmachine restart' stops a machine and starts it again"),
    ("search", "there is no search in registries"),
    ("shell", "'zmachine exec -it NAME sh' runs a shell in a machine"),
    ("show", "'zmachine inspect' shows everything about a machine"),
    ("shutdown", "'zmachine stop' asks a machine to stop"),
    ("suspend", "'zmachine pause' halts the virtual CPUs"),
];

/// Flags of docker and podman, and what does the same here.
pub(crate) const FLAGS: [(&str, &str); 30] = [
    ("--device", "devices of this host cannot be passed to machines"),
    ("--format", "use --output json, and jq for single fields"),
    ("--filter", "use --output json, and jq to choose"),
    ("--gpus", "devices of this host cannot be passed to machines"),
    ("--link", "machines of one network find each other by their names"),
    ("--mac-address", "a machine's addresses follow from its id"),
    ("--no-trunc", "use --output json"),
    ("--volumes-from", "name the volumes with -v"),
    (
        "--attach",
        "'zmachine run' without -d follows standard output and error; -i passes standard input on",
    ),
    ("--blkio-weight-device", "limits of a guest's disks cannot be set"),
    ("--cpu-period", "use --cpus"),
    ("--cpu-quota", "use --cpus"),
    ("--cpu-rt-period", "use --cpus"),
    ("--cpu-rt-runtime", "use --cpus"),
    ("--cpuset-mems", "the memory of this host cannot be chosen"),
    (
        "--device-cgroup-rule",
        "devices of this host cannot be passed to machines",
    ),
    ("--device-read-bps", "limits of a guest's disks cannot be set"),
    ("--device-read-iops", "limits of a guest's disks cannot be set"),
    ("--device-write-bps", "limits of a guest's disks cannot be set"),
    ("--device-write-iops", "limits of a guest's disks cannot be set"),
    ("--dns-option", "options of /etc/resolv.conf cannot be set"),
    ("--label-file", "name each with --label, or in a machine file"),
    (
        "--link-local-ip",
        "addresses are those of its networks: --ip and --ip6 choose one",
    ),
    ("--quiet", "leave it out: progress is shown on terminals alone"),
    ("--storage-opt", "use --size for the size of its root"),
    ("--use-api-socket", "there is no API socket to pass"),
    ("--cpu-count", "it is for Windows alone: leave it out"),
    ("--cpu-percent", "it is for Windows alone: leave it out"),
    ("--io-maxbandwidth", "it is for Windows alone: leave it out"),
    ("--io-maxiops", "it is for Windows alone: leave it out"),
];

/// Prints a help text, or what is wrong with a command line. For `run` and `exec` the code is 125, since 2 may be the guest
/// command's own.
pub(crate) fn explain(error: clap::Error, is_guests_code: bool) -> ExitCode {
    let error = in_our_words(error);
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ if is_guests_code => ExitCode::from(125),
        _ => ExitCode::from(2),
    }
}

fn in_our_words(mut error: clap::Error) -> clap::Error {
    let text = |error: &clap::Error, kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let hint = match error.kind() {
        ErrorKind::UnknownArgument => {
            // That it can be passed as a value helps nobody who mistook a flag.
            error.remove(ContextKind::Suggested);
            let flag = text(&error, ContextKind::InvalidArg).unwrap_or_default();
            known(&FLAGS, flag.split(['=', ' ']).next().unwrap_or_default())
        }
        ErrorKind::InvalidSubcommand => {
            keep_visible_suggestions(&mut error);
            let word = text(&error, ContextKind::InvalidSubcommand).unwrap_or_default();
            known(&COMMANDS, &word)
        }
        _ => None,
    };
    if let Some(hint) = hint {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::SuggestedSubcommand);
        let hints = vec![StyledStr::from(hint)];
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(hints));
    }
    error
}

fn known(table: &'static [(&str, &str)], word: &str) -> Option<&'static str> {
    table.iter().find(|(theirs, _)| *theirs == word).map(|(_, ours)| *ours)
}

/// Roles that this program plays for itself are no advice.
fn keep_visible_suggestions(error: &mut clap::Error) {
    let command = Cli::command();
    let is_hidden = |name: &String| command.find_subcommand(name).is_some_and(clap::Command::is_hide_set);
    let kept = match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(names)) => {
            let kept: Vec<String> = names.iter().filter(|name| !is_hidden(name)).cloned().collect();
            (!kept.is_empty()).then_some(ContextValue::Strings(kept))
        }
        Some(ContextValue::String(name)) if !is_hidden(name) => Some(ContextValue::String(name.clone())),
        _ => None,
    };
    error.remove(ContextKind::SuggestedSubcommand);
    if let Some(kept) = kept {
        error.insert(ContextKind::SuggestedSubcommand, kept);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn output(words: &[&str]) -> String {
        let error = Cli::try_parse_from([&["zmachine"], words].concat()).unwrap_err();
        in_our_words(error).to_string()
    }

    #[test]
    fn words_of_other_tools_are_answered_in_ours() {
        assert!(output(&["run", "--link", "x", "app"]).contains("find each other by their names"));
        for words in [&["run", "--gpus", "all", "app"][..], &["run", "--nonsense", "app"]] {
            assert!(!output(words).contains("-- --"), "{}", output(words));
        }
    }

    #[test]
    fn hidden_commands_are_never_advice() {
        for word in ["monito", "shar", "jai", "rootf", "history", "save"] {
            let output = output(&[word]);
            for hidden in ["'monitor'", "'share'", "'jail'", "'rootfs'"] {
                assert!(!output.contains(hidden), "{output}");
            }
        }
        assert!(output(&["stat"]).contains("stats"));
    }

    #[test]
    fn no_table_names_what_there_is() {
        let command = Cli::command();
        let is_there = |word: &str| command.find_subcommand(word).is_some();
        assert_eq!(COMMANDS.iter().find(|(theirs, _)| is_there(theirs)), None);
        let run = command.find_subcommand("run").unwrap();
        let longs: Vec<String> = run
            .get_arguments()
            .filter_map(|argument| argument.get_long().map(|long| format!("--{long}")))
            .collect();
        assert_eq!(
            FLAGS.iter().find(|(theirs, _)| longs.iter().any(|long| long == theirs)),
            None
        );
    }
}
