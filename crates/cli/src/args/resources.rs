//! `zmachine volume` and `zmachine network`.

use clap::Subcommand;

use crate::listing::ListingArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a volume; it takes space only for what is written to it
    Create {
        name: String,
        /// Its size; 10G when nothing is said
        #[arg(long)]
        size: Option<String>,
        /// The file system it gets at its first use by a container: ext4, btrfs, xfs or none
        #[arg(long, default_value = "ext4")]
        fs: zmachine_spec::volume::Fs,
    },
    /// List volumes
    Ls(ListingArgs),
    /// Remove the volumes that no machine uses, with all their data
    Prune {
        /// Those that have a name, too
        #[arg(short, long)]
        all: bool,
        /// Ask nothing
        #[arg(short, long)]
        force: bool,
    },
    /// Show everything about volumes, as JSON
    Inspect {
        /// Show each by a template as docker's
        #[arg(short, long, value_name = "TEMPLATE")]
        format: Option<String>,
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Make a volume larger, with the file system on it if it is in use by a machine that runs our agent
    #[command(alias = "resize")]
    Grow {
        name: String,
        /// Its new size
        size: String,
    },
    /// Remove volumes with all their data
    Rm {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Make a network; nothing of it is on this host before a machine in it runs
    Create {
        name: String,
        /// For docker's sake: every network is a bridge
        #[arg(short, long, hide = true, value_parser = ["bridge"])]
        driver: Option<String>,
        /// Its IPv4 subnet; a free one when nothing is said
        #[arg(long, value_name = "CIDR")]
        subnet: Option<String>,
        /// Its IPv6 subnet, a /64, or 'none'; a private one when nothing is said
        #[arg(long, value_name = "CIDR|none")]
        ipv6: Option<String>,
        /// Its machines reach each other alone: nothing goes out or in
        #[arg(long)]
        internal: bool,
        /// Largest packet in bytes; that of the host's way out when nothing is said
        #[arg(long, value_name = "BYTES")]
        mtu: Option<u32>,
        /// Name servers for what the network does not know itself; this host's when nothing is said
        #[arg(long, value_name = "IP")]
        dns: Vec<std::net::IpAddr>,
    },
    /// List networks
    Ls(ListingArgs),
    /// Remove the networks that no machine is in
    Prune {
        /// Ask nothing
        #[arg(short, long)]
        force: bool,
    },
    /// Show everything about networks, as JSON
    Inspect {
        /// Show each by a template as docker's
        #[arg(short, long, value_name = "TEMPLATE")]
        format: Option<String>,
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Have a machine join a network, at once when it runs
    Connect {
        /// An address wanted there, once for IPv4 and once for IPv6
        #[arg(long, value_name = "ADDRESS")]
        ip: Vec<std::net::IpAddr>,
        /// A name under which others find it there, beside its own
        #[arg(long, value_name = "NAME")]
        alias: Vec<String>,
        network: String,
        machine: String,
    },
    /// Have a machine leave a network, at once when it runs
    Disconnect { network: String, machine: String },
    /// Remove networks that no machine is in
    Rm {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}
