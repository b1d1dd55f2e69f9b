//! `zmachine flist`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Format;

/// Where blocks are read from.
#[derive(Debug, Args)]
pub(crate) struct ReadArgs {
    /// Read blocks from here instead of the flist's own stores
    #[arg(short, long, value_name = "URL")]
    pub(crate) store: Vec<String>,
}

/// Where blocks are written to.
#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    /// Where blocks go, and where readers find them: dir:///PATH, zdb://HOST/NAMESPACE, s3://HOST:PORT/BUCKET; with
    /// XX-XX= in front for the blocks whose ids begin so
    #[arg(short, long, required = true, value_name = "[XX-XX=]URL")]
    pub(crate) store: Vec<String>,
    /// Write the credentials of the URLs into the flist, for every reader to see
    #[arg(long)]
    pub(crate) keep_credentials: bool,
    /// Leave the credentials of the URLs out of the flist, which is the default
    #[arg(long, conflicts_with = "keep_credentials")]
    pub(crate) strip_password: bool,
}

impl WriteArgs {
    /// Whether readers of the flist see the credentials of its stores.
    pub(crate) fn publishes_credentials(&self) -> bool {
        self.keep_credentials && !self.strip_password
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum FlistCommand {
    /// Pack a directory or an archive: blocks into stores, metadata into a flist
    Pack {
        /// The directory or the tar archive (also .gz, .zst or .xz); - for an archive on standard input
        source: PathBuf,
        /// The flist to write; one that is there already spares the work of what did not change
        #[arg(short, long, value_name = "FILE.fl")]
        output: PathBuf,
        #[command(flatten)]
        to: WriteArgs,
        /// An earlier flist of about the same tree, if it is not the output
        #[arg(long, value_name = "FILE.fl")]
        base: Option<PathBuf>,
        /// Put a list of what its start reads into the flist ('zmachine image hints'): hosts fetch that first
        #[arg(long, value_name = "FILE")]
        hints: Option<PathBuf>,
        /// Threads; all cores by default
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
        threads: usize,
    },
    /// Make a flist of a container image
    Import {
        /// The image: docker://HOST/NAME:TAG or docker://HOST/NAME@DIGEST (without HOST, docker.io), oci:DIR:NAME,
        /// oci-archive:FILE:NAME or docker-archive:FILE:NAME:TAG; what follows DIR or FILE only where there are several, and
        /// may be the image's number: @0
        image: String,
        /// The flist to write
        #[arg(short, long, value_name = "FILE.fl")]
        output: PathBuf,
        #[command(flatten)]
        to: WriteArgs,
        /// Credentials of registries, as docker and podman write them; theirs by default
        #[arg(long, value_name = "FILE")]
        authfile: Option<PathBuf>,
        /// Speak to the registry without TLS
        #[arg(long)]
        plain_http: bool,
        /// Threads; all cores by default
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
        threads: usize,
    },
    /// Unpack a flist into a directory that is empty or new
    Unpack {
        file: PathBuf,
        /// The directory
        target: PathBuf,
        #[command(flatten)]
        from: ReadArgs,
        /// Leave out owners, setuid and devices, which need root
        #[arg(long)]
        unprivileged: bool,
        /// Threads; all cores by default
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
        threads: usize,
    },
    /// Make a flist of the current format from one of the old format, or in new stores
    Convert {
        file: PathBuf,
        /// The flist to write
        output: PathBuf,
        #[command(flatten)]
        to: WriteArgs,
        /// Read blocks from here instead of the flist's own stores
        #[arg(long, value_name = "URL")]
        from: Vec<String>,
    },
    /// Copy the blocks of a flist to other stores, and let it say so
    Push {
        file: PathBuf,
        #[command(flatten)]
        to: WriteArgs,
        /// The flist to write instead of FILE itself
        #[arg(short, long, value_name = "FILE.fl")]
        output: Option<PathBuf>,
        /// Read blocks from here instead of the flist's own stores
        #[arg(long, value_name = "URL")]
        from: Vec<String>,
    },
    /// Show a flist as a directory, read-only, until it is unmounted or this command is interrupted
    Mount {
        #[command(flatten)]
        from: ReadArgs,
        file: PathBuf,
        /// The directory
        target: PathBuf,
    },
    /// Read every block from every store that should have it
    Verify {
        file: PathBuf,
        #[command(flatten)]
        from: ReadArgs,
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// List what is different between two flists; exits with 1 when there is something
    Diff {
        a: PathBuf,
        b: PathBuf,
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Show what a flist holds
    Inspect {
        file: PathBuf,
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
        /// The same as --output json
        #[arg(long)]
        json: bool,
    },
    /// List files of a flist
    Ls {
        /// Long form: mode, owner, size, time
        #[arg(short)]
        long: bool,
        /// With everything below
        #[arg(short = 'R')]
        recursive: bool,
        file: PathBuf,
        /// A path inside
        #[arg(default_value = "/")]
        path: OsString,
    },
    /// Print a file of a flist
    Cat {
        #[command(flatten)]
        from: ReadArgs,
        file: PathBuf,
        /// The path inside
        path: OsString,
    },
}
