//! Flists in registries: a manifest as OCI has them, whose one layer is the file. Its blocks stay in the stores that the flist names.
//!
//! ```json
//! {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "application/vnd.zmachine.flist.v2",
//!  "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:...", "size": 1},
//!  "layers": [{"mediaType": "application/vnd.oci.image.layer.zmachine.flist.v2", "digest": "sha256:...", "size": 1}]}
//! ```
//! That of a container is an image for containerd, so a pod may name it: its configuration says what the flist says about running it, and the
//! one identity of a layer in it is the digest of the flist. containerd hands those layers to a snapshotter whose media type begins with
//! `application/vnd.oci.image.layer.`; who wants to unpack this one is told by its type that it cannot. That of a VM, which nobody can run
//! as a container, and every one of earlier versions has the empty configuration (`application/vnd.oci.empty.v1+json`), and a layer of the
//! type `application/vnd.zmachine.flist.v2`.
//!
//! A flist of format 1 has `v1` in place of `v2`. A manifest with such a layer is one, whatever it says of its artifact type, which registries
//! may leave out.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zmachine_flist::{ImageConfig, Startup};
use zmachine_image::library::ResolveError;
use zmachine_image::progress::Progress;
use zmachine_image::{Image, ImageFacts, ImageKind, Library, Mode, PullPolicy, Reference};
use zmachine_sys::file::NewFile;

use super::keep::Unkept;
use super::layer::digest_of;
use super::manifest::{self, Descriptor, Manifest, config_json};
use super::registry::Registry;
use super::source::Source;
use super::{Problem, layer};

/// What a flist of a format is, alone and as the layer of an image.
struct Kind {
    artifact: &'static str,
    layer: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        artifact: "application/vnd.zmachine.flist.v2",
        layer: "application/vnd.oci.image.layer.zmachine.flist.v2",
    },
    Kind {
        artifact: "application/vnd.zmachine.flist.v1",
        layer: "application/vnd.oci.image.layer.zmachine.flist.v1",
    },
];
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";

/// The longest flist that is fetched, in bytes.
const LONGEST: u64 = 4 << 30;

/// The layer of a manifest that is a flist.
pub(super) fn flist_layer(manifest: &[u8]) -> Option<Descriptor> {
    // What else it may be is for others to say.
    let manifest: Manifest = manifest::json(manifest, "manifest").ok()?;
    let is_flist = |kind: &str| KINDS.iter().any(|known| kind == known.artifact || kind == known.layer);
    match &manifest.layers[..] {
        [layer] if is_flist(&layer.media_type) => Some(layer.clone()),
        _ => None,
    }
}

/// Brings a flist here.
pub(super) fn fetch(
    source: &dyn Source,
    layer: &Descriptor,
    temporary: &std::path::Path,
    (library, mode): (&Library, Mode),
    progress: &dyn Progress,
) -> Result<Image, Unkept> {
    layer::hex_of(&layer.digest)?;
    if layer.size > LONGEST {
        return Err(Problem::Broken(format!("its flist has {} bytes", layer.size)).into());
    }
    progress.begin(Some(layer.size), "pulling");
    let new = NewFile::create(temporary, 0o600).map_err(|e| Unkept::Here(e.into()))?;
    let mut file = new.file().try_clone()?;
    let mut blob = source.blob(layer)?.take(layer.size + 1);
    let (digest, length) = copy(&mut blob, |bytes| {
        progress.advance(bytes.len() as u64);
        file.write_all(bytes)
    })?;
    if length != layer.size || layer.digest != digest {
        return Err(Problem::Broken(format!("its flist is not {}", layer.digest)).into());
    }
    Ok(admit(&file, library, mode, progress)?)
}

/// Gives what is read to `each`; its digest and length.
fn copy(from: &mut dyn Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<(String, u64)> {
    let (mut hash, mut length, mut chunk) = (Sha256::new(), 0, vec![0; 256 << 10]);
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(&chunk[..read]);
        length += read as u64;
        each(&chunk[..read])?;
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((format!("sha256:{hex}"), length))
}

fn admit(file: &File, library: &Library, mode: Mode, progress: &dyn Progress) -> Result<Image, ResolveError> {
    use std::os::fd::AsRawFd;
    // It has no name that another process could use.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    library.resolve_as(&Reference::Path(path.into()), PullPolicy::Always, mode, progress)
}

/// Sends the flist of an image, of which `facts` are known; the digest of the manifest that leads to it.
pub(super) fn push(
    flist: &mut File,
    facts: Option<&ImageFacts>,
    registry: &Registry,
    progress: &dyn Progress,
) -> Result<String, Problem> {
    let mut head = [0; 16];
    let filled = flist.read(&mut head)?;
    let [new, old] = KINDS;
    let kind = match head[..filled].starts_with(b"SQLite format 3\0") {
        true => new,
        false => old,
    };
    flist.rewind()?;
    let (digest, size) = copy(flist, |_| Ok(()))?;
    progress.begin_part(0, size, &digest[7..19]);
    let is_there = registry.has_blob(&digest)?;
    if !is_there {
        flist.rewind()?;
        registry.upload(&digest, size, flist)?;
    }
    progress.end_part(0, if is_there { "is there" } else { "pushed" });
    let configured = facts.and_then(|facts| configuration(facts, &digest));
    let (layer_kind, config_kind, config) = match configured {
        Some(configuration) => (kind.layer, CONFIGURATION, configuration.to_string().into_bytes()),
        None => (kind.artifact, EMPTY, b"{}".to_vec()),
    };
    let config_digest = digest_of(&config);
    if !registry.has_blob(&config_digest)? {
        registry.upload(&config_digest, config.len() as u64, &mut config.as_slice())?;
    }
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": oci,
        "artifactType": kind.artifact,
        "config": {"mediaType": config_kind, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": layer_kind, "digest": digest, "size": size}],
    });
    let bytes = manifest.to_string().into_bytes();
    registry.put_manifest(&bytes, oci)?;
    Ok(digest_of(&bytes))
}

