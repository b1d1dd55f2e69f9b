//! `stats`.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde::Serialize;
use zmachine_engine::Engine;
use zmachine_engine::stats::{Sample, total};
use zmachine_spec::Failure;
use zmachine_spec::bytes::Human;
use zmachine_store::catalog::Machine;

use crate::args::{Format, StatsArgs};
use crate::output;

/// Time between two samples that are shown, and between the two of `--no-stream`.
const INTERVAL: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Row {
    id: String,
    name: String,
    /// Of one CPU.
    cpu_percent: f64,
    #[serde(flatten)]
    sample: Sample,
}

/// A machine with a sample and its time.
type Taken = (Machine, Sample, Instant);

/// Shows what machines use.
pub(crate) fn stats(engine: &Engine, args: &StatsArgs) -> Result<u8, Failure> {
    // Told once, not at every interval.
    let code = match args.names.is_empty() {
        true => super::list::readable(engine)?.1,
        false => 0,
    };
    let mut before = take(engine, &args.names)?;
    let repaints = !args.no_stream && args.output == Format::Table && std::io::stdout().is_terminal();
    loop {
        std::thread::sleep(if args.no_stream { SHORT } else { INTERVAL });
        let now = take(engine, &args.names)?;
        let rows: Vec<Row> = now.iter().map(|taken| row(taken, &before)).collect();
        if repaints {
            // To the top left corner, and everything below is cleared.
            output::print("\x1b[H\x1b[J")?;
        }
        show(&rows, args.output)?;
        if args.no_stream {
            return Ok(code);
        }
        before = now;
    }
}

fn take(engine: &Engine, names: &[String]) -> Result<Vec<Taken>, Failure> {
    let machines: Vec<Machine> = match names {
        [] => engine.machines()?.into_iter().filter_map(Result::ok).collect(),
        names => names
            .iter()
            .map(|name| engine.machine(name))
            .collect::<Result<_, _>>()?,
    };
    let mut taken = Vec::new();
    for machine in machines {
        if let Some(sample) = engine.sample(&machine)? {
            taken.push((machine, sample, Instant::now()));
        }
    }
    Ok(taken)
}

fn row((machine, sample, at): &Taken, before: &[Taken]) -> Row {
    let earlier = before.iter().find(|(other, ..)| other.id == machine.id);
    let cpu_percent = earlier.map_or(0.0, |(_, old, since)| {
        let busy = sample.cpu_ms.saturating_sub(old.cpu_ms) as f64;
        let took = at.duration_since(*since).as_secs_f64() * 1000.0;
        (busy * 1000.0 / took.max(1.0)).round() / 10.0
    });
    Row {
        id: machine.id.clone(),
        name: machine.spec.name.clone(),
        cpu_percent,
        sample: sample.clone(),
    }
}

fn show(rows: &[Row], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(&rows);
    }
    let header = [
        "NAME",
        "CPU",
        "GUEST USED",
        "GUEST",
        "HOST",
        "OVERHEAD",
        "DISK READ",
        "WRITTEN",
        "IMAGE READ",
        "FETCHED",
        "NET IN",
        "OUT",
    ];
    let mut cells: Vec<Vec<String>> = rows.iter().map(|r| cells(&r.name, r.cpu_percent, &r.sample)).collect();
    if rows.len() > 1 {
        let sum = total(rows.iter().map(|r| &r.sample));
        let cpu = rows.iter().map(|r| r.cpu_percent).sum();
        cells.push(self::cells("all", cpu, &sum));
    }
    output::table(&header, &cells)
}

fn cells(name: &str, cpu_percent: f64, sample: &Sample) -> Vec<String> {
    let bytes = |n: u64| Human(n).to_string();
    let known = |n: Option<u64>| n.map_or("-".to_owned(), bytes);
    vec![
        name.to_owned(),
        format!("{cpu_percent:.1} %"),
        known(sample.guest_used_bytes),
        known(sample.guest_total_bytes),
        bytes(sample.resident_bytes),
        bytes(sample.overhead_bytes),
        bytes(sample.block_read_bytes),
        bytes(sample.block_written_bytes),
        bytes(sample.image_read_bytes),
        bytes(sample.image_fetched_bytes),
        bytes(sample.network_received_bytes),
        bytes(sample.network_sent_bytes),
    ]
}
