//! `serve`, `token`: become the program of the server, which reads the same words.

use std::os::unix::process::CommandExt;

use zmachine_engine::Programs;
use zmachine_spec::{Class, Failure};

pub(crate) fn become_server() -> Result<u8, Failure> {
    let program = Programs::own_server();
    let mut command = std::process::Command::new(&program);
    command.arg("--program").arg(std::env::current_exe()?);
    let failure = Failure::from_error(Class::Unsupported, &command.args(std::env::args_os().skip(1)).exec());
    let message = format!("the server {} cannot be started", program.display());
    Err(failure
        .context(message)
        .hint("it comes with the package; from the sources, 'make build-api' makes it"))
}
