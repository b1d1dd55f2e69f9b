//! The JSON documents of an image: index, manifest, configuration; of OCI and of docker, which are alike.
//!
//! They are read as Go's programs read them: `null` is as good as absent, and what is absent is empty. A command that is a text instead
//! of a list is a list with that text, as docker has it.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use zmachine_flist::{Healthcheck, ImageConfig};

use super::Problem;

/// `null` is what is there when nothing is.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// What one document refers to another with.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, deserialize_with = "nullable")]
    platform: Platform,
    #[serde(default, deserialize_with = "nullable")]
    annotations: BTreeMap<String, Option<String>>,
}

/// What an image is for; all empty when that is not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    #[serde(deserialize_with = "nullable")]
    architecture: String,
    #[serde(deserialize_with = "nullable")]
    os: String,
    #[serde(deserialize_with = "nullable")]
    variant: String,
}

/// A list of images, usually one per platform.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) manifests: Vec<Descriptor>,
}

/// One image.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    #[serde(default, deserialize_with = "nullable")]
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
    #[serde(flatten)]
    pub(super) platform: Platform,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) config: Config,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RootFs {
    #[serde(deserialize_with = "nullable")]
    pub(super) diff_ids: Vec<String>,
}

/// How to run the image. Every field may also be `null`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Words>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, Option<String>>>,
    shell: Option<Words>,
    healthcheck: Option<Health>,
}

/// docker's health check, which OCI does not have: images have it that were built for docker. Times are in nanoseconds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Health {
    test: Option<Words>,
    interval: Option<i64>,
    timeout: Option<i64>,
    start_period: Option<i64>,
    start_interval: Option<i64>,
    retries: Option<i64>,
}

impl Health {
    fn into_healthcheck(self) -> Healthcheck {
        // What is below zero says nothing either.
        let number = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
        Healthcheck {
            test: self.test.map_or_else(Vec::new, Words::into_list),
            interval_ns: number(self.interval),
            timeout_ns: number(self.timeout),
            start_period_ns: number(self.start_period),
            start_interval_ns: number(self.start_interval),
            retries: number(self.retries),
        }
    }
}

/// A list of texts, or one of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Words {
    List(Vec<Option<String>>),
    One(String),
}

impl Words {
    fn into_list(self) -> Vec<String> {
        match self {
            Words::List(words) => words.into_iter().map(Option::unwrap_or_default).collect(),
            Words::One(word) => vec![word],
        }
    }
}

impl Config {
    pub(super) fn to_image_config(&self) -> ImageConfig {
        let Config {
            entrypoint,
            cmd,
            env,
            user,
            working_dir,
            stop_signal,
            exposed_ports,
            volumes,
            labels,
            shell,
            healthcheck,
        } = self.clone();
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let list = |words: Option<Words>| words.map_or_else(Vec::new, Words::into_list);
        let labels = labels.unwrap_or_default().into_iter();
        ImageConfig {
            entrypoint: list(entrypoint),
            cmd: list(cmd),
            env: list(env),
            user: some(user),
            workdir: some(working_dir),
            stop_signal: some(stop_signal),
            ports: exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: volumes.unwrap_or_default().into_keys().collect(),
            labels: labels.map(|(name, value)| (name, value.unwrap_or_default())).collect(),
            healthcheck: healthcheck.map(Health::into_healthcheck),
            shell: list(shell),
        }
    }
}

/// The fields that [`config_json`] may have.
pub(super) const CONFIG_FIELDS: [&str; 11] = [
    "Entrypoint",
    "Cmd",
    "Env",
    "User",
    "WorkingDir",
    "StopSignal",
    "ExposedPorts",
    "Volumes",
    "Labels",
    "Shell",
    "Healthcheck",
];

