use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::sync::mpsc;

use zmachine_spec::LogLimits;

use super::*;
use crate::log::{LogWriter, Source};

struct Machine {
    dir: tempfile::TempDir,
    log: LogWriter,
}

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits {
            file_bytes: 64 * 1024,
            files: 1000,
            ..LogLimits::default()
        };
        let log = LogWriter::open(dir.path(), limits).unwrap();
        Machine { dir, log }
    }

    fn write(&mut self, range: std::ops::Range<usize>) {
        range.for_each(|n| self.log.note(Source::Stdout, &n.to_string()));
    }

    fn forward(&self, to: &str) -> (Forwarder, mpsc::Receiver<String>) {
        let (tell, reported) = mpsc::channel();
        let sender = Sender {
            machine: self.dir.path().to_owned(),
            name: "web".into(),
            id: "0123456789ab".into(),
        };
        let forwarder = Forwarder::start(sender, to.parse().unwrap(), move |line| drop(tell.send(line)));
        (forwarder.unwrap(), reported)
    }
}

fn number(line: &str) -> usize {
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (value["machine"].as_str(), value["source"].as_str()),
        (Some("web"), Some("stdout"))
    );
    value["text"].as_str().unwrap().parse().unwrap()
}

fn lines_of(stream: impl Read) -> impl Iterator<Item = usize> {
    BufReader::new(stream)
        .lines()
        .map_while(Result::ok)
        .map(|line| number(&line))
}

#[test]
fn an_absent_receiver_gets_everything_when_it_comes() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut machine = Machine::new();
    let (forwarder, reported) = machine.forward(&format!("tcp://{address}"));
    machine.write(0..5000);
    assert!(reported.recv().unwrap().contains("cannot be sent"));
    let listener = TcpListener::bind(address).unwrap();
    let (stream, _) = listener.accept().unwrap();
    machine.write(5000..6000);
    assert!(lines_of(stream).take(6000).eq(0..6000));
    forwarder.finish();
}

#[test]
fn what_a_receiver_did_not_take_comes_again_after_a_broken_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut machine = Machine::new();
    let (forwarder, _told) = machine.forward(&format!("tcp://{}", listener.local_addr().unwrap()));
    machine.write(0..50_000);
    let first: Vec<usize> = lines_of(listener.accept().unwrap().0).take(100).collect();
    let second: Vec<usize> = lines_of(listener.accept().unwrap().0)
        .take_while(|n| *n < 49_999)
        .collect();
    assert_eq!(first, (0..100).collect::<Vec<_>>());
    // Taken by our side's kernel, then lost with the connection: no more than its buffers hold.
    assert!(second.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert_eq!(second.last(), Some(&49_998));
    forwarder.finish();
}

#[test]
fn a_second_run_goes_on_where_the_first_stopped() {
    let machine = Machine::new();
    let path = machine.dir.path().join("out.jsonl");
    let to = format!("file://{}", path.display());
    let mut machine = machine;
    for run in 0..3 {
        let (forwarder, _told) = machine.forward(&to);
        machine.write(run * 700..(run + 1) * 700);
        forwarder.finish();
    }
    assert!(lines_of(std::fs::File::open(path).unwrap()).eq(0..2100));
}

#[test]
fn a_unix_socket_and_a_websocket_get_the_same_lines() {
    let mut machine = Machine::new();
    machine.write(0..3000);
    let path = machine.dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let (forwarder, _told) = machine.forward(&format!("unix://{}", path.display()));
    assert!(lines_of(listener.accept().unwrap().0).take(3000).eq(0..3000));
    forwarder.finish();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/logs", listener.local_addr().unwrap());
    let (forwarder, _told) = machine.forward(&url);
    let mut socket = tungstenite::accept(listener.accept().unwrap().0).unwrap();
    for n in 0..3000 {
        assert_eq!(number(&socket.read().unwrap().into_text().unwrap()), n);
    }
    let ended = std::thread::spawn(|| forwarder.finish());
    while socket.read().is_ok() {}
    ended.join().unwrap();
}

#[test]
fn syslog_gets_its_own_form() {
    let mut machine = Machine::new();
    machine.log.note(Source::Stderr, "it broke");
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (forwarder, _told) = machine.forward(&format!("syslog://{}", receiver.local_addr().unwrap()));
    let mut buffer = [0; 512];
    let n = receiver.recv(&mut buffer).unwrap();
    let text = std::str::from_utf8(&buffer[..n]).unwrap();
    assert!(
        text.starts_with("<27>1 20") && text.ends_with(" web 0123456789ab stderr - it broke"),
        "{text}"
    );
    forwarder.finish();

    let path = machine.dir.path().join("log");
    let receiver = UnixDatagram::bind(&path).unwrap();
    let (forwarder, _told) = machine.forward(&format!("syslog://{}", path.display()));
    let n = receiver.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"<27>zmachine-web[0123456789ab]: it broke");
    forwarder.finish();
}

#[test]
fn an_end_does_not_wait_for_a_receiver_that_never_was() {
    let mut machine = Machine::new();
    machine.write(0..10);
    let (forwarder, reported) = machine.forward("unix:///nonexistent/socket");
    reported.recv().unwrap();
    let begun = Instant::now();
    forwarder.finish();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_receiver_that_never_takes_anything_does_not_hold_up_the_end() {
    let mut machine = Machine::new();
    let fifo = machine.dir.path().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let (forwarder, reported) = machine.forward(&format!("file://{}", fifo.display()));
    machine.write(0..10);
    // Nobody reads it, so opening it as usual would wait for ever, and so would the end.
    forwarder.finish();
    assert!(reported.recv().unwrap().contains("cannot be sent"));
}
