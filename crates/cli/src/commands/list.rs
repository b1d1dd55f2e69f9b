//! `ps` and `inspect`.

use jiff::Timestamp;
use serde_json::Value;
use zmachine_engine::Engine;
use zmachine_engine::views::{MachineSummary, host_ports};
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure, pod, redact};
use zmachine_store::catalog::Machine;

use crate::args::{InspectArgs, PortArgs, PsArgs};
use crate::listing::{self, Row};
use crate::{machine_file, output};

const FILTERS: [&str; 10] = [
    "ancestor", "exited", "health", "id", "kind", "label", "name", "network", "status", "volume",
];

/// A machine's state in docker's words.
fn status(machine: &MachineSummary, now: Timestamp) -> String {
    let since = |at: Option<Timestamp>| at.map_or_else(|| "some time".to_owned(), |at| output::human_age(at, now));
    let up = since(machine.started_at);
    let text = match (machine.state, machine.exit_code) {
        ("created", _) => "Created".to_owned(),
        ("running", _) if machine.booting => format!("Up {up} (booting)"),
        ("running", _) => match machine.health {
            None => format!("Up {up}"),
            Some("starting") => format!("Up {up} (health: starting)"),
            Some(health) => format!("Up {up} ({health})"),
        },
        ("paused", _) => format!("Up {up} (Paused)"),
        ("idle", _) => format!("Up {up} (idle)"),
        (_, Some(code)) => format!("Exited ({code}) {} ago", since(machine.finished_at)),
        ("failed", _) => format!("Failed {} ago", since(machine.finished_at)),
        ("restarting", _) => format!("Restarting {} ago", since(machine.finished_at)),
        (state, _) => state[..1].to_uppercase() + &state[1..],
    };
    match machine.restarts {
        0 => text,
        1 => format!("{text}, 1 restart"),
        n => format!("{text}, {n} restarts"),
    }
}

pub(super) fn row(machine: &MachineSummary, size: Option<u64>, args: &PsArgs, now: Timestamp) -> Row {
    let command = machine.command.join(" ");
    let shown = match args.listing.no_trunc || command.chars().count() <= COMMAND_WIDTH {
        true => command.clone(),
        false => command.chars().take(COMMAND_WIDTH - 1).chain(['…']).collect(),
    };
    let image = shown_image(&machine.flist).to_owned();
    let (status, ports) = (status(machine, now), machine.ports.join(", "));
    let own = [
        machine.kind.to_owned(),
        image.clone(),
        match shown.is_empty() {
            true => "-".to_owned(),
            false => format!("\"{shown}\""),
        },
    ];
    let mut cells = vec![machine.name.clone()];
    match pod::name_of(&machine.labels).filter(|_| args.pods) {
        Some((namespace, name)) => cells.extend([namespace.to_owned(), name.to_owned()]),
        None => cells.extend(own),
    }
    cells.extend([
        status.clone(),
        machine.addresses.first().cloned().unwrap_or_else(|| "-".to_owned()),
        ports.clone(),
    ]);
    let size = size.map(|bytes| Human(bytes).to_string());
    cells.extend(size.clone());
    let labels: Vec<String> = machine
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let mut fields = serde_json::to_value(machine).unwrap_or_default();
    if let Value::Object(fields) = &mut fields {
        fields.insert("Names".to_owned(), machine.name.as_str().into());
        fields.insert("Image".to_owned(), image.into());
        fields.insert("Command".to_owned(), command.into());
        fields.insert("Status".to_owned(), status.into());
        fields.insert(
            "RunningFor".to_owned(),
            format!("{} ago", output::human_age(machine.created_at, now)).into(),
        );
        fields.insert("Ports".to_owned(), ports.into());
        fields.insert(
            "Label".to_owned(),
            serde_json::to_value(&machine.labels).unwrap_or_default(),
        );
        fields.insert("Labels".to_owned(), labels.join(",").into());
        fields.insert("Networks".to_owned(), machine.networks.join(",").into());
        fields.insert("Mounts".to_owned(), machine.volumes.join(",").into());
        fields.insert("Size".to_owned(), size.unwrap_or_default().into());
    }
    Row {
        name: machine.name.clone(),
        cells,
        fields,
    }
}

/// The name of an image as it is; of a path or a URL what is behind the last slash.
fn shown_image(text: &str) -> &str {
    match text.starts_with('/') || text.contains("://") && !text.starts_with("docker://") {
        true => text.rsplit('/').next().unwrap_or(text),
        false => text.strip_prefix("docker://").unwrap_or(text),
    }
}

/// Of a command, so much is shown.
const COMMAND_WIDTH: usize = 24;

/// Shows which ports of this host lead to a machine, each as `80/tcp -> 0.0.0.0:8080`; with a port, where that one is reached.
pub(crate) fn port(engine: &Engine, args: &PortArgs) -> Result<u8, Failure> {
    let machine = engine.machine(&args.name)?;
    let (wanted, protocol) = match args.port.as_deref() {
        None => (None, None),
        Some(text) => {
            let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let number: u16 = number.parse().map_err(|_| {
                Failure::new(Class::Usage, format!("'{text}' is no port")).hint("it is one of the machine: 80, 53/udp")
            })?;
            (Some(number), Some(protocol))
        }
    };
    let mut lines = Vec::new();
    for publish in host_ports(&machine) {
        let address = match publish.address {
            None => "0.0.0.0".to_owned(),
            Some(std::net::IpAddr::V6(address)) => format!("[{address}]"),
            Some(address) => address.to_string(),
        };
        let this = publish.protocol.to_string();
        for (host, guest) in publish.host.ports().zip(publish.guest.ports()) {
            match wanted {
                None => lines.push(format!("{guest}/{this} -> {address}:{host}\n")),
                Some(port) if port == guest && protocol == Some(this.as_str()) => {
                    lines.push(format!("{address}:{host}\n"));
                }
                Some(_) => {}
            }
        }
    }
    if let (true, Some(port)) = (lines.is_empty(), &args.port) {
        let message = format!("port {port} of machine '{}' is not published", args.name);
        return Err(
            Failure::new(Class::NotFound, message).hint(format!("'zmachine port {}' lists those that are", args.name))
        );
    }
    output::print(&lines.concat())?;
    Ok(0)
}