/// What an image says about running it as its configuration has it; what says nothing is not there.
pub fn config_json(config: &ImageConfig) -> Map<String, Value> {
    let set = |names: &[String]| -> Map<_, _> { names.iter().map(|name| (name.clone(), json!({}))).collect() };
    let health = config.healthcheck.as_ref().map(|check| {
        let number = |name: &str, number: u64| (number > 0).then(|| (name.to_owned(), json!(number)));
        let numbers = [
            number("Interval", check.interval_ns),
            number("Timeout", check.timeout_ns),
            number("StartPeriod", check.start_period_ns),
            number("StartInterval", check.start_interval_ns),
            number("Retries", check.retries),
        ];
        let test = (!check.test.is_empty()).then(|| ("Test".to_owned(), json!(check.test)));
        Map::from_iter(numbers.into_iter().flatten().chain(test))
    });
    let fields = [
        json!(config.entrypoint),
        json!(config.cmd),
        json!(config.env),
        json!(config.user),
        json!(config.workdir),
        json!(config.stop_signal),
        json!(set(&config.ports)),
        json!(set(&config.volumes)),
        json!(config.labels),
        json!(config.shell),
        json!(health),
    ];
    let says = |value: &Value| match value {
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        other => !other.is_null(),
    };
    let named = CONFIG_FIELDS.iter().map(|name| (*name).to_owned()).zip(fields);
    named.filter(|(_, value)| says(value)).collect()
}

impl Descriptor {
    /// Of a layer.
    pub(super) fn of_layer(media_type: &str, digest: &str, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_owned(),
            size,
            platform: Platform::default(),
            annotations: BTreeMap::new(),
        }
    }

    /// Whether it is about a manifest or an index, which registries keep apart from blobs.
    pub(super) fn is_manifest(&self) -> bool {
        self.media_type.contains("manifest") || self.media_type.contains("image.index")
    }

    /// The name that a layout gives it: a tag, or a whole reference.
    pub(super) fn name(&self) -> Option<&str> {
        self.annotation("org.opencontainers.image.ref.name")
    }

    /// Whether a layout gives it this name. containerd and docker put the whole reference beside the tag.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.name() == Some(name) || self.annotation("io.containerd.image.name") == Some(name)
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name)?.as_deref()
    }

    /// Whether it is about another image instead of being one (signatures and provenance beside images).
    fn is_attestation(&self) -> bool {
        let is_unknown = self.platform.architecture == "unknown" && self.platform.os == "unknown";
        is_unknown || self.annotation("vnd.docker.reference.type").is_some()
    }
}

impl Platform {
    /// For an x86-64 processor, the level that it must have (the variants `v1` to `v4`); `None` for another machine.
    pub(super) fn amd64_level(&self) -> Option<u8> {
        let is_amd64 = ["amd64", "x86_64", "x86-64"].contains(&self.architecture.to_ascii_lowercase().as_str());
        if !is_amd64 || !self.os.eq_ignore_ascii_case("linux") {
            return None;
        }
        match self.variant.as_str() {
            "" => Some(1),
            variant => variant.strip_prefix('v')?.parse().ok(),
        }
    }

    fn is_empty(&self) -> bool {
        *self == Platform::default()
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_empty() {
            return f.write_str("one that does not say");
        }
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_str() {
            "" => Ok(()),
            variant => write!(f, "/{variant}"),
        }
    }
}

impl Configuration {
    /// What the image is for, when that is another kind of machine.
    pub(super) fn other_platform(&self) -> Option<String> {
        let Platform { architecture, os, .. } = &self.platform;
        // Go leaves out what is empty; who says nothing may be right.
        let says = |text: &String, default: &str| match text.as_str() {
            "" => default.to_owned(),
            output => output.to_owned(),
        };
        let platform = Platform {
            architecture: says(architecture, "amd64"),
            os: says(os, "linux"),
            variant: String::new(),
        };
        platform.amd64_level().is_none().then(|| platform.to_string())
    }
}

/// The image for an x86-64 processor of this level among several: the one that uses most of it, and the first of equal ones. One that
/// does not say what it is for is taken when no other image is there.
pub(super) fn choose<'a>(
    images: impl IntoIterator<Item = &'a Descriptor>,
    level: u8,
) -> Result<&'a Descriptor, Problem> {
    let images: Vec<&Descriptor> = images.into_iter().collect();
    let fit = |image: &&&Descriptor| image.platform.amd64_level().is_some_and(|needed| needed <= level);
    // The last of the greatest is what `max_by_key` gives.
    if let Some(best) = images
        .iter()
        .rev()
        .filter(fit)
        .max_by_key(|image| image.platform.amd64_level())
    {
        return Ok(best);
    }
    let real: Vec<&&Descriptor> = images.iter().filter(|image| !image.is_attestation()).collect();
    match real.as_slice() {
        [] => Err(Problem::Broken("its index has no image".into())),
        [only] if only.platform.is_empty() => Ok(only),
        all => {
            let found: Vec<String> = all.iter().take(20).map(|image| image.platform.to_string()).collect();
            Err(Problem::Platform(found.join(", ")))
        }
    }
}

