//! What the tests of fetching share: the recorded flists with their blocks, and a web server that can misbehave.
#![allow(unreachable_pub)] // a module of a test program

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use zmachine_flist::{BlockRef, Flist, Route, RouteTable};
use zmachine_image::{BlockCache, FetchOptions, Fetcher, Timeouts};

/// The recorded flists and stores of the original tool.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../flist/tests/fixtures/v2")
}

/// A recorded flist.
pub fn flist(name: &str) -> Flist {
    Flist::open(&fixtures().join(name)).unwrap()
}

/// The URL of a recorded store.
pub fn dir_url(name: &str) -> String {
    format!("dir://{}", fixtures().canonicalize().unwrap().join(name).display())
}

/// A block of a recorded flist, the longest one.
pub fn a_block() -> BlockRef {
    blocks().into_iter().max_by_key(|block| block.len).unwrap()
}

/// All blocks of a recorded flist.
pub fn blocks() -> Vec<BlockRef> {
    flist("busybox.fl").tree.unique_blocks()
}

/// The stored file of a block.
pub fn stored(block: &BlockRef) -> PathBuf {
    let hex = block.id.to_string();
    fixtures().join("store").join(&hex[..2]).join(hex)
}

/// Routes for all blocks, in this order.
pub fn routes<S: AsRef<str>>(urls: &[S]) -> RouteTable {
    RouteTable(urls.iter().map(|url| Route::all(url.as_ref())).collect())
}

/// Limits for tests: a stalled server costs a second at most.
pub fn quick() -> FetchOptions {
    FetchOptions {
        stores: Vec::new(),
        deadline: Duration::from_secs(20),
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            request: Duration::from_millis(1000),
        },
        ..FetchOptions::default()
    }
}

/// A fetcher with a fresh cache.
pub struct Bench {
    _dir: tempfile::TempDir,
    pub cache: BlockCache,
    pub fetcher: Fetcher,
}

impl Bench {
    pub fn new<S: AsRef<str>>(urls: &[S]) -> Bench {
        Bench::with(urls, quick())
    }

    pub fn with<S: AsRef<str>>(urls: &[S], options: FetchOptions) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(&dir.path().join("blocks")).unwrap();
        let fetcher = Fetcher::new(cache.clone(), routes(urls), options);
        Bench {
            _dir: dir,
            cache,
            fetcher,
        }
    }
}

/// How the server answers a request for a file it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Sends it.
    Good,
    /// Announces all of it, sends half and closes.
    CutShort,
    /// Sends half of it as if that was all.
    Half,
    /// Sends it with one bit turned.
    Corrupt,
    /// Sends far more than any block has.
    Endless,
    /// Answers with a status and no file.
    Status(u16),
    /// Reads the request and answers nothing.
    Stall,
    /// Closes without an answer.
    Close,
    /// Sends it after a pause.
    Slow,
    /// Sends it byte by byte, each after a pause.
    Drip,
}

struct Shared {
    root: PathBuf,
    behaviour: Mutex<Behaviour>,
    /// How many requests still get the behaviour; later ones are served well.
    misbehave_for: AtomicUsize,
    requests: Mutex<Vec<String>>,
    connections: AtomicUsize,
}

/// A web server on loopback that serves a directory with keep-alive and ETags. Its threads end with the test program.
pub struct Server {
    shared: Arc<Shared>,
    port: u16,
}

impl Server {
    pub fn of(root: &Path) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            behaviour: Mutex::new(Behaviour::Good),
            misbehave_for: AtomicUsize::new(usize::MAX),
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let server = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                server.connections.fetch_add(1, SeqCst);
                let server = Arc::clone(&server);
                std::thread::spawn(move || {
                    // A client that hangs up ends the connection, which is no failure of the server.
                    let _ = server.serve(&stream);
                });
            }
        });
        Server { shared, port }
    }

    /// A server of the recorded store that answers as told.
    pub fn of_store(behaviour: Behaviour) -> Server {
        let server = Server::of(&fixtures().join("store"));
        server.set(behaviour);
        server
    }

    pub fn set(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    /// Misbehaves for `count` requests only.
    pub fn set_for(&self, behaviour: Behaviour, count: usize) {
        self.shared.misbehave_for.store(count, SeqCst);
        self.set(behaviour);
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Request lines so far, with `[conditional]` where the client has a copy already.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }
}

/// A URL where nobody listens.
pub fn refused_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port())
}

impl Shared {
    fn serve(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while let Some(first) = lines.next() {
            let first = first?;
            let mut etag = None;
            for header in lines.by_ref() {
                let header = header?.to_ascii_lowercase();
                if header.is_empty() {
                    break;
                }
                etag = header.strip_prefix("if-none-match: ").map(str::to_owned).or(etag);
            }
            let mark = if etag.is_some() { " [conditional]" } else { "" };
            self.requests.lock().unwrap().push(format!("{first}{mark}"));
            let path = first
                .split(' ')
                .nth(1)
                .unwrap_or("/")
                .trim_start_matches('/')
                .to_owned();
            if !self.answer(&mut stream, &path, etag)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn behaviour(&self) -> Behaviour {
        let behaviour = *self.behaviour.lock().unwrap();
        let left = self
            .misbehave_for
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if left.is_ok() { behaviour } else { Behaviour::Good }
    }

    /// Answers one request; whether the connection stays.
    fn answer(&self, stream: &mut &TcpStream, path: &str, etag: Option<String>) -> std::io::Result<bool> {
        let behaviour = self.behaviour();
        let Ok(mut body) = std::fs::read(self.root.join(path)) else {
            return status(stream, 404);
        };
        let tag = format!("\"{}\"", zmachine_flist::Digest::blake2b_32(&body));
        let mut announced = body.len();
        match behaviour {
            Behaviour::Good | Behaviour::Drip => {}
            Behaviour::Slow => std::thread::sleep(Duration::from_millis(300)),
            Behaviour::CutShort => body.truncate(announced / 2),
            Behaviour::Half => {
                body.truncate(announced / 2);
                announced = body.len();
            }
            Behaviour::Corrupt => {
                let middle = body.len() / 2;
                body[middle] ^= 1;
            }
            Behaviour::Endless => {
                body = vec![0; 8 << 20];
                announced = body.len();
            }
            Behaviour::Status(code) => return status(stream, code),
            Behaviour::Stall => {
                std::thread::sleep(Duration::from_secs(600));
                return Ok(false);
            }
            Behaviour::Close => return Ok(false),
        }
        if etag.as_deref() == Some(&tag) {
            return status(stream, 304);
        }
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {announced}\r\nETag: {tag}\r\n\r\n"
        )?;
        if behaviour == Behaviour::Drip {
            for byte in &body {
                stream.write_all(&[*byte])?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        stream.write_all(&body)?;
        Ok(body.len() == announced)
    }
}

fn status(stream: &mut &TcpStream, code: u16) -> std::io::Result<bool> {
    write!(stream, "HTTP/1.1 {code} Status\r\nContent-Length: 0\r\n\r\n")?;
    Ok(true)
}

/// Every path below `dir` with the content of its files, sorted: to see that nothing was left behind.
pub fn contents(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(&next).unwrap().flatten() {
            let path = entry.path();
            found.push(path.strip_prefix(dir).unwrap().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                todo.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Reads everything.
pub fn read_all(mut file: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}
