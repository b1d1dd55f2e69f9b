//! `docs/cli.md`, made of the same definitions as `--help`, so it cannot say anything else.

use std::fmt::Write;
use std::path::Path;

use clap::{Arg, ArgAction, Command, CommandFactory};

use crate::args::Cli;

const HEAD: &str = "# Command line reference

Every command and its options, as `zmachine COMMAND --help` shows them. This page is made of the program's own definitions
(`UPDATE_DOCS=1 cargo test --bin zmachine reference`), and a test fails when it is out of date. Long options are also keys of
[machine files](machine-files.md).
";

/// Text for one line of a table.
fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace('|', "\\|").replace('<', "&lt;")
}

fn spelled(arg: &Arg) -> String {
    let mut forms = Vec::new();
    forms.extend(arg.get_short().map(|short| format!("-{short}")));
    forms.extend(arg.get_long().map(|long| format!("--{long}")));
    let values = arg.get_value_names().unwrap_or_default();
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let mut text = forms.join(", ");
    if takes_value && !values.is_empty() {
        let values = values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        text = match text.is_empty() {
            true => values,
            false => format!("{text} {values}"),
        };
    }
    // A bar ends a cell of a table, in code as well.
    format!("`{}`", text.replace('|', "\\|"))
}

fn described(arg: &Arg) -> String {
    let mut text = cell(&arg.get_help().map(ToString::to_string).unwrap_or_default());
    let defaults: Vec<_> = arg.get_default_values().iter().filter_map(|v| v.to_str()).collect();
    if matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) {
        let values: Vec<_> = arg
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        if !values.is_empty() {
            let _ = write!(text, " ({})", values.join(", "));
        }
        if !defaults.is_empty() {
            let _ = write!(text, "; default `{}`", defaults.join(" "));
        }
    }
    if matches!(arg.get_action(), ArgAction::Append) {
        text += "; repeatable";
    }
    text
}

fn section(page: &mut String, command: &Command, path: &str) {
    let visible: Vec<_> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).collect();
    if !path.is_empty() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(
            page,
            "\n## zmachine {path}\n{}.\n",
            about.trim_end_matches('.').replace('<', "&lt;")
        );
    }
    let args = command.get_arguments().filter(|arg| {
        let is_common = ["help", "version"].contains(&arg.get_id().as_str());
        !arg.is_hide_set() && !is_common
    });
    let rows: Vec<_> = args
        .map(|arg| format!("| {} | {} |\n", spelled(arg), described(arg)))
        .collect();
    if !path.is_empty() && visible.is_empty() {
        let usage = command
            .clone()
            .bin_name(format!("zmachine {path}"))
            .render_usage()
            .to_string();
        let _ = writeln!(page, "```\n{}\n```", usage.trim_start_matches("Usage: "));
    }
    if !rows.is_empty() {
        let _ = write!(page, "\n| argument | meaning |\n|---|---|\n{}", rows.concat());
    }
    for sub in visible.iter().filter(|sub| sub.get_name() != "help") {
        let path = format!("{path} {}", sub.get_name());
        section(page, sub, path.trim_start());
    }
}

fn page() -> String {
    let mut command = Cli::command();
    command.build();
    let mut page = HEAD.to_owned();
    section(&mut page, &command, "");
    page
}

#[test]
fn the_reference_is_what_help_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == page,
        "docs/cli.md is out of date: run UPDATE_DOCS=1 cargo test --bin zmachine reference"
    );
}
