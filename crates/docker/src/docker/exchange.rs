//! Images to and from elsewhere: pull, push, load, save; with progress in lines of JSON.

use std::io::{BufWriter, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use zmachine_engine::{Engine, ImageRequest, Programs, RegistryFiles, import_failure};
use zmachine_flist::Digest;
use zmachine_image::{ImageSource, Library, Mode, Progress, PullPolicy};
use zmachine_pack::oci::push::{PushError, push as push_image};
use zmachine_pack::oci::save::{Form, save as save_images};
use zmachine_spec::{Class, Failure};
use zmachine_sys::file::NewFile;

use super::create::is_own_platform;
use super::{Call, images, unsupported};
use crate::app::{App, blocking, locked};
use crate::http::{Answer, Body, ChunkWriter, Refusal, reader, typed};

/// Time between two lines about one layer.
const INTERVAL: Duration = Duration::from_millis(100);

/// What a thread that exchanges says.
enum Said {
    Line(Value),
    Failed(Refusal),
}

fn line(value: &Value) -> Bytes {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.extend_from_slice(b"\r\n");
    bytes.into()
}

/// Progress as docker tells it. What the client does not read in time is left out.
struct Lines {
    sender: mpsc::Sender<Said>,
    verb: &'static str,
    parts: Mutex<Vec<Part>>,
}

#[derive(Clone, Default)]
struct Part {
    name: String,
    total: u64,
    done: u64,
    told: Option<Instant>,
}

impl Lines {
    fn new(sender: mpsc::Sender<Said>, verb: &'static str) -> Lines {
        Lines {
            sender,
            verb,
            parts: Mutex::default(),
        }
    }

    fn say(&self, value: Value) {
        let _ = self.sender.try_send(Said::Line(value));
    }

    fn part<T>(&self, part: usize, change: impl FnOnce(&mut Part) -> T) -> T {
        let mut parts = locked(&self.parts);
        if parts.len() <= part {
            parts.resize(part + 1, Part::default());
        }
        change(&mut parts[part])
    }
}

impl Progress for Lines {
    fn begin(&self, _total: Option<u64>, _what: &str) {}

    fn advance(&self, _amount: u64) {}

    fn message(&self, text: &str) {
        self.say(json!({"status": text}));
    }

    fn begin_part(&self, part: usize, total: u64, what: &str) {
        let name = what.trim_start_matches("sha256:");
        let name = name.get(..12).unwrap_or(name).to_owned();
        self.part(part, |known| {
            *known = Part {
                name: name.clone(),
                total,
                ..Part::default()
            };
        });
        let status = match self.verb {
            "Pushing" => "Preparing",
            "Downloading" => "Pulling fs layer",
            _ => return,
        };
        self.say(json!({"status": status, "progressDetail": {}, "id": name}));
    }

    fn advance_part(&self, part: usize, amount: u64) {
        let told = self.part(part, |known| {
            known.done += amount;
            let is_due = known.told.is_none_or(|at| at.elapsed() >= INTERVAL);
            is_due.then(|| {
                known.told = Some(Instant::now());
                known.clone()
            })
        });
        if let Some(part) = told {
            self.say(json!({
                "status": self.verb,
                "progressDetail": {"current": part.done, "total": part.total},
                "progress": bar(part.done, part.total),
                "id": part.name,
            }));
        }
    }

    fn end_part(&self, part: usize, how: &str) {
        let name = self.part(part, |known| known.name.clone());
        if self.verb == "Loading layer" {
            return;
        }
        let status = match how {
            "pulled" => "Pull complete",
            "is here" => "Already exists",
            "pushed" => "Pushed",
            "is there" => "Layer already exists",
            other => other,
        };
        self.say(json!({"status": status, "progressDetail": {}, "id": name}));
    }
}

/// A bar of fifty characters, and how much of how much.
fn bar(done: u64, total: u64) -> String {
    let filled = (done.min(total) * 50).checked_div(total).unwrap_or(0) as usize;
    let arrow = if filled < 50 { ">" } else { "" };
    let (done, total) = (zmachine_spec::bytes::Human(done), zmachine_spec::bytes::Human(total));
    format!("[{:<50}] {done}/{total}", format!("{}{arrow}", "=".repeat(filled)))
}

/// Lets a thread exchange, and passes on what it says. What fails before anything is said has a status of its own.
async fn exchanging(
    app: &Arc<App>,
    verb: &'static str,
    work: impl FnOnce(&App, &Lines) -> Result<Vec<Value>, Refusal> + Send + 'static,
) -> Result<Answer, Refusal> {
    let (said, mut heard) = mpsc::channel(256);
    let app = Arc::clone(app);
    tokio::task::spawn_blocking(move || {
        let lines = Lines::new(said, verb);
        match work(&app, &lines) {
            Ok(last) => last.into_iter().for_each(|value| {
                let _ = lines.sender.blocking_send(Said::Line(value));
            }),
            Err(refusal) => {
                let _ = lines.sender.blocking_send(Said::Failed(refusal));
            }
        }
    });
    let first = match heard.recv().await {
        Some(Said::Failed(refusal)) => return Err(refusal),
        Some(Said::Line(value)) => value,
        None => {
            return Err(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the request ended early",
            ));
        }
    };
    let (sender, body) = Body::stream();
    tokio::spawn(async move {
        let mut next = Some(Said::Line(first));
        while let Some(said) = next {
            let bytes = match said {
                Said::Line(value) => line(&value),
                Said::Failed(refusal) => line(&json!({
                    "errorDetail": {"message": refusal.message},
                    "error": refusal.message,
                })),
            };
            if sender.send(bytes).await.is_err() {
                return;
            }
            next = heard.recv().await;
        }
    });
    Ok(typed(StatusCode::OK, "application/json", body))
}

