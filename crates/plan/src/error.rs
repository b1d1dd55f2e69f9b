//! Why a machine cannot be planned: every refusal there is, with its class and what to do.

use thiserror::Error;
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure, Setting, signal};

/// Why a machine cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("{cpus} CPUs are more than the {available} of this host")]
    Cpus { cpus: u32, available: u32 },
    #[error("this host has no CPU {cpu} to run on; there are {there}")]
    NoSuchCpu { cpu: u32, there: String },
    #[error("a machine needs at least one CPU")]
    NoCpu,
    #[error("{} of memory are below the {} that a machine needs", Human(*bytes), Human(*least))]
    MemoryTooSmall { bytes: u64, least: u64 },
    #[error("{} of memory are more than the {} of this host", Human(*bytes), Human(*available))]
    MemoryTooLarge { bytes: u64, available: u64 },
    #[error("a root of {} is below the {} that a file system needs", Human(*bytes), Human(*least))]
    SizeTooSmall { bytes: u64, least: u64 },
    #[error("'{key}' cannot be the name of an environment variable")]
    EnvName { key: String },
    #[error("an empty entrypoint puts the image's program and its arguments aside, and no command is given")]
    NothingToRun,
    #[error("the working directory '{dir}' is not an absolute path")]
    WorkdirRelative { dir: String },
    #[error("'{hostname}' cannot be a host name")]
    Hostname { hostname: String },
    #[error("the image's stop signal '{text}' is not a signal")]
    ImageSignal { text: String },
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
    #[error("firmware cannot start this disk image: it holds {holds}")]
    Unbootable { holds: String },
    #[error("this host has no UEFI firmware for virtual machines")]
    NoFirmware,
    #[error("a VM takes no {setting}: its operating system decides that itself")]
    NotForVms { setting: Setting },
    #[error("an image that has its own kernel takes no {setting}: what starts in it is up to the image")]
    NotForOwnKernels { setting: Setting },
    #[error("a machine without a network does not reach this host, so the name for it has no address")]
    NoGateway,
    #[error("a VM takes no root size: its root is as large as its volume")]
    SizeOfVm,
    #[error("a {setting} is for VMs, and this image makes a container")]
    OnlyForVms { setting: Setting },
    #[error("the environment variable '{key}' would decide how the VM's kernel boots")]
    ProtectedKey { key: String },
    #[error("the value of the environment variable '{key}' cannot be written on a kernel command line")]
    EnvNotOnCommandLine { key: String },
    #[error("the kernel command line has {bytes} bytes, and a kernel reads at most 2047")]
    CommandLineTooLong { bytes: usize },
    #[error("a VM with its own kernel can be told of 6 networks, not of {wanted}")]
    TooManyInterfaces { wanted: usize },
    #[error("this host has no virtiofsd, which serves directories to guests")]
    NoShareServer,
    #[error("only root can serve directories of this host to guests")]
    SharesNeedRoot,
    #[error("a machine with {what} cannot be saved while it runs")]
    NotSaveable { what: String },
    #[error("ports are published, but the machine is on no network")]
    PublishWithoutNetwork,
}

