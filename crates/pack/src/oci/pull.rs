//! An image whose layers are kept on this host: what a layer brings is downloaded once, whatever images have it.
//!
//! Layers come side by side, the largest first, and are put together when all are here. A layer that is complete stays when the pull is
//! interrupted, so it is not downloaded again.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use zmachine_flist::{Digest, Flist, RouteTable};
use zmachine_image::library::{Layer, NewImage, ResolveError};
use zmachine_image::progress::Progress;
use zmachine_image::reference::ImageSource;
use zmachine_image::{Image, Library, Mode};

use super::frame::replay;
use super::keep::{Unkept, keep_layer, telling};
use super::layer::{digest_of, hex_of};
use super::manifest::Descriptor;
use super::source::Source;
use super::{Documents, ImportError, ImportOptions, Problem, artifact, documents, lazy, source};
use crate::pack::{Assembly, PackError};

/// Layers that come at once. Two keep two processors busy; a third one hides the answer times of registries.
const LAYERS_AT_ONCE: usize = 3;

/// How often layers are looked for again that were removed while others came.
const ROUNDS: usize = 3;

/// The file of an image with the manifest it came by.
pub const MANIFEST: &str = "manifest.json";
/// The file of an image with the configuration it came with.
pub const CONFIGURATION: &str = "config.json";

/// A pulled image.
#[derive(Debug)]
pub struct Pulled {
    /// The image, which has no name by this.
    pub image: Image,
    /// The digest that the reference led to: of a manifest, or of an index with one for each platform.
    pub digest: String,
    /// The names that it has where it is, when that is an archive or a layout.
    pub names: Vec<String>,
    /// Whether a layer had to come.
    pub is_new: bool,
    /// The platform that the image is for, when that is another one: its programs cannot run here.
    pub other_platform: Option<String>,
}

/// Brings an image here. Nothing more than the manifest is asked for when it led to an image before that is still here with all its blocks.
/// Progress is told in bytes of layers as they are kept.
///
/// # Errors
/// [`ImportError`]; layers that are complete stay.
pub fn pull(
    image: &ImageSource,
    options: &ImportOptions,
    library: &Library,
    mode: Mode,
    progress: &dyn Progress,
) -> Result<Pulled, ImportError> {
    let source = source::open(image, options).map_err(|problem| problem.of(image))?;
    let level = options.amd64_level;
    let place = Place {
        source: source.as_ref(),
        shown: &image.to_string(),
        lazily: options.is_lazy.then_some((image, options)),
        temporary: &options.temporary,
    };
    pull_either(&place, level, (library, mode), progress)
}

/// [`pull`] of a whole image from an opened place; `image` names it in errors.
pub(super) fn pull_from(
    source: &dyn Source,
    image: &str,
    level: u8,
    to: (&Library, Mode),
    progress: &dyn Progress,
) -> Result<Pulled, ImportError> {
    let place = Place {
        source,
        shown: image,
        lazily: None,
        temporary: Path::new("/var/tmp"),
    };
    pull_either(&place, level, to, progress)
}

/// Where an image comes from.
struct Place<'a> {
    source: &'a dyn Source,
    /// Its name in errors.
    shown: &'a str,
    /// When it may be used before its layers are here.
    lazily: Option<(&'a ImageSource, &'a ImportOptions)>,
    /// For files that are needed meanwhile.
    temporary: &'a Path,
}

fn pull_either(
    place: &Place<'_>,
    level: u8,
    (library, mode): (&Library, Mode),
    progress: &dyn Progress,
) -> Result<Pulled, ImportError> {
    let Place {
        source,
        shown: image,
        lazily,
        temporary,
    } = *place;
    let named = |problem: Problem| problem.of(image);
    let here = |source: ResolveError| ImportError::Here {
        image: image.to_string(),
        source: Box::new(source),
    };
    let bytes = source.manifest().map_err(named)?;
    let digest = digest_of(&bytes);
    // By the digest of the manifest, whatever names it has and wherever it is.
    let known = library.remembered(&digest).map_err(here)?.map(|(known, _)| known);
    // One that was begun lazily is not asked for again, when such a one is good enough.
    if let Some(known) = known
        && (lazily.is_some() && library.is_lazy(&known) || is_whole(library, &known).map_err(here)?)
    {
        let found = library.by_its_digest(&known, mode, image);
        return Ok(Pulled {
            image: found.map_err(here)?,
            digest,
            names: source.names(),
            is_new: false,
            other_platform: None,
        });
    }
    let kept = |unkept| match unkept {
        Unkept::Problem(problem) => named(problem),
        Unkept::Here(error) => here(error),
    };
    if let Some(layer) = artifact::flist_layer(&bytes) {
        let image = artifact::fetch(source, &layer, temporary, (library, mode), progress).map_err(kept)?;
        library.remember(&digest, &digest, &image.digest).map_err(here)?;
        return Ok(Pulled {
            image,
            digest,
            names: source.names(),
            is_new: true,
            other_platform: None,
        });
    }
    let all = documents(source, bytes, level).map_err(named)?;
    if let Some((place, options)) = lazily
        && let Some(place) = place.with_digest(&digest)
        && let Some(image) = lazy::begin(source, &place, &all, options, (library, mode), progress).map_err(kept)?
    {
        library.remember(&digest, &digest, &image.digest).map_err(here)?;
        return Ok(Pulled {
            image,
            digest,
            names: source.names(),
            is_new: true,
            other_platform: all.configuration.other_platform(),
        });
    }
    let mut is_new = false;
    for _ in 0..ROUNDS {
        let layers = layers(source, library, &all, progress, &mut is_new).map_err(kept)?;
        let flist = assemble(&all, &layers).map_err(|source| ImportError::Pack {
            image: image.to_string(),
            source,
        })?;
        let new = NewImage {
            flist: &flist,
            layers: &names(&all).map_err(named)?,
            files: &[
                (MANIFEST, &all.manifest_bytes),
                (CONFIGURATION, &all.configuration_bytes),
            ],
            is_lazy: false,
        };
        if let Some(image) = library.add(new, mode, image).map_err(here)? {
            library.remember(&digest, &digest, &image.digest).map_err(here)?;
            return Ok(Pulled {
                image,
                digest,
                names: source.names(),
                is_new,
                other_platform: all.configuration.other_platform(),
            });
        }
    }
    Err(ImportError::Read {
        image: image.to_string(),
        source: std::io::Error::other("other commands remove its layers again and again"),
    })
}

