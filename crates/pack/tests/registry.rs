//! Registries that are not as friendly as Debian's: what they ask for, how they break off, and how slow they are.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use zmachine_flist::Flist;
use zmachine_image::store::RoutedStore;
use zmachine_image::{Silent, Timeouts};
use zmachine_pack::oci::{ImageSource, ImportError, ImportOptions, import};
use zmachine_pack::pack::PackOptions;

/// What was asked for.
#[derive(Debug, Clone, Default)]
struct Request {
    path: String,
    authorization: Option<String>,
    range: Option<u64>,
}

/// What is answered.
#[derive(Debug, Default)]
struct Reply {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection breaks off.
    cut: Option<usize>,
    /// A pause before each byte.
    drip: Option<Duration>,
}

/// A registry with one image, whose answers go through `answer`.
struct Registry {
    port: u16,
    log: Arc<Mutex<Vec<Request>>>,
}

/// The image: documents and one layer by their paths below `/v2/app/`.
struct Image {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Image {
    /// One file of 3 MiB in a tar that is not compressed.
    fn new() -> Image {
        let content: Vec<u8> = (0..3u32 << 18).flat_map(u32::to_le_bytes).collect();
        let mut header = [0u8; 512];
        header[..4].copy_from_slice(b"file");
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let layer = [&header[..], &content, &[0; 1024]].concat();
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"diff_ids":["sha256:{}"]}}}}"#,
            hex(&layer)
        );
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{}","size":{}}},"layers":[{{"digest":"sha256:{}","size":{}}}]}}"#,
            hex(config.as_bytes()),
            config.len(),
            hex(&layer),
            layer.len()
        );
        Image {
            manifest: manifest.into(),
            config: config.into(),
            layer,
        }
    }

    /// The usual answer; ranges are known.
    fn answer(&self, request: &Request) -> Reply {
        let is = |bytes: &[u8]| request.path.ends_with(&hex(bytes));
        let body = match () {
            () if request.path.ends_with("manifests/latest") => &self.manifest,
            () if is(&self.config) => &self.config,
            () if is(&self.layer) => &self.layer,
            () => {
                return Reply {
                    status: 404,
                    ..Reply::default()
                };
            }
        };
        match request.range {
            None => Reply {
                status: 200,
                body: body.clone(),
                ..Reply::default()
            },
            Some(from) => Reply {
                status: 206,
                headers: vec![format!("content-range: bytes {from}-{}/{}", body.len() - 1, body.len())],
                body: body[from as usize..].to_vec(),
                ..Reply::default()
            },
        }
    }
}

impl Registry {
    /// `answer` gets the request, how many there were before, and the usual answer.
    fn start(answer: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (log, image, answer) = (Arc::default(), Arc::new(Image::new()), Arc::new(answer));
        let registry = Registry {
            port,
            log: Arc::clone(&log),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, image, answer) = (Arc::clone(&log), Arc::clone(&image), Arc::clone(&answer));
                std::thread::spawn(move || {
                    // A client that hangs up ends the connection.
                    let _ = serve(&stream, &log, |request, before| {
                        answer(request, before, image.answer(request))
                    });
                });
            }
        });
        registry
    }

    fn import(&self, options: ImportOptions) -> Result<Flist, ImportError> {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("dir://{}", folder.path().display());
        let store = RoutedStore::open(&[url], Timeouts::default()).unwrap();
        let source = ImageSource::parse(&format!("docker://127.0.0.1:{}/app", self.port)).unwrap();
        import(&source, &options, &store, &PackOptions::default(), &Silent).map(|imported| imported.flist)
    }

    fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: &TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: impl Fn(&Request, usize) -> Reply,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(first) = lines.next() {
        let mut request = Request {
            path: first?.split(' ').nth(1).unwrap_or_default().to_owned(),
            ..Request::default()
        };
        for header in lines.by_ref() {
            let header = header?;
            match header.split_once(": ") {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                    request.authorization = Some(value.to_owned());
                }
                Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                    let from = value.trim_start_matches("bytes=").trim_end_matches('-');
                    request.range = from.parse().ok();
                }
                Some(_) => {}
            }
        }
        let before = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let reply = answer(&request, before);
        let headers: String = reply.headers.iter().map(|header| format!("{header}\r\n")).collect();
        let (status, length) = (reply.status, reply.body.len());
        write!(
            stream,
            "HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n{headers}\r\n"
        )?;
        if let Some(pause) = reply.drip {
            for byte in &reply.body {
                std::thread::sleep(pause);
                stream.write_all(&[*byte])?;
            }
        }
        stream.write_all(&reply.body[..reply.cut.unwrap_or(length)])?;
        if reply.cut.is_some() {
            return Ok(());
        }
    }
    Ok(())
}

fn is_layer(reply: &Reply) -> bool {
    reply.body.len() > 1000
}

fn unauthorized(challenges: &[String]) -> Reply {
    Reply {
        status: 401,
        headers: challenges
            .iter()
            .map(|challenge| format!("www-authenticate: {challenge}"))
            .collect(),
        ..Reply::default()
    }
}

fn host_of(request: &Request) -> bool {
    request.path.starts_with("/token")
}

