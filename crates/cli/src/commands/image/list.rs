//! `image ls`.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use zmachine_image::library::ListedImage;
use zmachine_image::reference::{is_named, parts};
use zmachine_image::{ImageKind, Library};
use zmachine_pack::oci::pull::CONFIGURATION;
use zmachine_spec::Failure;
use zmachine_spec::bytes::Human;
use zmachine_store::template::{TemplateUse, Templates};

use crate::args::image::ImagesArgs;
use crate::context;
use crate::listing::Row;
use crate::output;

/// One image, as `--output json` has it.
#[derive(Debug, Serialize)]
struct View {
    names: Vec<String>,
    digest: String,
    kind: Option<String>,
    /// When it was made; when it came here, where it does not say.
    created: Option<Timestamp>,
    files_bytes: Option<u64>,
    /// Guests that are set up for warm starts.
    templates: usize,
    templates_bytes: u64,
    error: Option<String>,
    #[serde(skip)]
    labels: Vec<(String, String)>,
}

pub(super) fn list(library: &Library, args: &ImagesArgs) -> Result<u8, Failure> {
    let filters = args
        .listing
        .filters(&["dangling", "label", "reference", "name", "before", "since"])?;
    let (images, unreadable) = library.list_readable()?;
    for error in unreadable {
        let why = std::error::Error::source(&error).map_or_else(String::new, |why| format!(": {why}"));
        eprintln!("warning: {error}{why}");
    }
    let templates = Templates::of(&context::home()?).uses()?;
    let mut views: Vec<View> = images
        .into_iter()
        .filter(|image| !image.is_superseded)
        .map(|image| {
            let found = templates.get(&image.digest.to_string()).copied();
            view(library, image, found.unwrap_or_default())
        })
        .collect();
    // The newest first, as docker has them.
    views.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.names.cmp(&b.names)));
    let age = |name: &str| -> Result<Option<Timestamp>, Failure> {
        let digest = super::names::found(library, name)?.to_string();
        Ok(views
            .iter()
            .find(|view| view.digest == digest)
            .and_then(|view| view.created))
    };
    let ends = |key: &str| -> Result<Vec<(String, Option<Timestamp>)>, Failure> {
        filters
            .values(key)
            .map(|name| Ok((name.to_owned(), age(name)?)))
            .collect()
    };
    let (before, since) = (ends("before")?, ends("since")?);
    let when = |ends: &[(String, Option<Timestamp>)], name: &str| {
        ends.iter().find(|(known, _)| known == name).and_then(|(_, at)| *at)
    };
    views.retain(|view| {
        let is = |pattern: &str| view.names.iter().any(|name| is_named(name, pattern));
        filters.allow("reference", is)
            && args.reference.as_deref().is_none_or(is)
            && filters.allow("name", |part| view.names.iter().any(|name| name.contains(part)))
            && filters.allow("dangling", |value| {
                (value == "true" || value == "1") == view.names.is_empty()
            })
            && filters.allow("before", |name| view.created < when(&before, name))
            && filters.allow("since", |name| view.created > when(&since, name))
            && filters.allow_labels(|key| {
                view.labels
                    .iter()
                    .find(|(name, _)| name == key)
                    .map(|(_, value)| value.as_str())
            })
    });
    let now = Timestamp::now();
    let rows: Vec<Row> = views.iter().flat_map(|view| rows(view, &args.listing, now)).collect();
    args.listing.show(
        &["NAME", "DIGEST", "KIND", "CREATED", "SIZE", "TEMPLATES"],
        &rows,
        &views,
    )?;
    Ok(0)
}

fn view(library: &Library, image: ListedImage, templates: TemplateUse) -> View {
    let kind = |kind: &ImageKind| match kind {
        ImageKind::Container => "container",
        ImageKind::OwnKernel { .. } => "container with its own kernel",
        ImageKind::KernelDisk { .. } | ImageKind::Disk { .. } => "vm",
    };
    let facts = image.facts.as_ref().ok();
    let config = facts.and_then(|facts| zmachine_flist::ImageConfig::from_tags(&facts.tags).ok());
    View {
        created: created(library, &image),
        names: image.names.iter().map(ToString::to_string).collect(),
        digest: image.digest.to_string(),
        kind: facts.map(|facts| kind(&facts.kind).to_owned()),
        files_bytes: facts.map(|facts| facts.sizes.file_bytes),
        templates: templates.count,
        templates_bytes: templates.bytes,
        error: image.facts.as_ref().err().map(ToString::to_string),
        labels: config.map_or_else(Vec::new, |config| config.labels.into_iter().collect()),
    }
}

fn created(library: &Library, image: &ListedImage) -> Option<Timestamp> {
    let document: Option<Value> = library
        .image_file(&image.digest, CONFIGURATION)
        .ok()
        .flatten()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let said = document.and_then(|document| document.get("created")?.as_str()?.parse().ok());
    let tag = || {
        image
            .facts
            .as_ref()
            .ok()?
            .tags
            .get("org.opencontainers.image.created")?
            .parse()
            .ok()
    };
    // Reproducible images say 1970, which is as good as nothing.
    let came = || Timestamp::try_from(library.image_time(&image.digest)?).ok();
    said.filter(|at: &Timestamp| at.as_second() > 0)
        .or_else(tag)
        .or_else(came)
}

/// A row for all names in a table, and one for each where a template shows them, as docker has it.
fn rows(view: &View, listing: &crate::listing::ListingArgs, now: Timestamp) -> Vec<Row> {
    let size = view
        .files_bytes
        .map_or_else(String::new, |bytes| Human(bytes).to_string());
    let age = view
        .created
        .map_or_else(|| "-".to_owned(), |at| output::human_age(at, now));
    let short = match listing.no_trunc {
        true => view.digest.clone(),
        false => view.digest[..12].to_owned(),
    };
    let cells = vec![
        match view.names.as_slice() {
            [] => "-".to_owned(),
            names => names.join(", "),
        },
        short.clone(),
        view.kind.clone().or_else(|| view.error.clone()).unwrap_or_default(),
        age.clone(),
        size.clone(),
        match view.templates {
            0 => "-".to_owned(),
            count => format!("{count} ({})", Human(view.templates_bytes)),
        },
    ];
    let row = |name: Option<&String>| {
        let (repository, tag) = parts(name.map(String::as_str));
        let fields = json!({
            "Repository": repository,
            "Tag": tag,
            "ID": short,
            "Digest": view.digest,
            "CreatedSince": age,
            "CreatedAt": view.created.map(|at| at.to_string()),
            "Size": size,
            "Kind": view.kind,
            "Templates": view.templates,
            "TemplatesSize": view.templates_bytes,
            "Names": view.names,
        });
        Row {
            name: name.cloned().unwrap_or_else(|| view.digest[..12].to_owned()),
            cells: cells.clone(),
            fields,
        }
    };
    match (listing.quiet || listing.format.is_some(), view.names.as_slice()) {
        (true, [_, _, ..]) => view.names.iter().map(|name| row(Some(name))).collect(),
        (_, names) => vec![row(names.first())],
    }
}