/// What a client says about itself to a registry.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
}

/// The engine of this request: with the credentials of the client, where it sends some. They are in a file that is gone with the
/// request; the descriptor keeps it.
struct Own {
    engine: Engine,
    _file: NewFile,
}

fn credentials(call: &Call) -> Result<Option<Auth>, Refusal> {
    let Some(header) = call.request.headers().get("x-registry-auth") else {
        return Ok(None);
    };
    let wrong = || Refusal::bad("X-Registry-Auth is not JSON in base64");
    let text = header.to_str().map_err(|_| wrong())?.trim();
    let bytes = URL_SAFE
        .decode(text)
        .or_else(|_| STANDARD.decode(text))
        .map_err(|_| wrong())?;
    let auth: Auth = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
    let is_any = !auth.username.is_empty() || !auth.auth.is_empty() || !auth.identitytoken.is_empty();
    Ok(is_any.then_some(auth))
}

fn with_credentials(app: &App, auth: &Auth, host: &str) -> Result<Own, Refusal> {
    let mut entry = serde_json::Map::new();
    if !auth.identitytoken.is_empty() {
        entry.insert("identitytoken".to_owned(), json!(auth.identitytoken));
    }
    let plain = match auth.auth.is_empty() {
        true => STANDARD.encode(format!("{}:{}", auth.username, auth.password)),
        false => auth.auth.clone(),
    };
    entry.insert("auth".to_owned(), json!(plain));
    // Docker's own goes by several names.
    let names: &[&str] = match host {
        "docker.io" => &["docker.io", "https://index.docker.io/v1/"],
        host => &[host],
    };
    let auths: serde_json::Map<String, Value> = names
        .iter()
        .map(|name| ((*name).to_owned(), Value::Object(entry.clone())))
        .collect();
    let file = NewFile::create(app.engine.home().data(), 0o600).map_err(Failure::from)?;
    serde_json::to_writer(file.file(), &json!({"auths": auths})).map_err(std::io::Error::from)?;
    let path = format!("/proc/self/fd/{}", file.file().as_raw_fd());
    let files = RegistryFiles {
        auth: vec![path.into()],
        ..app.engine.registry_files().clone()
    };
    let programs: Programs = app.engine.programs().clone();
    Ok(Own {
        engine: Engine::new(app.engine.home().clone(), programs).with_registry_files(files),
        _file: file,
    })
}

