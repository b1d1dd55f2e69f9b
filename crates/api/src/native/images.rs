//! Operations on images.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use zmachine_engine::image_view::{document, image_view_with_templates};
use zmachine_engine::{ImageRequest, import_failure};
use zmachine_image::reference::DOCKER_HUB;
use zmachine_image::{ImageKind, ImageName, ImageSource, Library, Mode, PullPolicy, Silent};
use zmachine_pack::oci::pull::CONFIGURATION;
use zmachine_pack::oci::push::{PushError, push as push_image};
use zmachine_pack::oci::save::{Form, SaveError, save as save_images};
use zmachine_spec::{Class, Failure};
use zmachine_sys::file::NewFile;

use super::Call;
use super::files::{ARCHIVE, NewName};
use super::machines::{failing, read};
use super::problem::Problem;
use crate::app::App;
use crate::docker::images::{Found, find};
use crate::files;
use crate::http::{Answer, empty, json, reader, typed};

/// A name that an image may have.
pub(super) fn image_name(text: &str) -> Result<ImageName, Failure> {
    ImageName::new(text).map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint().unwrap_or_default()))
}

/// A name as docker completes it: one that could be in a registry has a tag.
pub(super) fn completed(name: ImageName) -> ImageName {
    let source = name.in_registry(DOCKER_HUB);
    source.and_then(|source| source.local_name()).unwrap_or(name)
}

/// The image that a client means, by its names and digests.
fn found(app: &App, text: &str) -> Result<Found, Failure> {
    find(&app.engine, text).map_err(|refusal| {
        let class = match refusal.status {
            StatusCode::NOT_FOUND => Class::NotFound,
            status if status.is_client_error() => Class::Usage,
            _ => Class::Failed,
        };
        match class {
            Class::NotFound => Failure::new(class, format!("there is no image '{text}' here"))
                .hint("'zmachine image ls' shows what there is"),
            _ => Failure::new(class, refusal.message),
        }
    })
}

fn library(app: &App) -> Result<Library, Failure> {
    Ok(Library::open(app.engine.home().data())?)
}

/// Lists images.
///
/// # Errors
/// When they cannot be listed.
pub async fn list(app: &Arc<App>) -> Result<Answer, Problem> {
    let images = failing(app, |app| {
        let (listed, unreadable) = library(app)?.list_readable()?;
        let images: Vec<Value> = listed
            .iter()
            .filter(|image| !image.is_superseded)
            .map(|image| {
                let facts = image.facts.as_ref().ok();
                json!({
                    "digest": image.digest.to_string(),
                    "names": image.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "kind": facts.map(|facts| match facts.kind {
                        ImageKind::Container => "container",
                        ImageKind::OwnKernel { .. } => "container with its own kernel",
                        ImageKind::KernelDisk { .. } | ImageKind::Disk { .. } => "vm",
                    }),
                    "files_bytes": facts.map(|facts| facts.sizes.file_bytes),
                    "error": image.facts.as_ref().err().map(ToString::to_string),
                })
            })
            .collect();
        let unreadable: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
        Ok(json!({"images": images, "unreadable": unreadable}))
    })
    .await?;
    Ok(json(StatusCode::OK, &images))
}

/// A wanted image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImagePull {
    image: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    pull: Option<String>,
}

/// Brings an image here.
///
/// # Errors
/// 404 for one that is not there; 502 for a registry or a store that does not answer.
pub async fn pull(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let wanted: ImagePull = read(call).await?;
    let pull = match wanted.pull.as_deref() {
        None | Some("always") => PullPolicy::Always,
        Some("missing") => PullPolicy::Missing,
        Some("newer") => PullPolicy::Newer,
        Some(other) => {
            let message = format!("pull: '{other}' is neither missing, always nor newer");
            return Err(Failure::new(Class::Usage, message).into());
        }
    };
    let name = wanted.name.as_deref().map(image_name).transpose()?;
    let pulled = failing(app, move |app| {
        let request = ImageRequest {
            text: &wanted.image,
            cwd: &app.engine.home().machines(),
            pull,
            mode: Mode::Auto,
            is_lazy: false,
            stores: &[],
            progress: &Silent,
        };
        let (name, image) = app.engine.pull(&request, name.as_ref())?;
        Ok(json!({"name": name.to_string(), "digest": image.digest.to_string()}))
    })
    .await?;
    Ok(json(StatusCode::CREATED, &pulled))
}

/// Shows an image.
///
/// # Errors
/// 404.
pub async fn get(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let view = failing(app, move |app| {
        let found = found(app, &name)?;
        image_view_with_templates(app.engine.home(), &library(app)?, &found.digest, &found.reference())
    })
    .await?;
    Ok(json(StatusCode::OK, &view))
}

/// Shows the steps that made an image, the newest first.
///
/// # Errors
/// 404 for an image, and for one of which nothing is known.
pub async fn history(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let steps = failing(app, move |app| {
        let library = library(app)?;
        let digest = found(app, &name)?.digest;
        let configuration = document(&library, &digest, CONFIGURATION)?;
        let steps = configuration["history"].as_array().cloned().unwrap_or_default();
        if steps.is_empty() {
            let message = format!("nothing is known of how '{name}' was made");
            return Err(Failure::new(Class::NotFound, message)
                .hint("images of flists have no history; 'zmachine image inspect' shows what they are"));
        }
        let mut sizes = Vec::new();
        for layer in library.layers_of(&digest)? {
            let layer = library.layer(&layer)?;
            sizes.push(layer.map(|layer| layer.blocks.iter().map(|block| u64::from(block.len)).sum::<u64>()));
        }
        let mut sizes = sizes.into_iter();
        let mut rows: Vec<Value> = steps
            .iter()
            .map(|step| {
                let text = |name: &str| step[name].as_str().unwrap_or_default();
                let size = match step["empty_layer"] == true {
                    true => Some(0),
                    false => sizes.next().flatten(),
                };
                json!({
                    "created": text("created"), "created_by": text("created_by"), "size_bytes": size,
                    "comment": text("comment"),
                })
            })
            .collect();
        rows.reverse();
        Ok(json!({"steps": rows}))
    })
    .await?;
    Ok(json(StatusCode::OK, &steps))
}