impl PlanError {
    fn class(&self) -> Class {
        match self {
            PlanError::Cpus { .. }
            | PlanError::NoSuchCpu { .. }
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
            PlanError::Cpus { .. } | PlanError::NoCpu => "choose from 1 to the number of CPUs of this host",
            PlanError::NoSuchCpu { .. } => "choose among those",
            PlanError::MemoryTooSmall { .. } => "sizes without a unit are bytes; for example 512M",
            PlanError::MemoryTooLarge { .. } => "choose less",
            PlanError::SizeTooSmall { .. } => "sizes without a unit are bytes; for example 2G",
            PlanError::EnvName { .. } => "give it a name that is not empty and has no '='",
            PlanError::NothingToRun => "give a command, or leave the entrypoint to the image",
            PlanError::WorkdirRelative { .. } => "give a path that starts with '/'",
            PlanError::Hostname { .. } => "use letters, digits, '-' and '.', at most 64 characters",
            PlanError::ImageSignal { .. } => signal::HINT,
            PlanError::NoBootVolume { .. } => "give it one for '/': boot:/:size=10G",
            PlanError::BootVolumeReadOnly { .. } => "let it write to its first volume",
            PlanError::VolumeTooSmall { .. } => "make it larger with 'zmachine volume grow', or take another volume",
            PlanError::VolumeOccupied { .. } => "take another volume, or give up what it holds and install over it",
            PlanError::EmptyImage => "put the system's file system, or its whole disk, into /image.raw",
            PlanError::Unbootable { .. } => {
                "give a whole disk with a GPT and an EFI system partition, or put the system's /kernel beside /image.raw"
            }
            PlanError::NoFirmware => "apt-get install ovmf",
            PlanError::NotForVms { .. } => "leave it out, or run the image as a container",
            PlanError::NotForOwnKernels { .. } => "leave it out, or run the image with a guest kernel of this host",
            PlanError::NoGateway => "join a network, or give the address",
            PlanError::SizeOfVm => "give the size to its first volume: NAME:/:size=10G",
            PlanError::OnlyForVms { .. } => "leave it out",
            PlanError::ProtectedKey { .. } => "choose another name, or pass it in user data",
            PlanError::EnvNotOnCommandLine { .. } => "leave out line ends and double quotes, or pass it in user data",
            PlanError::CommandLineTooLong { .. } => {
                "pass fewer or shorter environment variables; user data have room for more"
            }
            PlanError::TooManyInterfaces { .. } => "leave out a network",
            PlanError::NoShareServer => zmachine_share::MissingServer.hint(),
            PlanError::SharesNeedRoot => "run zmachine as root, or use a volume",
            PlanError::NotSaveable { .. } => {
                "leave it out, or run the machine without snapshots and without an idle timeout"
            }
            PlanError::PublishWithoutNetwork => "publish nothing, or join the network 'default'",
        }
    }
}

impl PlanError {
    /// What of the machine's settings can be changed for it.
    fn settings(&self) -> Vec<Setting> {
        match self {
            PlanError::Cpus { .. } | PlanError::NoCpu => vec![Setting::Cpus],
            PlanError::NoSuchCpu { .. } => vec![Setting::CpuSet],
            PlanError::MemoryTooSmall { .. } | PlanError::MemoryTooLarge { .. } => vec![Setting::Memory],
            PlanError::SizeTooSmall { .. } => vec![Setting::Size],
            PlanError::SizeOfVm => vec![Setting::Size, Setting::Volumes],
            PlanError::NoGateway => vec![Setting::Hosts, Setting::Networks],
            PlanError::EnvName { .. } => vec![Setting::Env],
            PlanError::NothingToRun => vec![Setting::Entrypoint],
            PlanError::WorkdirRelative { .. } => vec![Setting::Workdir],
            PlanError::Hostname { .. } => vec![Setting::Hostname],
            PlanError::ImageSignal { .. } => vec![Setting::StopSignal],
            PlanError::NoBootVolume { .. }
            | PlanError::BootVolumeReadOnly { .. }
            | PlanError::VolumeTooSmall { .. }
            | PlanError::SharesNeedRoot => vec![Setting::Volumes],
            PlanError::VolumeOccupied { .. } => vec![Setting::Volumes, Setting::Reinstall],
            PlanError::NotForVms { setting } => vec![*setting, Setting::Mode],
            PlanError::NotForOwnKernels { setting } => vec![*setting, Setting::Kernel],
            PlanError::OnlyForVms { setting } => vec![*setting],
            PlanError::ProtectedKey { .. }
            | PlanError::EnvNotOnCommandLine { .. }
            | PlanError::CommandLineTooLong { .. } => vec![Setting::Env, Setting::UserData],
            PlanError::TooManyInterfaces { .. } => vec![Setting::Networks],
            PlanError::NotSaveable { .. } => vec![Setting::Snapshots],
            PlanError::PublishWithoutNetwork => vec![Setting::Publish, Setting::Networks],
            PlanError::EmptyImage | PlanError::Unbootable { .. } | PlanError::NoFirmware | PlanError::NoShareServer => {
                Vec::new()
            }
        }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Failure {
        let failure = Failure::from_error(error.class(), &error).hint(error.hint());
        error.settings().into_iter().fold(failure, Failure::about)
    }
}
