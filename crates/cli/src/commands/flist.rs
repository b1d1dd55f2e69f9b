//! `zmachine flist`: what only looks into one is here, what reads all blocks in `read`, what makes flists in `write` and `import`; `mount` shows one as a directory.

mod import;
mod mount;
mod read;
mod write;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use zmachine_flist::{Flist, ImageConfig, Node, NodeId, NodeKind, Route};
use zmachine_image::store::{CREDENTIALS_FILE, Credentials, redact};
use zmachine_image::{FetchOptions, Fetcher, Library};
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure};

use crate::args::flist::ReadArgs;
use crate::args::{FlistCommand, Format};
use crate::{context, output};

pub(in crate::commands) use self::read::unpack_backup;
pub(in crate::commands) use self::write::pack_backup;

/// Packs flists and looks into them.
pub(crate) fn flist(command: FlistCommand) -> Result<u8, Failure> {
    match command {
        FlistCommand::Pack {
            source,
            output,
            to,
            base,
            hints,
            threads,
        } => write::pack_source(&source, &output, &to, base.as_deref(), hints.as_deref(), threads),
        FlistCommand::Import {
            image,
            output,
            to,
            authfile,
            plain_http,
            threads,
        } => import::import_image(&image, &output, &to, authfile, plain_http, threads),
        FlistCommand::Convert { file, output, to, from } => write::convert_flist(&file, &output, &to, from),
        FlistCommand::Push { file, to, output, from } => write::push_flist(&file, output.as_deref(), &to, from),
        FlistCommand::Unpack {
            file,
            target,
            from,
            unprivileged,
            threads,
        } => read::unpack_flist(&file, &target, from, unprivileged, threads),
        FlistCommand::Mount { from, file, target } => mount::mount_flist(&file, &target, from),
        FlistCommand::Verify { file, from, output } => read::verify_flist(&file, from, output),
        FlistCommand::Diff { a, b, output } => read::diff_flists(&a, &b, output),
        FlistCommand::Inspect { file, output, json } => inspect(&file, if json { Format::Json } else { output }),
        FlistCommand::Ls {
            long,
            recursive,
            file,
            path,
        } => list(&file, &path, long, recursive),
        FlistCommand::Cat { from, file, path } => cat(&file, &path, from),
    }
}

fn open(file: &Path) -> Result<Flist, Failure> {
    Flist::open(file).map_err(|e| {
        let class = if file.exists() { Class::Fetch } else { Class::NotFound };
        Failure::from_error(class, &e).hint("flists end in .fl or .flist; 'zmachine flist pack' makes one")
    })
}

/// The credentials of stores on this host.
fn credentials() -> Result<Credentials, Failure> {
    let path = context::home()?.data().join(CREDENTIALS_FILE);
    Credentials::load(&path).map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint()))
}

/// A fetcher for the blocks of a flist, from `stores` or from its own.
fn fetcher(flist: &Flist, stores: &[String]) -> Result<Fetcher, Failure> {
    let cache = Library::open(context::home()?.data())?.cache().clone();
    let options = FetchOptions {
        stores: stores.to_vec(),
        credentials: credentials()?,
        ..FetchOptions::default()
    };
    Ok(Fetcher::new(cache, flist.routes.clone(), options))
}

#[derive(Serialize)]
struct Inspection<'a> {
    format: u32,
    routes: Vec<RouteRow>,
    tags: &'a std::collections::BTreeMap<String, String>,
    config: ImageConfig,
    directories: u64,
    files: u64,
    symlinks: u64,
    specials: u64,
    file_bytes: u64,
    blocks: usize,
    block_bytes: u64,
}

#[derive(Serialize)]
struct RouteRow {
    first: String,
    last: String,
    url: String,
}

fn inspect(file: &Path, format: Format) -> Result<u8, Failure> {
    let flist = open(file)?;
    let format_number = Flist::format_of(file).map_err(|e| Failure::from_error(Class::Fetch, &e))?;
    let config = ImageConfig::from_tags(&flist.tags).map_err(|e| Failure::from_error(Class::Fetch, &e))?;
    let counts = flist.tree.counts();
    let blocks = flist.tree.unique_blocks();
    let route = |r: &Route| RouteRow {
        first: format!("{:02x}", r.first),
        last: format!("{:02x}", r.last),
        url: redact(&r.url),
    };
    let all = Inspection {
        format: format_number,
        config,
        routes: flist.routes.0.iter().map(route).collect(),
        tags: &flist.tags,
        directories: counts.directories,
        files: counts.files,
        symlinks: counts.symlinks,
        specials: counts.specials,
        file_bytes: counts.file_bytes,
        blocks: blocks.len(),
        block_bytes: blocks.iter().map(|b| u64::from(b.len)).sum(),
    };
    if format == Format::Json {
        output::json(&all)?;
        return Ok(0);
    }
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key:12} {value}");
    };
    line("format", all.format.to_string());
    line("directories", all.directories.to_string());
    line("files", format!("{} ({})", all.files, Human(all.file_bytes)));
    line("links", all.symlinks.to_string());
    line("specials", all.specials.to_string());
    line("blocks", format!("{} ({})", all.blocks, Human(all.block_bytes)));
    all.routes
        .iter()
        .for_each(|r| line("route", format!("{}-{} {}", r.first, r.last, r.url)));
    for (key, value) in all.tags {
        match value.split_once('\n').filter(|(_, rest)| !rest.is_empty()) {
            Some((first, rest)) => line("tag", format!("{key} = {first} (and {} lines)", rest.lines().count())),
            None => line("tag", format!("{key} = {}", value.trim_end())),
        }
    }
    output::print(&text)?;
    Ok(0)
}

