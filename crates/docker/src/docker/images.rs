//! Images that are here: found by all the names that clients have for them, listed, shown, named, removed.
//!
//! An image has the id that docker gives it, the digest of its configuration; flists and disk images, which have none, have their own
//! digest in its place.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use zmachine_engine::Engine;
use zmachine_engine::image_view::{document, image_view};
use zmachine_flist::Digest;
use zmachine_image::library::ListedImage;
use zmachine_image::reference::{DOCKER_HUB, is_named};
use zmachine_image::{ImageName, ImageSource, Library};
use zmachine_pack::oci::pull::{CONFIGURATION, MANIFEST};
use zmachine_spec::Kind;

use super::query::Filters;
use super::{Call, ids};
use crate::app::{App, blocking};
use crate::http::{Answer, Refusal, empty, json};

/// What whoever wants to build an image is told.
pub const NO_BUILD: &str = "images are not built here: build with 'docker buildx', 'podman build' or 'buildah' elsewhere, then 'docker load' the archive or pull the image from a registry";

/// Least digits of an id that are taken for one.
const LEAST_ID: usize = 4;

/// An image that is here.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its own digest.
    pub digest: Digest,
    /// The name that was meant; `None` when it was meant by its id.
    pub name: Option<ImageName>,
}

impl Found {
    /// How the engine knows it.
    pub fn reference(&self) -> String {
        match &self.name {
            Some(name) => name.to_string(),
            None => self.digest.to_string(),
        }
    }
}

/// The id of an image, as clients see it.
pub fn id(library: &Library, digest: &Digest) -> String {
    let manifest = document(library, digest, MANIFEST).unwrap_or_default();
    match manifest.pointer("/config/digest").and_then(Value::as_str) {
        Some(id) => id.to_owned(),
        None => format!("sha256:{digest}"),
    }
}

/// The name of an image with its tag, as docker completes it.
pub fn completed(text: &str) -> Option<ImageName> {
    ImageSource::named(text, DOCKER_HUB)?.local_name()
}

/// The image that a client means: by a name, with or without registry and tag, by `NAME@DIGEST`, by an id or its beginning.
///
/// # Errors
/// 404 in docker's words; 400 for what names no image.
pub fn find(engine: &Engine, text: &str) -> Result<Found, Refusal> {
    let library = Library::open(engine.home().data())?;
    let shown = match completed(text) {
        Some(name) => name.to_string(),
        None => text.to_owned(),
    };
    let missing = || Refusal::not_found(format!("No such image: {shown}"));
    let is_id = |text: &str| (LEAST_ID..=64).contains(&text.len()) && ids::is_hex(text);
    let bare = text.strip_prefix("sha256:").unwrap_or(text);
    if let Some(name) = completed(text)
        && !text.starts_with("sha256:")
        && let Ok(digest) = library.digest_of(&name)
    {
        return Ok(Found {
            digest,
            name: Some(name),
        });
    }
    // One that somebody named otherwise than registries do, or without a tag, which stands for the usual one.
    for text in [Some(text), shown.strip_suffix(":latest")].into_iter().flatten() {
        if let Ok(name) = ImageName::new(text)
            && let Ok(digest) = library.digest_of(&name)
        {
            return Ok(Found {
                digest,
                name: Some(name),
            });
        }
    }
    let all = library.list_readable()?.0;
    if is_id(bare) {
        let mut found = all.iter().filter(|image| {
            let known = id(&library, &image.digest);
            known.trim_start_matches("sha256:").starts_with(bare) || image.digest.to_string().starts_with(bare)
        });
        return match (found.next(), found.next()) {
            (Some(image), None) => Ok(Found {
                digest: image.digest,
                name: None,
            }),
            (Some(_), Some(_)) => Err(Refusal::bad(format!("several images have ids that begin with {bare}"))),
            (None, _) => Err(missing()),
        };
    }
    if let Some((repository, digest)) = text.split_once('@') {
        let wanted = completed(repository).map(|name| repository_of(&name.to_string()));
        let has = |image: &&ListedImage| {
            let pinned = pinned(&library, &image.names, &image.digest);
            pinned.iter().any(|known| {
                known
                    .split_once('@')
                    .is_some_and(|(name, of)| of == digest && wanted.as_deref() == Some(&short_host(name)))
            })
        };
        if let Some(image) = all.iter().find(has) {
            return Ok(Found {
                digest: image.digest,
                name: None,
            });
        }
    }
    if ImageName::new(text).is_err() {
        return Err(Refusal::bad(format!("invalid reference format: {text:?}")));
    }
    Err(missing())
}

