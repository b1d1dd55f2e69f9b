//! The figures of all machines in the text format of Prometheus (exposition format 0.0.4).

use std::fmt::Write as _;

use zmachine_spec::{Failure, State, pod};
use zmachine_store::catalog::Machine;

use crate::Engine;
use crate::stats::{InterfaceSample, Sample};

impl Engine {
    /// The figures of all machines in the text format of Prometheus.
    ///
    /// # Errors
    /// When the machines cannot be listed.
    pub fn metrics(&self) -> Result<String, Failure> {
        gather(self)
    }
}

fn gather(engine: &Engine) -> Result<String, Failure> {
    let (mut machines, mut unreadable) = (Vec::new(), 0);
    for machine in engine.machines()? {
        match machine {
            Ok(machine) => {
                let sample = engine.sample(&machine)?;
                machines.push((machine, sample));
            }
            Err(_) => unreadable += 1,
        }
    }
    let mut text = render(&machines);
    // The others have no figures, and nobody would miss them.
    head(
        &mut text,
        "unreadable_machines",
        "gauge",
        "Machines whose state cannot be read.",
    );
    let _ = writeln!(text, "zmachine_unreadable_machines {unreadable}");
    Ok(text)
}

/// One family of figures: its name without the prefix, its kind, what it is, and its value for a machine.
struct Family<T> {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&T) -> Option<f64>,
}

const OF_STATE: [Family<State>; 2] = [
    Family {
        name: "starts_total",
        kind: "counter",
        help: "Starts since the machine was created.",
        value: |state| Some(state.starts as f64),
    },
    Family {
        name: "restarts",
        kind: "gauge",
        help: "Automatic restarts since a user started the machine.",
        value: |state| Some(state.restarts as f64),
    },
];

const OF_SAMPLE: [Family<Sample>; 12] = [
    Family {
        name: "cpu_seconds_total",
        kind: "counter",
        help: "CPU time of the machine's processes on the host.",
        value: |s| Some(s.cpu_ms as f64 / 1000.0),
    },
    Family {
        name: "guest_cpu_seconds_total",
        kind: "counter",
        help: "Time the guest's CPUs were busy.",
        value: |s| s.guest_cpu_ms.map(|ms| ms as f64 / 1000.0),
    },
    Family {
        name: "guest_memory_bytes",
        kind: "gauge",
        help: "Memory the guest has.",
        value: |s| s.guest_total_bytes.map(|n| n as f64),
    },
    Family {
        name: "guest_memory_used_bytes",
        kind: "gauge",
        help: "Memory the guest uses and cannot give up.",
        value: |s| s.guest_used_bytes.map(|n| n as f64),
    },
    Family {
        name: "resident_bytes",
        kind: "gauge",
        help: "Memory of the machine's processes on the host.",
        value: |s| Some(s.resident_bytes as f64),
    },
    Family {
        name: "overhead_bytes",
        kind: "gauge",
        help: "The part of the resident memory that is no guest memory.",
        value: |s| Some(s.overhead_bytes as f64),
    },
    Family {
        name: "block_read_bytes_total",
        kind: "counter",
        help: "Bytes read from the host's disks.",
        value: |s| Some(s.block_read_bytes as f64),
    },
    Family {
        name: "block_written_bytes_total",
        kind: "counter",
        help: "Bytes written to the host's disks.",
        value: |s| Some(s.block_written_bytes as f64),
    },
    Family {
        name: "image_read_bytes_total",
        kind: "counter",
        help: "Bytes of the image the guest read.",
        value: |s| Some(s.image_read_bytes as f64),
    },
    Family {
        name: "image_fetched_bytes_total",
        kind: "counter",
        help: "Bytes of the image fetched from stores.",
        value: |s| Some(s.image_fetched_bytes as f64),
    },
    Family {
        name: "network_received_bytes_total",
        kind: "counter",
        help: "Bytes the guest received.",
        value: |s| Some(s.network_received_bytes as f64),
    },
    Family {
        name: "network_sent_bytes_total",
        kind: "counter",
        help: "Bytes the guest sent.",
        value: |s| Some(s.network_sent_bytes as f64),
    },
];

