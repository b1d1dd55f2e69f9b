//! `ps` and `inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use zmachine_engine::Engine;
use zmachine_image::Library;
use zmachine_network::Publish;
use zmachine_plan::Plan;
use zmachine_spec::bytes::Human;
use zmachine_spec::shown::without_credentials;
use zmachine_spec::{Class, Failure, MachineSpec, Phase, State, redact};
use zmachine_store::catalog::Machine;
use zmachine_store::log;
use zmachine_sys::jail::status;
use zmachine_sys::process::ProcessId;

use crate::args::{Format, InspectArgs, PortArgs, PsArgs};
use crate::{machine_file, output};

#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    name: &'a str,
    kind: &'a str,
    state: &'a str,
    exit_code: Option<u8>,
    restarts: u64,
    restart_at: Option<Timestamp>,
    flist: String,
    cpus: u32,
    memory_bytes: u64,
    addresses: Vec<String>,
    /// As `-p` takes them; empty also where the plan cannot be read.
    ports: Vec<String>,
    created_at: Timestamp,
}

impl Row<'_> {
    /// `ports`: those of the host that lead to it.
    fn new(machine: &Machine, ports: Vec<Publish>) -> Row<'_> {
        Row {
            id: &machine.id,
            name: &machine.spec.name,
            kind: machine.state.kind.word(),
            state: machine.state.phase.word(),
            exit_code: match &machine.state.phase {
                Phase::Stopped { exit } => Some(exit.shell_code()),
                _ => None,
            },
            restarts: machine.state.restarts,
            restart_at: match &machine.state.phase {
                Phase::Restarting { at, .. } => Some(*at),
                _ => None,
            },
            flist: without_credentials(&machine.spec.flist),
            cpus: machine.spec.cpus,
            memory_bytes: machine.spec.memory_bytes,
            addresses: machine.state.addresses.iter().map(ToString::to_string).collect(),
            ports: ports.iter().map(ToString::to_string).collect(),
            created_at: machine.state.created_at,
        }
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let state = self
            .exit_code
            .map_or(self.state.to_owned(), |code| format!("{} ({code})", self.state));
        let state = match self.restarts {
            0 => state,
            1 => format!("{state}, 1 restart"),
            n => format!("{state}, {n} restarts"),
        };
        vec![
            self.name.to_owned(),
            self.kind.to_owned(),
            state,
            shown_image(&self.flist).to_owned(),
            self.cpus.to_string(),
            Human(self.memory_bytes).to_string(),
            self.addresses.first().cloned().unwrap_or_else(|| "-".to_owned()),
            output::age(self.created_at, now),
            self.ports.join(", "),
        ]
    }
}

/// The name of an image as it is; of a path or a URL what is behind the last slash.
fn shown_image(text: &str) -> &str {
    match text.starts_with('/') || text.contains("://") && !text.starts_with("docker://") {
        true => text.rsplit('/').next().unwrap_or(text),
        false => text.strip_prefix("docker://").unwrap_or(text),
    }
}

/// The ports of this host that lead to a machine.
fn ports(machine: &Machine) -> Vec<Publish> {
    let plan = machine.plan();
    let attachments = plan.as_ref().map(Plan::attachments).unwrap_or_default();
    attachments.iter().flat_map(|a| a.publish.iter().cloned()).collect()
}

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
    for publish in ports(&machine) {
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
    let (mut machines, code) = readable(engine)?;
    machines.retain(|machine| args.all || machine.state.phase.is_active());
    if args.quiet {
        machines
            .iter()
            .try_for_each(|machine| output::print(&format!("{}\n", machine.spec.name)))?;
        return Ok(code);
    }
    let row = |machine| Row::new(machine, ports(machine));
    let rows: Vec<Row<'_>> = machines.iter().map(row).collect();
    if args.output == Format::Json {
        output::json(&rows)?;
    } else {
        let now = Timestamp::now();
        let header = [
            "NAME", "KIND", "STATE", "IMAGE", "CPUS", "MEMORY", "ADDRESS", "AGE", "PORTS",
        ];
        output::table(&header, &rows.iter().map(|row| row.cells(now)).collect::<Vec<_>>())?;
    }
    Ok(code)
}

#[derive(Serialize)]
struct Inspection {
    id: String,
    name: String,
    kind: &'static str,
    directory: String,
    log: String,
    /// Where the blocks of its image are kept, when that can be told.
    block_cache: Option<PathBuf>,
    /// What stands around each of its processes, while it runs.
    sandbox: BTreeMap<&'static str, String>,
    state: State,
    spec: MachineSpec,
    plan: Plan,
}

/// What stands around the processes of a machine that runs, one line each.
fn protections(machine: &Machine) -> BTreeMap<&'static str, String> {
    let processes = [
        ("hypervisor", machine.state.hypervisor),
        ("rootfs", machine.state.rootfs),
    ];
    let line = |(role, id): (&'static str, Option<ProcessId>)| {
        let id = id.filter(|id| id.is_alive())?;
        let standing = status::of(id.pid)?.standing();
        let line = match standing.is_empty() {
            true => "none".to_owned(),
            false => standing.join(", "),
        };
        Some((role, line))
    };
    processes.into_iter().filter_map(line).collect()
}

/// Shows everything about machines.
pub(crate) fn inspect(engine: &Engine, args: &InspectArgs) -> Result<u8, Failure> {
    let mut all = Vec::new();
    let library = Library::open(engine.home().data());
    let block_cache = library.map(|library| library.cache().directory().to_owned()).ok();
    for name in &args.names.names {
        let machine = engine.machine(name)?;
        if args.spec {
            output::print(&machine_file::text(&machine.spec, args.show_secrets)?)?;
            continue;
        }
        all.push(Inspection {
            id: machine.id.clone(),
            name: machine.spec.name.clone(),
            kind: machine.state.kind.word(),
            directory: machine.dir.display().to_string(),
            block_cache: block_cache.clone(),
            sandbox: protections(&machine),
            log: log::path(&machine.dir).display().to_string(),
            plan: machine.plan()?,
            state: machine.state,
            spec: machine.spec,
        });
    }
    match (args.spec, args.show_secrets) {
        (true, _) => {}
        (false, true) => output::json(&all)?,
        (false, false) => output::json(&redact::shown(&all))?,
    }
    Ok(0)
}
