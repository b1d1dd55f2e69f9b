//! `system`, and what removes whatever nobody needs.

use serde_json::Value;
use zmachine_spec::{Class, Failure};

use super::{images, output};
use crate::connection::{Ask, Server};
use crate::words::{Format, System};

pub(super) async fn system(server: &Server, command: System) -> Result<(), Failure> {
    match command {
        System::Df { output } => usage(server, output).await,
        System::Prune { volumes, force } => {
            let mut what = "This removes on the other host:\n  - all machines that do not run, with their disks\n  \
                            - all networks that no machine is in\n  - all images and blocks without a name that no machine needs"
                .to_owned();
            if volumes {
                what.push_str("\n  - all volumes without a name that no machine uses, with their data");
            }
            if !output::confirm(&what, force)? {
                return Ok(());
            }
            prune(server, "machines", false).await?;
            prune(server, "networks", false).await?;
            if volumes {
                prune(server, "volumes", false).await?;
            }
            images::prune(server).await
        }
    }
}

async fn usage(server: &Server, format: Format) -> Result<(), Failure> {
    let told = server.ask(&Ask::new("GET", "/v1/usage")).await?;
    for unreadable in output::items(&told, "unreadable") {
        eprintln!("warning: {}", output::text(unreadable));
    }
    if format == Format::Json {
        return output::json(&told["usage"]);
    }
    let cells = |usage: &Value| {
        vec![
            output::text(&usage["kind"]),
            output::text(&usage["total"]),
            output::text(&usage["active"]),
            output::bytes(&usage["bytes"]),
            output::bytes(&usage["reclaimable_bytes"]),
        ]
    };
    let rows: Vec<_> = output::items(&told, "usage").iter().map(cells).collect();
    output::table(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], &rows)
}

/// Removes things of one kind that nobody uses; those of `volumes` that have a name with `all`.
pub(super) async fn prune(server: &Server, what: &str, all: bool) -> Result<(), Failure> {
    let mut ask = Ask::new("POST", format!("/v1/{what}/prune"));
    if all {
        ask = ask.with("all", "1");
    }
    let pruned = server.ask(&ask).await?;
    for name in output::items(&pruned, "removed") {
        output::line(&output::text(name))?;
    }
    if what == "volumes" {
        output::line(&format!("Total reclaimed space: {}", output::bytes(&pruned["bytes"])))?;
    }
    let mut failures = output::items(&pruned, "failures").iter().map(output::text);
    let first = failures.next();
    failures.for_each(|failure| eprintln!("error: {failure}"));
    first.map_or(Ok(()), |why| Err(Failure::new(Class::Failed, why)))
}
