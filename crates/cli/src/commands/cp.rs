//! `cp`: files and directories between this host and a machine, streamed.

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use zmachine_agent_protocol::{Frame, MAX_DATA, Transfer};
use zmachine_engine::Engine;
use zmachine_engine::transfer::{FromGuest, ToGuest};
use zmachine_image::Silent;
use zmachine_spec::{Class, Failure};
use zmachine_transfer::{Keep, TransferError};

use crate::args::CpArgs;

/// Where one side of a copy is.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Host(PathBuf),
    /// `-`: a tar archive on standard input or output.
    Stream,
    Machine {
        name: String,
        path: String,
    },
}

/// Copies one way or the other.
pub(crate) fn cp(engine: &Engine, args: &CpArgs) -> Result<u8, Failure> {
    match (side(&args.source), side(&args.target)) {
        (Side::Machine { name, path }, Side::Host(target)) => {
            reading(engine, &name, |at| {
                from_machine(engine, at, path, &target, args.archive)
            })?;
        }
        (Side::Host(source), Side::Machine { name, path }) => {
            writing(engine, &name, |at| to_machine(engine, &source, at, path, args.archive))?;
        }
        (Side::Machine { name, path }, Side::Stream) => reading(engine, &name, |at| to_stdout(engine, at, path))?,
        (Side::Stream, Side::Machine { name, path }) => {
            writing(engine, &name, |at| from_stdin(engine, at, path, args.archive))?;
        }
        _ => {
            return Err(
                Failure::new(Class::Usage, "exactly one side of a copy is in a machine").hint(
                    "zmachine cp ./file NAME:/path, or zmachine cp NAME:/path ./file; './a:b' is a path of this host, and '-' a tar archive",
                ),
            );
        }
    }
    Ok(0)
}

/// Has `copy` read from a machine, or from one with a copy of its disk when it does not run.
fn reading(engine: &Engine, name: &str, copy: impl FnOnce(&str) -> Result<(), Failure>) -> Result<(), Failure> {
    match engine.machine(name)?.state.phase.is_active() {
        true => copy(name),
        false => copy(engine.open_root(name, &Silent)?.name()),
    }
}

/// The same for what is written: all of it or nothing is kept of a machine that does not run.
fn writing(engine: &Engine, name: &str, copy: impl FnOnce(&str) -> Result<(), Failure>) -> Result<(), Failure> {
    match engine.machine(name)?.state.phase.is_active() {
        true => copy(name),
        false => engine.write_root(name, &Silent, copy),
    }
}

fn side(text: &str) -> Side {
    if text == "-" {
        return Side::Stream;
    }
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && !name.starts_with('.') && !name.contains('/') => {
            let path = if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            };
            Side::Machine {
                name: name.to_owned(),
                path,
            }
        }
        _ => Side::Host(PathBuf::from(text)),
    }
}

/// The last name of a source, and whether only what is in it is meant.
fn named(source: &str) -> (OsString, bool) {
    let contents = source.ends_with("/.") || source == "." || source.ends_with("/..") || source == "..";
    let name = Path::new(source).file_name().filter(|_| !contents);
    // The root has no name: what is in it is all there is.
    name.map_or(("root".into(), true), |name| (name.to_owned(), false))
}

fn from_machine(engine: &Engine, machine: &str, path: String, target: &Path, archive: bool) -> Result<(), Failure> {
    let (name, contents) = named(&path);
    let (_input, output) = engine.transfer(machine, Transfer::Send { path: path.clone() })?;
    let mut stream = FromGuest::new(output);
    let keep = Keep {
        owner: archive,
        // A program of the guest must not become a set-user-id program of this host.
        special_bits: false,
        // Nor is a device node of the guest's making wanted on this host.
        devices: false,
    };
    let received = zmachine_transfer::receive(&mut stream, target, &name, contents, keep, warn);
    let here = |e: TransferError| failure(&e).context(format!("cannot copy to {}", target.display()));
    match received {
        // The guest's own words say more than that its stream broke.
        Ok(()) | Err(TransferError::Stream(_)) => {
            let reported = stream.end(warn);
            reported.map_err(|f| f.context(format!("cannot copy {machine}:{path}")))?;
            received.map_err(here)
        }
        Err(error) => Err(here(error)),
    }
}

fn to_machine(engine: &Engine, source: &Path, machine: &str, path: String, archive: bool) -> Result<(), Failure> {
    let (name, contents) = named(&source.to_string_lossy());
    let name = name.into_string().map_err(|name| {
        Failure::new(Class::Usage, format!("the name {name:?} is not UTF-8")).hint("copy the directory it is in")
    })?;
    // Looked at first: a mistyped path must not reach the machine.
    std::fs::symlink_metadata(source)
        .map_err(|e| Failure::from_error(Class::NotFound, &e).context(format!("cannot copy {}", source.display())))?;
    let transfer = Transfer::Receive {
        target: path.clone(),
        name,
        contents,
        keep_owner: archive,
    };
    let what = source.display().to_string();
    send(engine, machine, &path, transfer, &what, |writer| {
        zmachine_transfer::send(source, writer, warn)
    })
}

