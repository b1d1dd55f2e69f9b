//! `serve`: becomes the server, a program of its own.

use std::os::unix::process::CommandExt;

use zmachine_engine::Programs;
use zmachine_spec::{Class, Failure};

use crate::args::ServeArgs;

pub(crate) fn serve(args: &ServeArgs) -> Result<u8, Failure> {
    let program = Programs::own_server();
    let mut command = std::process::Command::new(&program);
    command.arg("--program").arg(std::env::current_exe()?);
    for (option, path) in [("--docker", &args.docker), ("--socket", &args.socket)] {
        if let Some(path) = path {
            command.arg(option).arg(path);
        }
    }
    if let Some(group) = &args.group {
        command.arg("--group").arg(group);
    }
    let failure = Failure::from_error(Class::Unsupported, &command.exec());
    let message = format!("the server {} cannot be started", program.display());
    Err(failure
        .context(message)
        .hint("it comes with the package; from the sources, 'make build-api' makes it"))
}
