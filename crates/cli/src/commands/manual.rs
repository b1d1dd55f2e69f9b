//! The manual pages, made of the same definitions as `--help`. Packages have them; the program has no use for them, so what
//! makes them is a test: `ZMACHINE_MAN_DIR=FOLDER cargo test --release --workspace --bin zmachine manual` (`make man`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};

use crate::args::Cli;

/// The pages that are due, by what they are called.
fn due(command: &Command, name: &str, names: &mut BTreeSet<String>) {
    names.insert(format!("{name}.1"));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        due(sub, &format!("{name}-{}", sub.get_name()), names);
    }
}

fn write(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    clap_mangen::generate_to(Cli::command(), folder).unwrap();
}

#[test]
fn every_visible_command_has_a_page() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("ZMACHINE_MAN_DIR").map_or(scratch.path().to_owned(), PathBuf::from);
    write(&folder);

    let mut names = BTreeSet::new();
    due(&Cli::command(), "zmachine", &mut names);
    let found: BTreeSet<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, names);

    let run = fs::read_to_string(folder.join("zmachine-run.1")).unwrap();
    let command = Cli::command();
    for arg in command.find_subcommand("run").unwrap().get_arguments() {
        let Some(long) = arg.get_long() else { continue };
        // roff spells a hyphen so; a longer flag may begin like this one.
        let flag = format!("\\-\\-{}\\f", long.replace('-', "\\-"));
        assert_eq!(run.contains(&flag), !arg.is_hide_set(), "{flag}");
    }
    let all = fs::read_to_string(folder.join("zmachine.1")).unwrap();
    assert!(all.contains("zmachine\\-run(1)") && !all.contains("jail"), "{all}");
}
