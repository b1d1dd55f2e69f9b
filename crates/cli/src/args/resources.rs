//! `zmachine volume` and `zmachine network`.

use std::path::PathBuf;

use clap::Subcommand;
use zmachine_spec::keep::Keep;

use super::flist::WriteArgs;
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
    /// Save volumes as they are, and show and remove what was saved
    #[command(subcommand)]
    Snapshot(VolumeSnapshotCommand),
    /// Make a volume that no running machine uses what it was in a snapshot; or, with --from, a new one of a backup
    Restore {
        /// A snapshot, or the name of the new volume
        #[arg(value_name = "VOLUME@TAG|VOLUME")]
        name: String,
        /// A backup, as 'zmachine volume backup' made it
        #[arg(long, value_name = "FILE.fl")]
        from: Option<PathBuf>,
        /// Where its blocks are, when not where it says
        #[arg(short, long, requires = "from", value_name = "[XX-XX=]URL")]
        store: Vec<String>,
    },
    /// Copy a volume, or a snapshot of one, to a new volume
    #[command(alias = "copy")]
    Clone {
        #[arg(value_name = "VOLUME[@TAG]")]
        source: String,
        #[arg(value_name = "NEW")]
        new: String,
    },
    /// Bring what a volume has to a block store, except what is there already
    Backup {
        /// The volume as it is now, or a snapshot of it
        #[arg(value_name = "VOLUME[@TAG]")]
        name: String,
        /// The backup: a small file that says what the blocks are; one that is there spares the work of what did not change
        #[arg(short, long, value_name = "FILE.fl")]
        output: PathBuf,
        #[command(flatten)]
        to: WriteArgs,
    },
    /// Remove volumes with all their data and snapshots
    Rm {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeSnapshotCommand {
    /// Save a volume as it is; prints the snapshot's name
    Create {
        /// The tag is snap0, snap1 ... when none is given
        #[arg(value_name = "VOLUME[@TAG]")]
        name: String,
        /// Remove older ones without a tag of your own but the newest of each of so many hours, days, weeks, months, years: 24h,7d,4w
        #[arg(long, value_name = "NUMBERS")]
        keep: Option<Keep>,
    },
    /// List snapshots
    Ls {
        /// Those of this volume alone
        volume: Option<String>,
        #[command(flatten)]
        listing: ListingArgs,
    },
    /// Remove snapshots
    Rm {
        #[arg(required = true, value_name = "VOLUME@TAG")]
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
