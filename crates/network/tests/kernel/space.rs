//! Network namespaces for a test: the host (in which the test runs), a guest and the world outside.
//!
//! `outside --(198.51.100.0/24, 2001:db8:1::/64)-- host`, link `up0` with MTU 1400 and the default route. The guest is a
//! namespace whose `eth0` is one end of a veth pair; the other end is a port of the network's bridge in the place of its tap.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use zmachine_network::{Attachment, Network};

/// Set inside the namespace: its name.
const INSIDE: &str = "ZMACHINE_TEST_SPACE";

/// How long a test waits for a packet that should not come.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The namespaces of one test.
pub(crate) struct Space {
    host: String,
    guest: String,
    outside: String,
    neighbour: String,
}

/// Runs the calling test again inside new namespaces, where it gets to `body`. Skipped, saying why, without root.
pub(crate) fn in_own_space(body: impl FnOnce(&Space)) {
    if let Ok(name) = std::env::var(INSIDE) {
        return body(&Space::named(&name));
    }
    if let Some(lack) = zmachine_testkit::lacking(&[zmachine_testkit::Need::Root]) {
        return zmachine_testkit::skip(lack);
    }
    let test = std::thread::current().name().expect("a test has a name").to_owned();
    let owner = Owner(Space::named(&format!(
        "zmtest-{}-{:x}",
        std::process::id(),
        zmachine_sys::file::random_u64() as u32
    )));
    owner.0.make();
    let exe = std::env::current_exe().unwrap();
    let mut again = Command::new("ip");
    again
        .args(["netns", "exec", &owner.0.host])
        .arg(exe)
        .args(["--exact", &test, "--nocapture", "--test-threads=1"]);
    let done = again.env(INSIDE, &owner.0.host).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success() && text.contains("1 passed"),
        "inside its namespace: {text}"
    );
}

/// Removes the namespaces when the test is over.
struct Owner(Space);

