//! `pack`, `convert`, `push`.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use zmachine_flist::{Flist, Hints};
use zmachine_image::Timeouts;
use zmachine_image::store::{RoutedStore, redact};
use zmachine_pack::copy::{CopyError, convert, push};
use zmachine_pack::pack::{PackError, PackOptions, PackReport, pack, pack_tar};
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure};
use zmachine_sys::file::{open_regular, read_regular};

use super::{credentials, fetcher, open};
use crate::args::flist::WriteArgs;
use crate::progress::Bars;

/// The longest list of hints that is read, in bytes.
const HINTS_BYTES: u64 = 64 << 20;

/// Opens the stores of `--store`.
pub(super) fn stores(to: &WriteArgs) -> Result<RoutedStore, Failure> {
    let credentials = credentials()?;
    let urls: Vec<String> = to.store.iter().map(|url| credentials.complete(url)).collect();
    RoutedStore::open(&urls, Timeouts::default()).map_err(|e| {
        let given: Vec<String> = to.store.iter().map(|url| redact(url)).collect();
        Failure::from_error(Class::Usage, &e)
            .context(format!("--store {}", given.join(" --store ")))
            .hint(e.hint().unwrap_or_default())
    })
}

pub(super) fn write(flist: &Flist, file: &Path) -> Result<(), Failure> {
    flist.write(file).map_err(|e| Failure::from_error(Class::Failed, &e))
}

pub(super) fn report(file: &Path, report: &PackReport) {
    eprintln!(
        "{}: {} files, {}; {} blocks, {} of them new ({} stored)",
        file.display(),
        report.files,
        Human(report.bytes),
        report.unique,
        report.stored,
        Human(report.stored_bytes)
    );
    if report.overlay_xattrs > 0 {
        eprintln!(
            "warning: {} attributes trusted.overlay.* were left out: the overlay of a guest would take them for its own",
            report.overlay_xattrs
        );
    }
    if report.lost_acls > 0 {
        eprintln!(
            "warning: {} access control lists were left out: they are none, or name somebody whose number the archive does not tell",
            report.lost_acls
        );
    }
}

pub(super) fn pack_source(
    source: &Path,
    file: &Path,
    to: &WriteArgs,
    base: Option<&Path>,
    hints: Option<&Path>,
    threads: usize,
) -> Result<u8, Failure> {
    let hints = hints.map(read_hints).transpose()?;
    let store = stores(to)?;
    // An output that is no flist is about to be replaced, whatever it is; a base was named to be used.
    let earlier = match base {
        Some(base) => Some(open(base)?),
        None => Flist::open(file).ok(),
    };
    let options = PackOptions {
        threads,
        routes: store.routes(to.publishes_credentials()),
        known: earlier.map_or_else(Vec::new, |flist| flist.tree.unique_blocks()),
        ..PackOptions::default()
    };
    let packed = if source.as_os_str().as_bytes() == b"-" {
        pack_tar(std::io::stdin().lock(), &store, &options, &Bars::bytes())
    } else if source.is_file() {
        let archive = open_regular(source)
            .map_err(|e| Failure::from_error(Class::Failed, &e).context(format!("cannot open {}", source.display())))?;
        pack_tar(archive, &store, &options, &Bars::bytes())
    } else {
        pack(source, &store, &options, &Bars::bytes())
    };
    let (mut flist, packed) = packed.map_err(|e| pack_failure(&e))?;
    if let Some(hints) = hints {
        let (blocks, lost) = hints.blocks_in(&flist.tree);
        if lost > 0 {
            eprintln!("note: {lost} of {} hints name nothing in this tree", hints.0.len());
        }
        // By this tree's own paths: what it does not have is no use to anybody.
        Hints::of_blocks(&flist.tree, &blocks).store(&mut flist.tags);
    }
    write(&flist, file)?;
    report(file, &packed);
    Ok(0)
}

/// Packs the folder of a volume's snapshot.
pub(in crate::commands) fn pack_backup(folder: &Path, file: &Path, to: &WriteArgs) -> Result<u8, Failure> {
    pack_source(folder, file, to, None, None, 0)
}

fn read_hints(file: &Path) -> Result<Hints, Failure> {
    let text = read_regular(file, HINTS_BYTES).and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other));
    let text = text.map_err(|e| {
        Failure::from_error(Class::NotFound, &e)
            .context(format!("cannot read --hints {}", file.display()))
            .hint("give the path of a file that 'zmachine image hints' has printed")
    })?;
    Hints::parse(&text).map_err(|e| {
        Failure::from_error(Class::Usage, &e)
            .context(format!("--hints {}", file.display()))
            .hint("a line is a path in the tree, and the numbers of its blocks: /usr/bin/env 0-2")
    })
}

pub(super) fn pack_failure(error: &PackError) -> Failure {
    let hint = match error {
        PackError::Store { source, .. } | PackError::Flush { source } => source.hint(),
        PackError::Archive { .. } => {
            Some("give a directory, or a tar archive (plain, .tar.gz, .tar.zst or .tar.xz) that is whole".into())
        }
        PackError::Changed { .. } => Some("pack when nothing writes there, or pack a snapshot".into()),
        _ => None,
    };
    Failure::from_error(Class::Failed, error).hint(hint.unwrap_or_default())
}

fn copy_failure(error: &CopyError) -> Failure {
    let class = match error {
        CopyError::Fetch { .. } => Class::Fetch,
        CopyError::OldFormat | CopyError::Unsealed => Class::Usage,
        _ => Class::Failed,
    };
    Failure::from_error(class, error).hint(error.hint().unwrap_or_default())
}

pub(super) fn convert_flist(file: &Path, output: &Path, to: &WriteArgs, from: Vec<String>) -> Result<u8, Failure> {
    let (flist, store) = (open(file)?, stores(to)?);
    let fetcher = fetcher(&flist, &from)?;
    let routes = store.routes(to.publishes_credentials());
    let converted = convert(&flist, &fetcher, &store, routes, &Bars::bytes());
    let (converted, packed) = converted.map_err(|e| copy_failure(&e))?;
    write(&converted, output)?;
    report(output, &packed);
    Ok(0)
}

pub(super) fn push_flist(file: &Path, output: Option<&Path>, to: &WriteArgs, from: Vec<String>) -> Result<u8, Failure> {
    let (flist, store) = (open(file)?, stores(to)?);
    let fetcher = fetcher(&flist, &from)?;
    let routes = store.routes(to.publishes_credentials());
    let pushed = push(&flist, &fetcher, &store, routes, &Bars::bytes());
    let (pushed, report) = pushed.map_err(|e| copy_failure(&e))?;
    let output = output.unwrap_or(file);
    write(&pushed, output)?;
    eprintln!(
        "{}: {} blocks, {} of them new ({} stored)",
        output.display(),
        report.blocks,
        report.stored,
        Human(report.stored_bytes)
    );
    Ok(0)
}