fn host_of(text: &str) -> String {
    match ImageSource::named(text, zmachine_image::reference::DOCKER_HUB) {
        Some(ImageSource::Registry { host, .. }) => host,
        _ => String::new(),
    }
}

/// Brings an image here from its registry.
///
/// # Errors
/// 404 for one that is not there, 500 for a registry that does not answer; what fails later is told in the stream.
pub async fn pull(app: &Arc<App>, call: &Call) -> Result<Answer, Refusal> {
    if call.query.get("fromSrc").is_some() {
        return Err(unsupported(
            "images are not made of plain archives of files: 'zmachine flist pack' makes a flist of a directory",
        ));
    }
    let from = call.query.get("fromImage").unwrap_or_default();
    let text = match call.query.get("tag") {
        Some(digest) if digest.contains(':') => format!("{from}@{digest}"),
        Some(tag) => format!("{from}:{tag}"),
        None => from.to_owned(),
    };
    if let Some(platform) = call.query.get("platform").filter(|platform| !is_own_platform(platform)) {
        let message =
            format!("no matching manifest for {platform}: machines of this host run programs for linux/amd64");
        return Err(Refusal::not_found(message));
    }
    let name = images::new_name(&text)?;
    let auth = credentials(call)?;
    exchanging(app, "Downloading", move |app, lines| {
        let own = auth
            .map(|auth| with_credentials(app, &auth, &host_of(&text)))
            .transpose()?;
        let engine = own.as_ref().map_or(&app.engine, |own| &own.engine);
        let library = Library::open(engine.home().data())?;
        let before = library.find(&name)?;
        let request = ImageRequest {
            text: &format!("docker://{text}"),
            cwd: &engine.home().machines(),
            pull: PullPolicy::Always,
            mode: Mode::Auto,
            is_lazy: false,
            stores: &[],
            progress: lines,
        };
        let found = engine.image(&request).map_err(|failure| missing(failure, &text))?;
        library.set_name(&name, &found.image.digest)?;
        app.engine
            .tell_of_image(&name.to_string(), &found.image.digest, "pulled");
        let shown = name.to_string();
        let (repository, tag) = zmachine_image::reference::parts(Some(&shown));
        let mut last = vec![json!({"status": format!("Pulling from {repository}"), "id": tag})];
        if let Some((_, digest)) = found.pinned.as_deref().and_then(|pinned| pinned.split_once('@')) {
            last.push(json!({"status": format!("Digest: {digest}")}));
        }
        let how = match before == Some(found.image.digest) {
            true => "Image is up to date for",
            false => "Downloaded newer image for",
        };
        last.push(json!({"status": format!("Status: {how} {shown}")}));
        Ok(last)
    })
    .await
}

/// Whether a registry has no such image, in the words by which clients know it.
fn missing(failure: Failure, text: &str) -> Refusal {
    let whole = failure.to_string();
    let is_missing = failure.class == Class::NotFound
        || ["404", "not found", "has no ", "unknown"]
            .iter()
            .any(|word| whole.contains(word));
    match failure.class {
        Class::Fetch | Class::NotFound if is_missing => {
            Refusal::not_found(format!("manifest for {text} not found: {whole}"))
        }
        _ => failure.into(),
    }
}

