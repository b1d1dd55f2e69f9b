//! `stats`: what machines use, once or again and again.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zmachine_spec::Failure;

use super::machines::path;
use super::output;
use crate::connection::{Ask, Server};
use crate::words::{Format, Stats};

/// Between two samples that are shown.
const INTERVAL: Duration = Duration::from_secs(2);

/// Between the two samples that one figure takes.
const SHORT: Duration = Duration::from_millis(500);

/// The samples of machines, and when they were taken.
type Taken = (Vec<(String, Value)>, Instant);

/// Shows what machines use.
pub(super) async fn stats(server: &Server, args: &Stats) -> Result<(), Failure> {
    let mut before = take(server, &args.names).await?;
    let repaints = !args.no_stream && args.output == Format::Table && std::io::stdout().is_terminal();
    loop {
        tokio::time::sleep(if args.no_stream { SHORT } else { INTERVAL }).await;
        let now = take(server, &args.names).await?;
        if repaints {
            // To the top left corner, and everything below is cleared.
            output::print("\x1b[H\x1b[J")?;
        }
        show(&now, &before, args.output)?;
        if args.no_stream {
            return Ok(());
        }
        before = now;
    }
}

async fn take(server: &Server, names: &[String]) -> Result<Taken, Failure> {
    let mut taken = Vec::new();
    if names.is_empty() {
        let all = server.ask(&Ask::new("GET", "/v1/stats")).await?;
        let of = |machine: &Value| (output::text(&machine["name"]), machine["sample"].clone());
        taken.extend(output::items(&all, "machines").iter().map(of));
    }
    for name in names {
        let sample = server.ask(&Ask::new("GET", format!("{}/stats", path(name)))).await?;
        taken.push((name.clone(), sample));
    }
    Ok((taken, Instant::now()))
}

/// Of one CPU.
fn cpu_percent(name: &str, sample: &Value, now: Instant, (before, then): &Taken) -> f64 {
    let used = |sample: &Value| sample["cpu_ms"].as_f64().unwrap_or_default();
    let earlier = before.iter().find(|(other, _)| other == name);
    earlier.map_or(0.0, |(_, old)| {
        let took = now.duration_since(*then).as_secs_f64() * 1000.0;
        ((used(sample) - used(old)).max(0.0) * 1000.0 / took.max(1.0)).round() / 10.0
    })
}

fn show((taken, at): &Taken, before: &Taken, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let rows = taken.iter().map(|(name, sample)| {
            let mut row = sample.clone();
            row["name"] = json!(name);
            row["cpu_percent"] = json!(cpu_percent(name, sample, *at, before));
            row
        });
        return output::json(&rows.collect());
    }
    let cells = |(name, sample): &(String, Value)| {
        let pair =
            |one: &str, other: &str| format!("{} / {}", output::bytes(&sample[one]), output::bytes(&sample[other]));
        vec![
            name.clone(),
            format!("{:.1} %", cpu_percent(name, sample, *at, before)),
            output::bytes(&sample["resident_bytes"]),
            pair("guest_used_bytes", "guest_total_bytes"),
            pair("network_received_bytes", "network_sent_bytes"),
            pair("block_read_bytes", "block_written_bytes"),
        ]
    };
    let head = [
        "NAME",
        "CPU",
        "MEMORY",
        "GUEST USED / HAS",
        "NETWORK IN / OUT",
        "DISK READ / WRITTEN",
    ];
    output::table(&head, &taken.iter().map(cells).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_cpu_is_between_two_samples() {
        let now = Instant::now();
        let Some(then) = now.checked_sub(Duration::from_secs(2)) else {
            return;
        };
        let before = (vec![("a".to_owned(), json!({"cpu_ms": 1000}))], then);
        assert_eq!(cpu_percent("a", &json!({"cpu_ms": 2000}), now, &before), 50.0);
        assert_eq!(cpu_percent("a", &json!({"cpu_ms": 0}), now, &before), 0.0);
        assert_eq!(cpu_percent("new", &json!({"cpu_ms": 2000}), now, &before), 0.0);
    }
}
