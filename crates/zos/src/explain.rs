//! Each field's effect, for people.

use zmachine_plan::root_size;
use zmachine_spec::bytes::Human;

use super::Reservation;

/// One field of a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Its path in the document.
    pub field: &'static str,
    /// What the reservation says.
    pub value: String,
    /// What that does here.
    pub effect: String,
}

/// Every field of the format in its order, also those the reservation leaves out.
pub fn explain(reservation: &Reservation) -> Vec<Explained> {
    // Every field by name: a new one does not compile until it is explained.
    let Reservation {
        flist,
        public_ip,
        planetary,
        mycelium,
        interface,
        size_bytes,
        cpus,
        memory_bytes,
        mounts,
        entrypoint,
        env,
        corex,
        gpu,
    } = reservation;
    let line = |field, value: String, effect: String| Explained { field, value, effect };
    let refused = |is_wanted: bool, without: &str| match is_wanted {
        true => "refused: this host does not offer it".to_owned(),
        false => without.to_owned(),
    };
    let seed = |seed: &[u8]| seed.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let root = Human(root_size(u32::from(*cpus), *memory_bytes, *size_bytes));
    let path = flist.split(['?', '#']).next().unwrap_or_default();
    let format = if path.ends_with(".flist") { 1 } else { 2 };
    let mut lines = vec![
        line(
            "flist",
            flist.clone(),
            format!("the image, a flist of format {format}: fetched and verified before anything else"),
        ),
        line(
            "network.public_ip",
            or_none(public_ip.clone()),
            refused(public_ip.is_some(), "no public address"),
        ),
        line(
            "network.planetary",
            planetary.to_string(),
            refused(*planetary, "no yggdrasil address; planetary_ip is empty"),
        ),
        line(
            "network.mycelium",
            or_none(mycelium.as_ref().map(|m| format!("{} {}", m.network, seed(&m.seed)))),
            refused(mycelium.is_some(), "no mycelium address; mycelium_ip is empty"),
        ),
        line(
            "network.interfaces",
            format!("{} {}", interface.network, interface.ip),
            format!(
                "its one interface is in network '{}' with this address",
                interface.network
            ),
        ),
        line(
            "size",
            size_bytes.to_string(),
            format!("a container's root takes {root} of changes; a VM's is its first volume"),
        ),
        line(
            "compute_capacity.cpu",
            cpus.to_string(),
            format!("{cpus} virtual CPUs; refused when the host has fewer"),
        ),
        line(
            "compute_capacity.memory",
            memory_bytes.to_string(),
            format!("{} of guest memory", Human(*memory_bytes)),
        ),
    ];
    if mounts.is_empty() {
        lines.push(line("mounts", "-".to_owned(), "no volumes; a VM needs one".to_owned()));
    }
    for (index, mount) in mounts.iter().enumerate() {
        let vm = match index {
            0 => "in a VM it is the boot disk",
            _ => "in a VM it is one more disk",
        };
        lines.push(line(
            "mounts",
            format!("{} {}", mount.name, mount.mountpoint),
            format!("volume '{}' on {}; {vm}", mount.name, mount.mountpoint),
        ));
    }
    let words = entrypoint.as_ref().map(|words| format!("{words:?}"));
    lines.push(line(
        "entrypoint",
        or_none(words.clone()),
        words.map_or_else(
            || "the image's own, else /sbin/init".to_owned(),
            |_| "in place of the image's own; a VM has none".to_owned(),
        ),
    ));
    if env.is_empty() {
        lines.push(line("env", "-".to_owned(), "the image's environment".to_owned()));
    }
    for (name, value) in env {
        let effect = match name.as_str() {
            "SSH_KEY" => "public keys that may log in as root".to_owned(),
            name => format!("sets {name}, over the image's"),
        };
        lines.push(line("env", format!("{name}={value}"), effect));
    }
    lines.push(line(
        "corex",
        corex.to_string(),
        refused(
            *corex,
            "no web terminal; 'zmachine exec' and 'attach' reach the machine",
        ),
    ));
    lines.push(line(
        "gpu",
        or_none((!gpu.is_empty()).then(|| gpu.join(" "))),
        refused(!gpu.is_empty(), "no PCI devices"),
    ));
    lines.push(line(
        "(always)",
        "-".to_owned(),
        "started again when it ends, and at boot, unless stopped".to_owned(),
    ));
    lines
}

fn or_none(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}
