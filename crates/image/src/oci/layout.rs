//! A directory of the OCI image layout: `index.json` and `blobs/sha256/<hex>`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::layer::hex_of;
use super::manifest::{self, Descriptor, Index};
use super::source::Source;
use super::{DOCUMENT_BYTES, Problem};

pub(super) struct Layout {
    root: PathBuf,
    image: Descriptor,
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    File::open(path)?.take(DOCUMENT_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > DOCUMENT_BYTES {
        return Err(Problem::Broken(format!("{} is too long", path.display())));
    }
    Ok(bytes)
}

impl Layout {
    pub(super) fn open(root: &Path, tag: Option<&str>) -> Result<Layout, Problem> {
        let index: Index = manifest::json(&read(&root.join("index.json"))?, "index")?;
        let image = match tag {
            Some(tag) => index.manifests.iter().find(|image| image.tag() == Some(tag)),
            None if index.manifests.len() > 1 => Some(index.choose()?),
            None => index.manifests.first(),
        };
        let image = image.cloned().ok_or_else(|| {
            let tags: Vec<&str> = index.manifests.iter().filter_map(Descriptor::tag).take(20).collect();
            let what = format!("the layout has no such image; its tags are {}", tags.join(", "));
            Problem::Read(io::Error::new(io::ErrorKind::NotFound, what))
        })?;
        Ok(Layout {
            root: root.into(),
            image,
        })
    }

    fn blob_path(&self, descriptor: &Descriptor) -> Result<PathBuf, Problem> {
        Ok(self.root.join("blobs/sha256").join(hex_of(&descriptor.digest)?))
    }
}

impl Source for Layout {
    fn manifest(&self) -> Result<Vec<u8>, Problem> {
        super::document(self, &self.image)
    }

    fn manifest_by_digest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Problem> {
        read(&self.blob_path(descriptor)?)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read>, Problem> {
        Ok(Box::new(File::open(self.blob_path(descriptor)?)?))
    }
}
