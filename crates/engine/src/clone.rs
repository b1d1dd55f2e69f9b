//! A machine that is a copy of another one.
//!
//! Its disk, and every volume that it writes to, are copied, sharing their blocks where the file system can. Volumes that it only reads
//! and directories of this host are shared. What only one machine can have, it gets anew: name, addresses, ports of the host.

use std::path::Path;

use zmachine_flist::Digest;
use zmachine_image::{Progress, PullPolicy};
use zmachine_network::PublishRequest;
use zmachine_plan::Plan;
use zmachine_plan::vm::DiskSource;
use zmachine_spec::{Class, Failure, MachineSpec, NetworkRequest, Origin, VolumeRequest};
use zmachine_store::catalog::Machine;

use crate::Engine;
use crate::create::CreateOptions;
use crate::root::copy_file;

/// The files of a machine that its guest wrote.
const WRITTEN: [&str; 2] = ["root.img", "firmware.vars"];

impl Engine {
    /// Makes a copy of a machine that does not run. It is not started.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it runs, or a volume of it is in use; as [`Engine::create`]. Nothing is left then.
    pub fn clone_machine(&self, name: &str, new: &str, progress: &dyn Progress) -> Result<Machine, Failure> {
        let machine = self.machine(name)?;
        if machine.state.phase.is_active() {
            let message = format!("machine '{}' is {}", machine.spec.name, machine.state.phase.word());
            return Err(Failure::new(Class::Conflict, message).hint(format!("stop it first: zmachine stop {name}")));
        }
        let _held = self.held(&machine)?;
        let spec = MachineSpec {
            volumes: self.volumes_of_clone(&machine.spec)?,
            ..spec_of_copy(&machine.spec, new)
        };
        let options = CreateOptions {
            cwd: Path::new("/"),
            pull: PullPolicy::Never,
            installs_kernel: false,
            progress,
        };
        let image = image_of(&machine.plan()?);
        let created = self.create_from(&spec, &options, image.as_ref(), |new| {
            let copy = |file: &&str| copy_file(&machine.dir.join(file), &new.join(file));
            WRITTEN.iter().try_for_each(copy)
        })?;
        let copied = self.copy_volumes(&machine, &created);
        if let Err(failure) = copied {
            let _ = self.remove(&created.id, true, true);
            return Err(failure);
        }
        Ok(created)
    }

    fn volumes_of_clone(&self, of: &MachineSpec) -> Result<Vec<VolumeRequest>, Failure> {
        let mut volumes = Vec::new();
        for request in &of.volumes {
            volumes.push(match &request.origin {
                Origin::Named(name) if !request.read_only => {
                    let volume = self.volumes().get(name)?;
                    VolumeRequest {
                        origin: Origin::Anonymous,
                        size_bytes: Some(volume.size_bytes),
                        fs: Some(volume.record.fs),
                        ..request.clone()
                    }
                }
                _ => request.clone(),
            });
        }
        Ok(volumes)
    }

    fn copy_volumes(&self, from: &Machine, to: &Machine) -> Result<(), Failure> {
        let volumes = self.volumes();
        let of = |machine: &Machine| volumes.wanted(&machine.spec.volumes, &machine.id);
        for (source, target) in of(from)?.iter().zip(&of(to)?) {
            if source.name == target.name {
                continue;
            }
            let source = volumes.hold(&source.name, true, &from.id)?;
            let (disk, content) = (source.volume.data(), source.volume.record.content.clone());
            volumes.hold(&target.name, false, &to.id)?.fill(&disk, content)?;
        }
        Ok(())
    }
}

/// What a copy of a machine is made by; its volumes are the caller's business.
pub(super) fn spec_of_copy(of: &MachineSpec, new: &str) -> MachineSpec {
    let network = |request: &NetworkRequest| NetworkRequest {
        ipv4: None,
        ipv6: None,
        ..request.clone()
    };
    let publish = |request: &PublishRequest| PublishRequest {
        host: None,
        ..request.clone()
    };
    // A project of compose would take the copy for its own, and remove it.
    let labels = of.labels.clone().into_iter();
    let labels = labels.filter(|(name, _)| !name.starts_with("com.docker.compose."));
    MachineSpec {
        name: new.to_owned(),
        labels: labels.collect(),
        networks: of.networks.iter().map(network).collect(),
        publish: of.publish.iter().map(publish).collect(),
        pod: None,
        ..of.clone()
    }
}

/// The image that a machine was made from; `None` for a disk image of this host.
pub(super) fn image_of(plan: &Plan) -> Option<Digest> {
    match plan {
        Plan::Container(plan) => plan.image.parse().ok(),
        Plan::Vm(plan) => match plan.install().map(|install| &install.source) {
            Some(DiskSource::Flist { image, .. }) => image.parse().ok(),
            Some(DiskSource::Host { .. }) | None => None,
        },
    }
}
