//! Every test here starts the built `zmachine` as a user would, in a home of its own, and boots real guests.
//!
//! A boot takes seconds, so one boot serves many checks ([`support::Checks`] tells each by name) and the tests run one
//! after the other: a home holds a lock, whatever number of threads the runner uses. At the end of every test the home
//! must leave no process, mount, interface, rule, lease or socket (see `zmachine-testkit`).

mod blocks;
mod changes;
mod chaos;
mod compose;
mod crashes;
mod database;
mod debian;
mod embed;
mod errors;
mod forks;
mod full_disk;
mod golden_home;
mod health;
mod hypervisors;
mod idle;
mod jail;
mod jail_of_cloud_hypervisor;
mod killpoints;
mod kubernetes;
mod layers;
mod life;
mod lifecycle;
mod network;
mod networks;
mod obey;
mod oci;
mod own_kernel;
mod power;
mod recorded;
mod root;
mod rootless;
mod safety;
mod settings;
mod shared_cache;
mod shares;
mod snapshot_kills;
mod snapshots;
mod standby;
mod streams;
mod support;
mod terminal;
mod update;
mod vms;
mod volumes;
mod warm;
mod why;