/// Gives an image another name.
///
/// # Errors
/// 404; 400 for what is no name.
pub async fn tag(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let new: NewName = read(call).await?;
    failing(app, move |app| {
        let digest = found(app, &name)?.digest;
        let new = completed(image_name(&new.name)?);
        library(app)?.set_name(&new, &digest)?;
        app.engine.tell_of_image(&new.to_string(), &digest, "tagged");
        Ok(())
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Where an image goes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Push {
    target: Option<String>,
}

/// Brings an image to a registry, by the credentials of the server's user.
///
/// # Errors
/// 404; 502 for a registry that does not answer, or refuses; 422 for a flist, which has no layers.
pub async fn push(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let wanted: Push = read(call).await?;
    let pushed = failing(app, move |app| {
        let digest = found(app, &name)?.digest;
        let target = wanted.target.unwrap_or(name);
        let named = target.strip_prefix("docker://").unwrap_or(&target);
        let source = ImageSource::named(named, app.engine.registries()?.default_host()).ok_or_else(|| {
            let message = format!("'{target}' is not the name of an image in a registry");
            Failure::new(Class::Usage, message).hint("name it as HOST[:PORT]/NAME[:TAG]")
        })?;
        let pushed = push_image(&library(app)?, &digest, &source, &app.engine.import_options()?, &Silent);
        let pushed = pushed.map_err(|error| match error {
            PushError::Registry(error) => import_failure(error),
            PushError::Save(error) => save_failure(&error),
            error @ PushError::NoRegistry { .. } => Failure::from_error(Class::Usage, &error),
        })?;
        Ok(json!({"name": source.to_string(), "digest": pushed.to_string()}))
    })
    .await?;
    Ok(json(StatusCode::OK, &pushed))
}

fn save_failure(error: &SaveError) -> Failure {
    let class = match error {
        SaveError::NoLayers { .. } => Class::Unsupported,
        SaveError::Incomplete { .. } => Class::Fetch,
        _ => Class::Failed,
    };
    let failure = Failure::from_error(class, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Removes an image.
///
/// # Errors
/// 404.
pub async fn remove(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let removed = failing(app, move |app| {
        let removed = app.engine.remove_image(&image_name(&name)?)?;
        Ok(json!({
            "names": removed.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "removed": removed.image.is_some_and(|report| report.images > 0),
            "machines": removed.machines,
        }))
    })
    .await?;
    Ok(json(StatusCode::OK, &removed))
}

/// Gives images as an archive.
///
/// # Errors
/// 404; 422 for a flist, which has no layers.
pub async fn save(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let names: Vec<String> = call.query.all("image").map(str::to_owned).collect();
    let form = match call.query.get("format") {
        None | Some("docker-archive") => Form::Docker,
        Some("oci-archive") => Form::Oci,
        Some(other) => {
            let message = format!("format: '{other}' is neither docker-archive nor oci-archive");
            return Err(Failure::new(Class::Usage, message).into());
        }
    };
    if names.is_empty() {
        return Err(Failure::new(Class::Usage, "'image' is missing: which images").into());
    }
    let ((), body) = files::written(app, move |app, begin, out| {
        let library = library(app)?;
        let mut images: Vec<(zmachine_flist::Digest, Vec<String>)> = Vec::new();
        for text in &names {
            let found = found(app, text)?;
            // What no archive can hold is told before the stream begins.
            if library.layers_of(&found.digest).map_err(Failure::from)?.is_empty() {
                return Err(save_failure(&SaveError::NoLayers { image: text.clone() }).into());
            }
            let name = found.name.map(|name| name.to_string());
            match images.iter_mut().find(|(digest, _)| *digest == found.digest) {
                Some((_, names)) => names.extend(name),
                None => images.push((found.digest, name.into_iter().collect())),
            }
        }
        begin(());
        save_images(&library, &images, form, out).map_err(|error| Problem::from(save_failure(&error)))
    })
    .await?;
    Ok(typed(StatusCode::OK, ARCHIVE, body))
}

/// Takes the images of an archive.
///
/// # Errors
/// 400 when it is none.
pub async fn load(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let mut archive = reader(call.body);
    let loaded = failing(app, move |app| {
        let spooled = NewFile::create(&app.engine.registry_files().temporary, 0o600)?;
        std::io::copy(&mut archive, &mut spooled.file())?;
        let path = format!("/proc/self/fd/{}", spooled.file().as_raw_fd());
        let loaded = app
            .engine
            .load(path.as_ref(), &Silent)
            .map_err(|failure| match failure.class {
                // Whatever is wrong with it has come with the request.
                Class::Fetch | Class::Unsupported => Failure {
                    class: Class::Usage,
                    message: failure
                        .message
                        .replace(&format!("docker-archive:{path}"), "the archive"),
                    hint: None,
                    ..failure
                },
                _ => failure,
            })?;
        let images: Vec<Value> = loaded
            .iter()
            .map(|(name, digest)| {
                app.engine.tell_of_image(name, digest, "loaded");
                json!({"name": (name != "-").then_some(name), "digest": digest.to_string()})
            })
            .collect();
        Ok(json!({"images": images}))
    })
    .await?;
    Ok(json(StatusCode::CREATED, &loaded))
}
