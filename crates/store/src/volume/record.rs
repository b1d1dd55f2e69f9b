//! `volume.json`: what a volume is for, and what is on it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zmachine_spec::volume::{Content, Fs};

/// Version of `volume.json`.
pub const RECORD_VERSION: u32 = 1;

/// A volume's description on disk. Its size is the length of its `data.img`, which nothing else can contradict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The file system it gets at its first use by a container.
    pub fs: Fs,
    /// Id of the machine it was made for without a name; removed by `rm -v` of that machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous_of: Option<String>,
    /// The user's own words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it holds.
    pub content: Content,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_has_its_golden_form() {
        let record = Record {
            version: RECORD_VERSION,
            fs: Fs::Btrfs,
            anonymous_of: None,
            labels: BTreeMap::new(),
            created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            content: Content::Installed { digest: "ab".into() },
        };
        let golden = r#"{"version":1,"fs":"btrfs","created_at":"2026-01-02T03:04:05Z","content":{"state":"installed","digest":"ab"}}"#;
        assert_eq!(serde_json::to_string(&record).unwrap(), golden);
        assert_eq!(serde_json::from_str::<Record>(golden).unwrap(), record);
    }
}
