//! Names and addresses for the machines of a network: one dnsmasq per network, as long as a machine is attached.
//!
//! ```text
//! <host dir>/<bridge>/dnsmasq.conf    what it is; another text means another process
//! <host dir>/<bridge>/{hosts,dhcp,servers}    whom it knows; read again at SIGHUP
//! ```
//! # Invariants
//! It changes under the network's lock alone. A process is ours when its command line names our configuration file, so no
//! record of it can be stale. It drops to a user of its own; what it reads is written for everybody, and replaced by rename.
//! It has no parent that matters: whoever finds it gone starts it again (see [`watch`]), and the last machine's end ends it.

mod config;
mod process;
mod watch;

pub(crate) use process::{ensure, find, is_installed, stop};
