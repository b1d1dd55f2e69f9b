//! `stats`: what a container uses.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use zmachine_engine::stats::Sample;

use super::{Call, ids, text};
use crate::app::{App, blocking};
use crate::http::{Answer, Body, Refusal, typed};

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// One sample with its time and that of the host.
#[derive(Debug, Clone)]
struct Taken {
    at: Timestamp,
    sample: Option<Sample>,
    system_ns: u64,
    memory_bytes: u64,
    name: String,
    pids: usize,
}

/// Shows what a container uses: once, or every second.
///
/// # Errors
/// 404.
pub async fn stats(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let streams = call.query.get("stream").is_none() || call.query.flag("stream");
    let one_shot = call.query.flag("one-shot");
    let machine = blocking(app, move |app| ids::machine(&app.engine, &name)).await?;
    let (sender, body) = Body::stream();
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let id = machine.id;
        let mut before: Option<Taken> = None;
        // The first one alone says nothing about a rate.
        let mut skips = !streams && !one_shot;
        loop {
            let of = id.clone();
            let Ok(now) = blocking(&app, move |app| take(app, &of)).await else {
                return;
            };
            let has_sample = now.sample.is_some();
            if !skips || !has_sample {
                let mut line = serde_json::to_vec(&document(&id, &now, before.as_ref())).unwrap_or_default();
                line.push(b'\n');
                if sender.send(line.into()).await.is_err() || !streams {
                    return;
                }
            }
            skips = false;
            before = Some(now);
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = sender.closed() => return,
            }
        }
    });
    Ok(typed(StatusCode::OK, "application/json", body))
}

fn take(app: &App, id: &str) -> Result<Taken, Refusal> {
    let machine = app.engine.machine(id)?;
    let sample = app.engine.sample(&machine)?;
    let pids = match &sample {
        Some(_) => app.engine.processes(id).map_or(0, |processes| processes.len()),
        None => 0,
    };
    Ok(Taken {
        at: Timestamp::now(),
        sample,
        system_ns: system_ns(&std::fs::read_to_string("/proc/stat").unwrap_or_default()),
        memory_bytes: machine.spec.memory_bytes,
        name: machine.spec.name,
        pids,
    })
}

/// Time of all CPUs of the host, in nanoseconds, from `/proc/stat`, which counts hundredths of a second.
fn system_ns(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    // Behind these are times of guests, which are in the first ones already.
    let ticks = line.split_whitespace().skip(1).take(8);
    ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10_000_000
}

fn document(id: &str, now: &Taken, before: Option<&Taken>) -> Value {
    let memory = match &now.sample {
        Some(sample) => json!({
            "usage": sample.guest_used_bytes.unwrap_or(sample.resident_bytes),
            "limit": sample.guest_total_bytes.unwrap_or(now.memory_bytes),
            "stats": {"inactive_file": 0},
        }),
        None => json!({}),
    };
    let mut networks = Map::new();
    for interface in now.sample.iter().flat_map(|sample| &sample.interfaces) {
        let counters = json!({
            "rx_bytes": interface.received_bytes,
            "rx_packets": interface.received_packets,
            "rx_errors": 0,
            "rx_dropped": 0,
            "tx_bytes": interface.sent_bytes,
            "tx_packets": interface.sent_packets,
            "tx_errors": 0,
            "tx_dropped": 0,
        });
        networks.insert(interface.interface.clone(), counters);
    }
    let blocks = now.sample.as_ref().map_or_else(Vec::new, |sample| {
        let entry = |op: &str, value: u64| json!({"major": 0, "minor": 0, "op": op, "value": value});
        vec![
            entry("read", sample.block_read_bytes),
            entry("write", sample.block_written_bytes),
        ]
    });
    json!({
        "id": ids::container(id),
        "name": format!("/{}", now.name),
        "read": text::time(Some(now.at)),
        "preread": text::time(before.map(|before| before.at)),
        "num_procs": 0,
        "pids_stats": {"current": now.pids},
        "cpu_stats": cpu(Some(now)),
        "precpu_stats": cpu(before),
        "memory_stats": memory,
        "networks": networks,
        "blkio_stats": {"io_service_bytes_recursive": blocks},
        "storage_stats": {},
    })
}

fn cpu(taken: Option<&Taken>) -> Value {
    let sample = taken.and_then(|taken| Some((taken.system_ns, taken.sample.as_ref()?)));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    match sample {
        Some((system_ns, sample)) => json!({
            "cpu_usage": {
                "total_usage": sample.cpu_ms * 1_000_000,
                "usage_in_kernelmode": 0,
                "usage_in_usermode": sample.cpu_ms * 1_000_000,
            },
            "system_cpu_usage": system_ns,
            "online_cpus": cpus,
            "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
        }),
        None => json!({
            "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
            "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_host_is_the_sum_of_its_first_columns() {
        assert_eq!(system_ns("cpu  1 2 3 4 0 0 0 0 99 99\ncpu0 1"), 100_000_000);
        assert_eq!(system_ns(""), 0);
    }
}
