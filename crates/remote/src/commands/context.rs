//! `context`: hosts that have names.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::json;
use zmachine_spec::Failure;

use super::output;
use crate::contexts::{self, Contexts, LOCAL};
use crate::target::Host;
use crate::words::{Context, Format, Listing};

/// Carries a command line out.
///
/// # Errors
/// What is wrong with a name or a host; that the file of contexts cannot be had.
pub fn run(words: Vec<OsString>, variable: impl Fn(&str) -> Option<String>) -> Result<u8, Failure> {
    let command = Context::parse_from([OsString::from("zmachine context")].into_iter().chain(words));
    let path = contexts::path(variable)?;
    let mut contexts = Contexts::read(&path)?;
    match command {
        Context::Create {
            name,
            host,
            token_file,
            ca_file,
        } => {
            let absolute = |file: Option<PathBuf>| file.map(std::path::absolute).transpose();
            let host = Host {
                host,
                token_file: absolute(token_file)?,
                ca_file: absolute(ca_file)?,
            };
            contexts.add(&name, host)?;
        }
        Context::Ls(listing) => {
            list(&contexts, &listing)?;
            return Ok(0);
        }
        Context::Use { name } => contexts.choose(&name)?,
        Context::Rm(names) => names.names.iter().try_for_each(|name| contexts.remove(name))?,
    }
    contexts.write(&path)?;
    Ok(0)
}

fn list(contexts: &Contexts, listing: &Listing) -> Result<(), Failure> {
    let shown = |file: &Option<PathBuf>| file.as_deref().map(Path::display).map(|path| path.to_string());
    let is_used = |name: &str| contexts.current.as_deref().unwrap_or(LOCAL) == name;
    if listing.output == Format::Json {
        let rows = contexts.contexts.iter().map(|(name, host)| {
            json!({
                "name": name, "current": is_used(name), "host": host.host,
                "token_file": shown(&host.token_file), "ca_file": shown(&host.ca_file),
            })
        });
        return output::json(&rows.collect());
    }
    let local = (LOCAL.to_owned(), "this host".to_owned(), None);
    let all = contexts
        .contexts
        .iter()
        .map(|(name, host)| (name.clone(), host.host.clone(), shown(&host.token_file)));
    let all: Vec<_> = std::iter::once(local).chain(all).collect();
    if listing.quiet {
        return all.iter().try_for_each(|(name, ..)| output::line(name));
    }
    let cells = |(name, host, token): (String, String, Option<String>)| {
        let mark = if is_used(&name) { "*" } else { "" };
        vec![name, mark.to_owned(), host, token.unwrap_or_else(|| "-".to_owned())]
    };
    output::table(
        &["NAME", "USED", "HOST", "TOKEN"],
        &all.into_iter().map(cells).collect::<Vec<_>>(),
    )
}
