//! Images in the form that docker shows them.

use serde_json::{Map, Value, json};
use zmachine_flist::{Digest, ImageConfig};
use zmachine_image::reference::DOCKER_HUB;
use zmachine_image::{ImageKind, ImageName, Library, Mode};
use zmachine_pack::oci::config_json;
use zmachine_pack::oci::pull::{CONFIGURATION, MANIFEST};
use zmachine_spec::{Class, Failure, Home};
use zmachine_store::template::Templates;

/// A document that came with the image; null when it came with none.
///
/// # Errors
/// When it cannot be read.
pub fn document(library: &Library, digest: &Digest, name: &str) -> Result<Value, Failure> {
    let bytes = library.image_file(digest, name)?;
    let document = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    document.map(Option::unwrap_or_default).map_err(|e| {
        Failure::from_error(Class::Fetch, &e)
            .context(format!("{name} of image {digest} cannot be read"))
            .hint("pull the image again")
    })
}

/// [`image_view`] with what warm starts have of the image.
///
/// # Errors
/// As that, and when they cannot be listed.
pub fn image_view_with_templates(
    home: &Home,
    library: &Library,
    digest: &Digest,
    text: &str,
) -> Result<Value, Failure> {
    let mut view = image_view(library, digest, text)?;
    let found = Templates::of(home).uses()?;
    let found = found.get(&digest.to_string()).copied().unwrap_or_default();
    view["Templates"] = json!({"Count": found.count, "Size": found.bytes});
    Ok(view)
}

/// Everything about an image, in the form that docker has it; `text` names it in errors.
///
/// # Errors
/// When it is not here, or cannot be read.
pub fn image_view(library: &Library, digest: &Digest, text: &str) -> Result<Value, Failure> {
    let image = library.by_its_digest(digest, Mode::Auto, text)?;
    let listed = library.list_readable()?.0;
    let names: Vec<ImageName> = listed
        .into_iter()
        .find(|image| image.digest == *digest)
        .map_or_else(Vec::new, |image| image.names);
    let configuration = document(library, digest, CONFIGURATION)?;
    let manifest = document(library, digest, MANIFEST)?;
    let mut pinned = Vec::new();
    for source in names.iter().filter_map(|name| name.in_registry(DOCKER_HUB)) {
        if let Some((known, manifest)) = library.remembered(&source.to_string())?
            && known == *digest
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

/// What a flist says about running it, under the names of docker; what templates ask for most is there in any case.
fn of_flist(tags: &std::collections::BTreeMap<String, String>) -> Result<Value, Failure> {
    let config = ImageConfig::from_tags(tags).map_err(|e| Failure::from_error(Class::Fetch, &e))?;
    let always = json!({"Entrypoint": [], "Cmd": [], "Env": [], "User": "", "WorkingDir": "", "Labels": {}});
    let mut fields: Map<String, Value> = always.as_object().cloned().unwrap_or_default();
    fields.extend(config_json(&config));
    Ok(Value::Object(fields))
}
