//! A program of ours in the place of an image's, for a start that is only a rehearsal.

use std::fs::{self, File};
use std::io::Read;
use std::time::Duration;

use zmachine_agent_protocol::Process;

use super::plan::{DEFAULT_PATH, candidates};

/// The word after the program's name.
pub(crate) const WORD: &str = "--rehearsal";

/// How long it runs, unless it is ended.
const LIFE: Duration = Duration::from_secs(30);

/// The most that is read of an image's program, in bytes.
const LIMIT: u64 = 16 << 20;

/// What is run: this very program, which the container's own `/proc` leads to.
pub(crate) fn command() -> Vec<String> {
    vec!["/proc/self/exe".to_owned(), WORD.to_owned()]
}

/// Waits to be ended.
pub(crate) fn run() -> ! {
    std::thread::sleep(LIFE);
    std::process::exit(0)
}

/// Reads the program that `process` would run, so that its blocks are here.
pub(crate) fn read_program(process: &Process) {
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    let path = process.env.iter().rev().find(|(name, _)| name == "PATH");
    let path = path.map_or(DEFAULT_PATH, |(_, value)| value);
    let is_file = |file: &String| fs::metadata(file).is_ok_and(|there| there.is_file());
    let Some(file) = candidates(name, path).into_iter().find(is_file) else {
        return;
    };
    let mut piece = vec![0; 64 * 1024];
    if let Ok(file) = File::open(file) {
        let mut file = file.take(LIMIT);
        while file.read(&mut piece).is_ok_and(|count| count > 0) {}
    }
}
