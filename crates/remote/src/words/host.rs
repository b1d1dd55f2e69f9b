//! Command lines for what a host has beside machines.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::machines::Export;
use super::{Format, Listing, Names, bytes};

/// A wanted image.
#[derive(Debug, Args)]
pub struct Pull {
    /// What: a name in a registry, or the URL of a flist
    pub image: String,
    /// What it is called there
    pub name: Option<String>,
}

/// Commands on images.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// List images
    Ls(Listing),
    /// Bring an image to the host
    Pull(Pull),
    /// Remove images
    Rm(Names),
    /// Give an image another name
    Tag(Tag),
    /// Bring an image of the host to a registry
    Push(Push),
    /// Write images of the host into an archive here
    Save(Save),
    /// Bring the images of an archive here to the host
    Load(Load),
    /// Show images, as JSON
    Inspect(Names),
    /// Show the steps that made an image
    History(History),
    /// Remove images without a name that no machine uses, and blocks that no image has
    Prune,
}

/// Another name for an image.
#[derive(Debug, Args)]
pub struct Tag {
    /// A name, or the beginning of a digest
    pub image: String,
    /// The name that it gets as well
    pub name: String,
}

/// Where an image goes.
#[derive(Debug, Args)]
pub struct Push {
    /// Say nothing of how far it is; nothing is said here
    #[arg(short, long)]
    pub quiet: bool,
    /// A name, or the beginning of a digest
    pub image: String,
    /// Its name in a registry, when that is another one
    #[arg(value_name = "[docker://]NAME")]
    pub target: Option<String>,
}

/// A wanted archive of images.
#[derive(Debug, Args)]
pub struct Save {
    /// The archive to write here; standard output when not given
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Its form
    #[arg(long, value_parser = ["docker-archive", "oci-archive"], default_value = "docker-archive")]
    pub format: String,
    /// Names, or beginnings of digests
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// An archive of images.
#[derive(Debug, Args)]
pub struct Load {
    /// The archive, of this host; standard input when not given
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Say nothing of how far it is; nothing is said here
    #[arg(short, long)]
    pub quiet: bool,
}

/// The steps of an image.
#[derive(Debug, Args)]
pub struct History {
    /// How they are printed
    #[arg(short, long, alias = "format", value_enum, default_value = "table")]
    pub output: Format,
    /// Show commands whole
    #[arg(long)]
    pub no_trunc: bool,
    /// A name, or the beginning of a digest
    pub image: String,
}

/// Commands on volumes.
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// List volumes
    Ls(Listing),
    /// Create a volume
    Create {
        /// Its name
        name: String,
        /// Its size: 10G
        #[arg(short, long, value_name = "SIZE", value_parser = bytes)]
        size: Option<u64>,
        /// Its file system
        #[arg(long, value_name = "FS")]
        fs: Option<String>,
        /// A label (repeatable)
        #[arg(short, long, value_name = "KEY=VALUE")]
        label: Vec<String>,
    },
    /// Show volumes, as JSON
    Inspect(Names),
    /// Make a volume larger
    #[command(alias = "resize")]
    Grow {
        /// Its name
        name: String,
        /// Its new size
        #[arg(value_parser = bytes)]
        size: u64,
    },
    /// Remove the volumes that no machine uses, with all their data
    Prune {
        /// Those that have a name, too
        #[arg(short, long)]
        all: bool,
        /// Ask nothing
        #[arg(short, long)]
        force: bool,
    },
    /// Save volumes as they are, and show and remove what was saved
    #[command(subcommand)]
    Snapshot(VolumeSnapshot),
    /// Make a volume that no running machine uses what it was in a snapshot
    Restore {
        /// The snapshot
        #[arg(value_name = "VOLUME@TAG")]
        name: String,
    },
    /// Copy a volume, or a snapshot of one, to a new volume
    #[command(alias = "copy")]
    Clone {
        /// What is copied
        #[arg(value_name = "VOLUME[@TAG]")]
        source: String,
        /// The new volume
        new: String,
    },
    /// Remove volumes with their data and snapshots
    Rm(Names),
}

