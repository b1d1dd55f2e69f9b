//! What containerd asks of a snapshotter. Everything here blocks.
//!
//! A layer is never unpacked: when containerd is about to fetch the first one of an image, the image comes into the library of this host,
//! and containerd is told of each of its layers that it is there already. A container's snapshot is a mount of its image, read-only, that
//! names the image; who makes a pod of it ignores the mount and gives the pod the image as a disk, with a writable layer in the pod.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tonic::Status;
use zmachine_spec::pod::IMAGE_OPTION;
use zmachine_spec::{Class, Failure};

use crate::filter::Filter;
use crate::images::Images;
use crate::table::{Kind, LayerOf, Snapshot, Table, TableError};
use crate::wire;

/// The chain of layers that a snapshot will be, by which containerd looks for it afterwards.
const TARGET: &str = "containerd.io/snapshot.ref";
/// The image that is pulled.
const REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
/// The digest of the image's manifest.
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// This layer and those above it, as far as a label takes them.
const LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// So many snapshots are in one message of a list.
const PIECE: usize = 100;

/// The snapshotter.
pub(crate) struct Snapshots {
    images: Images,
    table: Mutex<Table>,
}

fn failed(failure: Failure) -> Status {
    let text = match &failure.hint {
        Some(hint) => format!("{failure}: {hint}"),
        None => failure.to_string(),
    };
    match failure.class {
        Class::NotFound => Status::not_found(text),
        Class::Usage => Status::invalid_argument(text),
        Class::Fetch => Status::unavailable(text),
        _ => Status::internal(text),
    }
}

fn unwritten(error: TableError) -> Status {
    Status::internal(error.to_string())
}

fn missing(name: &str) -> Status {
    Status::not_found(format!("there is no snapshot {name}"))
}

