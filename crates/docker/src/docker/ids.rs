//! The ids that clients see: 64 hex digits, of which a machine's own id is the beginning.

use sha2::{Digest, Sha256};
use zmachine_engine::Engine;
use zmachine_spec::{Class, Kind};
use zmachine_store::catalog::Machine;

use crate::http::Refusal;

/// Digits of a machine's own id.
pub const OWN: usize = 12;

/// Digits that clients see.
pub const WHOLE: usize = 64;

/// Bytes as hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An id that follows from a text.
pub fn of(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// The id of a container, from the machine's own.
pub fn container(id: &str) -> String {
    let rest = of(&format!("container {id}"));
    format!("{id}{}", &rest[..WHOLE - OWN])
}

/// A random id of a thing in a machine, by which the machine is found.
pub fn inside(machine: &str) -> String {
    let random: Vec<u8> = (0..4)
        .flat_map(|_| zmachine_sys::file::random_u64().to_ne_bytes())
        .collect();
    format!("{machine}{}", &hex(&random)[..WHOLE - OWN])
}

/// The machine that a client means by a name, an id, or the beginning of an id.
///
/// # Errors
/// 404 in docker's words when there is none that is a container.
pub fn machine(engine: &Engine, text: &str) -> Result<Machine, Refusal> {
    let name = text.strip_prefix('/').unwrap_or(text);
    let missing = || Refusal::not_found(format!("No such container: {name}"));
    if name.is_empty() {
        return Err(missing());
    }
    let found = match engine.machine(name) {
        Err(failure) if failure.class == Class::NotFound && name.len() > OWN && is_hex(name) => {
            engine.machine(&name[..OWN]).ok().filter(|machine| {
                let is_own = machine.id.starts_with(&name[..OWN]);
                is_own && container(&machine.id).starts_with(name)
            })
        }
        Err(failure) if failure.class == Class::NotFound => None,
        found => Some(found?),
    };
    found
        .filter(|machine| machine.state.kind == Kind::Container)
        .ok_or_else(missing)
}

/// Whether a text is hex digits alone.
pub fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_length_and_begin_with_the_machines_own() {
        let id = container("0123456789ab");
        assert!(id.len() == WHOLE && is_hex(&id) && id.starts_with("0123456789ab"));
        assert_eq!(id, container("0123456789ab"));
        assert_ne!(inside("0123456789ab"), inside("0123456789ab"));
        assert_eq!(inside("0123456789ab").len(), WHOLE);
    }
}
