//! A new image from one that is here and one more layer: `commit`.
//!
//! What comes from a registry stays a container image, with one more layer and one more entry in its history. What comes from a flist stays
//! a flist, whose new blocks are on this host alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::sync::Mutex;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use zmachine_flist::{Digest, ImageConfig};
use zmachine_image::library::{NewImage, ResolveError};
use zmachine_image::progress::Silent;
use zmachine_image::{Image, Library, Mode};

use super::frame::replay;
use super::keep::{Unkept, keep_layer};
use super::layer::digest_of;
use super::manifest::{CONFIG_FIELDS, Descriptor, config_json, json as parse};
use super::pull::{CONFIGURATION, MANIFEST, pull_from};
use super::source::Source;
use super::{ImportError, Problem};
use crate::pack::{Assembly, PackError};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// What is new.
#[allow(missing_debug_implementations)]
pub struct Commit<'a> {
    /// The image below.
    pub base: &'a Digest,
    /// The layer: a tar archive, read from its start.
    pub layer: File,
    /// What is said about running it from now on.
    pub edit: &'a dyn Fn(&mut ImageConfig),
    /// When, as RFC 3339 has it.
    pub created: String,
    /// Who made it.
    pub author: Option<String>,
    /// What for.
    pub message: Option<String>,
    /// How the image is called in errors.
    pub name: &'a str,
}

/// Adds the image, which has no name by that.
///
/// # Errors
/// [`ImportError`]; nothing is left then but blocks.
pub fn commit(commit: Commit<'_>, library: &Library, mode: Mode) -> Result<Image, ImportError> {
    let name = commit.name.to_owned();
    let here = |source: ResolveError| ImportError::Here {
        image: name.clone(),
        source: Box::new(source),
    };
    let configuration = library.image_file(commit.base, CONFIGURATION).map_err(here)?;
    match configuration {
        Some(configuration) => of_layers(commit, &configuration, library, mode),
        None => of_flist(commit, library, mode),
    }
}

fn of_layers(commit: Commit<'_>, configuration: &[u8], library: &Library, mode: Mode) -> Result<Image, ImportError> {
    let name = commit.name.to_owned();
    let named = |problem: Problem| problem.of(&name);
    let manifest = library
        .image_file(commit.base, MANIFEST)
        .map_err(|source| ImportError::Here {
            image: name.clone(),
            source: Box::new(source),
        })?;
    let manifest = manifest.ok_or_else(|| named(Problem::Broken("its manifest is gone".into())))?;
    let place = Committed::new(commit, &manifest, configuration).map_err(named)?;
    // Any level: the layers below were chosen already, and the platform stays. Nothing comes from anywhere, so nothing is told.
    Ok(pull_from(&place, &name, u8::MAX, (library, mode), &Silent)?.image)
}

/// The place where the new image is, until it is here.
struct Committed {
    manifest: Vec<u8>,
    configuration: Vec<u8>,
    layer: Mutex<File>,
    /// The digest of the layer.
    digest: String,
}

impl Committed {
    fn new(commit: Commit<'_>, manifest: &[u8], configuration: &[u8]) -> Result<Committed, Problem> {
        let (layer, digest, size) = measured(commit.layer)?;
        let mut document: Map<String, Value> = parse(configuration, "configuration")?;
        let mut config: ImageConfig = parse::<super::Configuration>(configuration, "configuration")?
            .config
            .to_image_config();
        (commit.edit)(&mut config);
        // What we do not know of stays.
        let fields = object(&mut document, "config");
        CONFIG_FIELDS.iter().for_each(|name| drop(fields.remove(*name)));
        fields.extend(config_json(&config));
        document.insert("created".into(), json!(commit.created));
        if let Some(author) = &commit.author {
            document.insert("author".into(), json!(author));
        }
        let rootfs = object(&mut document, "rootfs");
        rootfs.insert("type".into(), json!("layers"));
        array(rootfs, "diff_ids").push(json!(digest));
        let mut entry = Map::from_iter([
            ("created".to_owned(), json!(commit.created)),
            ("created_by".to_owned(), json!("zmachine commit")),
        ]);
        entry.extend(commit.author.map(|author| ("author".to_owned(), json!(author))));
        entry.extend(commit.message.map(|message| ("comment".to_owned(), json!(message))));
        array(&mut document, "history").push(Value::Object(entry));
        let configuration = Value::Object(document).to_string().into_bytes();

        let below: Value = parse(manifest, "manifest")?;
        let mut layers: Vec<Value> = below["layers"].as_array().cloned().unwrap_or_default();
        layers.push(json!({"mediaType": LAYER_TYPE, "digest": digest, "size": size}));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": CONFIG_TYPE,
                "digest": digest_of(&configuration),
                "size": configuration.len(),
            },
            "layers": layers,
        });
        Ok(Committed {
            manifest: manifest.to_string().into_bytes(),
            configuration,
            layer: Mutex::new(layer),
            digest,
        })
    }
}

