//! What is on the boot volume as large as the volume: after the image was installed, and after the volume was grown.

use std::fs::{File, OpenOptions};

use zmachine_disk::gpt::{self, Partition};
use zmachine_disk::{Content, Filesystem, RawFile, identify};
use zmachine_plan::VmPlan;
use zmachine_spec::{Class, Failure};
use zmachine_store::log::Source;
use zmachine_store::volume::Volume;

use super::super::context::Monitor;

/// File systems do not use the last bytes of a disk that make no whole group of theirs.
const SLACK: u64 = 16 << 20;

/// A file system that is smaller than what it is on.
struct Small {
    filesystem: Filesystem,
    partition: Option<u32>,
}

impl Monitor {
    /// Fits the partition table and the file system to the volume's size. A volume that cannot be fitted is used as it is,
    /// with a warning: it may hold what nobody but its guest understands.
    pub(super) async fn fit(&mut self, plan: &VmPlan) -> Result<(), Failure> {
        if plan.install().is_none() {
            return Ok(());
        }
        // It stays locked by this monitor, also when this is cut short.
        let boot = self.volumes.first().map(|held| held.volume.clone());
        let result = match boot {
            Some(boot) => match find_small(boot.data().as_path()) {
                Ok(Some(small)) => self.grow_small(plan, &boot, &small).await,
                Ok(None) => Ok(()),
                Err(failure) => Err(failure),
            },
            None => Ok(()),
        };
        match result {
            Err(failure) if failure.class != Class::Conflict => {
                let text = format!("the file system is not as large as its volume: {failure}");
                self.log.note(Source::Monitor, &text);
                self.machine.state.warn(text);
                Ok(())
            }
            other => other,
        }
    }

    async fn grow_small(&mut self, plan: &VmPlan, boot: &Volume, small: &Small) -> Result<(), Failure> {
        let Some(kernel) = &plan.appliance else {
            return Err(Failure::new(
                Class::NotFound,
                "no guest kernel is installed, with which it could be grown",
            )
            .hint("zmachine kernel install"));
        };
        let fstype = small.filesystem.kind.name();
        let on = (plan.hypervisor.driver, plan.vm.accel);
        self.grow_in_appliance(on, kernel, boot, small.partition, fstype).await
    }
}

/// Fits the partition table, if there is one, and finds the file system that is smaller than it could be.
fn find_small(path: &std::path::Path) -> Result<Option<Small>, Failure> {
    let mut raw = RawFile::new(File::open(path)?)?;
    let (partition, offset, bytes) = match identify(&mut raw, 0)? {
        Content::Filesystem(filesystem) => {
            let bytes = zmachine_disk::Source::len(&raw);
            return Ok(is_small(filesystem, bytes).then_some(Small {
                filesystem,
                partition: None,
            }));
        }
        Content::Gpt { .. } => {
            let mut disk = OpenOptions::new().read(true).write(true).open(path)?;
            let Partition { number, offset, bytes } =
                gpt::fit(&mut disk).map_err(|e| Failure::from_error(Class::Failed, &e))?;
            (number, offset, bytes)
        }
        _ => return Ok(None),
    };
    match identify(&mut raw, offset)? {
        Content::Filesystem(filesystem) if is_small(filesystem, bytes) => Ok(Some(Small {
            filesystem,
            partition: Some(partition),
        })),
        _ => Ok(None),
    }
}

fn is_small(filesystem: Filesystem, bytes: u64) -> bool {
    filesystem.size_bytes.saturating_add(SLACK) < bytes
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_file_system_below_its_disk_is_found_and_one_that_fills_it_is_not() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(64 << 20).unwrap();
        let mut mkfs = Command::new("/usr/sbin/mke2fs");
        mkfs.args(["-q", "-t", "ext4"]).arg(disk.path());
        assert!(crate::tests::status_of(&mut mkfs).success());
        assert!(find_small(disk.path()).unwrap().is_none());
        disk.as_file().set_len(256 << 20).unwrap();
        let small = find_small(disk.path()).unwrap().unwrap();
        assert_eq!((small.filesystem.kind.name(), small.partition), ("ext4", None));
    }

    #[test]
    fn what_nobody_here_understands_is_left_alone() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(disk.path(), vec![7; 1 << 20]).unwrap();
        assert!(find_small(disk.path()).unwrap().is_none());
    }
}
