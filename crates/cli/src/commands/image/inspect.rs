//! `image inspect` and `history`, in the form that docker has them.

use serde_json::{Map, Value, json};
use zmachine_flist::{Digest, ImageConfig};
use zmachine_image::reference::DOCKER_HUB;
use zmachine_image::{ImageKind, ImageName, Library, Mode};
use zmachine_pack::oci::pull::{CONFIGURATION, MANIFEST};
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure};

use super::names::found;
use crate::args::Format;
use crate::args::image::{HistoryArgs, InspectImageArgs};
use crate::{listing, output};

/// The longest command of a step that is shown, in characters.
const SHOWN: usize = 60;

/// A document that came with the image; null when it came with none.
fn document(library: &Library, digest: &Digest, name: &str) -> Result<Value, Failure> {
    let bytes = library.image_file(digest, name)?;
    let document = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    document.map(Option::unwrap_or_default).map_err(|e| {
        Failure::from_error(Class::Fetch, &e)
            .context(format!("{name} of image {digest} cannot be read"))
            .hint("pull the image again")
    })
}

pub(super) fn inspect(library: &Library, args: &InspectImageArgs) -> Result<u8, Failure> {
    let all: Vec<Value> = args
        .images
        .iter()
        .map(|text| one(library, text))
        .collect::<Result<_, _>>()?;
    match &args.format {
        Some(format) => listing::by_template(format, &all)?,
        None => output::json(&all)?,
    }
    Ok(0)
}

fn one(library: &Library, text: &str) -> Result<Value, Failure> {
    let digest = found(library, text)?;
    let image = library.by_its_digest(&digest, Mode::Auto, text)?;
    let listed = library.list_readable()?.0;
    let names: Vec<ImageName> = listed
        .into_iter()
        .find(|image| image.digest == digest)
        .map_or_else(Vec::new, |image| image.names);
    let configuration = document(library, &digest, CONFIGURATION)?;
    let manifest = document(library, &digest, MANIFEST)?;
    let mut pinned = Vec::new();
    for source in names.iter().filter_map(|name| name.in_registry(DOCKER_HUB)) {
        if let Some((known, manifest)) = library.remembered(&source.to_string())?
            && known == digest
        {
            pinned.extend(source.pinned(&manifest));
        }
    }
    pinned.dedup();
    let text_of = |name: &str| configuration.get(name).cloned().unwrap_or_default();
    let id = manifest.pointer("/config/digest").cloned();
    let layers = configuration.pointer("/rootfs/diff_ids").cloned();
    let config = match configuration.get("config") {
        Some(config) => config.clone(),
        None => of_flist(&image.facts.tags)?,
    };
    let kind = match image.facts.kind {
        ImageKind::Container => "container",
        ImageKind::OwnKernel { .. } => "container with its own kernel",
        ImageKind::KernelDisk { .. } | ImageKind::Disk { .. } => "vm",
    };
    Ok(json!({
        "Id": id.unwrap_or_else(|| json!(digest.to_string())),
        "Digest": digest.to_string(),
        "Kind": kind,
        "RepoTags": names.iter().filter(|name| !name.as_str().contains('@')).map(ToString::to_string).collect::<Vec<_>>(),
        "RepoDigests": pinned,
        "Created": text_of("created"),
        "Author": text_of("author"),
        "Architecture": text_of("architecture"),
        "Os": text_of("os"),
        "Size": image.facts.sizes.file_bytes,
        "Config": config,
        "RootFS": {"Type": "layers", "Layers": layers.unwrap_or_else(|| json!([]))},
        "History": text_of("history"),
    }))
}

/// What a flist says about running it, under the names of docker.
fn of_flist(tags: &std::collections::BTreeMap<String, String>) -> Result<Value, Failure> {
    let config = ImageConfig::from_tags(tags).map_err(|e| Failure::from_error(Class::Fetch, &e))?;
    let set = |names: Vec<String>| -> Map<String, Value> { names.into_iter().map(|name| (name, json!({}))).collect() };
    Ok(json!({
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "Env": config.env,
        "User": config.user.unwrap_or_default(),
        "WorkingDir": config.workdir.unwrap_or_default(),
        "StopSignal": config.stop_signal,
        "ExposedPorts": set(config.ports),
        "Volumes": set(config.volumes),
        "Labels": config.labels,
    }))
}

pub(super) fn history(library: &Library, args: &HistoryArgs) -> Result<u8, Failure> {
    let digest = found(library, &args.image)?;
    let configuration = document(library, &digest, CONFIGURATION)?;
    let steps = configuration
        .get("history")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    if configuration.is_null() || steps.is_empty() {
        let message = format!("nothing is known of how '{}' was made", args.image);
        return Err(Failure::new(Class::NotFound, message)
            .hint("images of flists have no history; 'zmachine image inspect' shows what they are"));
    }
    let mut sizes = Vec::new();
    for layer in library.layers_of(&digest)? {
        let layer = library.layer(&layer)?;
        sizes.push(layer.map(|layer| layer.blocks.iter().map(|block| u64::from(block.len)).sum::<u64>()));
    }
    let mut sizes = sizes.into_iter();
    let mut rows = Vec::new();
    for step in &steps {
        let text = |name: &str| step.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let is_empty = step.get("empty_layer").and_then(Value::as_bool).unwrap_or_default();
        let size = if is_empty { Some(0) } else { sizes.next().flatten() };
        rows.push((text("created"), text("created_by"), size, text("comment")));
    }
    // The newest first, as docker has it.
    rows.reverse();
    if args.output == Format::Json {
        let row = |(created, by, size, comment): &(String, String, Option<u64>, String)| json!({"created": created, "created_by": by, "size": size, "comment": comment});
        output::json(&rows.iter().map(row).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let cells = |(created, by, size, comment): &(String, String, Option<u64>, String)| {
        let by = by.replace(['\n', '\t'], " ");
        let by = match !args.no_trunc && by.chars().count() > SHOWN {
            true => format!("{}…", by.chars().take(SHOWN - 1).collect::<String>()),
            false => by,
        };
        let size = size.map_or_else(|| "-".to_owned(), |size| Human(size).to_string());
        vec![created.clone(), by, size, comment.clone()]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    output::table(&["CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows)?;
    Ok(0)
}