impl Drop for Owner {
    fn drop(&mut self) {
        for name in [&self.0.host, &self.0.guest, &self.0.outside, &self.0.neighbour] {
            // A test that failed leaves what it started, and a namespace's end ends no process.
            let listed = Command::new("ip").args(["netns", "pids", name]).output();
            let pids = listed
                .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
                .unwrap_or_default();
            for id in pids
                .lines()
                .filter_map(|pid| zmachine_sys::process::ProcessId::of(pid.parse().ok()?))
            {
                let _ = id.signal(9);
            }
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

impl Space {
    fn named(name: &str) -> Space {
        let [host, guest, outside, neighbour] = ["", "g", "o", "n"].map(|suffix| format!("{name}{suffix}"));
        Space {
            host,
            guest,
            outside,
            neighbour,
        }
    }

    fn make(&self) {
        for name in [&self.host, &self.guest, &self.outside, &self.neighbour] {
            output("ip", &["netns", "add", name]);
            ip(name, "link set lo up");
        }
        ip(
            &self.host,
            &format!("link add up0 mtu 1400 type veth peer name eth0 netns {}", self.outside),
        );
        for (ns, link, end) in [(&self.host, "up0", 1), (&self.outside, "eth0", 2)] {
            ip(ns, &format!("link set {link} mtu 1400 up"));
            ip(ns, &format!("address add 198.51.100.{end}/24 dev {link}"));
            ip(ns, &format!("address add 2001:db8:1::{end}/64 dev {link} nodad"));
        }
        ip(&self.host, "route add default via 198.51.100.2");
        ip(&self.host, "route add default via 2001:db8:1::2");
    }

    pub(crate) fn host_ns(&self) -> &str {
        &self.host
    }

    pub(crate) fn guest_ns(&self) -> &str {
        &self.guest
    }

    pub(crate) fn outside_ns(&self) -> &str {
        &self.outside
    }

    pub(crate) fn neighbour_ns(&self) -> &str {
        &self.neighbour
    }

    /// Connects the guest to the bridge, configured as its plan says.
    pub(crate) fn guest(&self, network: &Network, attachment: &Attachment) {
        self.connect(&self.guest, "eth0", network, attachment);
        self.configure(&self.guest, "eth0", attachment);
    }

    /// The same for a second guest.
    pub(crate) fn neighbour(&self, network: &Network, attachment: &Attachment) {
        self.connect(&self.neighbour, "eth0", network, attachment);
        self.configure(&self.neighbour, "eth0", attachment);
    }

    /// Connects a namespace to the bridge by link `eth`, with nothing but its Ethernet address.
    pub(crate) fn connect(&self, guest: &str, eth: &str, network: &Network, attachment: &Attachment) {
        let port = &attachment.tap;
        let shown = Command::new("ip").args(["-d", "link", "show", port]).output().unwrap();
        let hairpin = match String::from_utf8_lossy(&shown.stdout).contains("hairpin on") {
            true => "on",
            false => "off",
        };
        let _ = Command::new("ip").args(["link", "del", port]).output();
        ip(
            &self.host,
            &format!("link add {port} type veth peer name {eth} netns {guest}"),
        );
        ip(
            &self.host,
            &format!("link set {port} master {} mtu {} up", network.bridge(), attachment.mtu),
        );
        ip(
            &self.host,
            &format!("link set {port} type bridge_slave hairpin {hairpin}"),
        );
        ip(
            guest,
            &format!("link set {eth} address {} mtu {} up", attachment.mac, attachment.mtu),
        );
    }

    /// Gives a connected namespace what its plan says.
    pub(crate) fn configure(&self, guest: &str, eth: &str, attachment: &Attachment) {
        for address in &attachment.addresses {
            let nodad = if address.addr().is_ipv6() { "nodad" } else { "" };
            ip(guest, &format!("address replace {address} dev {eth} {nodad}"));
        }
        for route in &attachment.routes {
            ip(
                guest,
                &format!("route replace {} via {} dev {eth}", route.destination, route.gateway),
            );
        }
    }

    /// Has frames between ports of a bridge filtered (`1`) or not (`0`), where the kernel can.
    pub(crate) fn filter_bridged(&self, value: &str) {
        for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let path = format!("/proc/sys/net/bridge/{key}");
            if std::path::Path::new(&path).exists() {
                std::fs::write(path, value).unwrap();
            }
        }
    }

    /// The output of a program in the guest.
    pub(crate) fn in_guest(&self, program: &str, args: &[&str]) -> String {
        let mut all = vec!["netns", "exec", &self.guest, program];
        all.extend(args);
        output("ip", &all)
    }

    /// Runs an ignored test of this program in the host namespace without privileges; its output.
    pub(crate) fn as_nobody(&self, home: &std::path::Path, test: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let exe = dir.path().join("test");
        std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut child = Command::new("setpriv");
        child
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
            .arg(exe);
        child
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env("ZMACHINE_TEST_HOME", home);
        let done = child.output().unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{text}");
        text
    }
}

/// The output of a program that has to succeed.
pub(crate) fn output(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().expect(program);
    assert!(
        done.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).unwrap()
}

/// `ip -n <namespace> <words>`.
pub(crate) fn ip(namespace: &str, words: &str) -> String {
    let mut args = vec!["-n", namespace];
    if words.contains("::") {
        args.insert(0, "-6");
    }
    args.extend(words.split_whitespace());
    output("ip", &args)
}

/// The value of a sysctl of the current namespace.
pub(crate) fn sysctl(key: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/{key}"))
        .expect(key)
        .trim()
        .to_owned()
}

/// Runs `work` on a thread inside a namespace.
fn within<T: Send + 'static>(
    namespace: Option<&str>,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let path = namespace.map(|n| format!("/run/netns/{n}"));
    std::thread::spawn(move || {
        if let Some(path) = path {
            let file = std::fs::File::open(path).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        }
        work()
    })
}

/// A server that tells each client the address it sees, on IPv4 and IPv6.
pub(crate) fn serve_tcp(namespace: &str, port: u16) {
    let bound = within(Some(namespace), move || TcpListener::bind(("::", port)).unwrap());
    let listener = bound.join().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let peer = client.peer_addr().unwrap();
            let _ = write!(client, "{peer}");
        }
    });
}

/// The same over UDP.
pub(crate) fn serve_udp(namespace: &str, port: u16) {
    let socket = within(Some(namespace), move || UdpSocket::bind(("::", port)).unwrap())
        .join()
        .unwrap();
    std::thread::spawn(move || {
        loop {
            let (_, peer) = socket.recv_from(&mut [0; 64]).unwrap();
            let _ = socket.send_to(peer.to_string().as_bytes(), peer);
        }
    });
}

