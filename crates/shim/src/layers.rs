//! Layers of containerd's EROFS snapshotter (2.1 and later), each a file with a file system in it, which comes to the machine as a disk.
//!
//! The snapshotter describes a root as several mounts, the last of which stacks those before it by their numbers:
//! ```text
//! erofs                   /var/lib/containerd/.../3/layer.erofs      ro,loop[,device=FILE]...
//! erofs                   /var/lib/containerd/.../2/layer.erofs      ro,loop
//! format/mkdir/overlay    overlay    workdir=...,upperdir=...,lowerdir={{ overlay 0 1 }}
//! ```
//! containerd would carry them out on the host, but for a runtime that says it does so itself ([`HANDLED`], in its information).

use std::path::{Path, PathBuf};

use sha2::Digest;

use crate::error::ShimError;
use crate::share::SnapshotMount;

/// The kinds of mounts that this runtime sees to: the annotation of its information, and its value.
pub(crate) const HANDLED: (&str, &str) = (
    "containerd.io/runtime-allow-mounts",
    "erofs,format/mkdir/overlay,format/bind",
);

/// The kind of a layer's mount.
const EROFS: &str = "erofs";

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    /// The file with its file system.
    pub(crate) file: PathBuf,
    /// Files with its data, where that is not in the first one.
    pub(crate) devices: Vec<PathBuf>,
}

impl Layer {
    /// All of its files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.file).chain(&self.devices)
    }
}

/// The layers that `mounts` put together, the uppermost first; `None` when these are other mounts.
///
/// # Errors
/// [`ShimError::Unsupported`] for layers that say how they are to be verified.
pub(crate) fn of(mounts: &[SnapshotMount]) -> Result<Option<Vec<Layer>>, ShimError> {
    let range = match mounts.split_last() {
        Some((last, before)) if last.kind.starts_with("format/") => {
            stacked(last).filter(|range| range.1 < before.len())
        }
        // One layer, which is only read.
        Some((only, [])) if only.kind == EROFS => Some((0, 0)),
        _ => None,
    };
    let Some((first, last)) = range else { return Ok(None) };
    let layers = &mounts[first..=last];
    if layers.iter().any(|mount| mount.kind != EROFS) {
        return Ok(None);
    }
    layers.iter().map(layer).collect::<Result<_, _>>().map(Some)
}

fn layer(mount: &SnapshotMount) -> Result<Layer, ShimError> {
    if mount
        .options
        .iter()
        .any(|option| option.starts_with("X-containerd.dmverity="))
    {
        return Err(ShimError::Unsupported(format!(
            "{}: dm-verity of layers is not for machines: set 'dmverity_mode = \"off\"' of the EROFS snapshotter, and pull the image again",
            mount.source
        )));
    }
    let devices = mount.options.iter().filter_map(|option| option.strip_prefix("device="));
    Ok(Layer {
        file: PathBuf::from(&mount.source),
        devices: devices.map(PathBuf::from).collect(),
    })
}

/// The numbers of the first and the last mount that `mount` stacks: `{{ overlay 0 3 }}` or `{{ mount 0 }}`.
fn stacked(mount: &SnapshotMount) -> Option<(usize, usize)> {
    let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let inner = lower.unwrap_or(&mount.source).strip_prefix("{{")?.strip_suffix("}}")?;
    let words: Vec<&str> = inner.split_whitespace().collect();
    let range = match words[..] {
        ["overlay", first, last] => (first.parse().ok()?, last.parse().ok()?),
        ["mount", only] => (only.parse().ok()?, only.parse().ok()?),
        _ => return None,
    };
    (range.0 <= range.1).then_some(range)
}

/// The mount that stacks layers which are mounted at `places` on this host, the uppermost first.
///
/// # Errors
/// [`ShimError::Unsupported`] for a writable layer that is a disk image itself.
pub(crate) fn stack(mounts: &[SnapshotMount], places: &[PathBuf]) -> Result<SnapshotMount, ShimError> {
    let names: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let lower = names.join(":");
    let options = mounts.last().map(|mount| mount.options.as_slice()).unwrap_or_default();
    let upper = options.iter().filter(|option| !option.starts_with("lowerdir="));
    let upper: Vec<String> = upper.cloned().collect();
    if upper.iter().any(|option| option.contains("{{")) {
        return Err(ShimError::Unsupported(
            "the image has more layers than the pod has places for, and its writable layer is a disk image: set 'default_size = \"0\"' of the EROFS snapshotter"
                .to_owned(),
        ));
    }
    let is_bind = !upper.iter().any(|option| option.starts_with("upperdir="));
    Ok(match is_bind {
        true => SnapshotMount {
            kind: "bind".to_owned(),
            source: lower,
            options: vec!["rbind".to_owned(), "ro".to_owned()],
        },
        false => SnapshotMount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: [upper, vec![format!("lowerdir={lower}")]].concat(),
        },
    })
}