/// The machines that can be read. The others are told, and the exit code is that of the last of them: a listing that lacks
/// something must not look like a whole one.
pub(crate) fn readable(engine: &Engine) -> Result<(Vec<Machine>, u8), Failure> {
    let (mut machines, mut code) = (Vec::new(), 0);
    for machine in engine.machines()? {
        match machine {
            Ok(machine) => machines.push(machine),
            Err((_, failure)) => {
                crate::failure::print(&failure);
                code = crate::failure::exit_code(failure.class, false);
            }
        }
    }
    Ok((machines, code))
}

/// Lists machines.
pub(crate) fn ps(engine: &Engine, args: &PsArgs) -> Result<u8, Failure> {
    let filters = args.listing.filters(&FILTERS)?;
    let (mut machines, code) = readable(engine)?;
    let last = args.last.or(args.latest.then_some(1));
    // As with docker: who asks for a state means all machines in it.
    let all = args.all
        || last.is_some()
        || args
            .listing
            .filter
            .iter()
            .any(|f| f.starts_with("status=") || f.starts_with("exited="));
    machines.retain(|machine| all || (machine.state.phase.is_active() && !machine.spec.standby));
    if let Some(last) = last {
        machines.drain(..machines.len().saturating_sub(last));
    }
    let mut chosen: Vec<(MachineSummary, Option<u64>)> = Vec::new();
    for machine in &machines {
        let summary = MachineSummary::new(machine);
        let is_wanted = (!args.pods || pod::name_of(&summary.labels).is_some())
            && filters.allow("name", |name| summary.name.contains(name))
            && filters.allow("id", |id| summary.id.starts_with(id))
            && filters.allow("kind", |kind| summary.kind == kind)
            && filters.allow("status", |status| summary.has_status(status))
            && filters.allow("exited", |code| {
                summary.exit_code.is_some_and(|c| c.to_string() == code)
            })
            && filters.allow("health", |health| summary.health.unwrap_or("none") == health)
            && filters.allow("network", |network| summary.networks.iter().any(|n| n == network))
            && filters.allow("volume", |volume| summary.volumes.iter().any(|v| v == volume))
            && filters.allow("ancestor", |image| is_image(&summary.flist, image))
            && filters.allow_labels(|key| summary.labels.get(key).map(String::as_str));
        if is_wanted {
            let size = args.size.then(|| disk_bytes(machine));
            chosen.push((summary, size));
        }
    }
    let now = Timestamp::now();
    let rows: Vec<Row> = chosen
        .iter()
        .map(|(machine, size)| row(machine, *size, args, now))
        .collect();
    let json: Vec<&MachineSummary> = chosen.iter().map(|(machine, _)| machine).collect();
    let of_kind = if args.pods {
        &["NAMESPACE", "POD"][..]
    } else {
        &["KIND", "IMAGE", "COMMAND"]
    };
    let mut header = [&["NAME"], of_kind, &["STATUS", "ADDRESS", "PORTS"]].concat();
    header.extend(args.size.then_some("SIZE"));
    args.listing.show(&header, &rows, &json)?;
    Ok(code)
}

fn is_image(flist: &str, wanted: &str) -> bool {
    let shown = shown_image(flist);
    flist == wanted || shown == wanted || shown.split(':').next() == Some(wanted)
}

/// What a machine's own disk takes on this host.
pub(crate) fn disk_bytes(machine: &Machine) -> u64 {
    let disk = std::fs::metadata(machine.dir.join("root.img"));
    disk.map_or(0, |disk| std::os::unix::fs::MetadataExt::blocks(&disk) * 512)
}

/// Shows everything about machines.
pub(crate) fn inspect(engine: &Engine, args: &InspectArgs) -> Result<u8, Failure> {
    let mut all = Vec::new();
    for name in &args.names.names {
        if args.spec {
            let machine = engine.machine(name)?;
            output::print(&machine_file::text(&machine.spec, args.show_secrets)?)?;
            continue;
        }
        all.push(engine.inspect(name)?);
    }
    match (args.spec, args.show_secrets) {
        (true, _) => {}
        (false, shows_secrets) => {
            let mut shown = match shows_secrets {
                true => serde_json::to_value(&all).map_err(std::io::Error::from)?,
                false => redact::shown(&all),
            };
            match (&args.format, &mut shown) {
                (Some(format), Value::Array(documents)) => {
                    if format != "json" {
                        for (document, machine) in documents.iter_mut().zip(&all) {
                            zmachine_engine::docker_fields::add(document, machine);
                        }
                    }
                    listing::by_template(format, documents)?;
                }
                (_, shown) => output::json(shown)?,
            }
        }
    }
    Ok(0)
}
