//! Images of a registry that are used before their layers are here: eStargz and zstd:chunked, as this file writes them, from a server
//! with ranges; what does not fit comes as a whole, and what is not what it should be is refused.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use sha2::{Digest as _, Sha256};
use zmachine_flist::{BlockRef, NodeKind};
use zmachine_image::lazy::is_lazy;
use zmachine_image::{Fetcher, Image, ImageSource, Library, Mode, Silent};
use zmachine_pack::oci::ImportOptions;
use zmachine_pack::oci::lazy::{self, complete};
use zmachine_pack::oci::pull::pull;

fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Bytes that no compression makes shorter than the least that is worth a table of contents.
fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// The files of the layer: a name, and what is in it.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("bin/app", noise(9 << 20, 1)),
        ("etc/empty", Vec::new()),
        ("etc/motd", b"hello\n".to_vec()),
        ("var/odd", noise(3 * (1 << 19) + 17, 7)),
    ]
}

fn tar_header(name: &str, kind: u8, size: usize) -> [u8; 512] {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(if kind == b'5' { b"0000755" } else { b"0000640" });
    header[108..115].copy_from_slice(b"0000012");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[136..147].copy_from_slice(format!("{:011o}", 1_700_000_000).as_bytes());
    header[148..156].fill(b' ');
    header[156] = kind;
    if kind == b'1' {
        header[157..165].copy_from_slice(b"etc/motd");
    }
    header[257..263].copy_from_slice(b"ustar\0");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer with its tar and its annotations.
struct Layer {
    stored: Vec<u8>,
    tar: Vec<u8>,
    annotations: BTreeMap<String, String>,
}

/// What both formats have in common: parts of a tar that are compressed alone, and the entries of the table.
fn parts(chunk: usize, compress: impl Fn(&[u8]) -> Vec<u8>) -> (Vec<u8>, Vec<u8>, Vec<String>) {
    let (mut stored, mut tar, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    let mut put = |stored: &mut Vec<u8>, bytes: &[u8]| {
        tar.extend_from_slice(bytes);
        stored.extend(compress(bytes));
    };
    for folder in ["bin/", "etc/", "var/"] {
        put(&mut stored, &tar_header(folder, b'5', 0));
        entries.push(format!(
            r#"{{"name":"{folder}","type":"dir","mode":493,"uid":10,"modtime":"2023-11-14T22:13:20Z"}}"#
        ));
    }
    for (name, content) in files() {
        put(&mut stored, &tar_header(name, b'0', content.len()));
        let mut at = 0;
        for (number, piece) in content.chunks(chunk).enumerate() {
            let offset = stored.len();
            put(&mut stored, piece);
            let kind = if number == 0 { "reg" } else { "chunk" };
            let mut entry = format!(
                r#"{{"name":"{name}","type":"{kind}","offset":{offset},"chunkDigest":"{}""#,
                sha256(piece)
            );
            if number == 0 {
                let size = content.len();
                write!(
                    entry,
                    r#","size":{size},"mode":416,"uid":10,"modtime":"2023-11-14T22:13:20Z","digest":"{}""#,
                    sha256(&content)
                )
                .unwrap();
            }
            if at + piece.len() < content.len() {
                write!(entry, r#","chunkSize":{}"#, piece.len()).unwrap();
            }
            if at > 0 {
                write!(entry, r#","chunkOffset":{at}"#).unwrap();
            }
            entries.push(entry + "}");
            at += piece.len();
        }
        if content.is_empty() {
            entries.push(format!(
                r#"{{"name":"{name}","type":"reg","mode":416,"uid":10,"modtime":"2023-11-14T22:13:20Z"}}"#
            ));
        }
        put(
            &mut stored,
            &vec![0; content.len().next_multiple_of(512) - content.len()],
        );
    }
    put(&mut stored, &tar_header("etc/same", b'1', 0));
    entries.push(r#"{"name":"etc/same","type":"hardlink","linkName":"etc/motd"}"#.into());
    put(&mut stored, &[0; 1024]);
    (stored, tar, entries)
}

fn estargz(chunk: usize) -> Layer {
    let (mut stored, mut tar, entries) = parts(chunk, gzip);
    let json = format!(r#"{{"version":1,"entries":[{}]}}"#, entries.join(","));
    let at = stored.len();
    let mut table = tar_header("stargz.index.json", b'0', json.len()).to_vec();
    table.extend(json.as_bytes());
    table.resize(table.len().next_multiple_of(512) + 1024, 0);
    stored.extend(gzip(&table));
    tar.extend(table);
    // An empty member whose extra field says where the table is.
    stored.extend([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0]);
    stored.extend(format!("{at:016x}STARGZ").bytes());
    stored.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    let annotations = [(
        "containerd.io/snapshot/stargz/toc.digest".into(),
        sha256(json.as_bytes()),
    )];
    Layer {
        stored,
        tar,
        annotations: annotations.into(),
    }
}

fn chunked(chunk: usize) -> Layer {
    let (mut stored, tar, entries) = parts(chunk, |bytes| compress_to_vec(bytes, CompressionLevel::Fastest));
    let json = format!(r#"{{"version":1,"entries":[{}]}}"#, entries.join(","));
    let table = compress_to_vec(json.as_bytes(), CompressionLevel::Fastest);
    stored.extend([0x50, 0x2a, 0x4d, 0x18]);
    stored.extend((table.len() as u32).to_le_bytes());
    let position = format!("{}:{}:{}:1", stored.len(), table.len(), json.len());
    stored.extend(&table);
    let prefix = "io.github.containers.zstd-chunked.manifest-";
    let annotations = [
        (format!("{prefix}position"), position),
        (format!("{prefix}checksum"), sha256(&table)),
    ];
    Layer {
        stored,
        tar,
        annotations: annotations.into(),
    }
}

/// What a request got, in bytes of its body.
type Log = Arc<Mutex<Vec<(String, usize)>>>;
/// Changes what is sent of a layer.
type Change = Arc<dyn Fn(&mut Vec<u8>) + Send + Sync>;

/// A registry with one image of one layer.
struct Registry {
    port: u16,
    log: Log,
    layer: String,
}

impl Registry {
    fn start(layer: Layer, has_ranges: bool, change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Registry {
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/bin/app"]}},"rootfs":{{"diff_ids":["{}"]}}}}"#,
            sha256(&layer.tar)
        );
        let annotations: Vec<String> = layer
            .annotations
            .iter()
            .map(|(name, value)| format!("{name:?}:{value:?}"))
            .collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":{}}},"layers":[{{"digest":"{}","size":{},"annotations":{{{}}}}}]}}"#,
            sha256(config.as_bytes()),
            config.len(),
            sha256(&layer.stored),
            layer.stored.len(),
            annotations.join(",")
        );
        let documents = BTreeMap::from([
            (sha256(config.as_bytes()), config.into_bytes()),
            (sha256(manifest.as_bytes()), manifest.clone().into_bytes()),
            ("latest".to_owned(), manifest.into_bytes()),
            (sha256(&layer.stored), layer.stored.clone()),
        ]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Registry {
            port: listener.local_addr().unwrap().port(),
            log: Log::default(),
            layer: sha256(&layer.stored),
        };
        let (documents, log, change): (_, _, Change) =
            (Arc::new(documents), Arc::clone(&registry.log), Arc::new(change));
        let name = registry.layer.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (documents, log, change, name) = (
                    Arc::clone(&documents),
                    Arc::clone(&log),
                    Arc::clone(&change),
                    name.clone(),
                );
                std::thread::spawn(move || {
                    let changed = |bytes: &mut Vec<u8>, is_layer: bool| {
                        if is_layer {
                            change(bytes);
                        }
                    };
                    // A client that hangs up ends the connection.
                    let _ = serve(&stream, |path, range| {
                        let last = path.rsplit('/').next().unwrap_or_default();
                        let bytes = documents.get(last)?;
                        let range = range.filter(|_| has_ranges);
                        let mut body = range.map_or_else(
                            || bytes.clone(),
                            |(from, to)| bytes[from..=to.min(bytes.len() - 1)].to_vec(),
                        );
                        log.lock().unwrap().push((last.to_owned(), body.len()));
                        changed(&mut body, last == name);
                        let head = range.map_or("200 OK\r\n".to_owned(), |(from, to)| {
                            format!(
                                "206 Partial Content\r\ncontent-range: bytes {from}-{to}/{}\r\n",
                                bytes.len()
                            )
                        });
                        Some((head, body))
                    });
                });
            }
        });
        registry
    }

    fn source(&self) -> ImageSource {
        ImageSource::parse(&format!("docker://127.0.0.1:{}/app", self.port)).unwrap()
    }

    /// Bytes of the layer that were sent.
    fn sent(&self) -> usize {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|(name, _)| *name == self.layer)
            .map(|(_, bytes)| bytes)
            .sum()
    }
}

fn serve(
    stream: &TcpStream,
    answer: impl Fn(&str, Option<(usize, usize)>) -> Option<(String, Vec<u8>)>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let mut range = None;
        let Some(first) = lines.next().transpose()? else {
            return Ok(());
        };
        for line in &mut lines {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some((from, to)) = line.strip_prefix("range: bytes=").and_then(|text| text.split_once('-')) {
                range = Some((from.parse().unwrap(), to.parse().unwrap_or(usize::MAX)));
            }
        }
        let path = first.split(' ').nth(1).unwrap_or_default();
        let (head, body) = answer(path, range).unwrap_or_else(|| ("404 Not Found\r\n".to_owned(), Vec::new()));
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {head}content-length: {}\r\n\r\n", body.len())?;
        stream.write_all(&body)?;
    }
}

fn lazily() -> ImportOptions {
    ImportOptions {
        is_lazy: true,
        ..ImportOptions::default()
    }
}

/// A fetcher as a machine's block broker has it.
fn fetcher(library: &Library, image: &Image) -> Fetcher {
    let flist = image.open_flist().unwrap();
    lazy::fetcher(image, flist.routes, library).unwrap()
}

fn content(fetcher: &Fetcher, image: &Image, path: &str) -> Vec<u8> {
    let tree = image.open_flist().unwrap().tree;
    let node = tree.get(tree.resolve(path.as_bytes()).unwrap());
    let NodeKind::Regular { blocks, .. } = &node.kind else {
        panic!("{path} is no file")
    };
    let read = |block: &BlockRef| fetcher.fetch(block).unwrap().into_bytes(block.len).unwrap();
    blocks.iter().flat_map(read).collect()
}

#[test]
fn files_come_when_they_are_read_and_the_rest_later() {
    // Chunks that are longer than blocks, shorter, and beside their borders.
    for (layer, chunk) in [
        (estargz as fn(usize) -> Layer, 4 << 20),
        (chunked, 300_000),
        (estargz, 1 << 19),
    ] {
        let layer = layer(chunk);
        let length = layer.stored.len();
        let registry = Registry::start(layer, true, |_| ());
        let home = tempfile::tempdir().unwrap();
        let library = Library::open(home.path()).unwrap();
        let pulled = pull(&registry.source(), &lazily(), &library, Mode::Auto, &Silent).unwrap();
        let image = pulled.image;
        assert!(
            is_lazy(&image.directory) && registry.sent() < length / 4,
            "{} of {length}",
            registry.sent()
        );

        let fetcher = fetcher(&library, &image);
        let before = registry.sent();
        assert_eq!(content(&fetcher, &image, "/etc/same"), b"hello\n");
        assert!(registry.sent() - before < 200, "a small file takes no more than it is");
        for (name, bytes) in files() {
            assert!(content(&fetcher, &image, &format!("/{name}")) == bytes, "{name}");
        }
        // Every chunk once: those of the odd file are shared by blocks that begin and end in them.
        let stats = fetcher.stats();
        assert!((1..60).contains(&stats.blocks) && stats.errors == 0, "{stats:?}");
        let read = registry.sent();
        assert!(content(&fetcher, &image, "/bin/app") == files()[0].1 && registry.sent() == read);
        // Another machine of the same image knows what this one found.
        let other = self::fetcher(&library, &image);
        assert!(content(&other, &image, "/var/odd") == files()[3].1 && registry.sent() == read);

        let whole = complete(&image, &ImportOptions::default(), &library, &Silent).unwrap();
        assert!(!is_lazy(&whole.directory) && whole.digest != image.digest);
        let all = registry.sent();
        let again = pull(&registry.source(), &lazily(), &library, Mode::Auto, &Silent).unwrap();
        assert!(again.image == whole && !again.is_new && registry.sent() == all);
        let plain = library.fetcher(whole.open_flist().unwrap().routes).unwrap();
        for (name, bytes) in files() {
            assert!(content(&plain, &whole, &format!("/{name}")) == bytes, "{name}");
        }
    }
}

#[test]
fn a_machine_that_began_early_needs_no_registry_when_all_is_here() {
    let registry = Registry::start(estargz(4 << 20), true, |_| ());
    let home = tempfile::tempdir().unwrap();
    let library = Library::open(home.path()).unwrap();
    let image = pull(&registry.source(), &lazily(), &library, Mode::Auto, &Silent)
        .unwrap()
        .image;
    let fetcher = fetcher(&library, &image);
    complete(&image, &ImportOptions::default(), &library, &Silent).unwrap();
    // What is removed for a limit is not what it needs.
    library.set_cache_limit(Some(1)).unwrap();
    library
        .trim_cache(|_| Ok::<_, zmachine_image::ResolveError>(Default::default()))
        .unwrap();
    let asked = registry.log.lock().unwrap().len();
    complete(&image, &ImportOptions::default(), &library, &Silent).unwrap();
    assert_eq!(
        registry.log.lock().unwrap().len(),
        asked,
        "what is here is not asked for"
    );
    let sent = registry.sent();
    for (name, bytes) in files() {
        assert!(content(&fetcher, &image, &format!("/{name}")) == bytes, "{name}");
    }
    assert_eq!((registry.sent(), fetcher.stats().blocks), (sent, 0));
}

#[test]
fn what_is_not_what_its_digest_says_reaches_nobody() {
    let layer = estargz(4 << 20);
    let end = layer.stored.len();
    // Everything but the end with the table, which is read first.
    let registry = Registry::start(layer, true, move |bytes| {
        if bytes.len() < end / 2 && !bytes.ends_with(&[0; 8]) {
            // Behind the head of the gzip member.
            bytes[12] ^= 1;
        }
    });
    let home = tempfile::tempdir().unwrap();
    let library = Library::open(home.path()).unwrap();
    let image = pull(&registry.source(), &lazily(), &library, Mode::Auto, &Silent)
        .unwrap()
        .image;
    let fetcher = fetcher(&library, &image);
    let tree = image.open_flist().unwrap().tree;
    let node = tree.get(tree.resolve(b"/etc/motd").unwrap());
    let NodeKind::Regular { blocks, .. } = &node.kind else {
        panic!()
    };
    let error = fetcher.fetch(&blocks[0]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("another digest") || text.contains("cannot be unpacked"),
        "{text}"
    );
    assert!(library.cache_usage().unwrap().blocks == 0 && fetcher.stats().corrupt_answers > 0);
}

#[test]
fn where_parts_cannot_be_had_the_layers_come_as_a_whole() {
    let without_ranges = Registry::start(estargz(4 << 20), false, |_| ());
    let mut without_table = estargz(4 << 20);
    let end = without_table.stored.len();
    without_table.stored[end - 30] = b'x';
    let without_table = Registry::start(without_table, true, |_| ());
    let mut wrong = chunked(1 << 20);
    wrong.annotations.iter_mut().for_each(|(name, value)| {
        if name.ends_with("position") {
            *value = format!("{}:9:9:1", u64::MAX);
        }
    });
    let wrong = Registry::start(wrong, true, |_| ());
    let home = tempfile::tempdir().unwrap();
    let library = Library::open(home.path()).unwrap();
    for registry in [without_ranges, without_table, wrong] {
        let image = pull(&registry.source(), &lazily(), &library, Mode::Auto, &Silent)
            .unwrap()
            .image;
        assert!(!is_lazy(&image.directory));
    }
}

#[test]
fn a_table_that_is_another_one_is_refused() {
    let mut layer = estargz(4 << 20);
    layer
        .annotations
        .values_mut()
        .for_each(|digest| *digest = sha256(b"another table"));
    let registry = Registry::start(layer, true, |_| ());
    let home = tempfile::tempdir().unwrap();
    let library = Library::open(home.path()).unwrap();
    let error = pull(&registry.source(), &lazily(), &library, Mode::Auto, &Silent).unwrap_err();
    assert!(error.to_string().contains("is broken"), "{error}");
}