/// What a TCP server at `host` says the client's address is; none when it does not answer.
pub(crate) fn answers_tcp(namespace: Option<&str>, host: &str, port: u16) -> Option<SocketAddr> {
    let at = SocketAddr::new(host.parse().unwrap(), port);
    let ask = move || {
        let mut stream = TcpStream::connect_timeout(&at, TIMEOUT).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        plain(&text)
    };
    within(namespace, ask).join().unwrap()
}

/// The same over UDP.
pub(crate) fn answers_udp(namespace: Option<&str>, host: &str, port: u16) -> Option<SocketAddr> {
    let at = SocketAddr::new(host.parse().unwrap(), port);
    let ask = move || {
        let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.set_read_timeout(Some(TIMEOUT)).ok()?;
        socket.connect(at).ok()?;
        socket.send(b"?").ok()?;
        let mut text = [0; 128];
        let len = socket.recv(&mut text).ok()?;
        plain(std::str::from_utf8(&text[..len]).ok()?)
    };
    within(namespace, ask).join().unwrap()
}

/// A server that takes what one client sends; how many bytes that were so far.
pub(crate) fn receive_tcp(namespace: &str, port: u16) -> Arc<AtomicU64> {
    let bound = within(Some(namespace), move || TcpListener::bind(("::", port)).unwrap());
    let listener = bound.join().unwrap();
    let received = Arc::new(AtomicU64::new(0));
    let counter = received.clone();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            counter.fetch_add(count as u64, Ordering::Relaxed);
        }
    });
    received
}

/// Sends as much as it can for some time.
pub(crate) fn send_tcp(namespace: &str, host: &str, port: u16, time: Duration) -> std::thread::JoinHandle<()> {
    let at = SocketAddr::new(host.parse().unwrap(), port);
    within(Some(namespace), move || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        let end = std::time::Instant::now() + time;
        while std::time::Instant::now() < end {
            let _ = stream.write(&[7; 16 * 1024]);
        }
    })
}

/// A name server's answer: its code (RFC 1035) and the data of its records.
pub(crate) type Answer = (u8, Vec<String>);

/// Asks `server` for the records of `name` of type `A`, `AAAA` or `PTR`; none when it does not answer.
pub(crate) fn resolve(namespace: Option<&str>, server: &str, name: &str, kind: &str) -> Option<Answer> {
    let number: u16 = match kind {
        "A" => 1,
        "PTR" => 12,
        _ => 28,
    };
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.bytes());
    }
    question.push(0);
    question.extend(number.to_be_bytes());
    question.extend([0, 1]);
    let at = SocketAddr::new(server.parse().unwrap(), 53);
    let ask = move || {
        let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.set_read_timeout(Some(TIMEOUT)).ok()?;
        socket.connect(at).ok()?;
        socket.send(&question).ok()?;
        let mut answer = [0; 1500];
        let len = socket.recv(&mut answer).ok()?;
        Some((answer[..len].to_vec(), question.len()))
    };
    let (answer, mut at) = within(namespace, ask).join().unwrap()?;
    let mut records = Vec::new();
    for _ in 0..u16::from_be_bytes([answer[6], answer[7]]) {
        at = end_of_name(&answer, at);
        let len = usize::from(u16::from_be_bytes([answer[at + 8], answer[at + 9]]));
        let kind = u16::from_be_bytes([answer[at], answer[at + 1]]);
        let data = &answer[at + 10..at + 10 + len];
        records.push(match kind {
            1 => std::net::Ipv4Addr::from(<[u8; 4]>::try_from(data).unwrap()).to_string(),
            28 => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(data).unwrap()).to_string(),
            _ => name_at(&answer, at + 10),
        });
        at += 10 + len;
    }
    records.sort();
    Some((answer[3] & 15, records))
}

fn end_of_name(message: &[u8], mut at: usize) -> usize {
    loop {
        match message[at] {
            0 => return at + 1,
            len if len >= 0xc0 => return at + 2,
            len => at += 1 + usize::from(len),
        }
    }
}

fn name_at(message: &[u8], mut at: usize) -> String {
    let mut labels = Vec::new();
    loop {
        match message[at] {
            0 => return labels.join("."),
            len if len >= 0xc0 => at = usize::from(u16::from_be_bytes([len & 0x3f, message[at + 1]])),
            len => {
                let end = at + 1 + usize::from(len);
                labels.push(String::from_utf8_lossy(&message[at + 1..end]).into_owned());
                at = end;
            }
        }
    }
}

/// An IPv4 client of an IPv6 socket without its mapping.
fn plain(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}
