//! An image of the first layers of another one that is here: what is an image of its own elsewhere need not be asked for there.

use std::io::{Cursor, Read};

use serde_json::{Value, json};
use zmachine_flist::Digest;
use zmachine_image::progress::Silent;
use zmachine_image::{Image, Library, Mode};

use super::layer::digest_of;
use super::manifest::Descriptor;
use super::pull::{CONFIGURATION, MANIFEST, pull_from};
use super::source::Source;
use super::{ImportError, Problem};

/// The documents of the shorter image. Its layers are here.
struct Shorter {
    manifest: Vec<u8>,
    configuration: Vec<u8>,
}

impl Source for Shorter {
    fn manifest(&self) -> Result<Vec<u8>, Problem> {
        Ok(self.manifest.clone())
    }

    fn manifest_by_digest(&self, _: &Descriptor) -> Result<Vec<u8>, Problem> {
        Ok(self.manifest.clone())
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Problem> {
        match descriptor.digest == digest_of(&self.configuration) {
            true => Ok(Box::new(Cursor::new(&self.configuration))),
            false => Err(Problem::Broken(format!("its layer {} is not here", descriptor.digest))),
        }
    }
}

/// The image that the first `count` layers of `image` are; `image` itself when it has no more.
///
/// # Errors
/// [`ImportError`] when it is not of a registry, or a layer is not here.
pub fn first_layers(image: &Digest, count: usize, library: &Library) -> Result<Image, ImportError> {
    let shown = format!("the first {count} layers of {image}");
    let here = |source| ImportError::Here {
        image: shown.clone(),
        source: Box::new(source),
    };
    let read = |name: &str| -> Result<Value, ImportError> {
        let bytes = library.image_file(image, name).map_err(here)?.unwrap_or_default();
        let parsed = serde_json::from_slice(&bytes);
        parsed.map_err(|_| Problem::Broken(format!("it has no {name}, as images of registries have")).of(&shown))
    };
    let (manifest, configuration) = (read(MANIFEST)?, read(CONFIGURATION)?);
    let Some(shorter) = shortened(manifest, configuration, count) else {
        return library.by_its_digest(image, Mode::Container, &shown).map_err(here);
    };
    Ok(pull_from(&shorter, &shown, 1, (library, Mode::Container), &Silent)?.image)
}

/// The documents with `count` layers; `None` when they have no more.
fn shortened(mut manifest: Value, mut configuration: Value, count: usize) -> Option<Shorter> {
    let layers = manifest["layers"].as_array_mut()?;
    if layers.len() <= count {
        return None;
    }
    layers.truncate(count);
    configuration["rootfs"]["diff_ids"].as_array_mut()?.truncate(count);
    // It says what each layer is, and some of those are gone.
    configuration.as_object_mut()?.remove("history");
    let configuration = configuration.to_string().into_bytes();
    manifest["config"]["digest"] = json!(digest_of(&configuration));
    manifest["config"]["size"] = json!(configuration.len());
    Some(Shorter {
        manifest: manifest.to_string().into_bytes(),
        configuration,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_image_has_the_first_layers_and_a_configuration_that_fits() {
        let manifest = json!({"schemaVersion": 2, "config": {"digest": "sha256:0", "size": 1}, "layers": [{"digest": "a"}, {"digest": "b"}]});
        let configuration = json!({"rootfs": {"type": "layers", "diff_ids": ["x", "y"]}, "history": [1, 2]});
        assert!(shortened(manifest.clone(), configuration.clone(), 2).is_none());
        let shorter = shortened(manifest, configuration, 1).unwrap();
        let manifest: Value = serde_json::from_slice(&shorter.manifest).unwrap();
        assert_eq!(manifest["layers"], json!([{"digest": "a"}]));
        let descriptor: Descriptor = serde_json::from_value(json!({
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": manifest["config"]["digest"], "size": manifest["config"]["size"],
        }))
        .unwrap();
        let mut text = String::new();
        shorter
            .blob(&descriptor)
            .ok()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, r#"{"rootfs":{"diff_ids":["x"],"type":"layers"}}"#);
        let mut other = descriptor;
        other.digest = "sha256:1".into();
        assert!(shorter.blob(&other).is_err());
    }
}
