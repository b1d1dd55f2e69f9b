//! The image ends the flags of `run` and `create`, as docker's does: `run postgres -c fsync=off` gives `-c` to the guest's
//! command, though it is a flag of `run` too. clap would go on reading flags up to the first word of the command.

use std::ffi::OsString;

use clap::{Arg, Command};

/// The words of a command line with `--` after IMAGE. Others, and those that clap will refuse, are as they were.
pub(super) fn marked(mut words: Vec<OsString>, command: &mut Command) -> Vec<OsString> {
    let Some(name @ ("run" | "create")) = words.get(1).and_then(|word| word.to_str()) else {
        return words;
    };
    command.build();
    let Some(command) = command.find_subcommand(name) else {
        return words;
    };
    if let Some(image) = image(&words, command) {
        // Whoever writes the mark need not get a second one.
        if words.get(image + 1).is_some_and(|word| word != "--") {
            words.insert(image + 1, "--".into());
        }
    }
    words
}

/// Where IMAGE is: the first word that is neither a flag nor the value of one.
fn image(words: &[OsString], command: &Command) -> Option<usize> {
    let mut at = 2;
    while let Some(word) = words.get(at) {
        let word = word.to_string_lossy();
        at += 1;
        let takes_next = match word.strip_prefix("--") {
            Some("") => return None,
            Some(long) => match long.split_once('=') {
                Some(_) => false,
                None => takes_next(command, |arg| {
                    arg.get_long() == Some(long) || arg.get_all_aliases().unwrap_or_default().contains(&long)
                })?,
            },
            None => match word.strip_prefix('-') {
                Some("") | None => return Some(at - 1),
                Some(shorts) => cluster_takes_next(command, shorts)?,
            },
        };
        at += usize::from(takes_next);
    }
    None
}

/// Whether `-abc` takes the next word: when the first of its flags that has a value is the last letter. Nothing when one is
/// unknown.
fn cluster_takes_next(command: &Command, shorts: &str) -> Option<bool> {
    let mut letters = shorts.chars();
    while let Some(letter) = letters.next() {
        let is_it = |arg: &Arg| {
            arg.get_short() == Some(letter) || arg.get_all_short_aliases().unwrap_or_default().contains(&letter)
        };
        if takes_next(command, is_it)? {
            return Some(letters.as_str().is_empty());
        }
    }
    Some(false)
}

/// Whether the flag that `is_it` takes a word of its own as its value. Nothing when there is none.
fn takes_next(command: &Command, is_it: impl Fn(&Arg) -> bool) -> Option<bool> {
    let arg = command.get_arguments().find(|arg| is_it(arg))?;
    Some(arg.get_action().takes_values() && !arg.is_require_equals_set())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn marked(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let words = super::marked(words, &mut Cli::command());
        words.join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn what_follows_the_image_is_marked() {
        for (line, expected) in [
            (
                "zmachine run pg -c fsync=off --rm",
                "zmachine run pg -- -c fsync=off --rm",
            ),
            ("zmachine create pg -d", "zmachine create pg -- -d"),
            (
                "zmachine run -dit --name web -p80:80 -e A=b -m 1G --cpus=2 pg postgres -c x",
                "zmachine run -dit --name web -p80:80 -e A=b -m 1G --cpus=2 pg -- postgres -c x",
            ),
            (
                "zmachine run -itv vol:/data pg -v",
                "zmachine run -itv vol:/data pg -- -v",
            ),
            (
                "zmachine run --net none --sig-proxy pg -d",
                "zmachine run --net none --sig-proxy pg -- -d",
            ),
        ] {
            assert_eq!(marked(line), expected);
        }
    }

    #[test]
    fn other_lines_stay_as_they_are() {
        for line in [
            "zmachine",
            "zmachine ps -a",
            "zmachine exec web ls -d",
            "zmachine run",
            "zmachine run pg",
            "zmachine run --name pg",
            "zmachine run pg -- -c x",
            "zmachine run -- pg -c x",
            "zmachine run --no-such-flag pg -c x",
            "zmachine run -dN pg -c x",
        ] {
            assert_eq!(marked(line), line);
        }
    }

    #[test]
    fn flags_after_the_image_reach_the_command() {
        let words = ["zmachine", "run", "-d", "pg", "-c", "fsync=off", "--name", "x"];
        let cli = crate::args::parse(words.map(OsString::from).to_vec()).unwrap();
        let crate::args::Command::Run(run) = cli.command else {
            panic!("not run")
        };
        let spec = run.machine.spec("/here".as_ref(), || "free".into(), |_| None).unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.command.as_slice()),
            ("free", &["-c", "fsync=off", "--name", "x"].map(String::from)[..])
        );
    }
}
