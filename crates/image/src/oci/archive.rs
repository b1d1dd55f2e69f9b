//! A tar that `docker save` or `podman save` wrote: `manifest.json` names the configuration and the layers by member.
//!
//! The members are found in one pass over the headers and then read where they are. Newer archives are an OCI layout as
//! well; `manifest.json` is enough for both. A layer's own digest is not told here, only that of the tar inside.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::manifest::{self, Descriptor};
use super::source::Source;
use super::{DOCUMENT_BYTES, Problem};
use crate::tar::{Archive, MemberKind};

/// Where the made-up descriptor of a layer names its member.
const MEMBER: &str = "zmachine.member";

/// An image of the archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

enum Place {
    At { offset: u64, size: u64 },
    Link(String),
}

pub(super) struct DockerArchive {
    path: PathBuf,
    members: BTreeMap<String, Place>,
    image: Image,
}

impl DockerArchive {
    pub(super) fn open(path: &Path, name: Option<&str>) -> Result<DockerArchive, Problem> {
        let members = members(path)?;
        let mut archive = DockerArchive {
            path: path.into(),
            members,
            image: Image {
                config: String::new(),
                repo_tags: None,
                layers: Vec::new(),
            },
        };
        let mut images: Vec<Image> = manifest::json(&archive.document("manifest.json")?, "manifest.json")?;
        let tags: Vec<String> = images
            .iter()
            .flat_map(|image| image.repo_tags.clone().unwrap_or_default())
            .collect();
        let has_name = |image: &Image| match (name, &image.repo_tags) {
            (None, _) => true,
            // Tools write the registry in front that their users leave out (`docker.io/library/`, `localhost/`).
            (Some(name), Some(tags)) => tags
                .iter()
                .any(|tag| tag == name || tag.strip_suffix(name).is_some_and(|host| host.ends_with('/'))),
            (Some(_), None) => false,
        };
        images.retain(has_name);
        if images.len() != 1 {
            let what = format!(
                "the archive has no single such image; its names are {}",
                tags.join(", ")
            );
            return Err(Problem::Read(io::Error::new(io::ErrorKind::NotFound, what)));
        }
        archive.image = images.remove(0);
        Ok(archive)
    }

    fn open_member(&self, name: &str) -> Result<Box<dyn Read>, Problem> {
        let (offset, size) = self.find(name)?;
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Box::new(file.take(size)))
    }

    fn size(&self, name: &str) -> Result<u64, Problem> {
        self.find(name).map(|(_, size)| size)
    }

    /// Where a member is and its length, through the links that older archives have for equal layers.
    fn find(&self, name: &str) -> Result<(u64, u64), Problem> {
        let mut at = name;
        for _ in 0..8 {
            match self.members.get(at) {
                Some(Place::At { offset, size }) => return Ok((*offset, *size)),
                Some(Place::Link(target)) => at = target,
                None => break,
            }
        }
        Err(Problem::Broken(format!("the archive has no member {name:?}")))
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        self.open_member(name)?
            .take(DOCUMENT_BYTES + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > DOCUMENT_BYTES {
            return Err(Problem::Broken(format!("member {name:?} is too long")));
        }
        Ok(bytes)
    }
}

fn members(path: &Path) -> Result<BTreeMap<String, Place>, Problem> {
    let file = File::open(path)?;
    let mut reader = BufReader::new(file);
    if io::BufRead::fill_buf(&mut reader)?.starts_with(&[0x1f, 0x8b]) {
        return Err(Problem::Broken("it is compressed as a whole: gunzip it first".into()));
    }
    let mut archive = Archive::new(reader);
    let mut members = BTreeMap::new();
    while let Some(member) = archive.next_member()? {
        let name = String::from_utf8_lossy(&member.path)
            .trim_start_matches("./")
            .to_owned();
        let place = match member.kind {
            MemberKind::Regular => Place::At {
                offset: archive.position(),
                size: member.size,
            },
            MemberKind::Symlink => Place::Link(beside(&name, &String::from_utf8_lossy(&member.target))),
            MemberKind::HardLink => Place::Link(String::from_utf8_lossy(&member.target).into_owned()),
            _ => continue,
        };
        members.insert(name, place);
    }
    Ok(members)
}

/// The member that a relative link of a member leads to.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Source for DockerArchive {
    fn manifest(&self) -> Result<Vec<u8>, Problem> {
        // The archive has no manifest of the usual form: it is made from what there is.
        let config = self.document(&self.image.config)?;
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
            let size = self.size(name)?;
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

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read>, Problem> {
        if let Some(member) = descriptor.annotation(MEMBER) {
            return self.open_member(member);
        }
        self.open_member(&self.image.config)
    }
}