/// What the reference leads to now: the digest of a manifest, or of an index.
///
/// # Errors
/// [`ImportError`]
pub fn current_digest(image: &ImageSource, options: &ImportOptions) -> Result<String, ImportError> {
    let found = source::open(image, options).and_then(|source| source.manifest());
    found
        .map(|bytes| digest_of(&bytes))
        .map_err(|problem| problem.of(image))
}

/// Whether all layers of an image are here with all their blocks.
pub(super) fn is_whole(library: &Library, image: &Digest) -> Result<bool, ResolveError> {
    if library.is_lazy(image) {
        return Ok(false);
    }
    for layer in library.layers_of(image)? {
        if library.layer(&layer)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The names that its layers have here.
pub(super) fn names(all: &Documents) -> Result<Vec<String>, Problem> {
    let ids = all.configuration.rootfs.diff_ids.iter();
    ids.map(|id| hex_of(id).map(str::to_owned)).collect()
}

/// Brings those layers that are not here; all of them, the lowest first.
fn layers(
    source: &dyn Source,
    library: &Library,
    all: &Documents,
    progress: &dyn Progress,
    is_new: &mut bool,
) -> Result<Vec<Layer>, Unkept> {
    let here = some_layers(source, library, all, progress, is_new, &|_| true)?;
    let missing = || Problem::Broken("it has another number of layers".into());
    let found = names(all)?
        .into_iter()
        .map(|name| here.get(&name).cloned().ok_or_else(|| missing().into()));
    found.collect()
}

/// Brings those of the `wanted` layers that are not here; all of these by their names.
pub(super) fn some_layers(
    source: &dyn Source,
    library: &Library,
    all: &Documents,
    progress: &dyn Progress,
    is_new: &mut bool,
    wanted: &dyn Fn(usize) -> bool,
) -> Result<BTreeMap<String, Layer>, Unkept> {
    let names = names(all)?;
    let mut missing: Vec<(usize, &Descriptor)> = Vec::new();
    let mut here: BTreeMap<String, Layer> = BTreeMap::new();
    for (at, (layer, name)) in all.manifest.layers.iter().zip(&names).enumerate() {
        if names[..at].contains(name) || !wanted(at) {
            continue;
        }
        match library.layer(name)? {
            Some(layer) => drop(here.insert(name.clone(), layer)),
            None => missing.push((at, layer)),
        }
    }
    if !missing.is_empty() {
        *is_new = true;
        progress.begin(Some(missing.iter().map(|(_, layer)| layer.size).sum()), "pulling");
    }
    // Where nothing comes, there is nothing to tell.
    let reported = if missing.is_empty() {
        &[][..]
    } else {
        &all.manifest.layers
    };
    for (at, layer) in reported.iter().enumerate() {
        let name = shown(layer, &names[at]);
        progress.begin_part(at, layer.size, &name);
        if !missing.iter().any(|(part, _)| *part == at) {
            progress.end_part(at, if wanted(at) { "is here" } else { "comes when it is read" });
        }
    }
    missing.sort_by_key(|(_, layer)| std::cmp::Reverse(layer.size));
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let here = Mutex::new(here);
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..LAYERS_AT_ONCE.min(missing.len()) {
            scope.spawn(|| {
                while let Some((at, layer)) = missing.get(next.fetch_add(1, Relaxed)) {
                    if failed().is_some() {
                        return;
                    }
                    match keep_layer(library, source, layer, &names[*at], &telling(progress, *at)) {
                        Ok(layer) => {
                            progress.end_part(*at, "pulled");
                            let mut here = here.lock().unwrap_or_else(PoisonError::into_inner);
                            here.insert(names[*at].clone(), layer);
                        }
                        Err(error) => {
                            failed().get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    Ok(here.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// How a layer is called where it is shown.
fn shown(layer: &Descriptor, name: &str) -> String {
    let digest = layer.digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    digest.unwrap_or(name)[..12].to_owned()
}

/// The layers on top of each other.
fn assemble(all: &Documents, layers: &[Layer]) -> Result<Flist, PackError> {
    let mut assembly = Assembly::new(true);
    let mut blocks = Vec::new();
    for layer in layers {
        let path = layer.frame_path();
        let frame = File::open(&path).map_err(|source| PackError::Source {
            action: "open",
            path,
            source,
        })?;
        replay(&mut assembly, frame, blocks.len(), layer.blocks.len())
            .map_err(|source| PackError::Archive { source })?;
        blocks.extend_from_slice(&layer.blocks);
    }
    let tree = assembly.finish(&blocks).map_err(|source| PackError::Tree {
        path: "the image".into(),
        source,
    })?;
    let mut flist = Flist {
        tree,
        routes: RouteTable(Vec::new()),
        tags: BTreeMap::new(),
    };
    all.configuration.config.to_image_config().store(&mut flist.tags);
    Ok(flist)
}