fn repository_of(name: &str) -> String {
    zmachine_image::reference::parts(Some(name)).0
}

/// A repository as docker shows it, without its own registry.
fn short_host(repository: &str) -> String {
    let bare = repository.strip_prefix("docker.io/").unwrap_or(repository);
    bare.strip_prefix("library/").unwrap_or(bare).to_owned()
}

/// `REPOSITORY@DIGEST` of an image in the registries that it comes from.
fn pinned(library: &Library, names: &[ImageName], digest: &Digest) -> Vec<String> {
    let mut pinned: Vec<String> = Vec::new();
    for source in names.iter().filter_map(|name| name.in_registry(DOCKER_HUB)) {
        if let Ok(Some((known, manifest))) = library.remembered(&source.to_string())
            && known == *digest
        {
            pinned.extend(source.pinned(&manifest));
        }
    }
    pinned.sort();
    pinned.dedup();
    pinned
}

/// The names of an image, each with a tag, as clients expect it.
fn tags(names: &[ImageName]) -> Vec<String> {
    let tagged = |name: &ImageName| completed(name.as_str()).unwrap_or_else(|| name.clone()).to_string();
    let mut tags: Vec<String> = names.iter().map(tagged).filter(|name| !name.contains('@')).collect();
    tags.dedup();
    tags
}

/// When an image was made; when it came here, where it does not say.
fn created(library: &Library, digest: &Digest, configuration: &Value) -> Timestamp {
    let said = configuration.get("created").and_then(Value::as_str);
    let said: Option<Timestamp> = said.and_then(|text| text.parse().ok());
    let came = || Timestamp::try_from(library.image_time(digest)?).ok();
    said.or_else(came).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The labels of an image.
fn labels(configuration: &Value) -> BTreeMap<String, String> {
    let labels = configuration.pointer("/config/Labels").cloned().unwrap_or_default();
    serde_json::from_value(labels).unwrap_or_default()
}

/// One image of a listing.
struct Row {
    document: Value,
    created: Timestamp,
    labels: BTreeMap<String, String>,
    names: Vec<String>,
    id: String,
}

fn row(library: &Library, image: &ListedImage, containers: &BTreeMap<String, usize>) -> Row {
    let configuration = document(library, &image.digest, CONFIGURATION).unwrap_or_default();
    let names = tags(&image.names);
    let (created, labels) = (created(library, &image.digest, &configuration), labels(&configuration));
    let id = id(library, &image.digest);
    Row {
        document: json!({
            "Id": id,
            "ParentId": "",
            "RepoTags": names,
            "RepoDigests": pinned(library, &image.names, &image.digest),
            "Created": created.as_second(),
            "Size": image.facts.as_ref().map_or(0, |facts| facts.sizes.file_bytes),
            "SharedSize": -1,
            "Labels": if labels.is_empty() { Value::Null } else { json!(labels) },
            "Containers": containers.get(&image.digest.to_string()).copied().unwrap_or(0),
        }),
        created,
        labels,
        names,
        id,
    }
}

/// How many containers each image has, by its digest.
fn containers(engine: &Engine) -> Result<BTreeMap<String, usize>, Refusal> {
    let mut counted = BTreeMap::new();
    for machine in engine.machines()?.into_iter().flatten() {
        if machine.state.kind == Kind::Container
            && let Ok(plan) = machine.plan()
            && let Some(image) = plan.image()
        {
            *counted.entry(image.to_owned()).or_insert(0) += 1;
        }
    }
    Ok(counted)
}

/// All images, the newest first, as a listing has them.
///
/// # Errors
/// When they cannot be listed.
pub fn documents(engine: &Engine) -> Result<Vec<Value>, Refusal> {
    Ok(rows(engine)?.into_iter().map(|row| row.document).collect())
}

fn rows(engine: &Engine) -> Result<Vec<Row>, Refusal> {
    let library = Library::open(engine.home().data())?;
    let containers = containers(engine)?;
    let all = library.list_readable()?.0;
    let mut rows: Vec<Row> = all
        .iter()
        .filter(|image| !image.is_superseded)
        .map(|image| row(&library, image, &containers))
        .collect();
    rows.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.names.cmp(&b.names)));
    Ok(rows)
}

