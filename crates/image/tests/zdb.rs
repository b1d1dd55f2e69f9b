//! The 0-db store against a real server of its protocol, and against one that misbehaves.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use zmachine_flist::BlockRef;
use zmachine_image::{StoreError, Timeouts, open_store};

/// A `redis-server` on a Unix socket; it ends with the value.
struct Redis {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    fn start(password: Option<&str>) -> Redis {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("redis.sock");
        // The same program as the server's, from a package that starts no service.
        let mut command = Command::new("redis-check-rdb");
        command
            .arg0("redis-server")
            .args(["--port", "0", "--save", "", "--daemonize", "no"])
            .arg("--unixsocket")
            .arg(&socket);
        if let Some(password) = password {
            command.args(["--requirepass", password]);
        }
        let child = command.current_dir(&dir).stdout(Stdio::null()).spawn();
        let child = child.expect("redis: run scripts/setup");
        let redis = Redis { child, dir };
        let started = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "redis-server does not start"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        redis
    }

    fn url(&self) -> String {
        format!("zdb://{}", self.dir.path().join("redis.sock").display())
    }
}

#[test]
fn blocks_go_into_a_server_and_come_back() {
    let redis = Redis::start(None);
    let store = open_store(&redis.url(), Timeouts::default()).unwrap();
    for number in 0..50u32 {
        let (block, sealed) = BlockRef::seal(&vec![number as u8; 20_000 * number as usize % 500_000]);
        assert!(!store.has(&block.id).unwrap());
        assert!(matches!(store.get(&block.id), Err(StoreError::NotFound { .. })));
        assert!(store.put(&block.id, &sealed).unwrap());
        assert!(!store.put(&block.id, &sealed).unwrap());
        assert_eq!(store.get(&block.id).unwrap(), sealed);
        if number > 10 {
            break;
        }
    }
}

#[test]
fn many_threads_share_a_store() {
    let redis = Redis::start(None);
    let store = open_store(&redis.url(), Timeouts::default()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..100u32 {
                    let (block, sealed) = BlockRef::seal(&(thread * 1000 + number).to_le_bytes());
                    store.put(&block.id, &sealed).unwrap();
                    assert_eq!(store.get(&block.id).unwrap(), sealed);
                }
            });
        }
    });
}

#[test]
fn a_dead_server_is_unavailable_and_its_return_is_noticed() {
    let redis = Redis::start(None);
    let store = open_store(&redis.url(), Timeouts::default()).unwrap();
    let (block, _) = BlockRef::seal(b"x");
    assert!(!store.has(&block.id).unwrap());
    drop(redis);
    let error = store.has(&block.id).unwrap_err();
    assert!(error.is_transient(), "{error}");
}

/// A server that keeps what it was sent and gives the scripted answers, one per command.
fn scripted(answers: &[&[u8]]) -> (u16, Arc<Mutex<Vec<Vec<String>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let commands = Arc::new(Mutex::new(Vec::new()));
    let (log, answers): (_, Vec<Vec<u8>>) = (Arc::clone(&commands), answers.iter().map(|a| a.to_vec()).collect());
    std::thread::spawn(move || {
        let mut answers = answers.into_iter();
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            while let Some(command) = read_command(&mut reader) {
                log.lock().unwrap().push(command);
                match answers.next() {
                    Some(answer) => reader.get_mut().write_all(&answer).unwrap(),
                    None => return,
                }
            }
        }
    });
    (port, commands)
}

fn read_command(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let number = |reader: &mut dyn BufRead| -> Option<usize> {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        line.trim_end().get(1..)?.parse().ok()
    };
    let count = number(reader)?;
    let words = (0..count).map(|_| {
        let mut word = vec![0; number(reader)? + 2];
        reader.read_exact(&mut word).ok()?;
        word.truncate(word.len() - 2);
        Some(String::from_utf8_lossy(&word).into_owned())
    });
    words.collect()
}

#[test]
fn a_namespace_is_selected_with_its_password_once_per_connection() {
    let (port, commands) = scripted(&[b"+OK\r\n", b":0\r\n", b":1\r\n"]);
    let url = format!("zdb://:secret@127.0.0.1:{port}/blocks");
    let store = open_store(&url, Timeouts::default()).unwrap();
    let (block, _) = BlockRef::seal(b"x");
    assert!(!store.has(&block.id).unwrap());
    assert!(store.has(&block.id).unwrap());
    let commands = commands.lock().unwrap();
    assert_eq!(commands[0], ["SELECT", "blocks", "secret"]);
    assert_eq!(commands.len(), 3);
}

#[test]
fn a_final_slash_or_the_default_namespace_selects_nothing_and_a_lone_password_logs_in() {
    for (path, password) in [("/", ""), ("/default", ""), ("", ":pw@"), ("/", ":pw@")] {
        let (port, commands) = scripted(&[b"+OK\r\n", b":1\r\n"]);
        let url = format!("zdb://{password}127.0.0.1:{port}{path}");
        let store = open_store(&url, Timeouts::default()).unwrap();
        let (block, _) = BlockRef::seal(b"x");
        // Without a login the first answer is the one to EXISTS, which is none.
        let _ = store.has(&block.id);
        let first = commands.lock().unwrap()[0][0].clone();
        assert_eq!(first, if password.is_empty() { "EXISTS" } else { "AUTH" });
    }
}

#[test]
fn a_refused_login_is_told_without_the_password_and_not_repeated() {
    let (port, commands) = scripted(&[b"-Namespace not found\r\n"]);
    let url = format!("zdb://:hunter2@127.0.0.1:{port}/blocks");
    let store = open_store(&url, Timeouts::default()).unwrap();
    let error = store.get(&BlockRef::seal(b"x").0.id).unwrap_err();
    assert!(!error.is_transient());
    assert_eq!(
        error.to_string(),
        format!("zdb://127.0.0.1:{port}/blocks refused: Namespace not found")
    );
    assert_eq!(commands.lock().unwrap().len(), 1);
}

#[test]
fn answers_that_lie_are_errors_in_bounded_time_and_memory() {
    let id = BlockRef::seal(b"x").0.id;
    for answer in [
        &b"$99999999999\r\n"[..],
        b"$-2\r\n",
        b"$x\r\n",
        b"nonsense\r\n",
        b"\r\n",
        b"$100\r\nshort",
        &[b'+'; 10_000],
        b":7\r\n",
    ] {
        let (port, _) = scripted(&[answer]);
        let timeouts = Timeouts {
            connect: Duration::from_secs(5),
            request: Duration::from_millis(300),
        };
        let store = open_store(&format!("zdb://127.0.0.1:{port}"), timeouts).unwrap();
        let started = Instant::now();
        assert!(store.get(&id).is_err(), "{:?}", String::from_utf8_lossy(answer));
        assert!(started.elapsed() < Duration::from_secs(3));
    }
}
