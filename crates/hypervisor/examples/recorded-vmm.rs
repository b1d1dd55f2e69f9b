//! A program that speaks like Cloud Hypervisor v53: its answers are those recorded in `tests/ch-api`, word for word, and its
//! guest behaves as the recorded one did (`tests/tiny-guest`): it ticks on the serial console and does what the bytes there
//! say. For tests of the driver on hosts that cannot run the real one.
//!
//! | byte | the guest |
//! |---|---|
//! | `q` | powers off |
//! | `r` | resets |
//! | `t` | ends by a triple fault |
//! | `p` | panics, then ends by a triple fault |
//! | `s` | powers off, and the event of it is lost |
//! | `v` | has a virtual CPU that cannot be run, which ends the process with success |
//! | `a` | calls port 1024 of the host and says hello |
//!
//! A file `script.json` in the working directory changes it: `{"refuse": {"vm.boot": ["basic", 9]}, "drop": "pvpanic",
//! "hang": "vm.info", "exit": 1, "eject": 3}`. What it was asked is written to `requests.jsonl` there, or beside its API's socket where
//! it can write nothing else.
//!
//! It opens at each step what the real one opens then, by the same paths and in the same way: in a jail that lacks one of them it
//! starts no guest. As `recorded-vmm jail --jail ... -- PROGRAM` it enters a jail and becomes the program, as zmachine does.

use std::collections::HashMap;
use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde::Deserialize;
use serde_json::{Value, json};

/// What a test wants to be different.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Script {
    /// The recorded exchange to answer a route with: file and number.
    refuse: HashMap<String, (String, usize)>,
    /// The field of a description that is dropped.
    drop: Option<String>,
    /// The route that gets no answer.
    hang: Option<String>,
    /// How often `vm.info` still shows a device that was removed, which the guest lets go then; a large number: never.
    eject: u32,
    /// Exits at once with this status.
    exit: Option<i32>,
    /// The version it says it is.
    version: Option<String>,
}

/// The machine.
struct Vmm {
    script: Script,
    /// Where the API's socket is.
    folder: PathBuf,
    events: Mutex<fs::File>,
    state: Mutex<State>,
}

struct State {
    config: Option<Value>,
    name: &'static str,
    /// The interfaces that the guest was asked to let go, and how often each is shown still.
    leaving: HashMap<String, u32>,
    /// The connection of the console.
    console: Option<UnixStream>,
    /// Counts the guest's lives, so that the threads of an earlier one stop.
    life: u32,
    /// How often the guest has ticked, which is all of its memory.
    ticks: u64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, _, jail, _, program, rest @ ..] = arguments.as_slice()
        && role == zmachine_sys::jail::ROLE
    {
        become_jailed(jail, program, rest);
    }
    if arguments.iter().any(|a| a == "--version") {
        return println!("cloud-hypervisor v53.0.0");
    }
    let path = |name: &str| {
        let at = arguments.iter().position(|a| a == name).expect(name);
        PathBuf::from(arguments[at + 1].strip_prefix("path=").expect("path="))
    };
    assert!(
        arguments.iter().any(|a| a == "--no-shutdown"),
        "the recordings are of --no-shutdown"
    );
    let script: Script = fs::read("script.json").map_or_else(
        |_| Script::default(),
        |text| serde_json::from_slice(&text).expect("a script"),
    );
    if let Some(status) = script.exit {
        eprintln!("Error: Cloud Hypervisor exited with the following chain of errors:");
        eprintln!("  0: it was told to");
        exit(status);
    }
    let events = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path("--event-monitor"))
        .expect("the events");
    let socket = path("--api-socket");
    // As v53: a socket left by a killed one is in nobody's way.
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("the API's socket");
    let state = State {
        config: None,
        name: "Created",
        leaving: HashMap::new(),
        console: None,
        life: 0,
        ticks: 0,
    };
    let vmm = Arc::new(Vmm {
        script,
        folder: socket.parent().expect("a folder").to_owned(),
        events: Mutex::new(events),
        state: Mutex::new(state),
    });
    // One after the other, as the real one.
    for stream in listener.incoming() {
        vmm.serve(stream.expect("a connection"));
    }
}

