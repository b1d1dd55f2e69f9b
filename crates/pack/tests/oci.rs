//! Container images made by the tools of others, from every place that images are in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use zmachine_flist::{Flist, ImageConfig, NodeKind};
use zmachine_image::store::RoutedStore;
use zmachine_image::{BlockCache, FetchOptions, Fetcher, Progress, Silent, Timeouts};
use zmachine_pack::diff::diff;
use zmachine_pack::oci::{ImageSource, ImportError, ImportOptions, import};
use zmachine_pack::pack::PackOptions;
use zmachine_pack::unpack::{UnpackOptions, unpack};
use zmachine_testkit::{Server, debian_program};

/// `user:secret`, with the password hashed by bcrypt.
const PASSWORDS: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A folder with an OCI layout `oci`, whose image `v1` has two layers; made by umoci.
pub(crate) struct Room {
    dir: tempfile::TempDir,
}

/// How far an import said it was.
#[derive(Default)]
pub(crate) struct Counted {
    total: AtomicU64,
    pub(crate) done: AtomicU64,
}

impl Progress for Counted {
    fn begin(&self, total: Option<u64>, _what: &str) {
        self.total.store(total.unwrap_or_default(), Relaxed);
    }

    fn advance(&self, amount: u64) {
        self.done.fetch_add(amount, Relaxed);
    }

    fn message(&self, _text: &str) {}
}

impl Room {
    pub(crate) fn new() -> Room {
        let room = Room {
            dir: tempfile::tempdir().unwrap(),
        };
        room.tool("umoci", &["init", "--layout", "oci"]);
        room.tool("umoci", &["new", "--image", "oci:v1"]);
        room.tool("umoci", &["unpack", "--image", "oci:v1", "bundle"]);
        let root = room.path("bundle/rootfs");
        for (name, content) in [
            ("etc/passwd", "web:x:1000:1000::/srv:/bin/sh\n"),
            ("srv/a", "first"),
            ("data/gone", "lower"),
            ("data/kept", "lower"),
            ("opaque/gone", "lower"),
        ] {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), content).unwrap();
        }
        fs::hard_link(root.join("srv/a"), root.join("srv/b")).unwrap();
        let big: Vec<u8> = (0..700_000u32).flat_map(u32::to_le_bytes).collect();
        fs::write(root.join("srv/big"), big).unwrap();
        room.tool("umoci", &["repack", "--refresh-bundle", "--image", "oci:v1", "bundle"]);
        fs::remove_file(root.join("data/gone")).unwrap();
        fs::remove_dir_all(root.join("opaque")).unwrap();
        fs::create_dir(root.join("opaque")).unwrap();
        fs::write(root.join("opaque/new"), "upper").unwrap();
        room.tool("umoci", &["repack", "--image", "oci:v1", "bundle"]);
        let config = [
            "--config.entrypoint=/bin/server",
            "--config.cmd=-v",
            "--config.env=GREETING=hello",
            "--config.user=web",
            "--config.workingdir=/srv",
            "--config.stopsignal=SIGINT",
            "--config.exposedports=80/tcp",
            "--config.volume=/data",
            "--config.label=a=b",
        ];
        room.tool("umoci", &[&["config", "--image", "oci:v1"][..], &config].concat());
        room
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    #[track_caller]
    pub(crate) fn tool(&self, program: &str, args: &[&str]) {
        let mut command = Command::new(program);
        let done = command.args(args).current_dir(&self.dir).output();
        let done = done.unwrap_or_else(|e| panic!("{program}: {e}; run scripts/setup"));
        let reported = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{program} {args:?}: {reported}");
    }

    pub(crate) fn import(&self, image: &str, options: &ImportOptions) -> Result<Flist, ImportError> {
        let store = format!("dir://{}", self.path("store").display());
        let store = RoutedStore::open(&[store], Timeouts::default()).unwrap();
        let pack = PackOptions {
            routes: store.routes(false),
            ..PackOptions::default()
        };
        let source = ImageSource::parse(image).unwrap();
        let counted = Counted::default();
        let imported = import(&source, options, &store, &pack, &counted).map(|imported| imported.flist);
        if imported.is_ok() {
            let (total, done) = (counted.total.into_inner(), counted.done.into_inner());
            assert!(total > 0 && total == done, "{done} of {total} bytes were told");
        }
        imported
    }

    pub(crate) fn layout(&self) -> String {
        format!("oci:{}:v1", self.path("oci").display())
    }

    /// The files of the layout's blobs, the largest first.
    pub(crate) fn blobs(&self) -> Vec<PathBuf> {
        let list = fs::read_dir(self.path("oci/blobs/sha256")).unwrap();
        let mut blobs: Vec<PathBuf> = list.map(|entry| entry.unwrap().path()).collect();
        blobs.sort_by_key(|path| std::cmp::Reverse(path.metadata().unwrap().len()));
        blobs
    }
}

/// Debian's `docker-registry` with a password.
pub(crate) fn registry(room: &Room) -> Server {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = debian_program("docker-registry", "usr/bin/docker-registry", cache);
    fs::write(room.path("htpasswd"), PASSWORDS).unwrap();
    let config = "version: 0.1\nstorage: {filesystem: {}}\nhttp: {}\n";
    fs::write(room.path("registry.yml"), config).unwrap();
    Server::start(|port| {
        let mut command = Command::new(&program);
        command
            .args(["serve", "registry.yml"])
            .current_dir(&room.dir)
            .env("REGISTRY_HTTP_ADDR", format!("127.0.0.1:{port}"))
            .env("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", room.path("registry"))
            .env("REGISTRY_AUTH", "htpasswd")
            .env("REGISTRY_AUTH_HTPASSWD_REALM", "test")
            .env("REGISTRY_AUTH_HTPASSWD_PATH", room.path("htpasswd"));
        command
    })
}

