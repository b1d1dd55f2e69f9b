//! `serve`, `token`, `context`, and whatever is for another host: become the program of the server, which reads the same words.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;

use zmachine_engine::Programs;
use zmachine_engine::elsewhere::{Elsewhere, Goes};
use zmachine_spec::{Class, Failure};

use crate::args::{self, Cli, Command, CreateArgs};

pub(crate) fn become_server() -> Result<u8, Failure> {
    become_program(&Programs::own_server(), "make build-api")
}

pub(crate) fn become_snapshotter() -> Result<u8, Failure> {
    become_program(
        &Programs::own_snapshotter(),
        "cargo build --release --package zmachine-snapshotter",
    )
}

/// Becomes a program beside this one, which reads the same words.
fn become_program(program: &Path, made_by: &str) -> Result<u8, Failure> {
    let mut command = std::process::Command::new(program);
    command.arg("--program").arg(env::current_exe()?);
    let failure = Failure::from_error(Class::Unsupported, &command.args(env::args_os().skip(1)).exec());
    let message = format!("the program {} cannot be started", program.display());
    Err(failure.context(message).hint(format!(
        "it comes with the package; from the sources, '{made_by}' makes it"
    )))
}

/// The words of a command line for this host; with one for another host it does not return.
pub(crate) fn elsewhere(words: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    let (elsewhere, words) = Elsewhere::split(words)?;
    let goes = elsewhere.goes(&words, |name| env::var(name).ok())?;
    if goes == Goes::There {
        return Err(elsewhere.become_client(&words, None));
    }
    // Words that are not understood are refused as those for this host are.
    if goes == Goes::AsMachine
        && let Ok(Cli { command }) = args::parse(words.clone())
    {
        let wanted = |args: &CreateArgs| args.spec(&env::current_dir()?, String::new, |name| env::var(name).ok());
        return Err(match &command {
            Command::Create(args) => elsewhere.become_client(&words, Some((&wanted(args)?, &[]))),
            Command::Run(args) => {
                let flags: &[&str] = match (args.dry_run, args.detach) {
                    (true, _) => &["--dry-run"],
                    (_, true) => &["--detach"],
                    _ => &[],
                };
                elsewhere.become_client(&words, Some((&wanted(&args.machine)?, flags)))
            }
            _ => return Ok(words),
        });
    }
    Ok(words)
}
