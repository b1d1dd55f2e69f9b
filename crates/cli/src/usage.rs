//! What is said about a command line that is not understood: what was meant, in this program's words, and nothing that does
//! not exist for users.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, builder::StyledStr};

use zmachine_term::foreign::{COMMANDS, FLAGS};

use crate::args::Cli;

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
