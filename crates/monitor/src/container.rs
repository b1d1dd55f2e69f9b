//! What a container has before its hypervisor starts: the server of its root disk, its writable disk, its volumes, its networks.
//!
//! The rootfs server comes first, and the writable disk is made in a thread: both get ready while the network is set up.
//! Nothing here undoes: every resource is in the journal before it is made, and children die with their handles.

use std::path::{Path, PathBuf};

use zmachine_image::library::blocks_directory;
use zmachine_image::store::CREDENTIALS_FILE;
use zmachine_plan::{ContainerPlan, ROOT_SERIAL};
use zmachine_spec::{Class, Failure, PodLink, PodNetwork};
use zmachine_store::cache::note_later_images;

use super::context::{Monitor, at};
use super::images::Images;
use super::launch::{Backed, Working, in_thread, joined};
use super::rootfs_child;
use super::rootfs_child::RootfsServer;

impl Monitor {
    /// Makes everything that the hypervisor of a container needs.
    pub(super) async fn back_container(&mut self, plan: &mut ContainerPlan) -> Result<Backed, (String, Failure)> {
        let disk = self.make_writable_disk(plan);
        let volumes = self.prepare_volumes(plan.volumes.clone());
        let rootfs = self.start_rootfs(plan).map_err(at("rootfs server"))?;
        if !plan.vm.later_disks.is_empty() {
            // Of a run before.
            note_later_images(&self.home, &self.machine.id, &[]).map_err(at("rootfs server"))?;
        }
        let images = Images::listen(&plan.vm.later_disks, self.sandbox.as_ref()).map_err(at("rootfs server"))?;
        let shares = self.start_shares(&plan.shares).map_err(at("rootfs server"))?;
        self.phase("rootfs server");
        // What was kept of them while it was asleep is made anew.
        self.kept = None;
        let mut attached = self.attach(&plan.attachments).await.map_err(at("network"))?;
        if let Some(network) = &plan.pod_network {
            let taps = zmachine_network::pod::open_taps(&network.namespace, &pod_links(network)).await;
            attached
                .taps
                .extend(taps.map_err(Failure::from).map_err(at("network"))?);
        }
        self.phase("network");
        plan.boot.first_start = joined(disk).await.map_err(at("writable disk"))?;
        self.phase("writable disk");
        self.volumes = joined(volumes).await.map_err(at("volumes"))?;
        self.phase("volumes");
        self.kill.pass("start: volumes ready");
        Ok(Backed {
            saved: None,
            rootfs,
            images,
            shares,
            attached,
        })
    }

    /// Makes the writable disk when it is not there, in a thread: it takes as long as everything else before boot.
    /// Whether it is new.
    fn make_writable_disk(&self, plan: &ContainerPlan) -> Working<bool> {
        let path = self.machine.dir.join("root.img");
        let bytes = plan.upper_bytes;
        in_thread(move || match bytes {
            None => Ok(true),
            Some(_) if path.exists() => Ok(false),
            Some(bytes) => create_upper(path, bytes),
        })
    }

    fn start_rootfs(&mut self, plan: &ContainerPlan) -> Result<Option<RootfsServer>, Failure> {
        let Some(queues) = plan.image_queues() else {
            return Ok(None);
        };
        let socket = self.home.run_dir(&self.machine.id).join("rootfs.sock");
        let image = self.home.data().join("images").join(&plan.image);
        let settings = rootfs_child::Settings {
            record: self.watch.record_first_reads(&image),
            image,
            serial: ROOT_SERIAL.to_owned(),
            blocks: blocks_directory(self.home.data())?,
            credentials: self.home.data().join(CREDENTIALS_FILE),
            stores: plan.stores.clone(),
            queues,
            is_nbd: plan.is_image_by_nbd(),
            prefetch: plan.prefetch,
        };
        let server = RootfsServer::start(&socket, settings, self.sandbox.as_ref())?;
        self.kill.pass("start: rootfs server started");
        self.claim_rootfs(server.id())?;
        Ok(Some(server))
    }
}

/// Name in the namespace, and in the guest, of each link.
fn pod_links(network: &PodNetwork) -> Vec<(String, String)> {
    let names = |link: &PodLink| (link.link.clone(), link.interface.name.clone());
    network.links.iter().map(names).collect()
}

/// Removes what a power cut left of a disk that was being made. Nobody else makes this machine's: its lock is ours.
fn remove_unfinished(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return;
    };
    let unfinished = format!("{}.new-", name.to_string_lossy());
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&unfinished) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn create_upper(path: PathBuf, bytes: u64) -> Result<bool, Failure> {
    remove_unfinished(&path);
    zmachine_rootfs::create_upper(&path, bytes).map_err(|e| Failure::from_error(Class::Failed, &e))?;
    Ok(true)
}
