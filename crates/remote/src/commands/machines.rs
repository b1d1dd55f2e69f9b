//! Machines: listed, shown, started, stopped, removed.

use serde_json::{Value, json};
use zmachine_spec::cpus::{CpuSet, Cpus};
use zmachine_spec::{Class, Failure, RestartPolicy};

use super::{all, output};
use crate::connection::{Ask, Server, part};
use crate::words::{Format, Kill, Names, Ps, Rm, Stop, Update};

/// Machines of a page: as many as the server gives.
const PAGE: &str = "1000";

pub(super) fn path(name: &str) -> String {
    format!("/v1/machines/{}", part(name))
}

/// All machines that fit.
pub(super) async fn machines(server: &Server, state: Option<&str>, labels: &[String]) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let mut ask = Ask::new("GET", "/v1/machines").with("limit", PAGE);
        ask.query.extend(state.map(|state| ("state", state.to_owned())));
        ask.query.extend(labels.iter().map(|label| ("label", label.clone())));
        ask.query.extend(after.take().map(|after| ("after", after)));
        let page = server.ask(&ask).await?;
        for unreadable in output::items(&page, "unreadable") {
            eprintln!("warning: {}", output::text(&unreadable["detail"]));
        }
        found.extend_from_slice(output::items(&page, "machines"));
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            return Ok(found);
        }
    }
}

/// Whether a machine runs, or is about to.
pub(super) fn is_active(machine: &Value) -> bool {
    let state = machine["state"].as_str().unwrap_or_default();
    !matches!(state, "created" | "stopped" | "failed")
}

/// The state of a machine, with its exit code or its health.
pub(super) fn state(machine: &Value) -> String {
    let state = output::text(&machine["state"]);
    match (machine["exit_code"].as_i64(), machine["health"].as_str()) {
        (Some(code), _) => format!("{state} ({code})"),
        (None, Some(health)) => format!("{state} ({health})"),
        _ => state,
    }
}

pub(super) async fn list(server: &Server, args: &Ps) -> Result<(), Failure> {
    let mut found = machines(server, None, &args.label).await?;
    found.retain(|machine| args.all || is_active(machine));
    // The newest first, as people want them.
    found.reverse();
    if args.listing.quiet {
        return found
            .iter()
            .try_for_each(|machine| output::line(&output::text(&machine["name"])));
    }
    if args.listing.output == Format::Json {
        return output::json(&found.into());
    }
    let cells = |machine: &Value| {
        vec![
            output::text(&machine["name"]),
            output::text(&machine["id"]),
            state(machine),
            output::text(&machine["flist"]),
            output::text(&machine["cpus"]),
            output::bytes(&machine["memory_bytes"]),
            output::text(&machine["addresses"]),
            output::text(&machine["ports"]),
        ]
    };
    let head = ["NAME", "ID", "STATE", "IMAGE", "CPUS", "MEMORY", "ADDRESSES", "PORTS"];
    output::table(&head, &found.iter().map(cells).collect::<Vec<_>>())
}

