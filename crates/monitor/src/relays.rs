//! The relays of a machine's interfaces through passt.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use zmachine_network::user::{Relay, Traffic};

/// The relays of the interfaces through passt, for those who ask for their counters.
#[derive(Debug, Clone, Default)]
pub(super) struct Relays(Arc<Mutex<BTreeMap<String, Arc<Relay>>>>);

impl Relays {
    /// What went through each, by interface.
    pub(super) fn traffic(&self) -> BTreeMap<String, Traffic> {
        let relays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        relays
            .iter()
            .map(|(name, relay)| (name.clone(), relay.traffic()))
            .collect()
    }

    /// The relay of `interface` from now on.
    pub(super) fn set(&self, interface: &str, relay: Arc<Relay>) {
        let mut relays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        relays.insert(interface.to_owned(), relay);
    }
}