/// The mount of a layer on this host.
pub(crate) fn on_host(layer: &Layer) -> SnapshotMount {
    let devices = layer
        .devices
        .iter()
        .map(|device| format!("device={}", device.display()));
    SnapshotMount {
        kind: EROFS.to_owned(),
        source: layer.file.display().to_string(),
        options: std::iter::once("ro".to_owned()).chain(devices).collect(),
    }
}

/// The serial number of the disk by which a pod's guest has a file: 18 bytes.
pub(crate) fn serial(file: &Path) -> String {
    let hash = sha2::Sha256::digest(file.as_os_str().as_encoded_bytes());
    let hex: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("zm-ly-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> SnapshotMount {
        SnapshotMount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(ToString::to_string).collect(),
        }
    }

    fn layer(file: &str, devices: &[&str]) -> Layer {
        Layer {
            file: file.into(),
            devices: devices.iter().map(PathBuf::from).collect(),
        }
    }

    #[test]
    fn layers_are_those_that_the_last_mount_stacks() {
        let first = mount("erofs", "/s/2/layer.erofs", &["ro", "loop"]);
        let second = mount(
            "erofs",
            "/s/1/fsmeta.erofs",
            &["ro", "loop", "device=/s/0/layer.erofs", "device=/s/1/layer.erofs"],
        );
        let overlay = |lower: &str| {
            mount(
                "format/mkdir/overlay",
                "overlay",
                &["upperdir=/s/9/fs", "workdir=/s/9/work", lower],
            )
        };
        let all = [first.clone(), second.clone(), overlay("lowerdir={{ overlay 0 1 }}")];
        let expected = [
            layer("/s/2/layer.erofs", &[]),
            layer("/s/1/fsmeta.erofs", &["/s/0/layer.erofs", "/s/1/layer.erofs"]),
        ];
        assert_eq!(of(&all).unwrap().unwrap(), expected);
        // The writable layer is a disk image, which the machine needs as little as the host's directories.
        let ext4 = mount("ext4", "/s/9/rwlayer.img", &["rw", "loop"]);
        let all = [ext4, first.clone(), overlay("lowerdir={{ mount 1 }}")];
        assert_eq!(of(&all).unwrap().unwrap(), [layer("/s/2/layer.erofs", &[])]);
        let view = [first.clone()];
        assert_eq!(of(&view).unwrap().unwrap().len(), 1);
        let stacked = stack(
            &[first, second, overlay("lowerdir={{ overlay 0 1 }}")],
            &["/a".into(), "/b".into()],
        )
        .unwrap();
        assert_eq!(
            stacked.options,
            ["upperdir=/s/9/fs", "workdir=/s/9/work", "lowerdir=/a:/b"]
        );
    }

    #[test]
    fn other_mounts_are_none_and_numbers_that_fit_nothing_neither() {
        for mounts in [
            vec![],
            vec![mount("overlay", "overlay", &["lowerdir=/a:/b"])],
            vec![mount("bind", "/s/1/fs", &["rbind"])],
            vec![
                mount("erofs", "/a", &[]),
                mount("format/mkdir/overlay", "overlay", &["lowerdir={{ overlay 0 7 }}"]),
            ],
            vec![
                mount("erofs", "/a", &[]),
                mount("format/mkdir/overlay", "overlay", &["lowerdir={{ overlay 1 0 }}"]),
            ],
            vec![
                mount("ext4", "/a", &[]),
                mount("format/mkdir/overlay", "overlay", &["lowerdir={{ mount 0 }}"]),
            ],
        ] {
            assert_eq!(of(&mounts).unwrap(), None, "{mounts:?}");
        }
    }

    #[test]
    fn layers_that_are_to_be_verified_are_refused() {
        let verity = [mount("erofs", "/a", &["ro", "X-containerd.dmverity=/a.dmverity"])];
        assert!(of(&verity).unwrap_err().to_string().contains("dmverity_mode"));
    }

    #[test]
    fn serial_numbers_fit_a_disk() {
        let serial = serial(Path::new(
            "/var/lib/containerd/io.containerd.snapshotter.v1.erofs/snapshots/1/layer.erofs",
        ));
        assert!(serial.len() <= 20, "{serial}");
    }
}