const FILTERS: [&str; 7] = ["dangling", "label", "label!", "reference", "before", "since", "until"];

/// Lists images.
///
/// # Errors
/// 400 for filters that make no sense.
pub async fn list(app: &Arc<App>, call: &Call) -> Result<Answer, Refusal> {
    let filters = call.query.filters(&FILTERS)?;
    let dangling = filters.flag("dangling")?;
    let rows = blocking(app, move |app| {
        let mut rows = rows(&app.engine)?;
        let age = |name: &String| -> Result<Timestamp, Refusal> {
            let found = find(&app.engine, name)?;
            let wanted = id(&Library::open(app.engine.home().data())?, &found.digest);
            let known = rows.iter().find(|row| row.id == wanted);
            Ok(known.map_or(Timestamp::UNIX_EPOCH, |row| row.created))
        };
        let before = filters
            .values("before")
            .iter()
            .map(age)
            .collect::<Result<Vec<_>, _>>()?;
        let since = filters.values("since").iter().map(age).collect::<Result<Vec<_>, _>>()?;
        rows.retain(|row| {
            filters.allow("reference", |pattern| {
                row.names.iter().any(|name| is_named(name, pattern))
            }) && dangling.is_none_or(|dangling| dangling == row.names.is_empty())
                && before.iter().all(|at| row.created < *at)
                && since.iter().all(|at| row.created > *at)
                && filters.allow_labels(&row.labels)
        });
        // Of an image that was asked for by a name, the others are not shown.
        if filters.has("reference") {
            for row in &mut rows {
                row.names
                    .retain(|name| filters.allow("reference", |pattern| is_named(name, pattern)));
                row.document["RepoTags"] = json!(row.names);
            }
        }
        Ok::<_, Refusal>(rows.into_iter().map(|row| row.document).collect::<Vec<_>>())
    })
    .await?;
    Ok(json(StatusCode::OK, &rows))
}

/// Everything about an image.
///
/// # Errors
/// 404.
pub async fn inspect(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    let shown = blocking(app, move |app| {
        let found = find(&app.engine, &name)?;
        let library = Library::open(app.engine.home().data())?;
        let mut view = image_view(&library, &found.digest, &name)?;
        let configuration = document(&library, &found.digest, CONFIGURATION)?;
        let made = created(&library, &found.digest, &configuration);
        let words = |name: &str, default: &str| match view.get(name).and_then(Value::as_str) {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => default.to_owned(),
        };
        let (os, architecture, author) = (
            words("Os", "linux"),
            words("Architecture", "amd64"),
            words("Author", ""),
        );
        let listed = library.list_readable()?.0;
        let names = listed.iter().find(|image| image.digest == found.digest);
        view["RepoTags"] = json!(names.map_or_else(Vec::new, |image| tags(&image.names)));
        view["Id"] = json!(id(&library, &found.digest));
        view["Created"] = json!(made.to_string());
        view["Os"] = json!(os);
        view["Architecture"] = json!(architecture);
        view["Author"] = json!(author);
        view["Parent"] = json!("");
        view["Comment"] = json!("");
        view["DockerVersion"] = json!("");
        view["GraphDriver"] = json!({"Name": "zmachine", "Data": {}});
        let came = library
            .image_time(&found.digest)
            .and_then(|at| Timestamp::try_from(at).ok());
        view["Metadata"] = json!({"LastTagTime": super::text::time(came.or(Some(made)))});
        if let Some(fields) = view.as_object_mut() {
            fields.remove("History");
        }
        Ok::<_, Refusal>(view)
    })
    .await?;
    Ok(json(StatusCode::OK, &shown))
}

