//! `archive` and `export`: files of a container as tar archives, in both directions.
//!
//! A container that does not run is read and written in a machine of its own that is there for the moment: its disk is a guest's, and no
//! other program of this host looks into it.

use std::io::Read;
use std::path::{Component, Path};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use jiff::Timestamp;
use serde_json::{Value, json};
use tar::{Archive, EntryType};
use zmachine_agent_protocol::Transfer;
use zmachine_engine::transfer::FromGuest;
use zmachine_engine::{OpenRoot, RootPart};
use zmachine_image::Silent;
use zmachine_spec::{Class, Failure};
use zmachine_transfer::{from_archive, to_archive};

use super::{Call, ids, text};
use crate::app::{App, blocking};
use crate::files;
use crate::http::{Answer, Refusal, empty, reader, typed};

/// The header with what is at a path.
const STAT: &str = "x-docker-container-path-stat";

fn path_of(call: &Call) -> Result<String, Refusal> {
    let path = call
        .query
        .get("path")
        .ok_or_else(|| Refusal::bad("missing parameter: path"))?;
    if path.contains('\0') {
        return Err(Refusal::bad("a path has no NUL"));
    }
    // As docker has it: what is relative begins at the root.
    Ok(format!("/{}", path.trim_start_matches('/')))
}

/// The last part of a path; `.` where there is none.
fn base_name(path: &str) -> String {
    let last = Path::new(path).components().next_back();
    match last {
        Some(Component::Normal(name)) => name.to_string_lossy().into_owned(),
        _ => "/".to_owned(),
    }
}

/// Go's bits for kinds of files.
fn go_mode(kind: EntryType, mode: u32) -> u32 {
    let kind = match kind {
        EntryType::Directory => 1 << 31,
        EntryType::Symlink => 1 << 27,
        EntryType::Block => 1 << 26,
        EntryType::Fifo => 1 << 25,
        EntryType::Char => (1 << 26) | (1 << 21),
        _ => 0,
    };
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let special = special.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, go)| go);
    special.fold(kind | (mode & 0o777), |all, bit| all | bit)
}

/// What the first member of a stream of files says about the path that was asked for.
fn stat_of(stream: &mut FromGuest, path: &str) -> Result<Value, Refusal> {
    let mut first = [0; 512];
    let mut archive_start = Vec::new();
    // Long names have members of their own in front; as many as there may be are looked through.
    for _ in 0..8 {
        let mut reader = &mut *stream;
        reader.read_exact(&mut first).map_err(|_| Refusal::bad("end"))?;
        archive_start.extend_from_slice(&first);
        let header = tar::Header::from_byte_slice(&first);
        let kind = header.entry_type();
        if !matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        ) {
            let mut archive = Archive::new(archive_start.as_slice());
            let entry = archive.entries().ok().and_then(|mut entries| entries.next()?.ok());
            let link = entry.and_then(|entry| Some(entry.link_name().ok()??.to_string_lossy().into_owned()));
            let mtime = header.mtime().unwrap_or(0);
            let at = i64::try_from(mtime)
                .ok()
                .and_then(|seconds| Timestamp::from_second(seconds).ok());
            return Ok(json!({
                "name": base_name(path),
                "size": header.size().unwrap_or(0),
                "mode": go_mode(kind, header.mode().unwrap_or(0)),
                "mtime": text::time(at),
                "linkTarget": link.filter(|_| kind == EntryType::Symlink).unwrap_or_default(),
            }));
        }
        let length = header.size().unwrap_or(0).next_multiple_of(512);
        if length > 64 << 10 {
            break;
        }
        let mut rest = vec![0; length as usize];
        reader.read_exact(&mut rest).map_err(|_| Refusal::bad("end"))?;
        archive_start.extend_from_slice(&rest);
    }
    Err(Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the stream of files cannot be read",
    ))
}

/// A container whose files can be read, be it running or not.
struct Source<'a> {
    app: &'a App,
    root: OpenRoot<'a>,
}

