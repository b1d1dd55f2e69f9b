//! `zmachine image`: what there is, and the cache; what has to do with names is in `names`.

mod exchange;
mod inspect;
mod list;
mod names;

pub(crate) use exchange::{login, logout};

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use zmachine_image::cache::Adopted;
use zmachine_image::library::Mended;
use zmachine_image::{ImageName, Library, PullPolicy, Reference};
use zmachine_rootfs::PrefetchList;
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure, bytes};

pub(super) use self::names::completed_name;
use crate::args::{CacheCommand, Format, ImageCommand};
use crate::progress::Bars;
use crate::{context, output};

/// Pulls, lists and removes images.
pub(crate) fn image(command: ImageCommand) -> Result<u8, Failure> {
    if let ImageCommand::Cache {
        shared: Some(folder), ..
    } = &command
    {
        // A home whose shared cache is not there can leave it.
        share(folder)?;
    }
    let library = Library::open(context::home()?.data())?;
    match command {
        ImageCommand::Pull(args) => names::pull(&library, &args),
        ImageCommand::Ls(args) => list::list(&library, &args),
        ImageCommand::Tag(args) => names::tag(&library, &args),
        ImageCommand::Load(args) => names::load(&args),
        ImageCommand::Inspect(args) => inspect::inspect(&library, &args),
        ImageCommand::History(args) => inspect::history(&library, &args),
        ImageCommand::Save(args) => exchange::save(&library, &args),
        ImageCommand::Push(args) => exchange::push(&library, &args),
        ImageCommand::Prune { output } => prune(output),
        ImageCommand::Cache {
            command: Some(CacheCommand::Verify { repair, output }),
            ..
        } => verify(&library, repair, output),
        ImageCommand::Cache { limit, output, .. } => cache(&library, limit.as_deref(), output),
        ImageCommand::Hints { image } => hints(&library, &image),
        ImageCommand::Rm(args) => names::remove(&args.images),
    }
}

pub(super) fn image_name(text: &str) -> Result<ImageName, Failure> {
    ImageName::new(text).map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint().unwrap_or_default()))
}

/// What starts of an image have read on this host, by the files it is in.
fn hints(library: &Library, text: &str) -> Result<u8, Failure> {
    let reference = Reference::parse(text, &env::current_dir()?)
        .map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint().unwrap_or_default()))?;
    let image = library.resolve(&reference, PullPolicy::Never, &Bars::bytes())?;
    let list = PrefetchList::read(&image.directory);
    if list.blocks().is_empty() {
        let message = format!("nothing is known of what starts of {text} read");
        return Err(Failure::new(Class::NotFound, message).hint("run it once: its first starts are recorded"));
    }
    let hints = list
        .hints(&image.directory, &image.open_flist()?)
        .map_err(|e| Failure::from_error(Class::Failed, &e))?;
    output::print(&hints.to_string())?;
    Ok(0)
}

pub(super) fn prune(format: Format) -> Result<u8, Failure> {
    let report = context::engine()?.prune_images()?;
    match format {
        Format::Json => output::json(&report)?,
        Format::Table => output::print(&format!(
            "{} images and {} blocks removed, {} reclaimed\n",
            report.images,
            report.blocks,
            Human(report.bytes)
        ))?,
    }
    forgotten(&report.forgotten);
    Ok(0)
}

/// Says which homes a shared cache does not regard any more.
fn forgotten(homes: &[PathBuf]) {
    for home in homes {
        eprintln!(
            "warning: the home {} is gone: the cache it shared has forgotten it",
            home.display()
        );
    }
}

/// Lets the home share a cache, or have its own.
fn share(folder: &Path) -> Result<(), Failure> {
    let folder = (folder != Path::new("none")).then(|| env::current_dir().map(|dir| dir.join(folder)));
    let shared = context::engine()?.share_cache(folder.transpose()?.as_deref())?;
    if let Some(limit) = shared.lost_limit {
        let limit = Human(limit);
        eprintln!("warning: the limit of this home's own cache, {limit}, counts no longer: the shared one has its own");
    }
    let Adopted { blocks, damaged } = shared.adopted;
    if blocks > 0 {
        eprintln!("{blocks} blocks moved into the shared cache");
    }
    if damaged > 0 {
        eprintln!(
            "warning: {damaged} files of the home's own cache were not the blocks they should be, and were removed"
        );
    }
    Ok(())
}

fn cache(library: &Library, limit: Option<&str>, format: Format) -> Result<u8, Failure> {
    if let Some(text) = limit {
        let limit = match text {
            "none" => None,
            size => Some(bytes::parse(size).map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint()))?),
        };
        library.set_cache_limit(limit)?;
        trim()?;
    }
    let usage = library.cache_usage()?;
    match format {
        Format::Json => output::json(&usage)?,
        Format::Table => {
            let limit = usage
                .limit
                .map_or_else(|| "none".to_owned(), |limit| Human(limit).to_string());
            let homes: Vec<String> = usage.homes.iter().map(|home| home.display().to_string()).collect();
            let row = vec![
                usage.blocks.to_string(),
                Human(usage.bytes).to_string(),
                limit,
                usage.folder.display().to_string(),
                if homes.is_empty() {
                    "-".to_owned()
                } else {
                    homes.join(", ")
                },
            ];
            output::table(&["BLOCKS", "SIZE", "LIMIT", "FOLDER", "SHARED BY"], &[row])?;
        }
    }
    Ok(0)
}

/// Hashes the whole cache, and mends it when asked to.
fn verify(library: &Library, repair: bool, format: Format) -> Result<u8, Failure> {
    let report = library.check_cache(repair, &Bars::pieces())?;
    match format {
        Format::Json => output::json(&report)?,
        Format::Table => {
            let mut text = String::new();
            for block in &report.damaged {
                let state = match &block.mended {
                    Mended::Left => "damaged",
                    Mended::Fetched => "was damaged, and is whole again",
                    Mended::Removed => "was damaged, and is removed; no image has it",
                    Mended::Lost { problem } => &format!("was damaged, and is removed; {problem}"),
                };
                let _ = writeln!(text, "{}: {state}", block.path.display());
            }
            output::print(&text)?;
        }
    }
    for image in &report.unreadable {
        eprintln!("warning: the image {image}");
    }
    eprintln!("{} blocks are good, {}", report.good, Human(report.bytes));
    if report.left() == 0 {
        return Ok(0);
    }
    let what = format!("{} blocks of the cache are damaged", report.left());
    Err(Failure::new(Class::Fetch, what).hint(if repair {
        "they are gone; whatever needs one fetches it again when its store has it"
    } else {
        "'zmachine image cache verify --repair' fetches them again"
    }))
}

/// Brings the cache within its limit, and says what that took.
fn trim() -> Result<(), Failure> {
    let Some(report) = context::engine()?.trim_cache()? else {
        return Ok(());
    };
    forgotten(&report.forgotten);
    if report.blocks > 0 {
        let (blocks, size) = (report.blocks, Human(report.bytes));
        eprintln!("warning: {blocks} blocks removed for the cache's limit, {size}");
    }
    if report.over > 0 {
        let over = Human(report.over);
        eprintln!(
            "warning: the cache stays {over} over its limit: running machines need what is in it, or no store has it"
        );
    }
    Ok(())
}
