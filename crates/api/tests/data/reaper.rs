//! Stands in for Testcontainers' reaper, which is a program in Go that the registries here do not have: the same words on its port, the same
//! requests to the socket that it is given. It is compiled by the test, without a crate, so that it needs nothing in its container.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn ask(line: &str) -> String {
    let mut socket = UnixStream::connect("/var/run/docker.sock").expect("the socket");
    write!(socket, "{line} HTTP/1.0\r\nHost: reaper\r\nContent-Length: 0\r\n\r\n").expect("asked");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    answer
}

fn main() {
    assert!(ask("GET /_ping").ends_with("OK"));
    let labels: Arc<Mutex<Vec<String>>> = Arc::default();
    let clients = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("0.0.0.0:8080").expect("the port");
    println!("Started");
    for client in listener.incoming() {
        let client = client.expect("a client");
        let (labels, clients) = (Arc::clone(&labels), Arc::clone(&clients));
        clients.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            let mut answers = client.try_clone().expect("the connection");
            for line in BufReader::new(client).lines().map_while(Result::ok) {
                labels.lock().unwrap().extend(line.trim().split('&').filter_map(|one| Some(one.strip_prefix("label=")?.to_owned())));
                let _ = answers.write_all(b"ACK\n");
            }
            if clients.fetch_sub(1, Ordering::SeqCst) > 1 {
                return;
            }
            std::thread::sleep(Duration::from_secs(1));
            for label in labels.lock().unwrap().iter() {
                let listed = ask(&format!("GET /containers/json?all=1&filters=%7B%22label%22:%5B%22{label}%22%5D%7D"));
                for found in listed.split("\"Id\":\"").skip(1) {
                    let id = found.split('"').next().unwrap_or_default();
                    println!("remove {id}: {}", ask(&format!("DELETE /containers/{id}?force=1&v=1")).lines().next().unwrap_or_default());
                }
            }
            std::process::exit(0);
        });
    }
}
