//! `cp`, `diff`, `commit`, `export`: what is in a machine's root.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use zmachine_spec::{Class, Failure};
use zmachine_transfer::{Keep, TransferError};

use super::machines::path;
use super::output;
use crate::connection::{Ask, Server};
use crate::words::{Commit, Cp, Diff, Export, Format};

/// How the root of a stream is called.
const ROOT: &str = "tree";

/// Where one side of a copy is.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Here(PathBuf),
    /// `-`: a tar archive on standard input or output.
    Stream,
    Machine {
        name: String,
        path: String,
    },
}

fn side(text: &str) -> Side {
    if text == "-" {
        return Side::Stream;
    }
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && !name.starts_with('.') && !name.contains('/') => Side::Machine {
            name: name.to_owned(),
            path: format!("/{}", path.strip_prefix('/').unwrap_or(path)),
        },
        _ => Side::Here(text.into()),
    }
}

/// The last name of a source, and whether only what is in it is meant.
fn named(source: &str) -> (OsString, bool) {
    let contents = source.ends_with("/.") || source == "." || source.ends_with("/..") || source == "..";
    let name = Path::new(source).file_name().filter(|_| !contents);
    name.map_or(("root".into(), true), |name| (name.to_owned(), false))
}

fn failure(error: &TransferError) -> Failure {
    let class = match error {
        TransferError::NotFound { .. } | TransferError::NoDirectory { .. } => Class::NotFound,
        _ => Class::Failed,
    };
    Failure::from_error(class, error)
}

fn warn(text: String) {
    eprintln!("warning: {text}");
}

fn files(method: &'static str, machine: &str, at: &str) -> Ask<'static> {
    Ask::new(method, format!("{}/files", path(machine))).with("path", at)
}

pub(super) async fn cp(server: &Server, args: &Cp) -> Result<(), Failure> {
    match (side(&args.source), side(&args.target)) {
        (Side::Machine { name, path }, Side::Here(target)) => {
            let (source, contents) = named(&path);
            let keep = Keep {
                owner: args.archive,
                special_bits: false,
                devices: false,
            };
            let ask = files("GET", &name, &path).with("root", ROOT);
            server
                .download(&ask, move |stream| {
                    let received = zmachine_transfer::receive(stream, &target, &source, contents, keep, warn);
                    received.map_err(|e| failure(&e).context(format!("cannot copy to {}", target.display())))
                })
                .await
        }
        (Side::Here(source), Side::Machine { name, path }) => to_machine(server, source, &name, &path, args).await,
        (Side::Machine { name, path }, Side::Stream) => {
            require_pipe(&io::stdout(), "output", "zmachine cp NAME:/path - | tar -t")?;
            let mut ask = files("GET", &name, &path);
            if named(&path).1 {
                ask = ask.with("root", ".");
            }
            server.download(&ask, |stream| pass_on(stream, &mut io::stdout())).await
        }
        (Side::Stream, Side::Machine { name, path }) => {
            require_pipe(&io::stdin(), "input", "tar -c DIR | zmachine cp - NAME:/path")?;
            let ask = files("PUT", &name, &path).with("owner", flag(args.archive));
            let sent = server.upload(&ask, |out| Ok(io::copy(&mut io::stdin(), out).map(drop)?));
            sent.await.map(drop)
        }
        _ => Err(Failure::new(Class::Usage, "exactly one side of a copy is in a machine").hint(
            "zmachine cp ./file NAME:/path, or zmachine cp NAME:/path ./file; './a:b' is a path of this host, and '-' a tar archive",
        )),
    }
}

fn flag(is_set: bool) -> &'static str {
    if is_set { "1" } else { "0" }
}

/// That an archive does not come from a terminal, or go to one.
fn require_pipe(stream: &impl IsTerminal, name: &str, hint: &str) -> Result<(), Failure> {
    match stream.is_terminal() {
        true => {
            let message = format!("standard {name} is a terminal, not a tar archive");
            Err(Failure::new(Class::Usage, message).hint(hint))
        }
        false => Ok(()),
    }
}

