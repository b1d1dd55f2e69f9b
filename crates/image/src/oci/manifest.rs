//! The JSON documents of an image: index, manifest, configuration; of OCI and of docker, which are alike.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use zmachine_flist::ImageConfig;

use super::Problem;

/// What one document refers to another with.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// A list of images, usually one per platform.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

/// One image.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// What a document turned out to be.
pub(super) enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// The configuration of an image.
#[derive(Debug, Deserialize)]
pub(super) struct Configuration {
    #[serde(default)]
    pub(super) config: Config,
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    pub(super) diff_ids: Vec<String>,
}

/// How to run the image. Every field may also be `null`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

impl Config {
    pub(super) fn into_image_config(self) -> ImageConfig {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        ImageConfig {
            entrypoint: self.entrypoint.unwrap_or_default(),
            cmd: self.cmd.unwrap_or_default(),
            env: self.env.unwrap_or_default(),
            user: some(self.user),
            workdir: some(self.working_dir),
            stop_signal: some(self.stop_signal),
            ports: self.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: self.volumes.unwrap_or_default().into_keys().collect(),
            labels: self.labels.unwrap_or_default(),
        }
    }
}

impl Descriptor {
    /// Whether it is about a manifest or an index, which registries keep apart from blobs.
    pub(super) fn is_manifest(&self) -> bool {
        self.media_type.contains("manifest") || self.media_type.contains("image.index")
    }

    /// The tag that a layout gives it.
    pub(super) fn tag(&self) -> Option<&str> {
        self.annotation("org.opencontainers.image.ref.name")
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(String::as_str)
    }
}

impl Index {
    /// The image for this kind of machine. One that does not say what it is for is taken when it is alone.
    pub(super) fn choose(&self) -> Result<&Descriptor, Problem> {
        let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == "amd64";
        let mut images = self.manifests.iter();
        if let Some(image) = images.find(|image| image.platform.as_ref().is_some_and(fits)) {
            return Ok(image);
        }
        match self.manifests.as_slice() {
            [] => Err(Problem::Broken("its index is empty".into())),
            [only] if only.platform.is_none() => Ok(only),
            all => {
                let name = |image: &Descriptor| match &image.platform {
                    Some(platform) => format!("{}/{}", platform.os, platform.architecture),
                    None => "one that does not say".to_owned(),
                };
                let found: Vec<String> = all.iter().take(20).map(name).collect();
                Err(Problem::Platform(found.join(", ")))
            }
        }
    }
}

/// A document of a known form.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| Problem::Broken(format!("its {what} can not be read ({error})")))
}

/// Tells an index from a manifest by what it has.
pub(super) fn parse(bytes: &[u8]) -> Result<Document, Problem> {
    let value: serde_json::Value = json(bytes, "manifest")?;
    if value.get("manifests").is_some() {
        return Ok(Document::Index(json(bytes, "index")?));
    }
    if value.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) {
        return Err(Problem::Broken(
            "its manifest is of the schema 1, which is out of use".into(),
        ));
    }
    Ok(Document::Manifest(json(bytes, "manifest")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &str) -> Index {
        serde_json::from_str(platforms).unwrap()
    }

    #[test]
    fn the_image_for_this_kind_of_machine_is_chosen() {
        let two = index(
            r#"{"manifests":[{"digest":"a","size":1,"platform":{"os":"linux","architecture":"arm64"}},
                {"digest":"b","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}"#,
        );
        assert_eq!(two.choose().ok().unwrap().digest, "b");
        let lone = index(r#"{"manifests":[{"digest":"a","size":1}]}"#);
        assert_eq!(lone.choose().ok().unwrap().digest, "a");
        let other =
            index(r#"{"manifests":[{"digest":"a","size":1,"platform":{"os":"linux","architecture":"arm64"}}]}"#);
        assert!(matches!(other.choose(), Err(Problem::Platform(found)) if found == "linux/arm64"));
    }

    #[test]
    fn null_is_as_good_as_absent() {
        let text =
            r#"{"config":{"Entrypoint":null,"Cmd":["sh"],"User":"","Volumes":{"/d":{}}},"rootfs":{"diff_ids":[]}}"#;
        let configuration: Configuration = serde_json::from_str(text).unwrap();
        let config = configuration.config.into_image_config();
        assert_eq!(config.cmd, ["sh"]);
        assert_eq!(config.volumes, ["/d"]);
        assert_eq!((config.entrypoint.len(), config.user), (0, None));
    }
}