/// How an image was made, the newest step first.
///
/// # Errors
/// 404.
pub async fn history(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    let steps = blocking(app, move |app| {
        let found = find(&app.engine, &name)?;
        let library = Library::open(app.engine.home().data())?;
        let view = image_view(&library, &found.digest, &name)?;
        let configuration = document(&library, &found.digest, CONFIGURATION)?;
        let manifest = document(&library, &found.digest, MANIFEST)?;
        let mut layers = manifest
            .get("layers")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
            .into_iter();
        let own = id(&library, &found.digest);
        let empty = Vec::new();
        let history = configuration.get("history").and_then(Value::as_array).unwrap_or(&empty);
        let step = |entry: &Value, layers: &mut dyn Iterator<Item = Value>| {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let created: Option<Timestamp> = text("created").parse().ok();
            let is_empty = entry.get("empty_layer").and_then(Value::as_bool).unwrap_or_default();
            let size = match is_empty {
                true => 0,
                false => layers.next().and_then(|layer| layer.get("size")?.as_u64()).unwrap_or(0),
            };
            json!({
                "Id": "<missing>",
                "Created": created.map_or(0, Timestamp::as_second),
                "CreatedBy": text("created_by"),
                "Tags": null,
                "Size": size,
                "Comment": text("comment"),
            })
        };
        let mut steps: Vec<Value> = history.iter().map(|entry| step(entry, &mut layers)).collect();
        steps.reverse();
        if steps.is_empty() {
            steps.push(json!({
                "Id": "", "Created": created(&library, &found.digest, &configuration).as_second(), "CreatedBy": "",
                "Tags": null, "Size": view["Size"], "Comment": "",
            }));
        }
        steps[0]["Id"] = json!(own);
        steps[0]["Tags"] = view["RepoTags"].clone();
        Ok::<_, Refusal>(steps)
    })
    .await?;
    Ok(json(StatusCode::OK, &steps))
}

/// Gives an image one more name.
///
/// # Errors
/// 404; 400 for what is no name.
pub async fn tag(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let repository = call.query.get("repo").unwrap_or_default().to_owned();
    let target = match call.query.get("tag") {
        Some(tag) => format!("{repository}:{tag}"),
        None => repository,
    };
    blocking(app, move |app| {
        let found = find(&app.engine, &name)?;
        let target = new_name(&target)?;
        let library = Library::open(app.engine.home().data())?;
        library.set_name(&target, &found.digest)?;
        app.engine.tell_of_image(&target.to_string(), &found.digest, "tagged");
        Ok::<_, Refusal>(())
    })
    .await?;
    Ok(empty(StatusCode::CREATED))
}

/// A name for an image.
///
/// # Errors
/// 400 for what is none.
pub fn new_name(text: &str) -> Result<ImageName, Refusal> {
    completed(text).ok_or_else(|| Refusal::bad(format!("invalid reference format: {text:?}")))
}

/// Takes a name away, and the image with its last one.
///
/// # Errors
/// 404; 409 for an image that a container uses, unless it is forced.
pub async fn remove(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let force = call.query.flag("force");
    let removed = blocking(app, move |app| {
        let found = find(&app.engine, &name)?;
        let library = Library::open(app.engine.home().data())?;
        let own = id(&library, &found.digest);
        let listed = library.list_readable()?.0;
        let names = listed
            .into_iter()
            .find(|image| image.digest == found.digest)
            .map_or_else(Vec::new, |image| image.names);
        let goes = found.name.is_none() || names.len() <= 1;
        let short = own
            .trim_start_matches("sha256:")
            .get(..12)
            .unwrap_or_default()
            .to_owned();
        if goes && !force {
            refuse_used(&app.engine, &found.digest, &name, &short)?;
        }
        if found.name.is_none() && names.len() > 1 && !force {
            return Err(Refusal::conflict(format!(
                "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
            )));
        }
        let removed = match &found.name {
            Some(name) => app.engine.remove_image(name)?,
            None => app
                .engine
                .remove_image(&ImageName::new(&found.digest.to_string()).map_err(|e| Refusal::bad(e.to_string()))?)?,
        };
        let mut lines: Vec<Value> = removed
            .names
            .iter()
            .map(|name| json!({"Untagged": name.to_string()}))
            .collect();
        if removed.image.is_some_and(|report| report.images > 0) {
            lines.push(json!({"Deleted": own}));
        }
        Ok(lines)
    })
    .await?;
    Ok(json(StatusCode::OK, &removed))
}

