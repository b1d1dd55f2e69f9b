//! `completion`: what shells offer behind `zmachine`, made of the same definitions as `--help`.

use clap::builder::Resettable;
use clap::{Arg, Command, CommandFactory, Id};
use zmachine_spec::Failure;

use crate::args::{Cli, CompletionShell};
use crate::output;

/// Prints the completions for one shell.
pub(crate) fn completion(shell: CompletionShell) -> Result<u8, Failure> {
    output::print(&String::from_utf8_lossy(&script(shell)))?;
    Ok(0)
}

fn script(shell: CompletionShell) -> Vec<u8> {
    let mut command = visible(&Cli::command());
    let mut script = Vec::new();
    let shell = match shell {
        CompletionShell::Bash => clap_complete::Shell::Bash,
        CompletionShell::Zsh => clap_complete::Shell::Zsh,
        CompletionShell::Fish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(shell, &mut command, "zmachine", &mut script);
    script
}

/// `command` without what `--help` does not show either: the generators offer hidden commands and flags as well.
fn visible(command: &Command) -> Command {
    let mut shown = Command::new(lasting(command.get_name()))
        .disable_help_subcommand(true)
        .visible_aliases(command.get_visible_aliases().map(lasting))
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()).map(alone))
        .subcommands(command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(visible));
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(lasting(version));
    }
    shown
}

/// clap takes names that live as long as the program; this one ends when it has printed them.
fn lasting(name: &str) -> &'static str {
    name.to_owned().leak()
}

/// `arg` without what ties it to others, which may be hidden.
fn alone(arg: &Arg) -> Arg {
    let nothing = || Resettable::<Id>::Reset;
    arg.clone()
        .conflicts_with(nothing())
        .overrides_with(nothing())
        .requires(nothing())
        .required_unless_present(nothing())
        .group(nothing())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command as Program;

    use clap::ValueEnum;

    use super::*;

    /// The paths of all commands that `--help` shows, or of those it does not.
    fn paths(command: &Command, above: &str, hidden: bool, found: &mut Vec<String>) {
        for sub in command.get_subcommands() {
            let path = format!("{above} {}", sub.get_name());
            if sub.is_hide_set() == hidden {
                found.push(path.clone());
            }
            if !sub.is_hide_set() {
                paths(sub, &path, hidden, found);
            }
        }
    }

    /// What each shell's script says for the command at `path`, behind `zmachine`.
    fn marks(path: &str) -> [(CompletionShell, String); 3] {
        let words: Vec<_> = path.split_whitespace().collect();
        let (name, parents) = words.split_last().unwrap();
        let parent = parents
            .iter()
            .map(|word| format!("__subcmd__{}", word.replace('-', "__")));
        let parent = format!("zmachine{}", parent.collect::<String>());
        let fish = match parents {
            [] => "-n \"__fish_zmachine_needs_command\"".to_owned(),
            [parent, ..] => format!("__fish_zmachine_using_subcommand {parent}"),
        };
        [
            (CompletionShell::Bash, format!("{parent},{name})")),
            (CompletionShell::Zsh, format!("({name})\n")),
            (
                CompletionShell::Fish,
                format!("complete -c zmachine {fish} -a \"{name}\""),
            ),
        ]
    }

    /// A line has all words of the mark: between them fish has conditions that depend on other commands.
    fn says(script: &str, shell: CompletionShell, mark: &str) -> bool {
        match shell {
            CompletionShell::Fish => {
                let name = mark.rsplit(" -a ").next().unwrap();
                let parent = mark.split("complete -c zmachine ").nth(1).unwrap();
                let parent = parent.split(" -a ").next().unwrap();
                script
                    .lines()
                    .any(|line| line.contains(parent) && line.contains(&format!("-a {name}")))
            }
            _ => script.contains(mark),
        }
    }

    #[test]
    fn every_visible_command_is_offered_and_no_hidden_one() {
        let command = Cli::command();
        let scripts: Vec<_> = CompletionShell::value_variants()
            .iter()
            .map(|shell| (*shell, String::from_utf8(script(*shell)).unwrap()))
            .collect();
        let (mut shown, mut hidden) = (Vec::new(), Vec::new());
        paths(&command, "", false, &mut shown);
        paths(&command, "", true, &mut hidden);
        assert!(shown.len() > 50 && hidden.len() >= 4, "{shown:?} {hidden:?}");
        for (paths, wanted) in [(&shown, true), (&hidden, false)] {
            for path in paths {
                for (shell, mark) in marks(path) {
                    let (_, script) = scripts.iter().find(|(of, _)| *of == shell).unwrap();
                    assert_eq!(says(script, shell, &mark), wanted, "{shell:?}:{path}: {mark}");
                }
            }
        }
    }

    #[test]
    fn flags_are_those_of_help() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let hidden: Vec<_> = run.get_arguments().filter(|arg| arg.is_hide_set()).collect();
        assert!(!hidden.is_empty());
        let shown = visible(run);
        for arg in run.get_arguments() {
            let found = shown.get_arguments().any(|other| other.get_id() == arg.get_id());
            assert_eq!(found, !arg.is_hide_set(), "{}", arg.get_id());
        }
        let bash = String::from_utf8(script(CompletionShell::Bash)).unwrap();
        let line = bash.split("zmachine__subcmd__run)").nth(1).unwrap();
        let line = line.lines().find(|line| line.contains("opts=")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        for arg in run
            .get_arguments()
            .filter_map(|arg| Some((arg.get_long()?, arg.is_hide_set())))
        {
            let flag = format!("--{}", arg.0);
            assert_eq!(words.contains(&flag.as_str()), !arg.1, "{flag}: {line}");
        }
    }

    /// What a user sees who types `zmachine im` and tab. Every host has bash.
    #[test]
    fn bash_completes_a_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("zmachine");
        fs::write(&file, script(CompletionShell::Bash)).unwrap();
        let ask = "set -e; . \"$0\"; COMP_WORDS=(zmachine im); COMP_CWORD=1; \
            _zmachine zmachine im zmachine; printf '%s\\n' \"${COMPREPLY[@]}\"";
        let output = Program::new("bash")
            .args(["--norc", "-c", ask])
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "image\nimages\n");
    }
}