/// The configuration of an image whose one layer is the flist with this digest; `None`: it is no container's, or nobody can read what it says.
fn configuration(facts: &ImageFacts, digest: &str) -> Option<Value> {
    if !matches!(facts.kind, ImageKind::Container | ImageKind::OwnKernel { .. }) {
        return None;
    }
    let said = ImageConfig::from_tags(&facts.tags).ok()?;
    Some(json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config_json(&started(said, facts.startup.as_ref())),
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }))
}

/// What is said about running it; a file of the tree is for every reader, and comes first.
fn started(mut config: ImageConfig, startup: Option<&Startup>) -> ImageConfig {
    let Some(startup) = startup else { return config };
    if let Some(program) = &startup.program {
        config.entrypoint = Vec::new();
        config.cmd = [std::slice::from_ref(program), &startup.args].concat();
    }
    for (name, value) in &startup.env {
        let is_same = |entry: &String| entry.split_once('=').is_some_and(|(known, _)| known == name);
        config.env.retain(|entry| !is_same(entry));
        config.env.push(format!("{name}={value}"));
    }
    config.workdir = startup.dir.clone().or(config.workdir);
    config
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use zmachine_image::facts::{ImageFile, ImageSizes};

    use super::*;

    fn facts(kind: ImageKind) -> ImageFacts {
        let config = ImageConfig {
            entrypoint: vec!["/bin/server".into()],
            cmd: vec!["-v".into()],
            env: vec!["A=1".into(), "B=2".into()],
            user: Some("web".into()),
            workdir: Some("/srv".into()),
            ..ImageConfig::default()
        };
        let mut tags = BTreeMap::new();
        config.store(&mut tags);
        ImageFacts {
            kind,
            startup: None,
            sizes: ImageSizes::default(),
            tags,
        }
    }

    #[test]
    fn a_flist_says_how_it_is_run_as_images_do() {
        let mut facts = facts(ImageKind::Container);
        let made = configuration(&facts, "sha256:ab").unwrap();
        let config = json!({
            "Entrypoint": ["/bin/server"], "Cmd": ["-v"], "Env": ["A=1", "B=2"], "User": "web", "WorkingDir": "/srv",
        });
        assert_eq!(made["config"], config);
        assert_eq!(made["rootfs"], json!({"type": "layers", "diff_ids": ["sha256:ab"]}));
        assert_eq!((&made["architecture"], &made["os"]), (&json!("amd64"), &json!("linux")));

        // Its own file comes before that.
        facts.startup = Some(Startup {
            program: Some("/bin/sh".into()),
            args: vec!["-c".into()],
            dir: None,
            env: BTreeMap::from([("B".to_owned(), "3".to_owned())]),
        });
        let config = json!({"Cmd": ["/bin/sh", "-c"], "Env": ["A=1", "B=3"], "User": "web", "WorkingDir": "/srv"});
        assert_eq!(configuration(&facts, "sha256:ab").unwrap()["config"], config);
    }

    #[test]
    fn one_that_is_no_container_has_no_configuration() {
        let image = ImageFile {
            path: "/image.raw".into(),
            size: 1,
        };
        assert_eq!(configuration(&facts(ImageKind::Disk { image }), "sha256:ab"), None);
        let mut broken = facts(ImageKind::Container);
        broken.tags.values_mut().for_each(|value| "nonsense".clone_into(value));
        assert_eq!(configuration(&broken, "sha256:ab"), None);
    }

    #[test]
    fn flists_are_known_by_their_layer_whichever_form_they_have() {
        let layer = |kind: &str| {
            let manifest = json!({
                "schemaVersion": 2, "config": {"digest": "sha256:0", "size": 2},
                "layers": [{"mediaType": kind, "digest": "sha256:1", "size": 1}],
            });
            flist_layer(manifest.to_string().as_bytes()).map(|layer| layer.digest)
        };
        for Kind { artifact, layer: image } in &KINDS {
            assert_eq!(layer(artifact).as_deref(), Some("sha256:1"));
            assert_eq!(layer(image).as_deref(), Some("sha256:1"));
            // containerd takes no other one for a layer.
            assert!(image.starts_with("application/vnd.oci.image.layer."));
        }
        assert_eq!(layer("application/vnd.oci.image.layer.v1.tar"), None);
    }
}