impl Snapshots {
    /// The snapshots of `table`, of images of `images`.
    pub(crate) fn new(images: Images, table: Table) -> Snapshots {
        Snapshots {
            images,
            table: Mutex::new(table),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives everything on this host back that ends with this program.
    pub(crate) fn end(&self) {
        self.images.end();
    }

    /// `Prepare` and `View`: a layer of an image that is pulled, or a container's root.
    pub(crate) fn prepare(&self, request: wire::PrepareRequest, kind: Kind) -> Result<wire::MountsResponse, Status> {
        let wire::PrepareRequest {
            key, parent, labels, ..
        } = request;
        if self.table().get(&key).is_some() {
            return Err(Status::already_exists(format!("there is a snapshot {key} already")));
        }
        let below = match parent.as_str() {
            "" => None,
            parent => Some(self.table().get(parent).cloned().ok_or_else(|| missing(parent))?),
        };
        if let Some(target) = labels.get(TARGET) {
            return Err(self.admit(target, &parent, below.as_ref(), &labels));
        }
        let of = below.and_then(|below| below.image).ok_or_else(|| {
            Status::unimplemented("this snapshotter has images of registries alone: nothing can be unpacked into it")
        })?;
        let image = self.whole(&parent, of)?;
        let mounts = self.mounts_of(&image)?;
        if kind == Kind::Active {
            self.images.complete_later(&image.digest);
        }
        let mut snapshot = Snapshot::new(kind, &parent, Some(image));
        snapshot.labels = labels.into_iter().collect();
        self.table().set(&key, snapshot).map_err(unwritten)?;
        Ok(wire::MountsResponse { mounts })
    }

    /// Takes a layer for one that is here; the answer by which containerd knows, or why it is not.
    fn admit(&self, target: &str, parent: &str, below: Option<&Snapshot>, labels: &HashMap<String, String>) -> Status {
        let is_there = Status::already_exists(format!("the layer {target} is here"));
        if self.table().get(target).is_some() {
            return is_there;
        }
        let Some(reference) = labels.get(REFERENCE) else {
            return Status::unimplemented(
                "containerd does not say which image this is: its configuration wants 'disable_snapshot_annotations = false', and images \
                 come by the container runtime interface, not by ctr",
            );
        };
        // The same image for all its layers, however its tag moves meanwhile; a layer that it has in common with one that is here already
        // begins anew.
        let depth = below
            .and_then(|below| below.image.as_ref())
            .map_or(0, |image| image.depth)
            + 1;
        let digest = match self.images.bring(reference, labels.get(MANIFEST).map(String::as_str)) {
            Ok(digest) => digest,
            Err(failure) => return failed(failure),
        };
        let layers = labels.get(LAYERS).map(String::as_str).unwrap_or_default();
        let image = LayerOf {
            digest,
            depth,
            is_whole: layers.split(',').filter(|layer| !layer.is_empty()).count() == 1,
        };
        let mut snapshot = Snapshot::new(Kind::Committed, parent, Some(image));
        snapshot.labels = labels
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        match self.table().set(target, snapshot) {
            Ok(()) => is_there,
            Err(error) => unwritten(error),
        }
    }

    /// The image that ends with the layer `name`, as it is by now.
    fn whole(&self, name: &str, of: LayerOf) -> Result<LayerOf, Status> {
        let current = self.images.current(&of.digest);
        if of.is_whole && current == of.digest {
            return Ok(of);
        }
        let digest = match of.is_whole {
            true => current,
            false => self.images.first_layers(&current, of.depth).map_err(failed)?,
        };
        let whole = LayerOf {
            digest,
            is_whole: true,
            ..of
        };
        let mut table = self.table();
        if let Some(mut layer) = table.get(name).cloned() {
            layer.image = Some(whole.clone());
            table.set(name, layer).map_err(unwritten)?;
        }
        Ok(whole)
    }

    fn mounts_of(&self, image: &LayerOf) -> Result<Vec<wire::Mount>, Status> {
        let directory = self.images.directory(&image.digest).map_err(failed)?;
        Ok(vec![wire::Mount {
            kind: "bind".to_owned(),
            source: directory.display().to_string(),
            target: String::new(),
            options: vec![
                "rbind".to_owned(),
                "ro".to_owned(),
                format!("{IMAGE_OPTION}{}", image.digest),
            ],
        }])
    }

    /// The mounts of a container's snapshot.
    pub(crate) fn mounts(&self, key: &str) -> Result<wire::MountsResponse, Status> {
        let snapshot = self.table().get(key).cloned().ok_or_else(|| missing(key))?;
        match snapshot.image {
            Some(mut image) if snapshot.kind != Kind::Committed => {
                image.digest = self.images.current(&image.digest);
                Ok(wire::MountsResponse {
                    mounts: self.mounts_of(&image)?,
                })
            }
            _ => Err(Status::failed_precondition(format!(
                "{key} is a layer, and has no mounts"
            ))),
        }
    }

    /// What a container wrote is in its pod.
    pub(crate) fn commit(&self, request: &wire::CommitRequest) -> Result<wire::Empty, Status> {
        Err(Status::unimplemented(format!(
            "{}: what a container of a pod wrote is in the pod's machine, and cannot become a layer here",
            request.key
        )))
    }

    /// Forgets a snapshot; the last one of an image gives the image back.
    pub(crate) fn remove(&self, key: &str) -> Result<wire::Empty, Status> {
        let mut table = self.table();
        if table.iter().any(|(_, snapshot)| snapshot.parent == key) {
            return Err(Status::failed_precondition(format!(
                "there are snapshots on top of {key}"
            )));
        }
        let removed = table.remove(key).map_err(unwritten)?.ok_or_else(|| missing(key))?;
        let digest = removed.image.map(|image| self.images.current(&image.digest));
        let is_used = |digest: &String| {
            let mut images = table.iter().filter_map(|(_, snapshot)| snapshot.image.as_ref());
            images.any(|image| self.images.current(&image.digest) == *digest)
        };
        let unused = digest.filter(|digest| !is_used(digest));
        drop(table);
        if let Some(digest) = unused {
            self.images.give_up(&digest);
        }
        Ok(wire::Empty {})
    }

    /// One snapshot.
    pub(crate) fn stat(&self, key: &str) -> Result<wire::InfoResponse, Status> {
        let table = self.table();
        let snapshot = table.get(key).ok_or_else(|| missing(key))?;
        Ok(wire::InfoResponse {
            info: Some(info(key, snapshot)),
        })
    }

    /// Changes labels: those that the mask names, or all.
    pub(crate) fn update(&self, request: wire::UpdateRequest) -> Result<wire::InfoResponse, Status> {
        let wanted = request
            .info
            .ok_or_else(|| Status::invalid_argument("no snapshot is named"))?;
        let paths = request.mask.map(|mask| mask.paths).unwrap_or_default();
        let mut table = self.table();
        let mut snapshot = table.get(&wanted.name).cloned().ok_or_else(|| missing(&wanted.name))?;
        relabel(&mut snapshot.labels, &wanted.labels, &paths).map_err(Status::invalid_argument)?;
        snapshot.updated_at = Timestamp::now();
        let answer = info(&wanted.name, &snapshot);
        table.set(&wanted.name, snapshot).map_err(unwritten)?;
        Ok(wire::InfoResponse { info: Some(answer) })
    }

    /// All snapshots for which one of the filters holds.
    pub(crate) fn list(&self, filters: &[String]) -> Result<Vec<wire::ListResponse>, Status> {
        let filters: Result<Vec<Filter>, String> = filters.iter().map(|text| Filter::parse(text)).collect();
        let filters = filters.map_err(Status::invalid_argument)?;
        let table = self.table();
        let holds = |name: &String, snapshot: &Snapshot| {
            filters.is_empty() || filters.iter().any(|filter| filter.holds(name, snapshot))
        };
        let found = table.iter().filter(|(name, snapshot)| holds(name, snapshot));
        let all: Vec<wire::Info> = found.map(|(name, snapshot)| info(name, snapshot)).collect();
        Ok(all
            .chunks(PIECE)
            .map(|piece| wire::ListResponse { info: piece.to_vec() })
            .collect())
    }

    /// What it takes: blocks are shared by all images, and no snapshot's own.
    pub(crate) fn usage(&self, key: &str) -> Result<wire::UsageResponse, Status> {
        self.stat(key)?;
        Ok(wire::UsageResponse::default())
    }
}

fn relabel(
    labels: &mut BTreeMap<String, String>,
    new: &HashMap<String, String>,
    paths: &[String],
) -> Result<(), String> {
    if paths.is_empty() || paths.iter().any(|path| path == "labels") {
        *labels = new.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        return Ok(());
    }
    for path in paths {
        let name = path
            .strip_prefix("labels.")
            .ok_or_else(|| format!("{path} cannot be changed"))?;
        match new.get(name).filter(|value| !value.is_empty()) {
            Some(value) => labels.insert(name.to_owned(), value.clone()),
            None => labels.remove(name),
        };
    }
    Ok(())
}

fn info(name: &str, snapshot: &Snapshot) -> wire::Info {
    let stamp = |at: Timestamp| {
        Some(prost_types::Timestamp {
            seconds: at.as_second(),
            nanos: at.subsec_nanosecond(),
        })
    };
    wire::Info {
        name: name.to_owned(),
        parent: snapshot.parent.clone(),
        kind: match snapshot.kind {
            Kind::View => 1,
            Kind::Active => 2,
            Kind::Committed => 3,
        },
        created_at: stamp(snapshot.created_at),
        updated_at: stamp(snapshot.updated_at),
        labels: snapshot.labels.clone().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_change_as_the_mask_says() {
        let mut labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let new = HashMap::from([("a".to_owned(), "3".to_owned())]);
        relabel(&mut labels, &new, &["labels.a".to_owned(), "labels.b".to_owned()]).unwrap();
        assert_eq!(labels, BTreeMap::from([("a".to_owned(), "3".to_owned())]));
        assert!(relabel(&mut labels, &new, &["parent".to_owned()]).is_err());
        relabel(&mut labels, &HashMap::new(), &[]).unwrap();
        assert!(labels.is_empty());
    }
}
