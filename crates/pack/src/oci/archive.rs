//! A tar that `docker save` or `podman save` wrote: `manifest.json` names the configuration and the layers by member.
//!
//! Newer archives are an OCI layout as well; `manifest.json` is enough for both. A layer's own digest is not told here, only that of
//! the tar inside.

use std::io::{self, Read};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Problem;
use super::files::Files;
use super::manifest::{self, Descriptor, nullable};
use zmachine_image::reference::Pick;

use super::source::Source;

/// Where the made-up descriptor of a layer names its member.
const MEMBER: &str = "zmachine.member";

/// An image of the archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    #[serde(default, deserialize_with = "nullable")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    layers: Vec<String>,
}

impl Image {
    /// Tools write the registry in front that their users leave out (`docker.io/library/`, `localhost/`).
    fn has_name(&self, name: &str) -> bool {
        let is_it = |tag: &String| tag == name || tag.strip_suffix(name).is_some_and(|host| host.ends_with('/'));
        self.repo_tags.iter().any(is_it)
    }

    fn is_same(&self, other: &Image) -> bool {
        (&self.config, &self.layers) == (&other.config, &other.layers)
    }
}

pub(super) struct DockerArchive {
    files: Files,
    image: Image,
}

impl DockerArchive {
    pub(super) fn open(files: Files, pick: &Pick) -> Result<DockerArchive, Problem> {
        if !files.has("manifest.json") && files.has("index.json") {
            let what = "it is an archive of an OCI layout: name it oci-archive:FILE";
            return Err(Problem::Read(io::Error::new(io::ErrorKind::NotFound, what)));
        }
        let images: Vec<Image> = manifest::json(&files.document("manifest.json")?, "manifest.json")?;
        let names: Vec<String> = images
            .iter()
            .enumerate()
            .map(|(at, image)| match image.repo_tags.as_slice() {
                [] => format!("@{at}"),
                tags => tags.join(", "),
            })
            .collect();
        let mut picked: Vec<Image> = images
            .into_iter()
            .enumerate()
            .filter(|(at, image)| match pick {
                Pick::Only => true,
                Pick::Name(name) => image.has_name(name),
                Pick::Index(index) => at == index,
            })
            .map(|(_, image)| image)
            .collect();
        // Some tools have a row for each name of an image.
        picked.dedup_by(|next, first| first.is_same(next));
        if picked.len() != 1 {
            let what = match picked.len() {
                0 => "there is no such image",
                _ => "there are several images",
            };
            let what = format!("{what}; choose one of {}", names.join(", "));
            return Err(Problem::Read(io::Error::new(io::ErrorKind::NotFound, what)));
        }
        let image = picked.remove(0);
        Ok(DockerArchive { files, image })
    }
}

impl Source for DockerArchive {
    fn manifest(&self) -> Result<Vec<u8>, Problem> {
        // The archive has no manifest of the usual form: it is made from what there is.
        let config = self.files.document(&self.image.config)?;
        let config_digest: String = Sha256::digest(&config)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let named = self
            .image
            .config
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .trim_end_matches(".json");
        if named.len() == 64 && named != config_digest {
            return Err(Problem::Broken(format!(
                "its configuration {named} has digest {config_digest}"
            )));
        }
        let layer = |name: &String| -> Result<serde_json::Value, Problem> {
            let size = self.files.size(name)?;
            Ok(serde_json::json!({"digest": "", "size": size, "annotations": {MEMBER: name}}))
        };
        let layers = self.image.layers.iter().map(layer).collect::<Result<Vec<_>, _>>()?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {"digest": format!("sha256:{config_digest}"), "size": config.len()},
            "layers": layers,
        });
        Ok(manifest.to_string().into_bytes())
    }

    fn manifest_by_digest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Problem> {
        Err(Problem::Broken(format!(
            "the archive refers to manifest {}",
            descriptor.digest
        )))
    }

    fn names(&self) -> Vec<String> {
        self.image.repo_tags.clone()
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Problem> {
        self.files
            .open(descriptor.annotation(MEMBER).unwrap_or(&self.image.config))
    }
}
