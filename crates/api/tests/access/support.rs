//! A server with TLS, and requests made by hand.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use zmachine_testkit::{Need, certificate, lacking, skip};

use crate::http::{Answer, exchange};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_zmachine-api");

/// A server over a home with nothing in it.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) port: u16,
    pub(crate) folder: tempfile::TempDir,
}

impl Server {
    /// `None` (with the reason printed) where there is nothing to make a certificate with.
    pub(crate) fn start() -> Option<Server> {
        if let Some(reason) = lacking(&[Need::Command("openssl")]) {
            skip(&reason);
            return None;
        }
        let folder = tempfile::tempdir_in("/tmp").expect("a folder");
        certificate(folder.path());
        let mut server = Server {
            child: Command::new("true").spawn().expect("a process"),
            port: 0,
            folder,
        };
        server.child.wait().expect("wait");
        server.serve();
        Some(server)
    }

    /// Starts the program on a port of its choice.
    pub(crate) fn serve(&mut self) {
        let mut command = self.command(&["--program", "/bin/true", "serve", "--listen"]);
        command.arg(format!("127.0.0.1:{}", self.port));
        for (option, file) in [
            ("--docker", "docker.sock"),
            ("--socket", "api.sock"),
            ("--tls-cert", "cert.pem"),
            ("--tls-key", "key.pem"),
        ] {
            command.arg(option).arg(self.file(file));
        }
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the server");
        let mut said = String::new();
        let mut stderr = std::io::BufReader::new(child.stderr.take().expect("its words"));
        while !said.contains("https://") {
            let count = std::io::BufRead::read_line(&mut stderr, &mut said).expect("its words");
            assert!(count > 0, "no server: {said}");
        }
        let (_, address) = said.rsplit_once("https://").expect("an address");
        self.port = address
            .trim()
            .rsplit_once(':')
            .expect("a port")
            .1
            .parse()
            .expect("a port");
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        self.child = child;
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).env("ZMACHINE_HOME", self.file("home"));
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program")
    }

    /// A token of a role.
    pub(crate) fn token(&self, name: &str, role: &str, expires: &str) -> String {
        let made = self.run(&["token", "create", name, "--role", role, "--expires", expires]);
        assert!(made.status.success(), "{made:?}");
        String::from_utf8(made.stdout).expect("text").trim().to_owned()
    }

    /// A connection, with the name that is asked for in the handshake.
    pub(crate) fn tls(&self, name: &str) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.file("cert.pem")).expect("a certificate"))
            .expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(100)))
            .expect("a limit");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        StreamOwned::new(connection, stream)
    }

    /// Sends bytes, and reads to the end.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Answer {
        exchange(self.tls("localhost"), bytes)
    }

    /// A request as it should be, with headers on top.
    pub(crate) fn ask(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        self.raw(request(line, &format!("localhost:{}", self.port), headers, body).as_bytes())
    }

    pub(crate) fn by(&self, token: &str, line: &str, body: &str) -> Answer {
        self.ask(line, &[&format!("Authorization: Bearer {token}")], body)
    }

    /// By a socket of this host.
    pub(crate) fn local(&self, socket: &str, line: &str, headers: &[&str], body: &str) -> Answer {
        let stream = UnixStream::connect(self.file(socket)).expect("a connection");
        exchange(stream, request(line, "z", headers, body).as_bytes())
    }

    /// The record of changes.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.file("home/audit.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

pub(crate) fn request(line: &str, host: &str, headers: &[&str], body: &str) -> String {
    let mut text = format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text + &format!("Content-Length: {}\r\n\r\n{body}", body.len())
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
pub(crate) fn expect(answer: &Answer, status: u16, reason: &str) {
    assert!(
        answer.status == status && answer.reason().contains(reason),
        "{status} {reason}: {answer:?}"
    );
}

pub(crate) const VOLUME: &str = r#"{"name":"v1","size_bytes":67108864}"#;
