//! An image of a registry that can be started before its layers are here.
//!
//! Layers with a table of contents (module `toc`) give their files by that; all others come as always, at the same time. The image that
//! is made of both has lazy blocks ([`zmachine_image::lazy`]), whose chunks come from the registry (module `chunks`) until [`complete`] has
//! brought the layers. Whatever does not fit (a registry without ranges, a table that leaves something out) means that the layers come as a whole.

mod chunks;
mod toc;

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use zmachine_flist::{Flist, NodeId, NodeKind, RouteTable, Tree};
use zmachine_image::lazy::{
    INDEX_FILE, KNOWN_FILE, LazyBlocks, LazyIndex, LazyLayer, ORIGIN_FILE, Origin, write_known,
};
use zmachine_image::library::{Layer, NewImage, ResolveError};
use zmachine_image::progress::Progress;
use zmachine_image::reference::ImageSource;
use zmachine_image::{Fetcher, Image, ImageKind, Library, Mode};

pub use self::chunks::chunk_source;
use self::toc::Listed;
use super::frame::replay;
use super::keep::Unkept;
use super::manifest::Descriptor;
use super::pull::{CONFIGURATION, MANIFEST, Pulled, is_whole, names, pull, some_layers};
use super::source::Source;
use super::{Documents, ImportError, ImportOptions, Problem};
use crate::pack::Assembly;

/// Layers with tables of contents that are shorter than this together, in bytes, come as a whole: that takes no longer than a few requests.
const LEAST: u64 = 8 << 20;

/// The longest that a table of contents may take.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A layer of an image that is started before it is here.
enum Part {
    Here(Layer),
    Listed(Vec<Listed>),
}

/// Makes an image of tables of contents; `None` when that cannot be, or gains nothing. `place` is its reference with the digest of its
/// manifest.
pub(super) fn begin(
    source: &dyn Source,
    place: &ImageSource,
    all: &Documents,
    options: &ImportOptions,
    (library, mode): (&Library, Mode),
    progress: &dyn Progress,
) -> Result<Option<Image>, Unkept> {
    let layer_names = names(all)?;
    let mut lazy: Vec<(usize, &Descriptor)> = Vec::new();
    for (at, (layer, name)) in all.manifest.layers.iter().zip(&layer_names).enumerate() {
        if toc::format_of(layer).is_some() && library.layer(name)?.is_none() {
            lazy.push((at, layer));
        }
    }
    if lazy.len() > usize::from(u16::MAX) || lazy.iter().map(|(_, layer)| layer.size).sum::<u64>() < LEAST {
        return Ok(None);
    }
    // Tables first: they decide, and are small.
    let mut tables = BTreeMap::new();
    let mut places = Vec::new();
    for (number, (at, layer)) in lazy.into_iter().enumerate() {
        let Some(compression) = toc::format_of(layer) else {
            continue;
        };
        let Some(listed) = toc::read(source, layer, number as u16, compression)? else {
            return Ok(None);
        };
        places.push(LazyLayer {
            digest: layer.digest.clone(),
            size: layer.size,
            compression,
        });
        tables.insert(at, listed);
    }
    let wanted = |at: usize| !tables.contains_key(&at);
    let mut here = some_layers(source, library, all, progress, &mut false, &wanted)?;
    let parts = (0..all.manifest.layers.len()).map(|at| match tables.remove(&at) {
        Some(listed) => Some(Part::Listed(listed)),
        None => here.remove(&layer_names[at]).map(Part::Here),
    });
    let Some(parts) = parts.collect::<Option<Vec<Part>>>() else {
        return Ok(None);
    };
    let Some((flist, index)) = assemble(all, parts) else {
        return Ok(None);
    };
    // Its content decides how it is started, and nobody has it.
    if flist.tree.resolve(b"/.startup.toml").is_ok() {
        return Ok(None);
    }
    let mut origin = Origin::new(place.to_string(), places);
    origin.auth_files.clone_from(&options.auth_files);
    origin.registries.clone_from(&options.registry_files);
    let origin = serde_json::to_vec(&origin).map_err(|e| Problem::Read(e.into()))?;
    let new = NewImage {
        flist: &flist,
        layers: &layer_names,
        files: &[
            (MANIFEST, &all.manifest_bytes),
            (CONFIGURATION, &all.configuration_bytes),
            (INDEX_FILE, &index.to_bytes()),
            (ORIGIN_FILE, &origin),
        ],
        is_lazy: true,
    };
    let image = library.add(new, mode, &place.to_string())?;
    // A kernel of its own is read by the host, all of it.
    Ok(image.filter(|image| image.facts.kind == ImageKind::Container))
}