#[test]
fn any_of_several_challenges_is_met_and_a_token_that_expires_is_asked_for_again() {
    // The port is known only after the start.
    let port = Arc::new(Mutex::new(0));
    let known = Arc::clone(&port);
    let issued = Mutex::new(0);
    let registry = Registry::start(move |request, before, usual| {
        let mut issued = issued.lock().unwrap();
        if host_of(request) {
            *issued += 1;
            return Reply {
                status: 200,
                body: format!(r#"{{"token":"","access_token":"token-{issued}"}}"#).into(),
                ..Reply::default()
            };
        }
        let port = *known.lock().unwrap();
        let is_valid = request.authorization == Some(format!("Bearer token-{issued}"));
        // Each token is good for a while only: the layer is asked for with one that has expired.
        if is_valid && !(is_layer(&usual) && *issued == 1) {
            return usual;
        }
        let _ = before;
        unauthorized(&[
            "Negotiate".into(),
            format!(r#"Basic realm="x, y", Bearer realm="http://127.0.0.1:{port}/token",service="",scope="""#),
        ])
    });
    *port.lock().unwrap() = registry.port;
    registry.import(ImportOptions::default()).unwrap();
    let tokens: Vec<Request> = registry.requests().into_iter().filter(host_of).collect();
    assert_eq!(tokens.len(), 2, "{tokens:?}");
    for token in tokens {
        // Nothing is said where nothing was asked for, and nobody has a password.
        assert!(token.path.contains("scope=repository%3Aapp%3Apull"), "{token:?}");
        assert!(
            !token.path.contains("service") && token.authorization.is_none(),
            "{token:?}"
        );
    }
}

#[test]
fn a_password_goes_to_the_registry_that_asks_for_one_and_nowhere_without_a_question() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(|request, _, usual| match request.authorization.as_deref() {
        // user:secret
        Some("Basic dXNlcjpzZWNyZXQ=") => usual,
        _ => unauthorized(&["Basic realm=\"r\"".into()]),
    });
    let file = folder.path().join("auth.json");
    let host = format!("127.0.0.1:{}", registry.port);
    std::fs::write(
        &file,
        format!(r#"{{"auths":{{"{host}":{{"auth":"dXNlcjpzZWNyZXQ="}},"other":null}},"credHelpers":null}}"#),
    )
    .unwrap();
    let options = || ImportOptions {
        auth_files: vec![file.clone()],
        ..ImportOptions::default()
    };
    registry.import(options()).unwrap();
    assert!(registry.requests()[0].authorization.is_none());
    let silent = Registry::start(|_, _, _| unauthorized(&[]));
    std::fs::write(
        &file,
        format!(
            r#"{{"auths":{{"127.0.0.1:{}":{{"auth":"dXNlcjpzZWNyZXQ="}}}}}}"#,
            silent.port
        ),
    )
    .unwrap();
    assert!(matches!(
        silent.import(options()),
        Err(ImportError::Status { status: 401, .. })
    ));
    assert!(silent.requests().iter().all(|request| request.authorization.is_none()));
}

#[test]
fn a_connection_that_is_cut_goes_on_where_it_was_also_where_ranges_are_not_known() {
    for knows_ranges in [true, false] {
        let registry = Registry::start(move |request, before, usual| {
            let is_layer = is_layer(&usual);
            let whole = Image::new().layer;
            let usual = match request.range {
                Some(_) if !knows_ranges => Reply {
                    status: 200,
                    body: whole,
                    ..Reply::default()
                },
                _ => usual,
            };
            // The first two connections break off.
            let cut = (is_layer && before < 4).then_some(usual.body.len() / 2);
            Reply { cut, ..usual }
        });
        registry.import(ImportOptions::default()).unwrap();
        let ranges: Vec<Option<u64>> = registry.requests()[2..].iter().map(|request| request.range).collect();
        assert_eq!(ranges.len(), 3, "{ranges:?}");
        assert!(
            ranges[0].is_none() && ranges[1].is_some() && ranges[2] > ranges[0],
            "{ranges:?}"
        );
    }
}

#[test]
fn a_registry_that_cuts_every_connection_is_given_up() {
    let registry = Registry::start(|_, _, usual| {
        let cut = is_layer(&usual).then_some(100);
        Reply { cut, ..usual }
    });
    let error = registry.import(ImportOptions::default()).unwrap_err();
    assert!(
        matches!(&error, ImportError::Read { source, .. } if source.to_string().contains("cut")),
        "{error:?}"
    );
    assert!(registry.requests().len() < 10);
}

#[test]
fn a_registry_that_drips_is_given_up_whatever_it_drips() {
    for layer in [true, false] {
        let registry = Registry::start(move |_, _, usual| {
            let drip = (is_layer(&usual) == layer).then_some(Duration::from_millis(5));
            Reply { drip, ..usual }
        });
        let options = ImportOptions {
            timeouts: Timeouts {
                request: Duration::from_millis(100),
                ..Timeouts::default()
            },
            ..ImportOptions::default()
        };
        let error = registry.import(options).unwrap_err();
        let ImportError::Read { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(source.kind() == std::io::ErrorKind::TimedOut, "{error:?}");
    }
}