/// One action on each of several, whose names are printed.
pub(super) async fn each(
    server: &Server,
    names: &Names,
    action: &str,
    query: &[(&'static str, String)],
) -> Result<(), Failure> {
    all(&names.names, async |name| {
        let mut ask = Ask::new("POST", format!("{}/{action}", path(name)));
        ask.query.extend_from_slice(query);
        server.ask(&ask).await?;
        output::line(name)
    })
    .await
}

pub(super) async fn stop(server: &Server, args: &Stop, action: &str) -> Result<(), Failure> {
    let query: Vec<_> = args.time.iter().map(|time| ("time", time.to_string())).collect();
    each(server, &args.names, action, &query).await
}

pub(super) async fn kill(server: &Server, args: &Kill) -> Result<(), Failure> {
    let query: Vec<_> = args.signal.iter().map(|signal| ("signal", signal.clone())).collect();
    each(server, &args.names, "kill", &query).await
}

pub(super) async fn remove(server: &Server, args: &Rm) -> Result<(), Failure> {
    all(&args.names.names, async |name| {
        let mut ask = Ask::new("DELETE", path(name));
        if args.force {
            ask = ask.with("force", "1");
        }
        server.ask(&ask).await?;
        output::line(name)
    })
    .await
}

pub(super) async fn rename(server: &Server, name: &str, new: &str) -> Result<(), Failure> {
    let ask = Ask::new("PATCH", path(name)).sending(json!({"name": new}));
    server.ask(&ask).await.map(drop)
}

pub(super) async fn wait(server: &Server, names: &Names) -> Result<(), Failure> {
    all(&names.names, async |name| {
        let exit = server.ask(&Ask::new("POST", format!("{}/wait", path(name)))).await?;
        output::line(&output::text(&exit["code"]))
    })
    .await
}

pub(super) async fn inspect(server: &Server, names: &Names) -> Result<(), Failure> {
    let mut found = Vec::new();
    for name in &names.names {
        found.push(server.ask(&Ask::new("GET", path(name))).await?);
    }
    output::json(&found.into())
}

pub(super) async fn why(server: &Server, names: &Names) -> Result<(), Failure> {
    for name in &names.names {
        let told = server.ask(&Ask::new("GET", format!("{}/why", path(name)))).await?;
        let removed = told["removed_at"]
            .as_str()
            .map(|at| format!(", removed {at}"))
            .unwrap_or_default();
        output::line(&format!(
            "{} ({}{removed})",
            output::text(&told["name"]),
            output::text(&told["id"])
        ))?;
        for attempt in output::items(&told, "attempts") {
            let start = output::text(&attempt["started_at"]);
            output::line(&format!(
                "  start {} at {start}: {}",
                output::text(&attempt["number"]),
                output::text(&attempt["what"])
            ))?;
            if let Some(hint) = attempt["hint"].as_str() {
                output::line(&format!("    hint: {hint}"))?;
            }
        }
    }
    Ok(())
}

pub(super) async fn top(server: &Server, name: &str) -> Result<(), Failure> {
    let listed = server
        .ask(&Ask::new("GET", format!("{}/processes", path(name))))
        .await?;
    let cells = |process: &Value| {
        ["pid", "ppid", "uid", "command"]
            .map(|field| output::text(&process[field]))
            .to_vec()
    };
    output::table(
        &["PID", "PPID", "UID", "COMMAND"],
        &output::items(&listed, "processes")
            .iter()
            .map(cells)
            .collect::<Vec<_>>(),
    )
}

/// Which ports of the host lead to a machine.
pub(super) async fn ports(server: &Server, name: &str) -> Result<(), Failure> {
    let id = output::text(&server.ask(&Ask::new("GET", path(name))).await?["id"]);
    let all = machines(server, None, &[]).await?;
    let machine = all.iter().find(|machine| machine["id"] == id.as_str());
    let ports = machine.and_then(|machine| machine["ports"].as_array());
    ports
        .into_iter()
        .flatten()
        .try_for_each(|port| output::line(&output::text(port)))
}

pub(super) async fn update(server: &Server, args: &Update) -> Result<(), Failure> {
    let mut change = json!({});
    if let Some(policy) = &args.restart {
        change["restart"] = json!(policy.parse::<RestartPolicy>()?);
    }
    if let Some(cpus) = &args.cpus {
        change["cpus"] = json!(cpus.parse::<Cpus>()?);
    }
    if let Some(set) = &args.cpuset_cpus {
        change["cpuset"] = json!(set.parse::<CpuSet>()?);
    }
    args.memory
        .iter()
        .for_each(|bytes| change["memory_bytes"] = json!(bytes));
    if let Some(time) = &args.idle_timeout {
        change["idle_timeout_ms"] = json!(zmachine_spec::health::parse_time(time)?.unwrap_or(0));
    }
    if !args.label.is_empty() {
        change["labels"] = super::labels(&args.label);
    }
    if !args.label_rm.is_empty() {
        change["labels_removed"] = json!(args.label_rm);
    }
    if change == json!({}) {
        return Err(Failure::new(Class::Usage, "nothing is to be changed")
            .hint("say what: --restart, --label, --label-rm, --cpus, --cpuset-cpus, --memory or --idle-timeout"));
    }
    all(&args.names.names, async |name| {
        server
            .ask(&Ask::new("PATCH", path(name)).sending(change.clone()))
            .await?;
        output::line(name)
    })
    .await
}