/// Sends an image to its registry.
///
/// # Errors
/// 404 for an image that is not here; what fails later is told in the stream.
pub async fn push(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let text = match call.query.get("tag") {
        Some(tag) => format!("{name}:{tag}"),
        None => name,
    };
    let auth = credentials(call)?;
    exchanging(app, "Pushing", move |app, lines| {
        let found = images::find(&app.engine, &text)?;
        let target = ImageSource::named(&text, zmachine_image::reference::DOCKER_HUB)
            .ok_or_else(|| Refusal::bad(format!("invalid reference format: {text:?}")))?;
        let own = auth
            .map(|auth| with_credentials(app, &auth, &host_of(&text)))
            .transpose()?;
        let engine = own.as_ref().map_or(&app.engine, |own| &own.engine);
        let library = Library::open(engine.home().data())?;
        lines.say(json!({"status": format!("The push refers to repository [{}]", zmachine_image::reference::parts(Some(&text)).0)}));
        let pushed = push_image(&library, &found.digest, &target, &engine.import_options()?, lines);
        let digest = pushed.map_err(|error| {
            Refusal::from(match error {
                PushError::Registry(error) => import_failure(error),
                error => Failure::from_error(Class::Failed, &error),
            })
        })?;
        let tag = zmachine_image::reference::parts(Some(&text)).1;
        Ok(vec![
            json!({"status": format!("{tag}: digest: {digest}")}),
            json!({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": 0}}),
        ])
    })
    .await
}

/// Takes the images of an archive.
///
/// # Errors
/// 400 when it is none.
pub async fn load(app: &Arc<App>, call: Call) -> Result<Answer, Refusal> {
    let mut archive = reader(call.request.into_body());
    exchanging(app, "Loading layer", move |app, lines| {
        let folder = &app.engine.registry_files().temporary;
        let spooled = NewFile::create(folder, 0o600).map_err(Failure::from)?;
        std::io::copy(&mut archive, &mut spooled.file())?;
        let path = format!("/proc/self/fd/{}", spooled.file().as_raw_fd());
        let loaded = app
            .engine
            .load(path.as_ref(), lines)
            .map_err(|failure| match failure.class {
                Class::Unsupported => Refusal::bad(crate::http::text_of(&failure)),
                _ => failure.into(),
            })?;
        let library = Library::open(app.engine.home().data())?;
        let said = |(name, digest): (String, Digest)| match name.as_str() {
            "-" => json!({"stream": format!("Loaded image ID: {}\n", images::id(&library, &digest))}),
            name => json!({"stream": format!("Loaded image: {name}\n")}),
        };
        for (name, digest) in &loaded {
            app.engine.tell_of_image(name, digest, "loaded");
        }
        Ok(loaded.into_iter().map(said).collect())
    })
    .await
}

/// Writes images as an archive.
///
/// # Errors
/// 404.
pub async fn save(app: &Arc<App>, names: Vec<String>) -> Result<Answer, Refusal> {
    let wanted = blocking(app, move |app| {
        let mut wanted: Vec<(Digest, Vec<String>)> = Vec::new();
        for text in &names {
            let found = images::find(&app.engine, text)?;
            let name = found.name.as_ref().map(ToString::to_string);
            match wanted.iter_mut().find(|(digest, _)| *digest == found.digest) {
                Some((_, names)) => names.extend(name),
                None => wanted.push((found.digest, name.into_iter().collect())),
            }
        }
        Ok::<_, Refusal>(wanted)
    })
    .await?;
    let (sender, body) = Body::stream();
    let app = Arc::clone(app);
    tokio::task::spawn_blocking(move || {
        let Ok(library) = Library::open(app.engine.home().data()) else {
            return;
        };
        let mut out = BufWriter::with_capacity(256 << 10, ChunkWriter(sender));
        match save_images(&library, &wanted, Form::Docker, &mut out) {
            Ok(()) => drop(out.flush()),
            Err(_) => out.get_ref().abort(),
        }
    });
    Ok(typed(StatusCode::OK, "application/x-tar", body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_how_much_there_is() {
        assert!(bar(0, 100).starts_with("[>  "));
        assert!(bar(100, 100).starts_with(&format!("[{}]", "=".repeat(50))));
        assert!(bar(0, 0).starts_with("[>"));
    }

    #[test]
    fn a_missing_tag_is_told_from_a_registry_that_does_not_answer() {
        let status = |text: &str| missing(Failure::new(Class::Fetch, text), "x:1").status;
        assert_eq!(status("the registry has no image x:1 (404)"), StatusCode::NOT_FOUND);
        assert_eq!(status("connection refused"), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