/// The tree of the layers, and what its lazy blocks are made of; `None` when something does not fit.
fn assemble(all: &Documents, parts: Vec<Part>) -> Option<(Flist, LazyIndex)> {
    let (mut assembly, mut index, mut blocks) = (Assembly::new(true), LazyIndex::default(), Vec::new());
    for part in parts {
        match part {
            Part::Here(layer) => {
                let frame = File::open(layer.frame_path()).ok()?;
                replay(&mut assembly, frame, blocks.len(), layer.blocks.len()).ok()?;
                blocks.extend_from_slice(&layer.blocks);
            }
            Part::Listed(listed) => {
                assembly.next_layer();
                for Listed { member, chunks } in listed {
                    let base = blocks.len();
                    blocks.extend(index.add_file(&chunks)?);
                    assembly.add(member, (base..blocks.len()).collect()).ok()?;
                }
            }
        }
    }
    let mut flist = Flist {
        tree: assembly.finish(&blocks).ok()?,
        routes: RouteTable(Vec::new()),
        tags: BTreeMap::new(),
    };
    all.configuration.config.to_image_config().store(&mut flist.tags);
    Some((flist, index))
}

/// A fetcher for the blocks of an image, whose flist has these routes, wherever they are: in stores, or still inside its layers.
///
/// # Errors
/// [`ImportError`] when a file of the image, or one with credentials, cannot be read.
pub fn fetcher(image: &Image, routes: RouteTable, library: &Library) -> Result<Fetcher, ImportError> {
    let here = |source: ResolveError| ImportError::Here {
        image: image.digest.to_string(),
        source: Box::new(source),
    };
    let fetcher = library.fetcher(routes).map_err(here)?;
    let Some(chunks) = chunk_source(&image.directory)? else {
        return Ok(fetcher);
    };
    let blocks = LazyBlocks::open(&image.directory, library.cache().directory(), chunks);
    Ok(fetcher.with_lazy(blocks.map_err(|e| here(e.into()))?))
}

/// Brings all layers of an image that was begun with its tables of contents; the image that is made of them. From then on both have all
/// they need on this host.
///
/// # Errors
/// [`ImportError`]; layers that are complete stay.
pub fn complete(
    image: &Image,
    options: &ImportOptions,
    library: &Library,
    progress: &dyn Progress,
) -> Result<Image, ImportError> {
    let shown = image.digest.to_string();
    let here = |source: ResolveError| ImportError::Here {
        image: shown.clone(),
        source: Box::new(source),
    };
    let origin = Origin::read(&image.directory).map_err(|e| here(e.into()))?;
    let begun = origin.and_then(|origin| Some((ImageSource::parse(&origin.source).ok()?, origin.auth_files)));
    let Some((source, auth_files)) = begun else {
        return Ok(image.clone());
    };
    // What is here already needs no registry, which may be gone.
    if let ImageSource::Registry { reference, .. } = &source
        && image.directory.join(KNOWN_FILE).exists()
        && let Some((digest, _)) = library.remembered(reference).map_err(here)?
        && is_whole(library, &digest).map_err(here)?
    {
        return library.by_its_digest(&digest, Mode::Auto, &shown).map_err(here);
    }
    let mut options = ImportOptions {
        is_lazy: false,
        ..options.clone()
    };
    // Whoever began it may have had others.
    options.auth_files.extend(auth_files);
    let Pulled { image: whole, .. } = pull(&source, &options, library, Mode::Auto, progress)?;
    let (lazy, real) = (image.open_flist().map_err(here)?, whole.open_flist().map_err(here)?);
    let pairs = same_blocks(&lazy.tree, &real.tree);
    write_known(&image.directory, pairs.iter().map(|(lazy, real)| (lazy, real))).map_err(|e| here(e.into()))?;
    Ok(whole)
}

/// What the blocks of one tree are in another one with the same files.
fn same_blocks(lazy: &Tree, real: &Tree) -> Vec<(zmachine_flist::BlockRef, zmachine_flist::BlockRef)> {
    let mut pairs = BTreeMap::new();
    let mut todo = vec![(NodeId::ROOT, NodeId::ROOT)];
    while let Some((one, other)) = todo.pop() {
        match (&lazy.get(one).kind, &real.get(other).kind) {
            (NodeKind::Directory(entries), NodeKind::Directory(others)) => {
                let others: BTreeMap<_, _> = others.iter().map(|(name, node)| (name, *node)).collect();
                let both = entries
                    .iter()
                    .filter_map(|(name, node)| Some((*node, *others.get(name)?)));
                todo.extend(both);
            }
            (
                NodeKind::Regular { size, blocks },
                NodeKind::Regular {
                    size: real_size,
                    blocks: real,
                },
            ) if size == real_size => {
                // Those of layers that were here before are the same.
                let each = blocks.iter().zip(real).filter(|(lazy, _)| !lazy.is_unsealed());
                pairs.extend(each.map(|(lazy, real)| (lazy.key, (*lazy, *real))));
            }
            _ => {}
        }
    }
    pairs.into_values().collect()
}
