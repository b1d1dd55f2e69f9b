//! `image pull`, `load`, `tag` and `rm`: images and the names they go by.

use std::io;
use std::path::Path;

use zmachine_engine::{Engine, ImageRequest};
use zmachine_image::{ImageName, Library, Mode, Progress, PullPolicy, ResolveError, Silent};
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure};

use super::{image_name, trim};
use crate::args::image::{LoadArgs, PullArgs, TagArgs};
use crate::commands::machines::each;
use crate::progress::Bars;
use crate::{context, output};

/// The name and the image of `NAME=IMAGE`; a path may have `=` in it.
fn with_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, image)) if ImageName::new(name).is_ok() && !image.is_empty() => (Some(name), image),
        _ => (None, text),
    }
}

pub(super) fn pull(library: &Library, args: &PullArgs) -> Result<u8, Failure> {
    let (name, image) = match &args.name {
        Some(name) => (Some(name.as_str()), args.image.as_str()),
        None => with_name(&args.image),
    };
    let name = name.map(image_name).transpose()?;
    let engine = context::engine()?;
    let bars = Bars::bytes();
    let progress: &dyn Progress = if args.quiet { &Silent } else { &bars };
    let (name, image) = bring(&engine, image, name.as_ref(), progress)?;
    drop(bars);
    if args.blocks {
        library.fetch_blocks(&image, &Bars::pieces())?;
    }
    trim()?;
    output::print(&format!("{name} {}\n", image.digest))?;
    Ok(0)
}

fn bring(
    engine: &Engine,
    text: &str,
    name: Option<&ImageName>,
    progress: &dyn Progress,
) -> Result<(ImageName, zmachine_image::Image), Failure> {
    let request = ImageRequest {
        text,
        cwd: &std::env::current_dir()?,
        pull: PullPolicy::Always,
        mode: Mode::Auto,
        is_lazy: false,
        stores: &[],
        progress,
    };
    engine.pull(&request, name)
}

pub(super) fn tag(library: &Library, args: &TagArgs) -> Result<u8, Failure> {
    let (image, name) = (image_name(&args.image)?, completed_name(image_name(&args.name)?));
    let digest = library.find(&image)?;
    let digest = digest.ok_or_else(|| ResolveError::UnknownName {
        name: image.to_string(),
    })?;
    library.set_name(&name, &digest)?;
    Ok(0)
}

/// As docker completes it: one that could be in a registry has a tag.
pub(crate) fn completed_name(name: ImageName) -> ImageName {
    match name.in_registry(zmachine_image::reference::DOCKER_HUB) {
        Some(source) => source.local_name().unwrap_or(name),
        None => name,
    }
}

/// Every image of an archive, under the names that it has there.
pub(super) fn load(args: &LoadArgs) -> Result<u8, Failure> {
    let engine = context::engine()?;
    let bars = Bars::bytes();
    let progress: &dyn Progress = if args.quiet { &Silent } else { &bars };
    let loaded = match args.input.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => engine.load(path, progress)?,
        None => {
            let folder = &engine.registry_files().temporary;
            let mut file = tempfile_in(folder)?;
            io::copy(&mut io::stdin().lock(), &mut file.1)?;
            engine.load(&file.0, progress)?
        }
    };
    drop(bars);
    for (name, digest) in loaded {
        output::print(&format!("{name} {digest}\n"))?;
    }
    Ok(0)
}

/// A file that is gone when this program ends: its name leads to an open file.
fn tempfile_in(folder: &Path) -> Result<(std::path::PathBuf, std::fs::File), Failure> {
    use std::os::fd::AsRawFd;
    let new = zmachine_sys::file::NewFile::create(folder, 0o600)?;
    let file = new.file().try_clone()?;
    Ok((format!("/proc/self/fd/{}", file.as_raw_fd()).into(), file))
}

pub(super) fn remove(names: &[String]) -> Result<u8, Failure> {
    let engine = context::engine()?;
    each(names, |name| {
        let removed = engine.remove_image(&image_name(name)?)?;
        if !removed.machines.is_empty() {
            let machines = removed.machines.join(" and ");
            eprintln!("{name}: the image stays as long as {machines} uses it");
        }
        if let Some(report) = removed.image.filter(|report| report.images > 0) {
            eprintln!("{name}: the image is removed, {} reclaimed", Human(report.bytes));
        }
        Ok(())
    })
}

/// That an image is meant, in words for whoever names none.
pub(super) fn found(library: &Library, text: &str) -> Result<zmachine_flist::Digest, Failure> {
    let name = image_name(text)?;
    let digest = library.find(&name)?;
    digest.ok_or_else(|| {
        Failure::new(Class::NotFound, format!("there is no image '{text}' here"))
            .hint("'zmachine image ls' shows what there is")
    })
}
