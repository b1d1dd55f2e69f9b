//! What the processes of a machine are started with: nothing for users.

use std::path::PathBuf;

use clap::Args;
use zmachine_spec::{Failure, Home};
use zmachine_store::killpoint::At;

use super::words;

/// The state that a process works on
#[derive(Debug, Args)]
pub(crate) struct HomeArgs {
    #[arg(long)]
    data: PathBuf,
    #[arg(long)]
    run: PathBuf,
}

impl HomeArgs {
    pub(crate) fn open(&self) -> Result<Home, Failure> {
        Home::open(&self.data, &self.run)
    }
}

#[derive(Debug, Args)]
pub(crate) struct MonitorRole {
    #[command(flatten)]
    pub(crate) home: HomeArgs,
    #[arg(long)]
    pub(crate) id: String,
    #[arg(long)]
    pub(crate) report_fd: i32,
    #[arg(long)]
    pub(crate) wait_for_owner: bool,
    #[arg(long)]
    pub(crate) ends_with_client: bool,
    /// The folder of a snapshot that it goes on from
    #[arg(long, requires = "memory_fd")]
    pub(crate) restore: Option<PathBuf>,
    #[arg(long, requires = "restore")]
    pub(crate) memory_fd: Option<i32>,
    #[arg(long)]
    pub(crate) shared_memory: bool,
    #[arg(long)]
    pub(crate) fork: bool,
    /// A volume that is held for it: FD:NAME
    #[arg(long = "held-volume")]
    pub(crate) held_volumes: Vec<String>,
    /// It waits to be taken for a machine like it
    #[arg(long, requires = "restore")]
    pub(crate) stands_by: bool,
    #[arg(long, conflicts_with = "restore")]
    pub(crate) template: Option<String>,
    #[arg(long)]
    pub(crate) abort_at: Option<At>,
}

#[derive(Debug, Args)]
pub(crate) struct RootfsRole {
    #[arg(long)]
    pub(crate) image_dir: PathBuf,
    #[arg(long)]
    pub(crate) blocks_dir: PathBuf,
    #[arg(long)]
    pub(crate) listener_fd: i32,
    #[arg(long)]
    pub(crate) events_fd: i32,
    #[arg(long)]
    pub(crate) serial: String,
    #[arg(long, default_value_t = 1)]
    pub(crate) queues: u16,
    #[arg(long)]
    pub(crate) nbd: bool,
    /// What it locks itself into, as JSON
    #[arg(long)]
    pub(crate) jail: Option<String>,
    /// The file with the credentials of stores
    #[arg(long)]
    pub(crate) credentials: PathBuf,
    #[arg(long, default_value = "none", value_parser = words::parser(words::PREFETCH))]
    pub(crate) prefetch: zmachine_rootfs::Prefetch,
    #[arg(long)]
    pub(crate) record: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompleteRole {
    #[command(flatten)]
    pub(crate) home: HomeArgs,
    #[arg(long)]
    pub(crate) image: String,
    #[arg(long)]
    pub(crate) authfile: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct StandbyRole {
    #[command(flatten)]
    pub(crate) home: HomeArgs,
    /// The digest of their image
    #[arg(long)]
    pub(crate) image: String,
    /// The key of their template
    #[arg(long)]
    pub(crate) template: String,
}

#[derive(Debug, Args)]
pub(crate) struct MemoryRole {
    #[command(flatten)]
    pub(crate) home: HomeArgs,
    #[arg(long)]
    pub(crate) folder: PathBuf,
    #[arg(long)]
    pub(crate) memory_fd: i32,
}

#[derive(Debug, Args)]
pub(crate) struct ShareRole {
    #[arg(long)]
    pub(crate) listener_fd: i32,
    #[arg(long)]
    pub(crate) mount_point: PathBuf,
    #[arg(long, conflicts_with = "image", required_unless_present = "image")]
    pub(crate) directory: Option<PathBuf>,
    #[arg(long)]
    pub(crate) read_only: bool,
    #[arg(long, requires = "directory")]
    pub(crate) following: bool,
    #[arg(long)]
    pub(crate) image: Option<PathBuf>,
    #[arg(long)]
    pub(crate) layer: Option<PathBuf>,
    /// What it locks itself into, as JSON
    #[arg(long)]
    pub(crate) jail: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct JailRole {
    /// What it locks itself into, as JSON
    #[arg(long)]
    pub(crate) jail: String,
    /// What it becomes; nothing: it writes one byte when it is inside, and ends with its input
    #[arg(last = true)]
    pub(crate) program: Vec<std::ffi::OsString>,
}