/// A document of a known form.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| Problem::Broken(format!("its {what} cannot be read ({error})")))
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
    let manifest: Manifest = json(bytes, "manifest")?;
    let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let kind = match text("artifactType") {
        "" => manifest.config.media_type.as_str(),
        kind => kind,
    };
    // Registries keep other things than images too: charts, signatures, lists of parts.
    let is_image = [
        "",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    ]
    .contains(&manifest.config.media_type.as_str());
    match is_image {
        true => Ok(Document::Manifest(manifest)),
        false => Err(Problem::Broken(format!(
            "it is no container image but an artifact of type {kind:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chosen one of images with these platforms, each named by its place.
    fn chosen(platforms: &[&str], level: u8) -> Result<usize, Problem> {
        let texts = platforms.iter().enumerate();
        let image = |(at, platform): (usize, &&str)| format!(r#"{{"digest":"{at}","size":1,"platform":{platform}}}"#);
        let text = format!(
            r#"{{"manifests":[{}]}}"#,
            texts.map(image).collect::<Vec<_>>().join(",")
        );
        let index: Index = serde_json::from_str(&text).unwrap();
        choose(&index.manifests, level).map(|image| image.digest.parse().unwrap())
    }

    fn amd64(variant: &str) -> String {
        format!(r#"{{"os":"linux","architecture":"amd64","variant":"{variant}"}}"#)
    }

    const ARM: &str = r#"{"os":"linux","architecture":"arm64","variant":"v8"}"#;
    const WINDOWS: &str = r#"{"os":"windows","architecture":"amd64","os.version":"10.0"}"#;
    const ATTESTATION: &str = r#"{"os":"unknown","architecture":"unknown"}"#;

    #[test]
    fn the_image_for_this_kind_of_machine_is_chosen() {
        let plain = amd64("");
        for (platforms, expected) in [
            (vec![ARM, &plain], 1),
            (vec![WINDOWS, &plain], 1),
            (vec!["null"], 0),
            (vec!["{}", &plain], 1),
            (vec!["{}", ATTESTATION], 0),
            (vec![&plain, &plain, ATTESTATION], 0),
            (vec![r#"{"os":"Linux","architecture":"x86_64"}"#], 0),
        ] {
            assert_eq!(chosen(&platforms, 1).ok(), Some(expected), "{platforms:?}");
        }
        for (platforms, reported) in [
            (vec![ARM], "linux/arm64/v8"),
            (vec![ARM, "null"], "linux/arm64/v8, one that does not say"),
            (vec![WINDOWS, ATTESTATION], "windows/amd64"),
        ] {
            assert!(
                matches!(chosen(&platforms, 4), Err(Problem::Platform(found)) if found == reported),
                "{reported}"
            );
        }
        assert!(matches!(chosen(&[ATTESTATION], 4), Err(Problem::Broken(_))));
    }

    #[test]
    fn of_several_variants_the_best_is_chosen_that_the_processor_can_run() {
        let (plain, two, three, four) = (amd64(""), amd64("v2"), amd64("v3"), amd64("v4"));
        let all = [four.as_str(), &plain, &three, &two];
        assert_eq!(
            [1, 2, 3, 4].map(|level| chosen(&all, level).ok()),
            [Some(1), Some(3), Some(2), Some(0)]
        );
        assert_eq!(chosen(&[&three, &two], 4).ok(), Some(0));
        assert!(
            matches!(chosen(&[&three, &two], 1), Err(Problem::Platform(found)) if found == "linux/amd64/v3, linux/amd64/v2")
        );
    }

    #[test]
    fn null_is_as_good_as_absent() {
        let text =
            r#"{"config":{"Entrypoint":null,"Cmd":["sh"],"User":"","Volumes":{"/d":{}}},"rootfs":{"diff_ids":[]}}"#;
        let configuration: Configuration = serde_json::from_str(text).unwrap();
        let config = configuration.config.to_image_config();
        assert_eq!(config.cmd, ["sh"]);
        assert_eq!(config.volumes, ["/d"]);
        assert_eq!((config.entrypoint.len(), config.user), (0, None));
        for text in [
            r#"{"config":null,"rootfs":null}"#,
            "{}",
            r#"{"architecture":null,"config":{"Labels":{"a":null},"Env":null},"rootfs":{"diff_ids":null}}"#,
        ] {
            let configuration: Configuration = serde_json::from_str(text).unwrap();
            assert_eq!(
                (configuration.rootfs.diff_ids.len(), configuration.other_platform()),
                (0, None),
                "{text}"
            );
            assert!(
                configuration
                    .config
                    .to_image_config()
                    .labels
                    .values()
                    .all(String::is_empty)
            );
        }
        let text = r#"{"config":{"digest":"a","size":1,"annotations":null},"layers":null,"annotations":null}"#;
        assert!(matches!(parse(text.as_bytes()), Ok(Document::Manifest(manifest)) if manifest.layers.is_empty()));
        let text = r#"{"manifests":[{"digest":"a","size":1,"annotations":{"x":null},"platform":null}]}"#;
        assert!(matches!(parse(text.as_bytes()), Ok(Document::Index(index)) if index.manifests.len() == 1));
        assert!(matches!(parse(br#"{"manifests":null}"#), Ok(Document::Index(index)) if index.manifests.is_empty()));
    }

    #[test]
    fn a_command_may_be_a_text() {
        let config: Config = serde_json::from_str(r#"{"Entrypoint":"/bin/sh","Cmd":["-c",null]}"#).unwrap();
        let config = config.to_image_config();
        assert_eq!(
            (config.entrypoint, config.cmd),
            (vec!["/bin/sh".to_owned()], vec!["-c".to_owned(), String::new()])
        );
    }

    #[test]
    fn a_configuration_comes_back_from_its_json() {
        let text = r#"{"Entrypoint":["/e"],"Cmd":["c"],"Env":["A=1"],"User":"web","WorkingDir":"/w","StopSignal":"SIGINT",
            "ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}},"Labels":{"a":"b"},"Shell":["/bin/ash","-c"],
            "Healthcheck":{"Test":["NONE"],"Interval":5,"Timeout":6,"StartPeriod":7,"StartInterval":8,"Retries":9}}"#;
        let config = serde_json::from_str::<Config>(text).unwrap().to_image_config();
        let json = config_json(&config);
        assert_eq!(
            Value::Object(json.clone()),
            serde_json::from_str::<Value>(text).unwrap()
        );
        assert_eq!(json.len(), CONFIG_FIELDS.len());
        assert!(config_json(&ImageConfig::default()).is_empty());
    }

    #[test]
    fn the_health_check_of_docker_is_kept() {
        let text = r#"{"Shell":["/bin/ash","-c"],"Healthcheck":{"Test":["CMD-SHELL","curl -f localhost"],"Interval":5000000000,
            "Timeout":-1,"StartPeriod":null,"Retries":4}}"#;
        let config = serde_json::from_str::<Config>(text).unwrap().to_image_config();
        let wanted = Healthcheck {
            test: vec!["CMD-SHELL".into(), "curl -f localhost".into()],
            interval_ns: 5_000_000_000,
            retries: 4,
            ..Healthcheck::default()
        };
        assert_eq!(config.healthcheck, Some(wanted));
        assert_eq!(config.shell, ["/bin/ash", "-c"]);
        let none = serde_json::from_str::<Config>(r#"{"Healthcheck":null}"#).unwrap();
        assert_eq!(none.to_image_config().healthcheck, None);
    }

    #[test]
    fn another_architecture_is_told_and_none_is_this_one() {
        let other = |text: &str| serde_json::from_str::<Configuration>(text).unwrap().other_platform();
        assert_eq!(
            other(r#"{"architecture":"arm64","os":"linux"}"#).as_deref(),
            Some("linux/arm64")
        );
        assert_eq!(
            other(r#"{"architecture":"amd64","os":"windows"}"#).as_deref(),
            Some("windows/amd64")
        );
        assert_eq!(other(r#"{"architecture":"amd64"}"#), None);
    }

    #[test]
    fn what_is_no_image_says_what_it_is() {
        let text = r#"{"artifactType":"application/vnd.example","layers":[],
            "config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"a","size":2}}"#;
        assert!(matches!(parse(text.as_bytes()), Err(Problem::Broken(what)) if what.contains("vnd.example")));
    }
}
