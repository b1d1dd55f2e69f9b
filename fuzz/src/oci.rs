//! Container images in an OCI layout: layers and documents of any bytes, everything around them right.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zmachine_flist::BlockId;
use zmachine_image::{BlockStore, Silent, StoreError};
use zmachine_pack::oci::{ImageSource, ImportOptions, Imported, Pick, import};
use zmachine_pack::pack::PackOptions;

use crate::scratch;

/// The most of a layer's tar, in bytes: the fuzzer is not to wait for zeros.
const TAR_BYTES: u64 = 8 << 20;

/// A store that only remembers names.
#[derive(Default)]
struct Names(Mutex<HashSet<BlockId>>);

impl BlockStore for Names {
    fn get(&self, id: &BlockId) -> Result<Vec<u8>, StoreError> {
        Err(StoreError::NotFound {
            store: self.describe(),
            id: id.to_string(),
        })
    }

    fn has(&self, id: &BlockId) -> Result<bool, StoreError> {
        Ok(self.0.lock().expect("no panic").contains(id))
    }

    fn put(&self, id: &BlockId, _sealed: &[u8]) -> Result<bool, StoreError> {
        Ok(self.0.lock().expect("no panic").insert(*id))
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

/// An image on disk that grows blob by blob.
struct Layout<'a>(&'a Path);

impl Layout<'_> {
    /// Keeps a blob; its descriptor.
    fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let hex = hex(bytes);
        std::fs::write(self.0.join("blobs/sha256").join(&hex), bytes).expect("a blob");
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Layers: the number of them less one in the first byte, two bytes for the length of each but the last, then all.
pub fn oci_layers(input: &[u8]) {
    let Some((count, mut rest)) = input.split_first() else {
        return;
    };
    let mut layers = Vec::new();
    for _ in 0..count % 4 {
        let Some((length, behind)) = rest.split_first_chunk() else {
            break;
        };
        let (layer, behind) = behind.split_at(usize::from(u16::from_le_bytes(*length)).min(behind.len()));
        layers.push(layer);
        rest = behind;
    }
    layers.push(rest);
    image(&layers, None);
}

/// A document in the place of one of three: index, manifest, configuration, by the first byte.
pub fn oci_documents(input: &[u8]) {
    if let Some((which, document)) = input.split_first() {
        image(&[&[0; 1024]], Some((which % 3, document)));
    }
}

fn image(layers: &[&[u8]], document: Option<(u8, &[u8])>) {
    let folder = scratch::folder();
    std::fs::create_dir_all(folder.path().join("blobs/sha256")).expect("a folder");
    let layout = Layout(folder.path());
    let replaced = |number, right: Value| match document {
        Some((which, document)) if which == number => document.to_vec(),
        _ => right.to_string().into_bytes(),
    };
    let contents: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", hex(&content(layer))))
        .collect();
    let descriptors: Vec<Value> = layers.iter().map(|layer| layout.blob("layer.v1.tar", layer)).collect();
    let config = replaced(
        2,
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": contents}}),
    );
    let config = layout.blob("config.v1+json", &config);
    let manifest = replaced(1, json!({"schemaVersion": 2, "config": config, "layers": descriptors}));
    let manifest = layout.blob("manifest.v1+json", &manifest);
    let index = replaced(0, json!({"schemaVersion": 2, "manifests": [manifest]}));
    std::fs::write(folder.path().join("index.json"), index).expect("the index");
    std::fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("the mark");

    let source = ImageSource::Layout {
        path: folder.path().into(),
        pick: Pick::Only,
    };
    let options = PackOptions {
        threads: 1,
        ..PackOptions::default()
    };
    let imported = import(&source, &ImportOptions::default(), &Names::default(), &options, &Silent);
    if let Ok(Imported { flist, .. }) = imported {
        assert_eq!(flist.tree.check(), Ok(()));
        scratch::rewrite(&flist);
    }
}

/// What is in a layer when it is packed with gzip, or itself.
fn content(layer: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let decoder = flate2::read::MultiGzDecoder::new(layer);
    match layer.starts_with(&[0x1f, 0x8b]) && decoder.take(TAR_BYTES).read_to_end(&mut plain).is_ok() {
        true => plain,
        false => layer.to_vec(),
    }
}