/// Commands on snapshots of volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeSnapshot {
    /// Save a volume as it is; prints the snapshot's name
    Create {
        /// The tag is snap0, snap1 ... when none is given
        #[arg(value_name = "VOLUME[@TAG]")]
        name: String,
        /// Remove older ones without a tag of your own but the newest of each of so many hours, days, weeks, months, years: 24h,7d,4w
        #[arg(long, value_name = "NUMBERS")]
        keep: Option<String>,
    },
    /// List snapshots
    Ls(Listing),
    /// Remove snapshots
    Rm(Names),
}

/// Commands on networks.
#[derive(Debug, Subcommand)]
pub enum Network {
    /// List networks
    Ls(Listing),
    /// Create a network
    Create {
        /// Its name
        name: String,
        /// Its IPv4 subnet
        #[arg(long, value_name = "CIDR")]
        subnet: Option<String>,
        /// Without a way out
        #[arg(long)]
        internal: bool,
        /// A label (repeatable)
        #[arg(short, long, value_name = "KEY=VALUE")]
        label: Vec<String>,
    },
    /// Show networks, as JSON
    Inspect(Names),
    /// Have a machine join a network, at once when it runs
    Connect {
        /// An address wanted there, once for IPv4 and once for IPv6
        #[arg(long, value_name = "ADDRESS")]
        ip: Vec<std::net::IpAddr>,
        /// A name under which others find it there, beside its own
        #[arg(long, value_name = "NAME")]
        alias: Vec<String>,
        /// The network
        network: String,
        /// The machine
        machine: String,
    },
    /// Have a machine leave a network, at once when it runs
    Disconnect {
        /// The network
        network: String,
        /// The machine
        machine: String,
    },
    /// Remove the networks that no machine is in, but the default one
    Prune {
        /// Ask nothing
        #[arg(short, long)]
        force: bool,
    },
    /// Remove networks that no machine is in
    Rm(Names),
}

/// Commands on kernels.
#[derive(Debug, Subcommand)]
pub enum Kernel {
    /// List guest kernels
    Ls(Listing),
    /// Install Debian's cloud kernel there
    Install {
        /// Its name there
        #[arg(long)]
        name: Option<String>,
    },
    /// Choose the kernel that machines get by default
    Default {
        /// Its name
        name: String,
    },
    /// Remove kernels
    Rm {
        /// Also those that machines start with
        #[arg(short, long)]
        force: bool,
        /// Which
        #[command(flatten)]
        names: Names,
    },
}

/// Commands on snapshots.
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Save a machine as it is, while it runs; prints the snapshot's name
    Create {
        /// The tag is snap0, snap1 ... when none is given
        #[arg(value_name = "MACHINE[@TAG]")]
        name: String,
        /// Save its disk and its volumes without its memory, whether it runs or not: what goes on from there boots
        #[arg(long)]
        disk_only: bool,
        /// Remove older ones without a tag of your own but the newest of each of so many hours, days, weeks, months, years: 24h,7d,4w
        #[arg(long, value_name = "NUMBERS")]
        keep: Option<String>,
    },
    /// List snapshots
    Ls(Listing),
    /// Show snapshots, as JSON
    Inspect(Names),
    /// Write a snapshot as a tar archive, without its image
    Export(Export),
    /// Take a snapshot from an archive of this host
    Import {
        /// Standard input when it is left out
        file: Option<PathBuf>,
        /// Its name there
        #[arg(long, value_name = "MACHINE[@TAG]")]
        name: Option<String>,
    },
    /// Remove snapshots; machines that were made from them go on
    Rm(Names),
}

/// Commands on the host's space.
#[derive(Debug, Subcommand)]
pub enum System {
    /// Show what images, blocks, machines and volumes take there
    Df {
        /// How it is printed
        #[arg(short, long, alias = "format", value_enum, default_value = "table")]
        output: Format,
    },
    /// Remove machines that do not run, networks nobody is in, images and blocks nobody needs
    Prune {
        /// Volumes without a name that no machine uses, too, with their data
        #[arg(long)]
        volumes: bool,
        /// Ask nothing
        #[arg(short, long)]
        force: bool,
    },
}