fn resolve(flist: &Flist, path: &OsStr, follow: bool) -> Result<NodeId, Failure> {
    let found = match follow {
        true => flist.tree.resolve(path.as_bytes()),
        false => flist.tree.resolve_no_follow(path.as_bytes()),
    };
    found.map_err(|e| {
        Failure::from_error(Class::NotFound, &e)
            .context(format!("{} is not in the flist", path.display()))
            .hint("'zmachine flist ls -R FILE' lists what is")
    })
}

fn list(file: &Path, path: &OsStr, long: bool, recursive: bool) -> Result<u8, Failure> {
    let flist = open(file)?;
    let start = resolve(&flist, path, false)?;
    let mut text = Vec::new();
    let base = trimmed(path.as_bytes()).to_vec();
    list_node(&flist, start, &base, ListStyle { long, recursive }, true, &mut text)?;
    output::write_bytes(&text)?;
    Ok(0)
}

#[derive(Clone, Copy)]
struct ListStyle {
    long: bool,
    recursive: bool,
}

fn trimmed(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path)
}

fn list_node(
    flist: &Flist,
    id: NodeId,
    path: &[u8],
    style: ListStyle,
    top: bool,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    let node = flist.tree.get(id);
    let NodeKind::Directory(entries) = &node.kind else {
        if top {
            line(node, path, style.long, out);
        }
        return Ok(());
    };
    for (name, child) in entries {
        let child_path = if path.is_empty() {
            name.clone()
        } else {
            [path, b"/", name].concat()
        };
        line(flist.tree.get(*child), &child_path, style.long, out);
        if style.recursive {
            list_node(flist, *child, &child_path, style, false, out)?;
        }
        if out.len() > 1 << 16 {
            output::write_bytes(out)?;
            out.clear();
        }
    }
    Ok(())
}

fn line(node: &Node, path: &[u8], long: bool, out: &mut Vec<u8>) {
    if long {
        let metadata = &node.metadata;
        let (letter, size) = match &node.kind {
            NodeKind::Directory(_) => ('d', "0".to_owned()),
            NodeKind::Regular { size, .. } => ('-', size.to_string()),
            NodeKind::Symlink(target) => ('l', target.len().to_string()),
            NodeKind::CharDevice { major, minor } => ('c', format!("{major}, {minor}")),
            NodeKind::BlockDevice { major, minor } => ('b', format!("{major}, {minor}")),
            NodeKind::Fifo => ('p', "0".to_owned()),
            NodeKind::Socket => ('s', "0".to_owned()),
        };
        let time =
            Timestamp::from_second(metadata.mtime).map_or_else(|_| metadata.mtime.to_string(), |t| t.to_string());
        let mode = permissions(metadata.mode);
        let text = format!(
            "{letter}{mode} {:>5} {:>5} {size:>12} {time} ",
            metadata.uid, metadata.gid
        );
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'/');
    out.extend_from_slice(path);
    if let (true, NodeKind::Symlink(target)) = (long, &node.kind) {
        out.extend_from_slice(b" -> ");
        out.extend_from_slice(target);
    }
    out.push(b'\n');
}

/// Permission bits as `ls` shows them.
fn permissions(mode: u16) -> String {
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    let mut text = String::with_capacity(9);
    for (class, (bit, with_x, without_x)) in special.into_iter().enumerate() {
        let bits = mode >> (6 - 3 * class);
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & bit != 0, bits & 1 != 0) {
            (true, true) => with_x,
            (true, false) => without_x,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn cat(file: &Path, path: &OsStr, from: ReadArgs) -> Result<u8, Failure> {
    let flist = open(file)?;
    let id = resolve(&flist, path, true)?;
    let NodeKind::Regular { blocks, .. } = &flist.tree.get(id).kind else {
        return Err(Failure::new(
            Class::Usage,
            format!("{} is not a regular file", path.display()),
        ));
    };
    let fetcher = fetcher(&flist, &from.store)?;
    for block in blocks {
        let bytes = fetcher.fetch(block).map_err(|e| {
            Failure::from_error(Class::Fetch, &e)
                .context(format!("{} cannot be read", path.display()))
                .hint(e.hint().unwrap_or_default())
        })?;
        output::write_bytes(&bytes.into_bytes(block.len)?)?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_look_as_ls_shows_them() {
        for (mode, text) in [
            (0o755, "rwxr-xr-x"),
            (0o4755, "rwsr-xr-x"),
            (0o2745, "rwxr-Sr-x"),
            (0o1777, "rwxrwxrwt"),
            (0o1, "--------x"),
        ] {
            assert_eq!(permissions(mode), text);
        }
    }
}