async fn to_machine(server: &Server, source: PathBuf, name: &str, path: &str, args: &Cp) -> Result<(), Failure> {
    let (source_name, contents) = named(&source.to_string_lossy());
    let source_name = source_name.into_string().map_err(|name| {
        Failure::new(Class::Usage, format!("the name {name:?} is not UTF-8")).hint("copy the directory it is in")
    })?;
    // Looked at first: a mistyped path must not reach the machine.
    std::fs::symlink_metadata(&source)
        .map_err(|e| Failure::from_error(Class::NotFound, &e).context(format!("cannot copy {}", source.display())))?;
    let ask = files("PUT", name, path)
        .with("source", source_name)
        .with("contents", flag(contents))
        .with("owner", flag(args.archive));
    let sent = server.upload(&ask, move |out| {
        let sent = zmachine_transfer::send(&source, out, warn);
        sent.map_err(|e| failure(&e).context(format!("cannot copy {}", source.display())))
    });
    sent.await.map(drop)
}

/// Passes an archive on; whoever reads it may have enough before its end.
pub(super) fn pass_on(stream: &mut dyn Read, out: &mut dyn Write) -> Result<(), Failure> {
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Ok(out.flush()?);
        }
        match out.write_all(&piece[..count]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
}

/// Writes an answer of the host into a new file, or to standard output. A file is there whole, or not at all.
pub(super) async fn to_file(server: &Server, ask: &Ask<'_>, file: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = file.filter(|path| *path != Path::new("-")) else {
        require_pipe(&io::stdout(), "output", "name a file with --output FILE, or pass it on")?;
        return server.download(ask, |stream| pass_on(stream, &mut io::stdout())).await;
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let new = zmachine_sys::file::NewFile::create(folder.unwrap_or(Path::new(".")), 0o644)?;
    let mut out = new.file().try_clone()?;
    server
        .download(ask, move |stream| Ok(io::copy(stream, &mut out).map(drop)?))
        .await?;
    new.publish_over(path)?;
    Ok(())
}

/// Sends a file of this host, or standard input.
pub(super) async fn from_file(server: &Server, ask: &Ask<'_>, file: Option<&Path>) -> Result<Value, Failure> {
    match file.filter(|path| *path != Path::new("-")) {
        None => {
            require_pipe(&io::stdin(), "input", "name a file, or pass it on with a pipe")?;
            server
                .upload(ask, |out| Ok(io::copy(&mut io::stdin(), out).map(drop)?))
                .await
        }
        Some(path) => {
            let mut file = File::open(path).map_err(|e| {
                Failure::from_error(Class::NotFound, &e).context(format!("cannot read {}", path.display()))
            })?;
            server
                .upload(ask, move |out| Ok(io::copy(&mut file, out).map(drop)?))
                .await
        }
    }
}

pub(super) async fn export(server: &Server, args: &Export) -> Result<(), Failure> {
    let ask = Ask::new("GET", format!("{}/export", path(&args.name)));
    to_file(server, &ask, args.file.as_deref()).await
}

pub(super) async fn diff(server: &Server, args: &Diff) -> Result<(), Failure> {
    let told = server
        .ask(&Ask::new("GET", format!("{}/changes", path(&args.name))))
        .await?;
    if args.output == Format::Json {
        return output::json(&told["changes"]);
    }
    output::items(&told, "changes").iter().try_for_each(|change| {
        let letter = match change["change"].as_str() {
            Some("added") => 'A',
            Some("deleted") => 'D',
            _ => 'C',
        };
        // Names are the guest's: one must not be two lines, nor speak to the terminal.
        let path = output::text(&change["path"]).replace(char::is_control, "?");
        output::line(&format!("{letter} {path}"))
    })
}

pub(super) async fn commit(server: &Server, args: &Commit) -> Result<(), Failure> {
    let mut body = json!({"changes": args.changes, "pause": !args.no_pause});
    for (name, value) in [
        ("name", &args.image),
        ("author", &args.author),
        ("message", &args.message),
    ] {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    let ask = Ask::new("POST", format!("{}/commit", path(&args.name))).sending(body);
    let made = server.ask(&ask).await?;
    for warning in output::items(&made, "warnings") {
        warn(output::text(warning));
    }
    let digest = output::text(&made["digest"]);
    match made["name"].as_str() {
        Some(name) => output::line(&format!("{name} {digest}")),
        None => output::line(&digest),
    }
}

pub(super) async fn copy(server: &Server, name: &str, new: &str) -> Result<(), Failure> {
    let ask = Ask::new("POST", format!("{}/copy", path(name))).sending(json!({"name": new}));
    let made = server.ask(&ask).await?;
    output::line(&output::text(&made["name"]))
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
        for here in ["x", "./web:x", "/a:b", ":x", "a/b:c"] {
            assert_eq!(side(here), Side::Here(here.into()));
        }
        assert_eq!(named("/etc/hosts"), ("hosts".into(), false));
        assert!(named("/").1 && named("dir/.").1 && !named("dir/").1);
    }
}
