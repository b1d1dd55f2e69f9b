//! Operations on what is in a machine's root: files in both directions, changes, images and copies made of it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use zmachine_agent_protocol::Transfer;
use zmachine_engine::transfer::FromGuest;
use zmachine_engine::{CommitRequest, RootPart};
use zmachine_image::Silent;
use zmachine_spec::{Class, Failure};
use zmachine_transfer::{TransferError, from_archive, to_archive};

use super::Call;
use super::images::{completed, image_name};
use super::machines::{failing, read, shown, tagged};
use super::problem::Problem;
use crate::app::App;
use crate::files::{self, Begun};
use crate::http::{Answer, empty, json, reader, typed};

/// The type of an archive.
pub const ARCHIVE: &str = "application/x-tar";

fn path_of(call: &Call) -> Result<String, Failure> {
    let path = call.query.get("path").unwrap_or_default();
    match path.starts_with('/') && !path.contains('\0') {
        true => Ok(path.to_owned()),
        false => Err(
            Failure::new(Class::Usage, format!("path: '{path}' is no path in a machine"))
                .hint("it begins with /, as in /etc/hosts"),
        ),
    }
}

/// A name that is given to a file.
fn name_of(call: &Call, parameter: &str) -> Result<Option<String>, Failure> {
    let Some(name) = call.query.get(parameter) else {
        return Ok(None);
    };
    match name.contains(['/', '\0']) || name == ".." {
        true => Err(Failure::new(
            Class::Usage,
            format!("{parameter}: '{name}' is no name of a file"),
        )),
        false => Ok(Some(name.to_owned())),
    }
}

/// Gives a file or directory as an archive.
///
/// # Errors
/// 404 for the machine and for the path.
pub async fn get(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let (name, path) = (call.place("name"), path_of(call)?);
    let inner = match (name_of(call, "root")?, Path::new(&path).file_name()) {
        (Some(root), _) => PathBuf::from(root),
        (None, Some(last)) => PathBuf::from(last),
        (None, None) => PathBuf::from("."),
    };
    let ((), body) = files::written(app, move |app, begin, out| {
        let root = app.engine.open_root(&name, &Silent)?;
        let (_input, output) = app
            .engine
            .transfer(root.name(), Transfer::Send { path: path.clone() })?;
        let mut stream =
            Begun::wait(FromGuest::new(output)).map_err(|e| e.context(format!("cannot copy {name}:{path}")))?;
        begin(());
        to_archive(&mut stream, out, &inner).map_err(|error| Failure::from_error(Class::Failed, &error))?;
        stream.end().map_err(Problem::from)
    })
    .await?;
    Ok(typed(StatusCode::OK, ARCHIVE, body))
}

/// Puts an archive into a machine.
///
/// # Errors
/// 404 for the machine and for the directory; 400 for what is no archive, or leads out of its target.
pub async fn put(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let (name, path) = (call.place("name"), path_of(&call)?);
    // As `cp` sends it: one file or directory, which has a name of its own; else whatever is in the archive.
    let source = name_of(&call, "source")?;
    let is_plain = source.is_none();
    let transfer = Transfer::Receive {
        target: path.clone(),
        contents: call.query.flag("contents") || is_plain,
        name: source.unwrap_or_else(|| "archive".to_owned()),
        keep_owner: call.query.flag("owner"),
    };
    let mut archive = reader(call.body);
    failing(app, move |app| {
        let copy = |machine: &str| {
            let sent = files::send(&app.engine, machine, transfer, |mut writer| match is_plain {
                true => from_archive(archive, writer, |_| ()),
                // The guest checks every name in it.
                false => copied(&mut archive, &mut writer),
            });
            sent.map_err(|e| e.context(format!("cannot copy to {name}:{path}")))
        };
        match app.engine.machine(&name)?.state.phase.is_active() {
            true => copy(&name),
            false => app.engine.write_root(&name, &Silent, copy),
        }
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Copies what a client sends to a guest; who of them fails makes a difference.
fn copied(archive: &mut impl std::io::Read, guest: &mut impl Write) -> Result<(), TransferError> {
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = archive.read(&mut piece).map_err(|source| TransferError::Io {
            action: "read",
            path: "the archive".into(),
            source,
        })?;
        if count == 0 {
            return guest.flush().map_err(TransferError::Stream);
        }
        guest.write_all(&piece[..count]).map_err(TransferError::Stream)?;
    }
}

/// Gives the whole root as an archive.
///
/// # Errors
/// 404.
pub async fn export(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let ((), body) = files::written(app, move |app, begin, out| {
        let root = app.engine.open_root(&name, &Silent)?;
        let mut stream = root.stream(RootPart::All)?;
        begin(());
        std::io::copy(&mut &mut stream, out).map_err(Failure::from)?;
        stream.end(|_| ()).map_err(Problem::from)
    })
    .await?;
    Ok(typed(StatusCode::OK, ARCHIVE, body))
}

/// Lists what a machine has other than its image.
///
/// # Errors
/// 404.
pub async fn changes(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let changes = failing(app, move |app| app.engine.open_root(&name, &Silent)?.changes()).await?;
    let shown: Vec<Value> = changes
        .iter()
        .map(|(change, path)| {
            let kind = match change.letter() {
                'A' => "added",
                'D' => "deleted",
                _ => "changed",
            };
            json!({"path": path.to_string_lossy(), "change": kind})
        })
        .collect();
    Ok(json(StatusCode::OK, &json!({"changes": shown})))
}

/// What an image is made with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct NewImage {
    name: Option<String>,
    author: Option<String>,
    message: Option<String>,
    changes: Vec<String>,
    pause: Option<bool>,
}

/// Makes an image of a machine.
///
/// # Errors
/// 404; 400 for an instruction that is none.
pub async fn commit(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let machine = call.place("name");
    let wanted: NewImage = read(call).await?;
    let made = failing(app, move |app| {
        let name = wanted.name.as_deref().map(image_name).transpose()?.map(completed);
        let request = CommitRequest {
            machine: &machine,
            name: name.as_ref(),
            author: wanted.author,
            message: wanted.message,
            changes: &wanted.changes,
            paused: wanted.pause.unwrap_or(true),
        };
        let mut warnings = Vec::new();
        let image = app.engine.commit(&request, &Silent, |text| warnings.push(text))?;
        let name = name.map(|name| name.to_string());
        Ok(json!({"name": name, "digest": image.digest.to_string(), "warnings": warnings}))
    })
    .await?;
    Ok(json(StatusCode::CREATED, &made))
}

/// The name of something new.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewName {
    pub(super) name: String,
}

/// Copies a machine that does not run.
///
/// # Errors
/// 404; 409 for one that runs, and for a name that is taken.
pub async fn copy(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let new: NewName = read(call).await?;
    let made = failing(app, move |app| {
        let machine = app.engine.clone_machine(&name, &new.name, &Silent)?;
        shown(&app.engine, &machine.id)
    })
    .await?;
    Ok(tagged(StatusCode::CREATED, made))
}
