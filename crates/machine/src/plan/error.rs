//! Why a machine can not be planned: every refusal there is, with its class and what to do.

use thiserror::Error;

use super::{MIN_MEMORY, MIN_SIZE};
use crate::bytes::Human;
use crate::failure::{Class, Failure};

/// Why a machine can not be planned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("{cpus} CPUs are more than the {available} of this host")]
    Cpus { cpus: u32, available: u32 },
    #[error("a machine needs at least one CPU")]
    NoCpu,
    #[error("{} of memory are below the {} that a machine needs", Human(*bytes), Human(MIN_MEMORY))]
    MemoryTooSmall { bytes: u64 },
    #[error("{} of memory are more than the {} of this host", Human(*bytes), Human(*available))]
    MemoryTooLarge { bytes: u64, available: u64 },
    #[error("a root of {} is below the {} that a file system needs", Human(*bytes), Human(MIN_SIZE))]
    SizeTooSmall { bytes: u64 },
    #[error("'{key}' can not be the name of an environment variable")]
    EnvName { key: String },
    #[error("an empty --entrypoint puts the image's program and its arguments aside, and no command is given")]
    NothingToRun,
    #[error("the working directory '{dir}' is not an absolute path")]
    WorkdirRelative { dir: String },
    #[error("'{hostname}' can not be a host name")]
    Hostname { hostname: String },
    #[error("'{text}' is not an IP address of a name server")]
    Dns { text: String },
    #[error("{0}")]
    Signal(String),
    #[error("a VM needs a volume for its operating system, of {} or more", Human(*image))]
    NoBootVolume { image: u64 },
    #[error("the boot volume '{volume}' can only be read")]
    BootVolumeReadOnly { volume: String },
    #[error("the volume '{volume}' of {} is smaller than the image of {}", Human(*bytes), Human(*image))]
    VolumeTooSmall { volume: String, bytes: u64, image: u64 },
    #[error("the volume '{volume}' holds {holds}, not this image")]
    VolumeOccupied { volume: String, holds: String },
    #[error("the disk image is empty")]
    EmptyImage,
    #[error("firmware can not start this disk image: it holds {holds}")]
    Unbootable { holds: String },
    #[error("this host has no UEFI firmware for virtual machines")]
    NoFirmware,
    #[error("{flag} does not go with a VM: its operating system decides that itself")]
    NotForVms { flag: &'static str },
    #[error("{flag} does not go with an image that has its own kernel: what starts in it is up to the image")]
    NotForOwnKernels { flag: &'static str },
    #[error("--size does not go with a VM: its root is as large as its volume")]
    SizeOfVm,
    #[error("{flag} goes with VMs, and this image makes a container")]
    OnlyForVms { flag: &'static str },
    #[error("the environment variable '{key}' would decide how the VM's kernel boots")]
    ProtectedKey { key: String },
    #[error("the value of the environment variable '{key}' can not be written on a kernel command line")]
    EnvNotOnCommandLine { key: String },
    #[error("the kernel command line has {bytes} bytes, and a kernel reads at most 2047")]
    CommandLineTooLong { bytes: usize },
    #[error("a VM with its own kernel can be told of 6 networks, not of {wanted}")]
    TooManyInterfaces { wanted: usize },
    #[error("this host has no virtiofsd, which serves directories to guests")]
    NoShareServer,
    #[error("only root can serve directories of this host to guests")]
    SharesNeedRoot,
    #[error("ports are published, but the machine is on no network")]
    PublishWithoutNetwork,
}

impl PlanError {
    fn class(&self) -> Class {
        match self {
            PlanError::Cpus { .. }
            | PlanError::MemoryTooLarge { .. }
            | PlanError::NoFirmware
            | PlanError::NoShareServer
            | PlanError::SharesNeedRoot => Class::Unsupported,
            PlanError::VolumeOccupied { .. } => Class::Conflict,
            _ => Class::Usage,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            PlanError::Cpus { .. } | PlanError::NoCpu => "choose --cpus from 1 to the number of CPUs of this host",
            PlanError::MemoryTooSmall { .. } => "sizes without a unit are bytes; for example --memory 512M",
            PlanError::MemoryTooLarge { .. } => "choose a smaller --memory",
            PlanError::SizeTooSmall { .. } => "sizes without a unit are bytes; for example --size 2G",
            PlanError::EnvName { .. } => "use -e NAME=VALUE, with a name that is not empty",
            PlanError::NothingToRun => "give a command after the image, or leave --entrypoint out",
            PlanError::WorkdirRelative { .. } => "give -w a path that starts with '/'",
            PlanError::Hostname { .. } => "use letters, digits, '-' and '.', at most 64 characters",
            PlanError::Dns { .. } => "for example --dns 9.9.9.9",
            PlanError::Signal(_) => "use a name such as SIGTERM or SIGRTMIN+3, or a number from 1 to 64",
            PlanError::NoBootVolume { .. } => "for example -v boot:/:size=10G",
            PlanError::BootVolumeReadOnly { .. } => "leave out ':ro' of the first -v",
            PlanError::VolumeTooSmall { .. } => "make it larger with 'zmachine volume grow', or take another volume",
            PlanError::VolumeOccupied { .. } => {
                "take another volume, or give up what it holds and install over it with --reinstall"
            }
            PlanError::EmptyImage => "put the system's file system, or its whole disk, into /image.raw",
            PlanError::Unbootable { .. } => {
                "give a whole disk with a GPT and an EFI system partition, or put the system's /kernel beside /image.raw"
            }
            PlanError::NoFirmware => "apt-get install ovmf",
            PlanError::NotForVms { .. } => "leave it out, or use --mode container",
            PlanError::NotForOwnKernels { .. } => "leave it out, or run the image with our kernel: --kernel NAME",
            PlanError::SizeOfVm => "give the size to its first volume: -v NAME:/:size=10G",
            PlanError::OnlyForVms { .. } => "leave it out",
            PlanError::ProtectedKey { .. } => "choose another name, or pass it in --user-data",
            PlanError::EnvNotOnCommandLine { .. } => "leave out line ends and double quotes, or pass it in --user-data",
            PlanError::CommandLineTooLong { .. } => {
                "pass fewer or shorter environment variables; --user-data has room for more"
            }
            PlanError::TooManyInterfaces { .. } => "leave out a --network",
            PlanError::NoShareServer => zmachine_share::MissingServer.hint(),
            PlanError::SharesNeedRoot => "run zmachine as root, or use a volume: -v NAME:/path",
            PlanError::PublishWithoutNetwork => "leave out -p, or use --network default",
        }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Failure {
        Failure::from_error(error.class(), &error).hint(error.hint())
    }
}