#[test]
fn an_image_is_the_same_from_a_layout_an_archive_and_a_registry() {
    let room = Room::new();
    let flist = room.import(&room.layout(), &ImportOptions::default()).unwrap();
    let config = ImageConfig::from_tags(&flist.tags).unwrap();
    assert_eq!(
        (&config.entrypoint[..], &config.cmd[..]),
        (&["/bin/server".to_owned()][..], &["-v".to_owned()][..])
    );
    assert!(config.env.contains(&"GREETING=hello".to_owned()), "{config:?}");
    assert_eq!(
        (config.user.as_deref(), config.workdir.as_deref()),
        (Some("web"), Some("/srv"))
    );
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(
        (config.ports, config.volumes),
        (vec!["80/tcp".to_owned()], vec!["/data".to_owned()])
    );
    assert_eq!(config.labels["a"], "b");
    let tree = &flist.tree;
    let there = |path: &str| tree.resolve(path.as_bytes()).is_ok();
    assert!(there("/data/kept") && there("/opaque/new") && !there("/data/gone") && !there("/opaque/gone"));
    assert_eq!(tree.lookup(b"srv/a"), tree.lookup(b"srv/b"), "names of one file");
    let cache = BlockCache::open(&room.path("cache")).unwrap();
    let fetcher = Fetcher::new(cache, flist.routes.clone(), FetchOptions::default());
    unpack(&flist, &room.path("out"), &fetcher, UnpackOptions::default(), &Silent).unwrap();
    let same = Command::new("diff")
        .arg("-r")
        .args([room.path("bundle/rootfs"), room.path("out")])
        .status();
    assert!(
        same.unwrap().success(),
        "what was unpacked is not what the image was made of"
    );

    room.tool(
        "skopeo",
        &["copy", "-q", "oci:oci:v1", "docker-archive:archive.tar:web:1"],
    );
    let archive = format!("docker-archive:{}:web:1", room.path("archive.tar").display());
    let from_archive = room.import(&archive, &ImportOptions::default()).unwrap();
    assert_eq!(diff(&flist.tree, &from_archive.tree), []);

    let registry = registry(&room);
    let target = format!("docker://{}/team/web:v1", registry.host());
    let auth = room.path("auth.json");
    let zstd = [
        "--dest-compress-format",
        "zstd",
        "--dest-tls-verify=false",
        "--dest-creds",
        "user:secret",
    ];
    room.tool(
        "skopeo",
        &[&["copy", "-q"][..], &zstd, &["oci:oci:v1", &target]].concat(),
    );
    let refused = room.import(&target, &ImportOptions::default()).unwrap_err();
    assert!(
        matches!(refused, ImportError::Status { status: 401, .. }),
        "{refused:?}"
    );
    assert!(refused.hint().is_some_and(|hint| hint.contains("login")), "{refused:?}");
    let options = [
        "login",
        "--tls-verify=false",
        "-u",
        "user",
        "-p",
        "secret",
        "--authfile",
    ];
    room.tool(
        "skopeo",
        &[&options[..], &[&auth.display().to_string(), &registry.host()]].concat(),
    );
    let options = ImportOptions {
        auth_files: vec![auth],
        ..ImportOptions::default()
    };
    let from_registry = room.import(&target, &options).unwrap();
    assert_eq!(diff(&flist.tree, &from_registry.tree), []);
    let missing = room
        .import(&format!("docker://{}/team/web:v2", registry.host()), &options)
        .unwrap_err();
    assert!(
        matches!(missing, ImportError::Status { status: 404, .. }),
        "{missing:?}"
    );
}

#[test]
fn what_is_not_as_its_digest_says_is_refused() {
    let room = Room::new();
    let layer = room.blobs()[0].clone();
    let whole = fs::read(&layer).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let longer = [whole.clone(), vec![0]].concat();
    for spoiled in [flipped, whole[..whole.len() - 9].to_vec(), longer, Vec::new()] {
        fs::write(&layer, &spoiled).unwrap();
        let error = room.import(&room.layout(), &ImportOptions::default()).unwrap_err();
        assert!(
            matches!(error, ImportError::Broken { .. }),
            "{} bytes: {error:?}",
            spoiled.len()
        );
        assert!(error.is_fetch_failure() && error.hint().is_some());
    }
    fs::write(&layer, &whole).unwrap();
    let flist = room.import(&room.layout(), &ImportOptions::default()).unwrap();
    assert!(
        flist
            .tree
            .walk()
            .any(|(_, id)| matches!(flist.tree.get(id).kind, NodeKind::Regular { .. }))
    );
    let gone = format!("oci:{}:v9", room.path("oci").display());
    assert!(matches!(
        room.import(&gone, &ImportOptions::default()),
        Err(ImportError::Read { .. })
    ));
    let nowhere = format!("oci:{}", room.path("nothing").display());
    assert!(matches!(
        room.import(&nowhere, &ImportOptions::default()),
        Err(ImportError::Read { .. })
    ));
}
