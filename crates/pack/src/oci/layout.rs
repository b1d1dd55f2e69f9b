//! The OCI image layout: `index.json` and `blobs/sha256/<hex>`, in a directory or in a tar archive.

use std::io::{self, Read};

use super::Problem;
use super::files::Files;
use super::layer::hex_of;
use super::manifest::{self, Descriptor, Index, choose};
use zmachine_image::reference::Pick;

use super::source::Source;

pub(super) struct Layout {
    files: Files,
    image: Descriptor,
}

impl Layout {
    /// `level`: of the processor, which chooses where several images have the name.
    pub(super) fn open(files: Files, pick: &Pick, level: u8) -> Result<Layout, Problem> {
        let index: Index = manifest::json(&files.document("index.json")?, "index")?;
        let all = &index.manifests;
        let image = match pick {
            Pick::Name(name) => {
                let named: Vec<&Descriptor> = all.iter().filter(|image| image.has_name(name)).collect();
                match named.as_slice() {
                    [] => None,
                    [only] => Some(*only),
                    several => Some(choose(several.iter().copied(), level)?),
                }
            }
            Pick::Index(index) => all.get(*index),
            // Images for several platforms under one name, or without any, are a choice that needs no word.
            Pick::Only if all.len() > 1 && all.iter().all(|image| image.name() == all[0].name()) => {
                Some(choose(all, level)?)
            }
            Pick::Only if all.len() > 1 => None,
            Pick::Only => all.first(),
        };
        let image = image.ok_or_else(|| none_picked(pick, all))?.clone();
        Ok(Layout { files, image })
    }

    fn blob_name(descriptor: &Descriptor) -> Result<String, Problem> {
        Ok(format!("blobs/sha256/{}", hex_of(&descriptor.digest)?))
    }
}

/// What there is instead, by the names it has.
fn none_picked(pick: &Pick, all: &[Descriptor]) -> Problem {
    if all.is_empty() {
        return Problem::Broken("it has no image".into());
    }
    let name = |(at, image): (usize, &Descriptor)| image.name().map_or_else(|| format!("@{at}"), str::to_owned);
    let names: Vec<String> = all.iter().enumerate().take(20).map(name).collect();
    let what = match pick {
        Pick::Only => "there are several images",
        _ => "there is no such image",
    };
    let what = format!("{what}; choose one of {}", names.join(", "));
    Problem::Read(io::Error::new(io::ErrorKind::NotFound, what))
}

impl Source for Layout {
    fn manifest(&self) -> Result<Vec<u8>, Problem> {
        super::document(self, &self.image)
    }

    fn manifest_by_digest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Problem> {
        self.files.document(&Layout::blob_name(descriptor)?)
    }

    fn names(&self) -> Vec<String> {
        let full = self.image.annotation("io.containerd.image.name");
        full.or(self.image.name()).map(str::to_owned).into_iter().collect()
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Problem> {
        self.files.open(&Layout::blob_name(descriptor)?)
    }
}
