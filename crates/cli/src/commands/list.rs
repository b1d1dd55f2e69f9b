//! `ps` and `inspect`.

use jiff::Timestamp;
use zmachine_engine::Engine;
use zmachine_engine::views::{MachineSummary, host_ports};
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure, redact};
use zmachine_store::catalog::Machine;

use crate::args::{Format, InspectArgs, PortArgs, PsArgs};
use crate::{machine_file, output};

fn cells(row: &MachineSummary, now: Timestamp) -> Vec<String> {
    let state = row
        .exit_code
        .map_or(row.state.to_owned(), |code| format!("{} ({code})", row.state));
    let state = match row.restarts {
        0 => state,
        1 => format!("{state}, 1 restart"),
        n => format!("{state}, {n} restarts"),
    };
    vec![
        row.name.clone(),
        row.kind.to_owned(),
        state,
        row.flist.rsplit('/').next().unwrap_or(&row.flist).to_owned(),
        row.cpus.to_string(),
        Human(row.memory_bytes).to_string(),
        row.addresses.first().cloned().unwrap_or_else(|| "-".to_owned()),
        output::age(row.created_at, now),
        row.ports.join(", "),
    ]
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
    let (mut machines, code) = readable(engine)?;
    machines.retain(|machine| args.all || machine.state.phase.is_active());
    if args.quiet {
        machines
            .iter()
            .try_for_each(|machine| output::print(&format!("{}\n", machine.spec.name)))?;
        return Ok(code);
    }
    let rows: Vec<MachineSummary> = machines.iter().map(MachineSummary::new).collect();
    if args.output == Format::Json {
        output::json(&rows)?;
    } else {
        let now = Timestamp::now();
        let header = [
            "NAME", "KIND", "STATE", "FLIST", "CPUS", "MEMORY", "ADDRESS", "AGE", "PORTS",
        ];
        output::table(&header, &rows.iter().map(|row| cells(row, now)).collect::<Vec<_>>())?;
    }
    Ok(code)
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
        (false, true) => output::json(&all)?,
        (false, false) => output::json(&redact::shown(&all))?,
    }
    Ok(0)
}