fn refuse_used(engine: &Engine, digest: &Digest, name: &str, short: &str) -> Result<(), Refusal> {
    let digest = digest.to_string();
    for machine in engine.machines()?.into_iter().flatten() {
        let uses = machine.plan().is_ok_and(|plan| plan.image() == Some(&digest));
        if uses {
            let user = &ids::container(&machine.id)[..12];
            let (how, what) = match machine.state.phase.is_active() {
                true => ("cannot be forced", "running"),
                false => ("must be forced", "stopped"),
            };
            return Err(Refusal::conflict(format!(
                "conflict: unable to remove repository reference \"{name}\" ({how}) - {what} container {user} is using its referenced image {short}"
            )));
        }
    }
    Ok(())
}

/// Removes images that no container uses: those without a name, and with `dangling=false` the others too.
///
/// # Errors
/// 400 for filters that make no sense.
pub async fn prune(app: &Arc<App>, call: &Call) -> Result<Answer, Refusal> {
    let filters = call.query.filters(&["dangling", "label", "label!", "until"])?;
    let pruned = blocking(app, move |app| pruned(&app.engine, &filters)).await?;
    Ok(json(StatusCode::OK, &pruned))
}

fn pruned(engine: &Engine, filters: &Filters) -> Result<Value, Refusal> {
    let all = filters.flag("dangling")? == Some(false);
    let is_limited = ["label", "label!", "until"].iter().any(|name| filters.has(name));
    let mut deleted: Vec<Value> = Vec::new();
    let mut bytes = 0;
    if all || is_limited {
        let until = match filters.values("until") {
            [] => None,
            [text] => Some(until(text)?),
            _ => return Err(Refusal::bad("invalid filter 'until': it has two values")),
        };
        for row in rows(engine)? {
            let is_used = row.document["Containers"].as_u64().unwrap_or(0) > 0;
            let is_meant = (all || row.names.is_empty()) && filters.allow_labels(&row.labels);
            if is_used || !is_meant || until.is_some_and(|until| row.created > until) {
                continue;
            }
            let found = find(engine, &row.id)?;
            let name = ImageName::new(&found.digest.to_string()).map_err(|e| Refusal::bad(e.to_string()))?;
            let removed = engine.remove_image(&name)?;
            deleted.extend(removed.names.iter().map(|name| json!({"Untagged": name.to_string()})));
            if let Some(report) = removed.image.filter(|report| report.images > 0) {
                deleted.push(json!({"Deleted": row.id}));
                bytes += report.bytes;
            }
        }
    }
    if !is_limited {
        let before: Vec<String> = rows(engine)?.into_iter().map(|row| row.id).collect();
        let report = engine.prune_images()?;
        let after: Vec<String> = rows(engine)?.into_iter().map(|row| row.id).collect();
        bytes += report.bytes;
        let gone = before.into_iter().filter(|id| !after.contains(id));
        deleted.extend(gone.map(|id| json!({"Deleted": id})));
    }
    Ok(json!({"ImagesDeleted": deleted, "SpaceReclaimed": bytes}))
}

/// The time of a filter `until`: seconds since 1970, a text, or how long ago, as in `24h`.
///
/// # Errors
/// 400 for anything else.
pub fn until(text: &str) -> Result<Timestamp, Refusal> {
    if let Ok(ago) = text.parse::<jiff::SignedDuration>() {
        return Ok(Timestamp::now() - ago);
    }
    let query = super::query::Query::parse(&format!("until={text}"));
    super::logs::time(&query, "until")?.ok_or_else(|| Refusal::bad(format!("until: '{text}' is no time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        for (text, name) in [
            ("bb", "bb:latest"),
            ("docker.io/library/bb", "bb:latest"),
            ("org/app:1", "org/app:1"),
            ("127.0.0.1:5000/bb:1", "127.0.0.1:5000/bb:1"),
        ] {
            assert_eq!(completed(text).unwrap().as_str(), name, "{text}");
        }
        assert!(completed("/etc/passwd").is_none());
        assert_eq!(short_host("docker.io/library/bb"), "bb");
    }

    #[test]
    fn an_age_is_a_time_too() {
        let ago = Timestamp::now().duration_since(until("1h").unwrap());
        assert!((3599..3610).contains(&ago.as_secs()));
        assert_eq!(until("7").unwrap().as_second(), 7);
        assert!(until("soon").is_err());
    }
}
