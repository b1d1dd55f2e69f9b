//! Networks, leases, bridges, taps and nftables rules.
//!
//! # What it owns
//! A *network* is a subnet with a bridge on the host; a machine is connected by an *attachment*: a leased address, a tap
//! on the bridge, and published ports. On disk:
//! ```text
//! <home>/networks/<name>/network.json              subnet, MTU (versioned)
//! <home>/networks/<name>/leases/<ip>               content: the machine's id; from create to rm of the machine
//! <home>/networks/<name>/attachments/<machine>     what a running machine needs (versioned); from start to stop
//! <home>/networks/<name>/{lock, leases.lock}
//! /run/zmachine-host/<net namespace>.{json,lock}   host-wide sysctls we changed, shared by all homes
//! /run/zmachine-host/<bridge>/                     what the network's dnsmasq reads
//! ```
//! In the kernel, per network: a bridge and two nftables tables, all named after a hash of (home, network), so two homes
//! never meet; per attachment a tap that vanishes with its last descriptor. Beside them one dnsmasq per network.
//!
//! # Invariants
//! * What is in the kernel is a function of what is on disk: each change writes the attachment files first, then brings the
//!   kernel in line (`reconcile`), under the network's lock. So a crash anywhere is repaired by the next make or undo.
//! * A [`Resource`] is a value that the machine's journal holds before it is made; undoing is idempotent, from any process,
//!   also after a reboot.
//! * With the last attachment, all of it goes: bridge, tables, dnsmasq, sysctls.
//! * An attachment of another boot counts for nothing.
//!
//! # What it must not do
//! Know what a machine is (a machine is an id), read the environment, touch tables, links or sysctls of others (docker's
//! chain for the rules of others excepted: see `external_firewalls`).
//! All functions work on the network namespace of the calling thread.

mod attachment;
mod dns;
mod dnsmasq;
mod endpoint;
mod error;
mod external_firewalls;
mod health;
mod home;
mod lease;
mod links;
mod name;
mod network;
mod networks;
mod nft;
pub mod pod;
mod policy;
mod policy_rules;
mod ports;
mod publish;
mod reconcile;
mod requirements;
mod resource;
mod rules;
pub mod sleeper;
mod spoofing;
mod subnet;
mod sysctl;
pub mod user;

pub use attachment::{Attachment, AttachmentRequest, Route};
pub use dns::{HostDns, host_nameservers};
pub use endpoint::{Endpoint, Membership};
pub use error::{Concern, ErrorKind, MissingPasst, NetworkError};
pub use external_firewalls::external_firewalls;
pub use home::Networks;
pub use lease::{AddressRequest, Lease};
pub use name::{DEFAULT_NETWORK, Mac, is_host_name};
pub use network::Network;
pub use networks::{Ipv6Choice, NetworkSpec};
pub use policy::{Allow, Policy, Rate};
pub use publish::{PortRange, Protocol, Publish, PublishError, PublishRequest};
pub use requirements::{Requirement, can_make_networks, requirements};
pub use resource::{Made, Resource};
pub use rules::render;
pub use subnet::{POOLS, choose_subnet};
