//! A registry and its mirrors: the first that has the image gives all of it.

use std::io::Read;
use std::sync::OnceLock;

use super::manifest::Descriptor;
use super::registry::Registry;
use super::source::{Part, Source};
use super::{ImportOptions, Problem};

pub(super) struct Mirrored {
    /// In the order in which they are asked; the registry itself is the last.
    places: Vec<Registry>,
    chosen: OnceLock<usize>,
}

impl Mirrored {
    pub(super) fn open(
        host: &str,
        repository: &str,
        reference: &str,
        options: &ImportOptions,
    ) -> Result<Mirrored, Problem> {
        let places = options.registries.places(host);
        let places = places.map(|place| Registry::open(place, repository, reference, options));
        Ok(Mirrored {
            places: places.collect::<Result<_, _>>()?,
            chosen: OnceLock::new(),
        })
    }

    fn chosen(&self) -> &Registry {
        let last = self.places.len() - 1;
        &self.places[self.chosen.get().copied().unwrap_or(last)]
    }
}

impl Source for Mirrored {
    fn manifest(&self) -> Result<Vec<u8>, Problem> {
        let (last, mirrors) = self
            .places
            .split_last()
            .ok_or_else(|| Problem::Broken("it has no place".into()))?;
        for (at, mirror) in mirrors.iter().enumerate() {
            // Why a mirror has nothing is nobody's business as long as the registry has it.
            if let Ok(manifest) = mirror.manifest() {
                let _ = self.chosen.set(at);
                return Ok(manifest);
            }
        }
        last.manifest()
    }

    fn manifest_by_digest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Problem> {
        self.chosen().manifest_by_digest(descriptor)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Problem> {
        self.chosen().blob(descriptor)
    }

    fn part(&self, digest: &str, part: &Part) -> Result<Option<Vec<u8>>, Problem> {
        if self.chosen.get().is_some() {
            return self.chosen().part(digest, part);
        }
        // Nobody has asked for the manifest: whoever has the layer is as good as any.
        let (last, mirrors) = self
            .places
            .split_last()
            .ok_or_else(|| Problem::Broken("it has no place".into()))?;
        for (at, mirror) in mirrors.iter().enumerate() {
            if let Ok(Some(bytes)) = mirror.part(digest, part) {
                let _ = self.chosen.set(at);
                return Ok(Some(bytes));
            }
        }
        last.part(digest, part)
    }
}
