//! `zmachine image`, and the same under docker's words.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Format;
use crate::listing::ListingArgs;

/// `pull`
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// All blocks of a flist too; those of other images come anyway
    #[arg(long)]
    pub(crate) blocks: bool,
    /// Say nothing of how far it is
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The image: a name in a registry (nginx, ghcr.io/org/app:1.2), a path, the URL of a flist, docker://NAME, oci:DIR,
    /// oci-archive:FILE or docker-archive:FILE; or NAME=IMAGE
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// The name it gets here; that of the registry, the archive or the file when not given
    pub(crate) name: Option<String>,
}

/// `images`
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    #[command(flatten)]
    pub(crate) listing: ListingArgs,
    /// Docker's flag: images without a name are always shown
    #[arg(short, long, hide = true)]
    pub(crate) all: bool,
    /// Only images with this name, or names: '*' and '?' stand for any characters but '/'
    #[arg(value_name = "IMAGE")]
    pub(crate) reference: Option<String>,
}

/// `tag`
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// A name, or the beginning of a digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// The name that it gets as well
    pub(crate) name: String,
}

/// `load`
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The archive; standard input when not given
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Say nothing of how far it is
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `rmi`
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Names, or beginnings of digests, which stand for all names of an image
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

/// `save`
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The archive to write; standard output when not given
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Its form
    #[arg(long, value_enum, default_value = "docker-archive")]
    pub(crate) format: ArchiveForm,
    /// Names, or beginnings of digests
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArchiveForm {
    DockerArchive,
    OciArchive,
}

/// `push`
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Say nothing of how far it is
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// A name, or the beginning of a digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Its name in a registry, when that is another one
    #[arg(value_name = "[docker://]NAME")]
    pub(crate) target: Option<String>,
}

/// `history`
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// Show commands whole
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// A name, or the beginning of a digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

/// `image inspect`
#[derive(Debug, Args)]
pub(crate) struct InspectImageArgs {
    /// Show each by a template as docker's: '{{.Config.User}}', '{{json .Config.Env}}'
    #[arg(short, long, value_name = "TEMPLATE")]
    pub(crate) format: Option<String>,
    /// Names, or beginnings of digests
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

/// `login`
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The user; asked for when not given
    #[arg(short, long)]
    pub(crate) username: Option<String>,
    /// The password; better on standard input, since others see command lines
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub(crate) password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// The file to write; that of docker or podman when not given
    #[arg(long, value_name = "FILE")]
    pub(crate) authfile: Option<PathBuf>,
    /// HOST or HOST:PORT; the default registry when not given
    pub(crate) registry: Option<String>,
}

/// `logout`
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The file to change; those of docker and podman when not given
    #[arg(long, value_name = "FILE")]
    pub(crate) authfile: Option<PathBuf>,
    /// HOST or HOST:PORT; the default registry when not given
    pub(crate) registry: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Bring an image here, from a registry, an archive, or wherever a flist is
    Pull(PullArgs),
    /// List local images
    Ls(ImagesArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Bring the images of an archive here, as 'docker save' and others write it
    Load(LoadArgs),
    /// Show everything about images, as JSON
    Inspect(InspectImageArgs),
    /// Show the steps that made an image
    History(HistoryArgs),
    /// Write images into an archive that docker, podman and skopeo read
    Save(SaveArgs),
    /// Bring an image to a registry
    Push(PushArgs),
    /// Remove images without a name that no machine uses, and layers and blocks that no image has
    Prune {
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Show how much the cache of blocks holds; set how much it may, and where it is; verify it
    #[command(args_conflicts_with_subcommands = true)]
    Cache {
        #[command(subcommand)]
        command: Option<CacheCommand>,
        /// A folder for the blocks of this home and of others that name it too, or `none` for a cache of its own. Blocks of
        /// its own come along; its machines must be stopped
        #[arg(long, value_name = "FOLDER|none")]
        shared: Option<PathBuf>,
        /// The most it may have on disk (`20G`), or `none`; one limit for all homes that share it. The least recently used blocks go first; none that a
        /// running machine may read, and none of images that no store has
        #[arg(long, value_name = "SIZE|none")]
        limit: Option<String>,
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Print what the first starts of an image on this host read, in that order: a file for 'flist pack --hints'
    Hints {
        /// The image: a path, a URL, or the name of a pulled one
        image: String,
    },
    /// Remove names of images, and images with their last name when no machine uses them
    Rm(RmiArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Hash every block of the cache; exits with 5 when one is damaged and was not mended
    Verify {
        /// Remove damaged blocks, and fetch them again when an image has them
        #[arg(long)]
        repair: bool,
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
}
