//! `zmachine snapshot`, `restore` and `fork`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use zmachine_spec::keep::Keep;

use crate::listing::ListingArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
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
        keep: Option<Keep>,
    },
    /// List snapshots
    Ls(ListingArgs),
    /// Show everything about snapshots, as JSON
    Inspect {
        /// Show each by a template as docker's
        #[arg(short, long, value_name = "TEMPLATE")]
        format: Option<String>,
        #[arg(required = true, value_name = "MACHINE[@TAG]")]
        names: Vec<String>,
    },
    /// Write a snapshot as a tar archive, without its image
    Export {
        #[arg(value_name = "MACHINE[@TAG]")]
        name: String,
        /// A file instead of standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Take a snapshot from an archive
    Import {
        /// Standard input when it is left out
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Its name here
        #[arg(long, value_name = "MACHINE[@TAG]")]
        name: Option<String>,
    },
    /// Remove snapshots; machines that were made from them go on
    Rm {
        #[arg(required = true, value_name = "MACHINE@TAG")]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The newest snapshot when no tag is given
    #[arg(value_name = "MACHINE[@TAG]")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// A snapshot; without a tag, the machine as it is now
    #[arg(value_name = "MACHINE[@TAG]")]
    pub(crate) source: String,
    /// How many
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) number: u16,
    /// Its name; of several, what is before '-1', '-2' ...
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Set or pass on an environment variable of what is started in it from now on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Run this in it, as 'zmachine exec' does; in each of several, without waiting for it
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}
