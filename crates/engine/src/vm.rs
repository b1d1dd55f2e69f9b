//! What a VM is planned from: its image, and its volumes as they are.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zmachine_disk::{self as disk, Content as OnDisk, RawFile, Source, identify};
use zmachine_hypervisor::choice::Hypervisor;
use zmachine_hypervisor::qemu::Firmware;
use zmachine_image::{Image, ImageKind, Library, Reference};
use zmachine_kernel::FsDriver;
use zmachine_plan::KernelChoice;
use zmachine_plan::container::channel_driver;
use zmachine_plan::vm::{DiskSource, VmFacts, VmStart};
use zmachine_spec::volume::ResolvedVolume;
use zmachine_spec::{Class, Failure, MachineSpec, ModeChoice};
use zmachine_store::disk_source::open_source;

use super::Engine;

/// The disk image of this host that the reference leads to, when it leads to one.
pub(super) fn host_disk(spec: &MachineSpec, cwd: &Path) -> Result<Option<PathBuf>, Failure> {
    let Ok(Reference::Path(path)) = Reference::parse(&spec.flist, cwd) else {
        return Ok(None);
    };
    if !path.is_file() || spec.mode == ModeChoice::Container {
        return Ok(None);
    }
    let named = [".qcow2", ".raw", ".img"].iter().any(|end| spec.flist.ends_with(end));
    let mut start = [0; 4];
    let is_qcow2 =
        std::os::unix::fs::FileExt::read_exact_at(&File::open(&path)?, &mut start, 0).is_ok() && start == *b"QFI\xfb";
    if named || is_qcow2 || has_gpt(&path) {
        return Ok(Some(path));
    }
    Ok(None)
}

/// The length of the disk that a VM starts from, in bytes; `None` when this makes no VM.
pub(super) fn vm_disk_bytes(spec: &MachineSpec, cwd: &Path, image: Option<&Image>) -> Result<Option<u64>, Failure> {
    Ok(match image.map(|image| &image.facts.kind) {
        Some(ImageKind::KernelDisk { image: disk, .. } | ImageKind::Disk { image: disk }) => Some(disk.size),
        Some(ImageKind::Container | ImageKind::OwnKernel { .. }) => None,
        None => match host_disk(spec, cwd)? {
            // What is no disk image is refused where it is looked at.
            Some(path) => disk::open(&path).ok().map(|(_, disk)| disk.len()),
            None => None,
        },
    })
}

fn has_gpt(path: &Path) -> bool {
    let found = File::open(path)
        .and_then(RawFile::new)
        .and_then(|mut raw| identify(&mut raw, 0));
    matches!(found, Ok(OnDisk::Gpt { .. }))
}

impl Engine {
    /// The kernel of the appliance machine; `None` when none is installed.
    pub(super) fn appliance_kernel(&self, hypervisor: Hypervisor) -> Option<KernelChoice> {
        let drivers = ["btrfs", "xfs"].into_iter().filter_map(FsDriver::of);
        let drivers: Vec<FsDriver> = drivers.chain(channel_driver(hypervisor)).collect();
        self.kernel(None, &drivers).ok()
    }

    /// The facts of a VM whose disk is a file of this host.
    pub(super) fn host_disk_facts(
        &self,
        path: &Path,
        wanted: &[ResolvedVolume],
        hypervisor: Hypervisor,
    ) -> Result<VmFacts, Failure> {
        let meta = path.metadata()?;
        // What was installed from a file is known again by these; its content may be huge.
        let identity = format!(
            "{} {} {} {}",
            path.display(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        let source = DiskSource::Host { path: path.to_owned() };
        let (_, mut bytes) = disk::open(path).map_err(|e| {
            Failure::from_error(Class::Usage, &e)
                .hint("give a whole disk as a raw or qcow2 image, with all its data in that file")
        })?;
        let found = identify(bytes.as_mut(), 0)?;
        Ok(VmFacts {
            start: VmStart::Firmware {
                firmware: Firmware::find(),
            },
            digest: zmachine_flist::Digest::blake2b_32(identity.as_bytes()).to_string(),
            bytes: bytes.len(),
            unbootable: unbootable(&found, bytes.as_mut()),
            source,
            appliance: self.appliance_kernel(hypervisor),
            volumes: boot_first(wanted),
        })
    }

    /// The facts of a VM in a flist; `None` when it is a container. Its kernel is brought to this host and looked at.
    pub(super) fn flist_facts(
        &self,
        library: &Library,
        image: &Image,
        spec: &MachineSpec,
        wanted: &[ResolvedVolume],
        hypervisor: Hypervisor,
    ) -> Result<Option<VmFacts>, Failure> {
        let (start, disk) = match &image.facts.kind {
            ImageKind::KernelDisk {
                kernel,
                initrd,
                image: disk,
            } => {
                let named = |path: &str| format!("{path} of {}", spec.flist);
                let bootable = |bytes: &[u8]| -> Result<(), Failure> {
                    zmachine_kernel::check_bootable(bytes, &named("/kernel")).map_err(|e| {
                        Failure::from(e)
                            .hint("give an uncompressed 64-bit kernel or firmware (ELF with a PVH entry), or a bzImage")
                    })
                };
                let kernel = library.host_file(image, &kernel.path, "kernel", bootable)?;
                let take = |_: &[u8]| Ok::<(), Failure>(());
                let initrd = initrd.as_ref();
                let initrd = initrd
                    .map(|file| library.host_file(image, &file.path, "initrd", take))
                    .transpose()?;
                (VmStart::Kernel { kernel, initrd }, disk)
            }
            ImageKind::Disk { image: disk } => {
                let firmware = Firmware::find();
                (VmStart::Firmware { firmware }, disk)
            }
            ImageKind::Container | ImageKind::OwnKernel { .. } => return Ok(None),
        };
        let source = DiskSource::Flist {
            image: image.digest.to_string(),
            file: disk.path.clone(),
            stores: spec.stores.clone(),
        };
        let unbootable = match start {
            VmStart::Kernel { .. } => None,
            VmStart::Firmware { .. } => {
                let mut bytes = open_source(&self.home, &source)?;
                let found = identify(bytes.as_mut(), 0);
                let found =
                    found.map_err(|e| Failure::from_error(Class::Fetch, &e).context("the image cannot be read"))?;
                unbootable(&found, bytes.as_mut())
            }
        };
        Ok(Some(VmFacts {
            start,
            source,
            digest: image.digest.to_string(),
            bytes: disk.size,
            unbootable,
            appliance: self.appliance_kernel(hypervisor),
            volumes: boot_first(wanted),
        }))
    }
}

/// What firmware cannot start, or nobody can fit to a volume.
fn unbootable(found: &OnDisk, bytes: &mut dyn Source) -> Option<String> {
    match found {
        OnDisk::Gpt { .. } => {
            let wrong = disk::gpt::check(bytes).err()?;
            let cause = std::error::Error::source(&wrong).map_or_else(String::new, |cause| format!(": {cause}"));
            Some(format!("a GPT, but {wrong}{cause}"))
        }
        other => (!other.boots_without_gpt()).then(|| other.to_string()),
    }
}

/// The volumes of a VM in the order of its disks: the one for `/` first, else as they were asked for.
fn boot_first(wanted: &[ResolvedVolume]) -> Vec<ResolvedVolume> {
    let mut volumes = wanted.to_vec();
    if let Some(at) = volumes.iter().position(|volume| volume.target == "/") {
        volumes[..=at].rotate_right(1);
    }
    volumes
}
