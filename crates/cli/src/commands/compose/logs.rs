//! `compose logs`.

use std::io::IsTerminal;

use zmachine_engine::Engine;
use zmachine_project::logs::{Look, Request, show};
use zmachine_spec::Failure;

use super::Scope;
use super::front::Terminal;
use crate::args::compose::{ComposeLogsArgs, LookArgs};
use crate::logs::{Wanted, lines};

/// How lines are shown; names have colours where somebody sees them.
pub(super) fn look(args: LookArgs, has_times: bool) -> Look {
    let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    Look {
        has_names: !args.no_log_prefix,
        is_coloured: !args.no_color && wants_colour && std::io::stdout().is_terminal(),
        has_times,
    }
}

/// Shows what machines wrote.
pub(super) fn logs(engine: &Engine, scope: &Scope, args: &ComposeLogsArgs) -> Result<u8, Failure> {
    // Refuses services that there are none of.
    scope.of(&args.services)?;
    let span = &args.span;
    let wanted = Wanted::new(&[], span)?;
    let request = Request {
        look: look(args.look, span.timestamps),
        follows: span.follow,
        lines: lines(span.tail.as_deref())?,
        since: wanted.since,
        wanted: &|kind, entry| wanted.has(kind, entry),
        services: &args.services,
    };
    show(engine, &Terminal, &scope.name, &request)?;
    Ok(0)
}