impl<'a> Source<'a> {
    fn open(app: &'a App, name: &str) -> Result<Source<'a>, Refusal> {
        let machine = ids::machine(&app.engine, name)?;
        Ok(Source {
            app,
            root: app.engine.open_root(&machine.id, &Silent)?,
        })
    }

    /// The stream of a path, from its first byte.
    fn stream(&self, path: &str) -> Result<FromGuest, Failure> {
        let transfer = Transfer::Send { path: path.to_owned() };
        let (_input, output) = self.app.engine.transfer(self.root.name(), transfer)?;
        Ok(FromGuest::new(output))
    }

    /// What is at a path.
    fn stat(&self, name: &str, path: &str) -> Result<Value, Refusal> {
        let mut stream = self.stream(path)?;
        match stat_of(&mut stream, path) {
            Ok(stat) => Ok(stat),
            // The guest's own words say why nothing came.
            Err(refusal) => match stream.end(|_| ()) {
                Err(failure) if failure.class == Class::NotFound => Err(Refusal::not_found(format!(
                    "Could not find the file {path} in container {name}"
                ))),
                Err(failure) => Err(failure.into()),
                Ok(()) => Err(refusal),
            },
        }
    }
}

fn stat_header(stat: &Value) -> Option<(HeaderName, HeaderValue)> {
    let text = STANDARD.encode(serde_json::to_vec(stat).unwrap_or_default());
    Some((HeaderName::from_static(STAT), HeaderValue::from_str(&text).ok()?))
}

/// Tells what is at a path of a container.
///
/// # Errors
/// 404 for the container and for the path.
pub async fn stat(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let path = path_of(call)?;
    let stat = blocking(app, move |app| Source::open(app, &name)?.stat(&name, &path)).await?;
    let mut answer = empty(StatusCode::OK);
    answer
        .headers_mut()
        .extend(stat_header(&stat).map(|(name, value)| (Some(name), value)));
    Ok(answer)
}

/// Gives a file or directory of a container as an archive.
///
/// # Errors
/// 404 for the container and for the path.
pub async fn get(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let path = path_of(call)?;
    let (stat, body) = files::written(app, move |app, begin, out| {
        let source = Source::open(app, &name)?;
        let stat = source.stat(&name, &path)?;
        let mut stream = source.stream(&path)?;
        begin(stat);
        let base = base_name(&path);
        let inner = if base == "/" { Path::new(".") } else { Path::new(&base) };
        to_archive(&mut stream, out, inner).map_err(|error| Failure::from_error(Class::Failed, &error))?;
        Ok::<_, Refusal>(stream.end(|_| ())?)
    })
    .await?;
    let mut answer = typed(StatusCode::OK, "application/x-tar", body);
    answer
        .headers_mut()
        .extend(stat_header(&stat).map(|(name, value)| (Some(name), value)));
    Ok(answer)
}

/// Puts what is in an archive into a directory of a container.
///
/// # Errors
/// 404 for the container and for the directory; 400 for what is no archive, or leads out of the directory.
pub async fn put(app: &Arc<App>, name: String, call: Call) -> Result<Answer, Refusal> {
    let path = path_of(&call)?;
    let keep_owner = call.query.flag("copyUIDGID");
    let archive = reader(call.request.into_body());
    blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        if machine.state.phase.is_active() {
            return received(app, &machine.id, &name, &path, keep_owner, archive);
        }
        let written = app.engine.write_root(&machine.id, &Silent, |helper| {
            received(app, helper, &name, &path, keep_owner, archive).map_err(|refusal| {
                let class = match refusal.status {
                    StatusCode::NOT_FOUND => Class::NotFound,
                    StatusCode::BAD_REQUEST => Class::Usage,
                    _ => Class::Failed,
                };
                Failure::new(class, refusal.message)
            })
        });
        Ok(written?)
    })
    .await?;
    Ok(empty(StatusCode::OK))
}

fn received(
    app: &App,
    machine: &str,
    name: &str,
    path: &str,
    keep_owner: bool,
    archive: impl Read,
) -> Result<(), Refusal> {
    let transfer = Transfer::Receive {
        target: path.to_owned(),
        name: "archive".to_owned(),
        contents: true,
        keep_owner,
    };
    require_directory(app, machine, name, path)?;
    let sent = files::send(&app.engine, machine, transfer, |writer| {
        from_archive(archive, writer, |_| ())
    });
    sent.map_err(|failure| match failure.class {
        Class::NotFound => Refusal::not_found(format!("Could not find the file {path} in container {name}")),
        _ => failure.into(),
    })
}

/// That there is such a directory: it is not made, as a mistyped path would be.
fn require_directory(app: &App, machine: &str, name: &str, path: &str) -> Result<(), Refusal> {
    let (_input, output) = app.engine.transfer(machine, Transfer::Send { path: path.to_owned() })?;
    let mut stream = FromGuest::new(output);
    match stat_of(&mut stream, path) {
        Ok(stat) if stat["mode"].as_u64().unwrap_or(0) & (1 << 31) != 0 => Ok(()),
        // A link may lead to one; the guest follows it.
        Ok(stat) if stat["mode"].as_u64().unwrap_or(0) & (1 << 27) != 0 => Ok(()),
        Ok(_) => Err(Refusal::bad("extraction point is not a directory")),
        Err(refusal) => match stream.end(|_| ()) {
            Err(failure) if failure.class == Class::NotFound => Err(Refusal::not_found(format!(
                "Could not find the file {path} in container {name}"
            ))),
            Err(failure) => Err(failure.into()),
            Ok(()) => Err(refusal),
        },
    }
}

/// Gives all files of a container as an archive.
///
/// # Errors
/// 404.
pub async fn export(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    let ((), body) = files::written(app, move |app, begin, out| {
        let source = Source::open(app, &name)?;
        let mut stream = source.root.stream(RootPart::All)?;
        begin(());
        std::io::copy(&mut &mut stream, out)?;
        Ok::<_, Refusal>(stream.end(|_| ())?)
    })
    .await?;
    Ok(typed(StatusCode::OK, "application/octet-stream", body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        assert_eq!(go_mode(EntryType::Directory, 0o755), 2_147_484_141);
        assert_eq!(go_mode(EntryType::Regular, 0o644), 420);
        assert_eq!(go_mode(EntryType::Symlink, 0o777), (1 << 27) | 0o777);
        assert_eq!(go_mode(EntryType::Regular, 0o4755), (1 << 23) | 0o755);
    }

    #[test]
    fn names_are_the_last_parts_of_paths() {
        for (path, name) in [
            ("/etc/hosts", "hosts"),
            ("/etc/", "etc"),
            ("/", "/"),
            ("/a/.", "a"),
            ("/a/..", "/"),
        ] {
            assert_eq!(base_name(path), name, "{path}");
        }
    }
}