fn render(machines: &[(Machine, Option<Sample>)]) -> String {
    let mut text = String::new();
    head(&mut text, "state", "gauge", "1 for the state each machine is in.");
    for (machine, _) in machines {
        let state = machine.state.phase.word();
        let _ = writeln!(text, "zmachine_state{{{},state=\"{state}\"}} 1", labels(machine));
    }
    for family in &OF_STATE {
        let values = machines
            .iter()
            .map(|(machine, _)| (machine, (family.value)(&machine.state)));
        write_family(&mut text, family, values);
    }
    for family in &OF_SAMPLE {
        let value = |sample: &Option<Sample>| sample.as_ref().and_then(family.value);
        let values = machines.iter().map(|(machine, sample)| (machine, value(sample)));
        write_family(&mut text, family, values);
    }
    for (name, help, value) in OF_INTERFACE {
        head(&mut text, name, "counter", help);
        for (machine, sample) in machines {
            for one in sample.iter().flat_map(|sample| &sample.interfaces) {
                let (labels, value) = (labels(machine), value(one));
                let (interface, network) = (&one.interface, &one.network);
                let _ = writeln!(
                    text,
                    "zmachine_{name}{{{labels},interface=\"{interface}\",network=\"{network}\"}} {value}"
                );
            }
        }
    }
    text
}

/// Name, help and value of a figure that each interface has.
type OfInterface = (&'static str, &'static str, fn(&InterfaceSample) -> u64);

const OF_INTERFACE: [OfInterface; 4] = [
    (
        "interface_received_bytes_total",
        "Bytes the guest received, by interface.",
        |i| i.received_bytes,
    ),
    (
        "interface_sent_bytes_total",
        "Bytes the guest sent, by interface.",
        |i| i.sent_bytes,
    ),
    (
        "interface_received_packets_total",
        "Packets the guest received, by interface.",
        |i| i.received_packets,
    ),
    (
        "interface_sent_packets_total",
        "Packets the guest sent, by interface.",
        |i| i.sent_packets,
    ),
];

fn write_family<'a, T>(
    text: &mut String,
    family: &Family<T>,
    values: impl Iterator<Item = (&'a Machine, Option<f64>)>,
) {
    head(text, family.name, family.kind, family.help);
    for (machine, value) in values {
        if let Some(value) = value {
            let _ = writeln!(text, "zmachine_{}{{{}}} {value}", family.name, labels(machine));
        }
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP zmachine_{name} {help}");
    let _ = writeln!(text, "# TYPE zmachine_{name} {kind}");
}

/// Names and ids need no escaping: both have neither quotes nor backslashes. What is said of a pod comes from whoever made it.
fn labels(machine: &Machine) -> String {
    let own = format!("id=\"{}\",name=\"{}\"", machine.id, machine.spec.name);
    match pod::name_of(&machine.spec.labels) {
        Some((namespace, name)) => format!("{own},namespace=\"{}\",pod=\"{}\"", escaped(namespace), escaped(name)),
        None => own,
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use crate::stats::total;
    use zmachine_spec::MachineSpec;

    use super::*;

    #[test]
    fn a_pods_figures_say_whose_they_are() {
        let mut machine = Machine {
            id: "0123456789ab".into(),
            dir: std::path::PathBuf::new(),
            spec: MachineSpec::new("pod-1", "/pod.fl"),
            state: State::created(jiff::Timestamp::UNIX_EPOCH, vec![]),
        };
        machine.spec.labels.insert(pod::NAME_LABEL.into(), "we\"b\n".into());
        let expected = r#"id="0123456789ab",name="pod-1",namespace="default",pod="we\"b\n""#;
        assert_eq!(labels(&machine), expected);
    }

    #[test]
    fn figures_have_their_golden_form() {
        let mut machine = Machine {
            id: "0123456789ab".into(),
            dir: std::path::PathBuf::new(),
            spec: MachineSpec::new("web", "/web.fl"),
            state: State::created(jiff::Timestamp::UNIX_EPOCH, vec![]),
        };
        machine.state.starts = 2;
        let mut sample = total([]);
        sample.cpu_ms = 1500;
        sample.guest_used_bytes = Some(1 << 20);
        sample.interfaces = vec![InterfaceSample {
            interface: "eth0".into(),
            network: "default".into(),
            received_bytes: 7,
            ..InterfaceSample::default()
        }];
        let other = Machine {
            spec: MachineSpec::new("db", "/db.fl"),
            ..machine.clone()
        };
        let text = render(&[(machine, Some(sample)), (other, None)]);
        assert_eq!(text, include_str!("../tests/golden/metrics.txt"));
    }
}
