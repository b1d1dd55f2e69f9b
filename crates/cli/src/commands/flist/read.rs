//! `unpack`, `verify`, `diff`.

use std::fmt::Write as _;
use std::path::Path;

use zmachine_flist::Flist;
use zmachine_image::Timeouts;
use zmachine_pack::diff::{Change, diff};
use zmachine_pack::unpack::{UnpackError, UnpackOptions, UnpackReport, unpack};
use zmachine_pack::verify::verify;
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure};

use super::{credentials, fetcher, open};
use crate::args::Format;
use crate::args::flist::ReadArgs;
use crate::output;
use crate::progress::Bars;

pub(super) fn unpack_flist(
    file: &Path,
    target: &Path,
    from: ReadArgs,
    unprivileged: bool,
    threads: usize,
) -> Result<u8, Failure> {
    let options = UnpackOptions { threads, unprivileged };
    let report = unpack_to(&open(file)?, target, &from.store, options)?;
    eprintln!("{}: {} nodes, {}", target.display(), report.nodes, Human(report.bytes));
    if report.devices_left_out > 0 {
        eprintln!("note: {} devices were left out", report.devices_left_out);
    }
    Ok(0)
}

fn unpack_to(flist: &Flist, target: &Path, store: &[String], options: UnpackOptions) -> Result<UnpackReport, Failure> {
    let fetcher = fetcher(flist, store)?;
    unpack(flist, target, &fetcher, options, &Bars::bytes()).map_err(|e| {
        let class = match e {
            UnpackError::Fetch { .. } => Class::Fetch,
            UnpackError::NotEmpty { .. } => Class::Conflict,
            _ => Class::Failed,
        };
        Failure::from_error(class, &e).hint(e.hint().unwrap_or_default())
    })
}

/// Unpacks the files of a volume's snapshot, after it is clear that they are such.
pub(in crate::commands) fn unpack_backup(file: &Path, target: &Path, store: &[String]) -> Result<(), Failure> {
    let flist = open(file)?;
    let has = |name: &str| flist.tree.resolve(name.as_bytes()).is_ok();
    if flist.tree.len() != 3 || !has("/snapshot.json") || !has("/data.img") {
        let message = format!("{} is no backup of a volume", file.display());
        return Err(Failure::new(Class::Usage, message).hint("'zmachine volume backup' makes one"));
    }
    let options = UnpackOptions {
        threads: 0,
        unprivileged: !rustix::process::geteuid().is_root(),
    };
    unpack_to(&flist, target, store, options).map(drop)
}

pub(super) fn verify_flist(file: &Path, from: ReadArgs, format: Format) -> Result<u8, Failure> {
    let mut flist = open(file)?;
    let credentials = credentials()?;
    let stores: Vec<String> = from.store.iter().map(|url| credentials.complete(url)).collect();
    flist
        .routes
        .0
        .iter_mut()
        .for_each(|route| route.url = credentials.complete(&route.url));
    let report = verify(&flist, &stores, Timeouts::default(), &Bars::bytes())
        .map_err(|e| Failure::from_error(Class::Failed, &e))?;
    if format == Format::Json {
        output::json(&report)?;
    } else {
        let mut text = String::new();
        for bad in &report.list {
            let _ = writeln!(text, "{}: {}", bad.file, bad.problem);
        }
        output::print(&text)?;
    }
    if report.bad == 0 {
        eprintln!(
            "{}: {} blocks, {} copies, all good",
            file.display(),
            report.blocks,
            report.good
        );
        return Ok(0);
    }
    let what = format!(
        "{} copies of blocks of {} are bad, {} are good",
        report.bad,
        file.display(),
        report.good
    );
    let mut failure = Failure::new(Class::Fetch, what);
    failure.causes = report
        .dead_stores
        .iter()
        .map(|(store, why)| match why.starts_with(store.as_str()) {
            true => why.clone(),
            false => format!("{store}: {why}"),
        })
        .collect();
    Err(failure.hint("restore the blocks there, or push the flist to another store"))
}

pub(super) fn diff_flists(a: &Path, b: &Path, format: Format) -> Result<u8, Failure> {
    let differences = diff(&open(a)?.tree, &open(b)?.tree);
    if format == Format::Json {
        output::json(&differences)?;
        return Ok(u8::from(!differences.is_empty()));
    }
    let mut text = String::new();
    for difference in &differences {
        let path = &difference.path;
        let _ = match &difference.change {
            Change::Added => writeln!(text, "+ /{path}"),
            Change::Removed => writeln!(text, "- /{path}"),
            Change::Changed { aspects } => writeln!(text, "* /{path} ({})", aspects.join(", ")),
        };
    }
    output::print(&text)?;
    Ok(u8::from(!differences.is_empty()))
}