/// The folder that a URL names, when it is there.
fn folder_of(url: &Value) -> Option<PathBuf> {
    let folder = PathBuf::from(url.as_str()?.strip_prefix("file://")?);
    folder.is_dir().then_some(folder)
}

fn become_jailed(jail: &str, program: &str, arguments: &[String]) -> ! {
    let jail = zmachine_sys::jail::Jail::from_argument(jail).expect("a jail");
    if let Err(error) = zmachine_sys::jail::enter(&jail) {
        eprintln!("{error}: {:?}", std::error::Error::source(&error));
        exit(1);
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    eprintln!("cannot become {program}: {error}");
    exit(1);
}

/// The recorded exchange `number` of `file`.
fn recorded(file: &str, number: usize) -> Value {
    // Part of the program: a jail shows it no files of others.
    let text = match file {
        "basic" => include_str!("../tests/ch-api/basic.json"),
        "fdnet" => include_str!("../tests/ch-api/fdnet.json"),
        "full" => include_str!("../tests/ch-api/full.json"),
        "gq-ns" => include_str!("../tests/ch-api/gq-ns.json"),
        "restore2" => include_str!("../tests/ch-api/restore2.json"),
        "snap" => include_str!("../tests/ch-api/snap.json"),
        "validation" => include_str!("../tests/ch-api/validation.json"),
        other => panic!("{other} is not part of this program"),
    };
    let mut all: Value = serde_json::from_str(text).expect("a recording");
    all["exchanges"][number]["response"].take()
}

impl Vmm {
    fn serve(self: &Arc<Self>, mut stream: UnixStream) {
        let Some((method, route, body, fds)) = receive(&mut stream) else {
            return;
        };
        let open = |folder: &Path| {
            let mut options = fs::OpenOptions::new();
            options.append(true).create(true).open(folder.join("requests.jsonl"))
        };
        let mut log = open(Path::new("")).or_else(|_| open(&self.folder)).expect("the log");
        let line = json!({"method": method, "route": route, "body": body, "fds": fds});
        writeln!(log, "{line}").expect("the log");
        if self.script.hang.as_deref() == Some(&route) {
            thread::sleep(Duration::from_secs(60));
        }
        let answer = match self.script.refuse.get(&route) {
            Some((file, number)) => {
                // A refused description is stored all the same, and its console's socket stays bound.
                if route == "vm.create" {
                    self.create(body);
                }
                recorded(file, *number)
            }
            None => self.answer(&route, body),
        };
        let status = answer["status"].as_u64().expect("a status");
        let mut text = format!("HTTP/1.1 {status} \r\n");
        for (name, value) in answer["headers"].as_object().expect("headers") {
            if name != "content-length" {
                text.push_str(&format!("{name}: {}\r\n", value.as_str().unwrap_or_default()));
            }
        }
        let body = match &answer["body"] {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        if status != 204 {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        let _ = stream.write_all(format!("{text}\r\n{body}").as_bytes());
        if route == "vmm.shutdown" {
            self.event("vmm", "shutdown", Value::Null);
            exit(0);
        }
    }

    fn answer(self: &Arc<Self>, route: &str, body: Value) -> Value {
        let running = self.state.lock().unwrap().name == "Running";
        match route {
            "vmm.ping" => {
                let mut answer = recorded("basic", 0);
                if let Some(version) = &self.script.version {
                    answer["body"]["version"] = json!(version);
                }
                answer
            }
            "vm.create" => {
                self.create(body);
                recorded("gq-ns", 0)
            }
            "vm.add-net" => {
                let mut state = self.state.lock().unwrap();
                let config = state.config.as_mut().expect("a machine");
                match config.get_mut("net").and_then(Value::as_array_mut) {
                    Some(nets) => nets.push(body),
                    None => config["net"] = json!([body]),
                }
                recorded("fdnet", 2)
            }
            "vm.remove-device" => {
                let mut state = self.state.lock().unwrap();
                let config = state.config.as_mut().expect("a machine");
                let nets = config.get_mut("net").and_then(Value::as_array_mut);
                let found = nets.and_then(|nets| {
                    let at = nets.iter().position(|net| net["id"] == body["id"])?;
                    Some(nets.remove(at))
                });
                if let Some(id) = body["id"].as_str().filter(|_| found.is_some()) {
                    state.leaving.insert(id.to_owned(), self.script.eject);
                }
                recorded("full", if found.is_some() { 26 } else { 25 })
            }
            "vm.info" => self.info(),
            "vm.boot" => match self.open_devices() {
                Ok(()) => {
                    self.boot();
                    recorded("gq-ns", 1)
                }
                Err(error) => {
                    eprintln!("{error}");
                    recorded("basic", 21)
                }
            },
            "vm.pause" if running => {
                self.set("Paused");
                recorded("full", 6)
            }
            "vm.pause" => recorded("full", 8),
            "vm.resume" if !running => {
                self.set("Running");
                recorded("full", 9)
            }
            "vm.resume" => recorded("full", 10),
            "vm.snapshot" if running => recorded("snap", 2),
            "vm.snapshot" => match folder_of(&body["destination_url"]).map(|folder| self.save(&folder)) {
                None => recorded("snap", 4),
                Some(Ok(())) => recorded("snap", 5),
                Some(Err(error)) => {
                    eprintln!("{error}");
                    recorded("snap", 6)
                }
            },
            "vm.restore" => match folder_of(&body["source_url"]).map(|folder| self.restore(&folder, &body)) {
                Some(Ok(())) => recorded("snap", 11),
                other => {
                    eprintln!("{other:?}");
                    recorded("restore2", 3)
                }
            },
            "vm.resize-disk" if body["id"] == "data" => match self.resize(&body) {
                Ok(()) => recorded("full", 15),
                Err(error) => {
                    eprintln!("{error}");
                    recorded("full", 16)
                }
            },
            "vm.resize-disk" => recorded("full", 16),
            "vm.power-button" => recorded("full", 34),
            "vm.counters" => recorded("full", 4),
            "vmm.shutdown" => recorded("full", 48),
            _ => recorded("basic", 4),
        }
    }

    /// Writes the three files that the real one writes. None of them may be there.
    fn save(&self, folder: &Path) -> std::io::Result<()> {
        let state = self.state.lock().unwrap();
        let mut config = state.config.clone().unwrap_or_default();
        for net in config["net"].as_array_mut().into_iter().flatten() {
            // As the real one writes descriptors that it was given.
            net["fds"] = json!([17]);
        }
        let size = config["memory"]["size"].as_u64().unwrap_or_default();
        for (name, content) in [("config.json", config), ("state.json", json!({"ticks": state.ticks}))] {
            fs::File::create_new(folder.join(name))?.write_all(content.to_string().as_bytes())?;
        }
        let memory = fs::File::create_new(folder.join("memory-ranges"))?;
        memory.set_len(size)?;
        memory.write_all_at(&state.ticks.to_ne_bytes(), size / 2)
    }

    /// Makes the machine that is saved there; it stands still.
    fn restore(self: &Arc<Self>, folder: &Path, body: &Value) -> std::io::Result<()> {
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
        let state: Value = serde_json::from_slice(&fs::read(folder.join("state.json"))?)?;
        let size = config["memory"]["size"].as_u64().unwrap_or_default();
        let mut ticks = [0; 8];
        fs::File::open(folder.join("memory-ranges"))?.read_exact_at(&mut ticks, size / 2)?;
        let ticks = u64::from_ne_bytes(ticks);
        let count = |list: &Value| list.as_array().map_or(0, Vec::len);
        if state["ticks"] != ticks || body["resume"] != false || count(&config["net"]) != count(&body["net_fds"]) {
            return Err(std::io::Error::other("it is not what was saved"));
        }
        self.create(config);
        self.open_devices().map_err(std::io::Error::other)?;
        {
            let mut state = self.state.lock().unwrap();
            state.ticks = ticks;
            state.name = "Paused";
            state.life += 1;
        }
        self.tick();
        Ok(())
    }

    fn set(&self, name: &'static str) {
        self.state.lock().unwrap().name = name;
    }

    fn event(&self, source: &str, event: &str, properties: Value) {
        let event =
            json!({"timestamp": {"secs": 0, "nanos": 1}, "source": source, "event": event, "properties": properties});
        let text = serde_json::to_string_pretty(&event).expect("JSON");
        let _ = self.events.lock().unwrap().write_all(format!("{text}\n\n").as_bytes());
    }

    fn create(self: &Arc<Self>, mut config: Value) {
        if let Some(path) = config["serial"]["socket"].as_str().map(PathBuf::from) {
            // As recorded in `validation`: a socket that is there is "already in use".
            let listener = UnixListener::bind(path).expect("the console's socket");
            let vmm = Arc::clone(self);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    vmm.console(stream);
                }
            });
        }
        if let Some(field) = &self.script.drop {
            config.as_object_mut().expect("a description").remove(field);
        }
        self.state.lock().unwrap().config = Some(config);
    }

    /// Gives the disk's file its new length, as the real one does itself.
    fn resize(&self, body: &Value) -> std::io::Result<()> {
        let state = self.state.lock().unwrap();
        let disks = state.config.as_ref().and_then(|config| config["disks"].as_array());
        let disk = disks.into_iter().flatten().find(|disk| disk["id"] == body["id"]);
        let path = disk
            .and_then(|disk| disk["path"].as_str())
            .ok_or(std::io::ErrorKind::NotFound)?;
        let file = fs::OpenOptions::new().write(true).open(path)?;
        file.set_len(body["desired_size"].as_u64().unwrap_or_default())
    }

    /// What it understood, with the defaults and the names that the real one gives.
    fn info(&self) -> Value {
        let mut state = self.state.lock().unwrap();
        let mut answer = recorded("full", 3);
        let tree = answer["body"]["device_tree"].as_object_mut().expect("devices");
        for (id, left) in &mut state.leaving {
            if *left > 0 {
                *left -= 1;
                tree.insert(id.clone(), json!({"id": id}));
            }
        }
        let mut config = state.config.clone().unwrap_or_default();
        if let Some(platform) = config.get_mut("platform").and_then(Value::as_object_mut)
            && let Some(uuid) = platform.remove("uuid")
        {
            platform.insert("system_uuid".into(), uuid);
        }
        let understood = answer["body"]["config"].as_object_mut().expect("a description");
        for (key, value) in config.as_object().into_iter().flatten() {
            understood.insert(key.clone(), value.clone());
        }
        if let Some(field) = &self.script.drop {
            understood.remove(field);
        }
        answer["body"]["state"] = json!(state.name);
        answer
    }

    /// Opens what the real one opens when it boots.
    fn open_devices(&self) -> Result<(), String> {
        let state = self.state.lock().unwrap();
        let config = state.config.clone().unwrap_or_default();
        drop(state);
        let text = |value: &Value| value.as_str().map(PathBuf::from);
        let mut files = vec![(PathBuf::from("/dev/urandom"), false)];
        let payload = ["kernel", "initramfs", "firmware"].map(|name| text(&config["payload"][name]));
        files.extend(payload.into_iter().flatten().map(|path| (path, false)));
        let list = |name: &str| config[name].as_array().cloned().unwrap_or_default();
        let mut sockets = Vec::new();
        for disk in list("disks") {
            let writable = disk["readonly"] != true;
            files.extend(text(&disk["path"]).map(|path| (path, writable)));
            sockets.extend(text(&disk["vhost_socket"]));
        }
        for (path, writable) in files {
            let opened = fs::OpenOptions::new().read(true).write(writable).open(&path);
            let file = opened.map_err(|e| format!("cannot open {}: {e}", path.display()))?;
            let rights = file.metadata().map(|meta| meta.permissions());
            rights.map_err(|e| format!("cannot look at {}: {e}", path.display()))?;
        }
        // The server of a directory ends with its first connection; a disk's takes more.
        for share in list("fs") {
            let path = text(&share["socket"]).unwrap_or_default();
            fs::metadata(&path).map_err(|e| format!("no socket {}: {e}", path.display()))?;
        }
        for path in sockets {
            UnixStream::connect(&path).map_err(|e| format!("cannot connect to {}: {e}", path.display()))?;
        }
        if let Some(path) = text(&config["vsock"]["socket"]) {
            let listener = UnixListener::bind(&path).map_err(|e| format!("cannot bind {}: {e}", path.display()))?;
            // For as long as this process lives, as the real one's.
            std::mem::forget(listener);
        }
        Ok(())
    }

    fn boot(self: &Arc<Self>) {
        {
            let mut state = self.state.lock().unwrap();
            state.name = "Running";
            state.life += 1;
            state.ticks = 0;
        }
        self.event("vm", "booted", Value::Null);
        self.say("TINY-GUEST-HELLO\n");
        self.tick();
    }

    /// Ticks for as long as this life lasts, while it runs.
    fn tick(self: &Arc<Self>) {
        let life = self.state.lock().unwrap().life;
        let vmm = Arc::clone(self);
        thread::spawn(move || {
            loop {
                thread::sleep(Duration::from_millis(20));
                let tick = {
                    let mut state = vmm.state.lock().unwrap();
                    if state.life != life {
                        return;
                    }
                    if state.name != "Running" {
                        continue;
                    }
                    state.ticks += 1;
                    state.ticks - 1
                };
                vmm.say(&format!("TICK {tick:08x}\n"));
            }
        });
    }

    fn say(&self, text: &str) {
        if let Some(console) = &mut self.state.lock().unwrap().console {
            let _ = console.write_all(text.as_bytes());
        }
    }

    fn console(self: &Arc<Self>, stream: UnixStream) {
        self.state.lock().unwrap().console = Some(stream.try_clone().expect("a descriptor"));
        let vmm = Arc::clone(self);
        thread::spawn(move || {
            let mut stream = stream;
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|n| n > 0) {
                vmm.guest_does(byte[0]);
            }
        });
    }

    fn guest_does(self: &Arc<Self>, byte: u8) {
        match byte {
            b'q' | b's' => {
                if byte == b'q' {
                    self.event("vm", "shutdown", Value::Null);
                }
                self.end("Created");
            }
            b'r' => {
                self.event("vm", "rebooting", Value::Null);
                self.end("Running");
                self.event("vm", "rebooted", Value::Null);
                // The new life waits for nobody; the console keeps what it says.
                thread::sleep(Duration::from_millis(100));
                self.boot();
            }
            b'p' => {
                self.event("guest", "panic", json!({"event": "panic"}));
                self.triple_fault();
            }
            b't' => self.triple_fault(),
            b'v' => {
                eprintln!(
                    "cloud-hypervisor: 1.234567s: <vmm> ERROR:vmm/src/lib.rs:1500 -- VCPU generated error: VcpuRun(KVM_RUN failed)"
                );
                exit(0);
            }
            b'a' => {
                let vsock = self.state.lock().unwrap().config.clone().expect("a machine");
                let path = format!("{}_1024", vsock["vsock"]["socket"].as_str().expect("a vsock"));
                let mut call = UnixStream::connect(path).expect("somebody who listens");
                thread::spawn(move || {
                    call.write_all(b"hello from the guest").expect("a host");
                    let mut answer = [0; 4];
                    let _ = call.read_exact(&mut answer);
                    let _ = call.write_all(&answer);
                });
            }
            _ => {}
        }
    }

    /// The guest's life ends; so does the console's connection.
    fn end(&self, name: &'static str) {
        let mut state = self.state.lock().unwrap();
        state.name = name;
        state.life += 1;
        if let Some(console) = state.console.take() {
            let _ = console.shutdown(std::net::Shutdown::Both);
        }
    }

    fn triple_fault(&self) {
        for (source, event) in [("vm", "shutdown"), ("vm", "deleted"), ("vmm", "shutdown")] {
            self.event(source, event, Value::Null);
        }
        exit(0);
    }
}

/// Method, route, body, and how many descriptors came with it.
fn receive(stream: &mut UnixStream) -> Option<(String, String, Value, usize)> {
    let mut bytes = Vec::new();
    let mut fds = 0;
    loop {
        let mut chunk = vec![0; 64 * 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            stream.as_fd(),
            &mut [IoSliceMut::new(&mut chunk)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let n = received.ok()?.bytes;
        if n == 0 {
            return None;
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds += rights.count();
            }
        }
        bytes.extend_from_slice(&chunk[..n]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .map_or(0, |length| length.parse().expect("a length"));
        if body.len() < length {
            continue;
        }
        let mut words = head.split(' ');
        let method = words.next()?.to_owned();
        let route = words.next()?.strip_prefix("/api/v1/")?.to_owned();
        let body = match length {
            0 => Value::Null,
            _ => serde_json::from_str(body).expect("JSON"),
        };
        return Some((method, route, body, fds));
    }
}