impl Source for Committed {
    fn manifest(&self) -> Result<Vec<u8>, Problem> {
        Ok(self.manifest.clone())
    }

    fn manifest_by_digest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Problem> {
        Err(Problem::Broken(format!("it has no manifest {}", descriptor.digest)))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Problem> {
        if descriptor.digest == digest_of(&self.configuration) {
            return Ok(Box::new(self.configuration.as_slice()));
        }
        if descriptor.digest != self.digest {
            let what = format!("layer {} of the image below is not here any more", descriptor.digest);
            return Err(Problem::Broken(what));
        }
        let layer = self.layer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut layer = layer.try_clone()?;
        layer.rewind()?;
        Ok(Box::new(layer))
    }
}

/// A file at its start, the digest of what it holds, and its length.
fn measured(mut file: File) -> io::Result<(File, String, u64)> {
    file.rewind()?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            read => {
                hash.update(&chunk[..read]);
                size += read as u64;
            }
        }
    }
    file.rewind()?;
    Ok((file, format!("sha256:{}", hex(&hash.finalize())), size))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn object<'a>(of: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = of.entry(name).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object right before"),
    }
}

fn array<'a>(of: &'a mut Map<String, Value>, name: &str) -> &'a mut Vec<Value> {
    let value = of.entry(name).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it was made a list right before"),
    }
}

fn of_flist(commit: Commit<'_>, library: &Library, mode: Mode) -> Result<Image, ImportError> {
    let name = commit.name.to_owned();
    let named = |problem: Problem| problem.of(&name);
    let here = |source: ResolveError| ImportError::Here {
        image: name.clone(),
        source: Box::new(source),
    };
    let pack = |source: PackError| ImportError::Pack {
        image: name.clone(),
        source,
    };
    let base = library.by_its_digest(commit.base, mode, &name).map_err(here)?;
    let mut flist = base.open_flist().map_err(here)?;
    let (layer, digest, size) = measured(commit.layer).map_err(|error| named(error.into()))?;
    let diff_id = digest.trim_start_matches("sha256:").to_owned();
    let descriptor = Descriptor::of_layer(LAYER_TYPE, &digest, size);
    let place = Committed {
        manifest: Vec::new(),
        configuration: Vec::new(),
        layer: Mutex::new(layer),
        digest,
    };
    let kept = keep_layer(library, &place, &descriptor, &diff_id, &|_| ());
    let kept = kept.map_err(|unkept| match unkept {
        Unkept::Problem(problem) => named(problem),
        Unkept::Here(error) => here(error),
    })?;
    let (mut assembly, mut blocks) = Assembly::over(&flist.tree);
    let frame = File::open(kept.frame_path()).map_err(|error| named(error.into()))?;
    replay(&mut assembly, frame, blocks.len(), kept.blocks.len())
        .map_err(|source| pack(PackError::Archive { source }))?;
    blocks.extend_from_slice(&kept.blocks);
    flist.tree = assembly.finish(&blocks).map_err(|source| {
        pack(PackError::Tree {
            path: "the image".into(),
            source,
        })
    })?;
    let mut config = ImageConfig::from_tags(&flist.tags).map_err(|error| named(Problem::Broken(error.to_string())))?;
    (commit.edit)(&mut config);
    config.store(&mut flist.tags);
    notes(&mut flist.tags, &commit.created, commit.author, commit.message);
    let mut layers = library.layers_of(commit.base).map_err(here)?;
    layers.push(diff_id);
    let new = NewImage {
        flist: &flist,
        layers: &layers,
        files: &[],
        is_lazy: false,
    };
    let added = library.add(new, mode, &name).map_err(here)?;
    added.ok_or_else(|| named(Problem::Broken("another command removed its blocks meanwhile".into())))
}

/// What OCI's annotations would say of it.
fn notes(tags: &mut BTreeMap<String, String>, created: &str, author: Option<String>, message: Option<String>) {
    tags.insert("org.opencontainers.image.created".into(), created.to_owned());
    if let Some(author) = author {
        tags.insert("org.opencontainers.image.authors".into(), author);
    }
    if let Some(message) = message {
        tags.insert("org.opencontainers.image.description".into(), message);
    }
}
