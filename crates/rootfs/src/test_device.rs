//! A device for the tests of those who serve one.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use zmachine_flist::{BlockRef, Flist, Metadata, Node, NodeId, NodeKind, Route, RouteTable, TreeBuilder};
use zmachine_image::fetch::FetchOptions;
use zmachine_image::{BlockCache, Fetcher};

use crate::disk::LazyDisk;
use crate::prepare::{EROFS_NAME, MAP_NAME, prepare};
use crate::report::Counters;
use crate::server::queue::Device;

/// A device with one file of `"block" * n`, 6000 bytes, at the first data block.
pub(crate) struct TestDevice {
    /// Where all of it is.
    pub(crate) dir: tempfile::TempDir,
    pub(crate) device: Device,
    pub(crate) content: Vec<u8>,
    /// The block in its store.
    pub(crate) stored: PathBuf,
    pub(crate) data_sector: u64,
}

impl TestDevice {
    pub(crate) fn new() -> TestDevice {
        let dir = tempfile::tempdir().unwrap();
        let content = b"block".repeat(1200);
        let (block, sealed) = BlockRef::seal(&content);
        let hex = block.id.0.to_hex();
        let stored = dir.path().join("store").join(&hex[..2]).join(&hex);
        fs::create_dir_all(stored.parent().unwrap()).unwrap();
        fs::write(&stored, sealed).unwrap();
        let mut tree = TreeBuilder::new(Metadata::default());
        let kind = NodeKind::Regular {
            size: 6000,
            blocks: vec![block],
        };
        let metadata = Metadata::default();
        tree.add(NodeId::ROOT, b"file".to_vec(), Node { metadata, kind })
            .unwrap();
        let store = format!("dir://{}", dir.path().join("store").display());
        let routes = RouteTable(vec![Route::all(store)]);
        let flist = Flist {
            tree: tree.finish().unwrap(),
            routes: routes.clone(),
            tags: Default::default(),
        };
        let data_sector = prepare(dir.path(), "test", &flist).unwrap().metadata_bytes / 512;
        let cache = BlockCache::open(&dir.path().join("blocks")).unwrap();
        let options = FetchOptions {
            deadline: Duration::from_millis(200),
            ..FetchOptions::default()
        };
        let fetcher = Fetcher::new(cache, routes, options);
        let disk = LazyDisk::open(&dir.path().join(EROFS_NAME), &dir.path().join(MAP_NAME), fetcher).unwrap();
        TestDevice {
            device: Device {
                disk,
                serial: *b"serial-of-20-bytes..",
                counters: Counters::default(),
                ahead: Default::default(),
                writing_back: Default::default(),
            },
            dir,
            content,
            stored,
            data_sector,
        }
    }
}