/// Puts what is in the archive on standard input into a directory of the machine.
fn from_stdin(engine: &Engine, machine: &str, path: String, archive: bool) -> Result<(), Failure> {
    let stdin = io::stdin().lock();
    if stdin.is_terminal() {
        return Err(
            Failure::new(Class::Usage, "standard input is a terminal, not a tar archive")
                .hint("tar -c DIR | zmachine cp - NAME:/path"),
        );
    }
    let transfer = Transfer::Receive {
        target: path.clone(),
        name: "archive".to_owned(),
        contents: true,
        keep_owner: archive,
    };
    send(
        engine,
        machine,
        &path,
        transfer,
        "the archive on standard input",
        |writer| zmachine_transfer::from_archive(stdin, writer, warn),
    )
}

/// Writes a file or directory of the machine to standard output, as an archive.
fn to_stdout(engine: &Engine, machine: &str, path: String) -> Result<(), Failure> {
    let stdout = io::stdout().lock();
    if stdout.is_terminal() {
        return Err(
            Failure::new(Class::Usage, "standard output is a terminal, and this is a tar archive")
                .hint("zmachine cp NAME:/path - | tar -t"),
        );
    }
    let (name, contents) = named(&path);
    let name = if contents { Path::new(".") } else { Path::new(&name) };
    let (_input, output) = engine.transfer(machine, Transfer::Send { path: path.clone() })?;
    let mut stream = FromGuest::new(output);
    let written = zmachine_transfer::to_archive(&mut stream, stdout, name);
    match written {
        // Whoever reads the archive has enough.
        Err(TransferError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Ok(()) | Err(TransferError::Stream(_)) => {
            let reported = stream.end(warn);
            reported.map_err(|f| f.context(format!("cannot copy {machine}:{path}")))?;
            written.map_err(|e| failure(&e))
        }
        Err(error) => Err(failure(&error)),
    }
}

/// Has `write` send a stream of files to a machine.
fn send(
    engine: &Engine,
    machine: &str,
    path: &str,
    transfer: Transfer,
    what: &str,
    write: impl FnOnce(BufWriter<ToGuest>) -> Result<(), TransferError>,
) -> Result<(), Failure> {
    let (input, output) = engine.transfer(machine, transfer)?;
    let ended = Arc::new(AtomicBool::new(false));
    let reported = {
        let ended = ended.clone();
        thread::spawn(move || {
            let reported = FromGuest::new(output).end(warn);
            ended.store(true, Ordering::Release);
            reported
        })
    };
    let mut eof = input.try_clone()?;
    let sent = write(BufWriter::with_capacity(MAX_DATA, ToGuest::new(input, ended)));
    let result = match sent {
        // A guest that has refused the copy does not wait for its end; its own words come first here too.
        Ok(()) => eof.send(&Frame::StdinEof),
        // The guest's own words say why its end of the stream is gone.
        Err(TransferError::Stream(error)) => Err(error),
        Err(error) => {
            eof.close();
            return Err(failure(&error).context(format!("cannot copy {what}")));
        }
    };
    let reported = reported
        .join()
        .unwrap_or_else(|_| Err(Failure::new(Class::Failed, "the copying thread ended early")));
    outcome(reported, result).map_err(|f| f.context(format!("cannot copy to {machine}:{path}")))
}

/// How a copy went, by what the guest told and how sending to it ended.
fn outcome(reported: Result<(), Failure>, sent: io::Result<()>) -> Result<(), Failure> {
    reported?;
    match sent {
        // A guest that ended well had the whole archive, and did not wait for what comes after its end.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        sent => sent.map_err(Failure::from),
    }
}

fn warn(text: String) {
    eprintln!("warning: {text}");
}

fn failure(error: &TransferError) -> Failure {
    let class = match error {
        TransferError::NotFound { .. } | TransferError::NoDirectory { .. } => Class::NotFound,
        _ => Class::Failed,
    };
    Failure::from_error(class, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart() {
        let machine = |name: &str, path: &str| Side::Machine {
            name: name.into(),
            path: path.into(),
        };
        assert_eq!(side("web:/etc/x"), machine("web", "/etc/x"));
        assert_eq!(side("web:x"), machine("web", "/x"));
        assert_eq!(side("-"), Side::Stream);
        for host in ["x", "./web:x", "/a:b", ":x", "a/b:c"] {
            assert_eq!(side(host), Side::Host(host.into()));
        }
    }

    #[test]
    fn a_guest_that_has_all_may_be_gone_before_it_is_told_so() {
        let sent = |kind: io::ErrorKind| Err(io::Error::from(kind));
        assert!(outcome(Ok(()), Ok(())).is_ok());
        assert!(outcome(Ok(()), sent(io::ErrorKind::BrokenPipe)).is_ok());
        assert!(outcome(Ok(()), sent(io::ErrorKind::Other)).is_err());
        let refused = Failure::new(Class::NotFound, "no such directory");
        let reported = outcome(Err(refused), sent(io::ErrorKind::BrokenPipe)).unwrap_err();
        assert!(reported.to_string().contains("no such directory"), "{reported}");
    }

    #[test]
    fn sources_have_names_or_only_contents() {
        assert_eq!(named("/etc/hosts"), ("hosts".into(), false));
        assert_eq!(named("dir/"), ("dir".into(), false));
        for contents in ["/", ".", "dir/.", "..", "a/.."] {
            assert!(named(contents).1, "{contents}");
        }
    }
}
