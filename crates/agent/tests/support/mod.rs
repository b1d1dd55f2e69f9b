//! Boots a real guest with the agent of this build and talks to it as the host does.
//!
//! `ZMACHINE_TEST_KERNEL` names the folder of an installed kernel: `vmlinux` and `initramfs-*.cpio` (of which the modules
//! count: the agent under test comes after the one in it).
//! The agent under test is appended as one more cpio archive: the kernel unpacks both, and the later `/init` wins.

use std::cell::RefCell;
use std::fs;
use std::future::poll_fn;
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus as ProcessStatus, Stdio};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::channel::oneshot;
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, Mode};
use zmachine_agent_protocol::greeting::{Finder, Greeting};
use zmachine_agent_protocol::{
    AgentError, BootConfig, ExitStatus, Frame, FrameDecoder, HostEntry, Interface, PORT_NAME, PROTOCOL_VERSION,
    Process, Reply, Request, Root, Route, Thaw, Upper,
};
use zmachine_testkit::{Need, is_static, lacking, skip, test_kernel};

/// A guest under emulation on a busy host is slow.
const TIMEOUT: Duration = Duration::from_secs(180);
const MAC: &str = "52:54:00:00:00:07";

/// Guests run one after another: two under emulation on a small host starve each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What the tests need of the host.
pub(crate) struct Bench {
    kernel: PathBuf,
    agent: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    /// `None`, with the reason printed, when this host cannot run guests.
    pub(crate) fn new() -> Option<Bench> {
        let tools = ["mkfs.erofs", "mke2fs", "e2fsck"].map(Need::Command);
        if let Some(lack) = lacking(&[&[Need::Guest], &tools[..]].concat()) {
            skip(lack);
            return None;
        }
        let (kernel, agent) = (test_kernel()?, Bench::static_agent());
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Bench {
            kernel,
            agent,
            _turn: turn,
        })
    }

    /// The agent under test: one that runs in any tree, as every build makes it.
    pub(crate) fn static_agent() -> PathBuf {
        let agent = PathBuf::from(env!("CARGO_BIN_EXE_zmachine-agent"));
        assert!(
            is_static(&agent),
            "{} is not static: what does .cargo/config.toml say?",
            agent.display()
        );
        agent
    }

    /// A folder with the disks of a machine: the busybox image, an empty writable layer and an empty volume.
    pub(crate) fn disks(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        write_image_tree(&folder.path().join("tree"));
        run("mkfs.erofs", &["-T0", "root.erofs", "tree"], folder.path());
        for name in ["upper.ext4", "volume.ext4"] {
            fs::File::create(folder.path().join(name))
                .unwrap()
                .set_len(64 << 20)
                .unwrap();
            run("mke2fs", &["-q", "-t", "ext4", "-F", name], folder.path());
        }
        folder
    }

    /// Runs `test` with a machine booted on `disks`, then waits until QEMU is gone.
    pub(crate) fn with_machine<T>(&self, disks: &Path, test: impl AsyncFnOnce(&Machine) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let machine = self.boot(disks).await;
            let result = tokio::time::timeout(TIMEOUT, test(&machine)).await;
            // The connection is driven on while the guest says good-bye.
            machine
                .gone(if result.is_ok() { TIMEOUT } else { Duration::ZERO })
                .await;
            result.expect("the test ends in time")
        })
    }

    async fn boot(&self, disks: &Path) -> Machine {
        let mut initramfs = fs::read(installed_initramfs(&self.kernel)).unwrap();
        initramfs.extend(cpio_of_init(&fs::read(&self.agent).unwrap()));
        fs::write(disks.join("initramfs.cpio"), initramfs).unwrap();
        let socket = disks.join("agent.sock");
        let _ = fs::remove_file(&socket);
        let qemu = Command::new("qemu-system-x86_64")
            .args(qemu_arguments(&self.kernel, disks, &socket))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let machine = Machine {
            socket: socket.clone(),
            qemu: RefCell::new(qemu),
            host: Host::default(),
            same: RefCell::default(),
        };
        let deadline = Instant::now() + TIMEOUT;
        let stream = loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => panic!("connect to the machine: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let stream = stream.into_std().unwrap();
        *machine.same.borrow_mut() = Some(stream.try_clone().unwrap());
        machine.drive(UnixStream::from_std(stream).unwrap().compat());
        machine
    }
}

fn qemu_arguments(kernel: &Path, disks: &Path, socket: &Path) -> Vec<String> {
    let show = |path: PathBuf| path.display().to_string();
    let mut arguments: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-M",
        "q35",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        "512",
        "-smp",
        "1",
        "-no-reboot",
        "-bios",
        "qboot.rom",
        "-device",
        "virtio-serial-pci",
        "-netdev",
        "user,id=n0,restrict=on",
        "-append",
        "console=ttyS0 panic=-1 quiet no_timer_check tsc=reliable noreplace-smp cryptomgr.notests \
         initcall_blacklist=jent_mod_init",
    ]
    .map(String::from)
    .into();
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    option("-device", format!("virtio-net-pci,netdev=n0,mac={MAC},romfile="));
    option("-kernel", show(kernel.join("vmlinux")));
    option("-initrd", show(disks.join("initramfs.cpio")));
    option(
        "-chardev",
        format!("socket,id=agent,path={},server=on,wait=off", socket.display()),
    );
    option("-device", format!("virtserialport,chardev=agent,name={PORT_NAME}"));
    option(
        "-chardev",
        format!("file,id=console,path={}", show(disks.join("console.log"))),
    );
    option("-serial", "chardev:console".into());
    for (serial, file, read_only) in [
        ("zm-volume", "volume.ext4", "off"),
        ("zm-upper", "upper.ext4", "off"),
        ("zm-root", "root.erofs", "on"),
    ] {
        let path = show(disks.join(file));
        option(
            "-drive",
            format!("if=none,id={serial},format=raw,file={path},readonly={read_only}"),
        );
        option("-device", format!("virtio-blk-pci,drive={serial},serial={serial}"));
    }
    arguments
}

type Wanted = Rc<RefCell<Vec<oneshot::Sender<yamux::Stream>>>>;

/// The host's side of a channel to an agent.
#[derive(Default)]
pub(crate) struct Host {
    wanted: Wanted,
    waker: Rc<RefCell<Option<std::task::Waker>>>,
    driver: RefCell<Option<JoinHandle<()>>>,
}

impl Host {
    /// Speaks to the agent at the other end of `stream` from here on.
    pub(crate) fn drive(&self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let (wanted, waker) = (Rc::clone(&self.wanted), Rc::clone(&self.waker));
        let mut connection = Connection::new(stream, Config::default(), Mode::Client);
        let driver = spawn_local(poll_fn(move |cx| {
            *waker.borrow_mut() = Some(cx.waker().clone());
            while !wanted.borrow().is_empty() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => drop(wanted.borrow_mut().remove(0).send(stream)),
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            connection.poll_next_inbound(cx).map(drop)
        }));
        *self.driver.borrow_mut() = Some(driver);
    }

    /// Opens a stream and sends its request.
    pub(crate) async fn open(&self, request: &Request) -> Conversation {
        let (sender, receiver) = oneshot::channel();
        self.wanted.borrow_mut().push(sender);
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
        let stream = receiver.await.expect("the machine is connected");
        let mut conversation = Conversation {
            stream,
            decoder: FrameDecoder::new(),
        };
        conversation.send(Frame::message(request)).await;
        conversation
    }

    /// One question, one answer.
    pub(crate) async fn ask(&self, request: Request) -> Reply {
        self.open(&request).await.reply().await
    }

    /// Configures the guest; the time of each step goes to standard error.
    pub(crate) async fn configure(&self, config: BootConfig) {
        match self.ask(Request::Configure(Box::new(config))).await {
            Reply::Configured {
                kernel,
                phases,
                warnings,
                ..
            } => {
                let phases: Vec<_> = phases
                    .iter()
                    .map(|phase| format!("{} {}", phase.name, phase.micros))
                    .collect();
                eprintln!("{kernel}: {} us", phases.join(", "));
                assert_eq!(warnings, [""; 0]);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Starts a process and waits for its end.
    pub(crate) async fn exec(&self, process: Process) -> Finished {
        self.open(&Request::Exec(process)).await.finish().await
    }

    /// Runs a shell line as root.
    pub(crate) async fn sh(&self, line: &str) -> Finished {
        self.exec(process(&["sh", "-c", line])).await
    }

    /// Stops the machine, with a grace that a busy host cannot use up.
    pub(crate) async fn stop(&self) {
        assert_eq!(
            self.ask(Request::Shutdown {
                signal: 15,
                grace_ms: 60_000
            })
            .await,
            Reply::Done
        );
    }

    /// Drops the connection, as a host that crashed.
    pub(crate) fn hang_up(&self) {
        if let Some(driver) = self.driver.borrow_mut().take() {
            driver.abort();
        }
    }
}

/// A running guest, and the host's side of its channel.
pub(crate) struct Machine {
    socket: PathBuf,
    qemu: RefCell<Child>,
    host: Host,
    /// The stream to the guest, once more.
    same: RefCell<Option<std::os::unix::net::UnixStream>>,
}

impl Deref for Machine {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Machine {
    /// Drops the connection, as a host that crashed.
    pub(crate) fn hang_up(&self) {
        self.same.borrow_mut().take();
        self.host.hang_up();
    }

    /// Connects as another host, after the one before hung up.
    pub(crate) async fn take_over(&self) {
        // Nobody takes over within the moment in which the guest learns of it.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        greet(&mut stream, Greeting::Hello([7; 16])).await;
        greet(&mut stream, Greeting::Begin([7; 16])).await;
        self.drive(stream.compat());
    }

    /// Becomes the host of a copy: says what the guest is to be on the stream that there is, of which the guest knows no end. The answer, and
    /// the stream.
    pub(crate) async fn thaw(&self, thaw: &Thaw) -> (Reply, UnixStream) {
        let stream = self.same.borrow_mut().take().expect("it is taken once");
        // Nothing of its own is read any more, and what it has begun is nobody's.
        self.hang_up();
        stream.set_nonblocking(true).unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        let greeting = Greeting::Thaw([9; 16]);
        let mut said = greeting.to_bytes().to_vec();
        Frame::message(thaw).encode(&mut said);
        tokio::io::AsyncWriteExt::write_all(&mut stream, &said).await.unwrap();
        let mut finder = Finder::default();
        let mut byte = [0];
        while finder.next_greeting() != Some(greeting) {
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut byte)
                .await
                .expect("the agent is there");
            finder.push(&byte);
        }
        let mut frames = FrameDecoder::new();
        loop {
            if let Some(frame) = frames.next_frame().unwrap() {
                return (frame.parse().unwrap(), stream);
            }
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut byte)
                .await
                .expect("the agent is there");
            frames.push(&byte);
        }
    }

    /// Waits for QEMU's end, which is the guest's power-off.
    async fn gone(&self, patience: Duration) -> ProcessStatus {
        let deadline = Instant::now() + patience;
        loop {
            let ended = self.qemu.borrow_mut().try_wait().unwrap();
            if let Some(status) = ended {
                return status;
            }
            // Dropping the machine kills it.
            assert!(Instant::now() < deadline, "the machine did not power off");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.borrow_mut().kill();
        let _ = self.qemu.borrow_mut().wait();
    }
}

/// Sends a greeting until it is answered, `Begin` once; drops whatever else comes.
async fn greet(stream: &mut UnixStream, greeting: Greeting) {
    let mut finder = Finder::default();
    let mut byte = [0];
    let is_hello = matches!(greeting, Greeting::Hello(_));
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next {
            tokio::io::AsyncWriteExt::write_all(stream, &greeting.to_bytes())
                .await
                .unwrap();
            next = Instant::now() + Duration::from_millis(if is_hello { 300 } else { 600_000 });
        }
        let read = tokio::io::AsyncReadExt::read_exact(stream, &mut byte);
        if let Ok(read) = tokio::time::timeout(Duration::from_millis(100), read).await {
            read.expect("the agent is there");
            finder.push(&byte);
        }
        if finder.next_greeting() == Some(greeting) {
            return;
        }
    }
}

/// One stream.
pub(crate) struct Conversation {
    stream: yamux::Stream,
    decoder: FrameDecoder,
}

/// What a process left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) end: Result<ExitStatus, AgentError>,
}

impl Finished {
    /// Standard output, of a process that must have succeeded.
    pub(crate) fn text(&self) -> String {
        let (stdout, stderr) = (
            String::from_utf8_lossy(&self.stdout),
            String::from_utf8_lossy(&self.stderr),
        );
        assert_eq!(self.end, Ok(ExitStatus::Code(0)), "stdout: {stdout}, stderr: {stderr}");
        stdout.into_owned()
    }
}

impl Conversation {
    pub(crate) async fn send(&mut self, frame: Frame) {
        self.stream.write_all(&frame.to_bytes()).await.unwrap();
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
            }
        }
    }

    /// The next frame, which must be a reply.
    pub(crate) async fn reply(&mut self) -> Reply {
        self.next().await.expect("a reply").parse().unwrap()
    }

    /// Reads output until `text` has appeared.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.next().await {
                Some(Frame::Stdout(data)) => seen.push_str(&String::from_utf8_lossy(&data)),
                Some(Frame::Message(_)) if seen.is_empty() => {}
                other => panic!("waiting for {text:?}, saw {seen:?} and then {other:?}"),
            }
        }
        seen
    }

    /// Splits the stream, to write and read at once.
    pub(crate) fn into_stream(self) -> yamux::Stream {
        self.stream
    }

    /// Collects everything until the process is gone.
    pub(crate) async fn finish(mut self) -> Finished {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let end = loop {
            match self.next().await.expect("an end") {
                Frame::Stdout(data) => stdout.extend(data),
                Frame::Stderr(data) => stderr.extend(data),
                frame => match frame.parse().unwrap() {
                    Reply::Started { .. } => {}
                    Reply::Exited(status) => break Ok(status),
                    Reply::Error(error) => break Err(error),
                    other => panic!("{other:?}"),
                },
            }
        };
        self.stream.close().await.unwrap();
        Finished { stdout, stderr, end }
    }
}

/// A process with the usual settings.
pub(crate) fn process(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(|arg| arg.to_string()).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
        stdin: false,
        init: false,
        restrictions: None,
    }
}

/// A boot configuration with a network and a writable disk.
pub(crate) fn config() -> BootConfig {
    BootConfig {
        protocol: PROTOCOL_VERSION,
        hostname: "box".into(),
        root: Root {
            lower_serial: "zm-root".into(),
            lower_fstype: "erofs".into(),
            upper: Upper::Disk {
                serial: "zm-upper".into(),
                fstype: "ext4".into(),
            },
        },
        interfaces: vec![Interface {
            name: "lan0".into(),
            mac: MAC.into(),
            addresses: vec!["10.0.2.15/24".into(), "fd00::15/64".into()],
            mtu: Some(1400),
        }],
        routes: vec![
            Route {
                destination: "0.0.0.0/0".into(),
                gateway: Some("10.0.2.2".parse().unwrap()),
                interface: "lan0".into(),
            },
            Route {
                destination: "::/0".into(),
                gateway: Some("fd00::2".parse().unwrap()),
                interface: "lan0".into(),
            },
            Route {
                destination: "10.9.0.0/16".into(),
                gateway: None,
                interface: "lan0".into(),
            },
        ],
        nameservers: vec!["10.0.2.3".parse().unwrap()],
        search: vec!["lan".into()],
        hosts: vec![HostEntry {
            address: "10.0.2.15".parse().unwrap(),
            names: vec!["box".into()],
        }],
        mounts: vec![],
        directories: vec![],
        ssh_keys: vec!["ssh-ed25519 AAAA me".into()],
        first_start: true,
        read_ahead_kib: 512,
        secrets: Vec::new(),
        sockets: Vec::new(),
        tmpfs: Vec::new(),
        shm_bytes: None,
        sysctls: Vec::new(),
    }
}

/// Whether `e2fsck` finds the disk's file system clean, with an empty journal.
pub(crate) fn is_clean(disk: &Path) -> bool {
    let output = Command::new("e2fsck").arg("-fn").arg(disk).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    eprintln!("{text}");
    output.status.success() && !text.contains("skipping journal recovery")
}

fn write_image_tree(tree: &Path) {
    for directory in ["bin", "etc/ssh", "home/web", "tmp", "usr/bin", "opt/tool"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    let busybox = Command::new("sh").args(["-c", "command -v busybox"]).output().unwrap();
    fs::copy(
        String::from_utf8(busybox.stdout).unwrap().trim(),
        tree.join("bin/busybox"),
    )
    .unwrap();
    let applets = Command::new("busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout)
        .unwrap()
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    let files = [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nweb:x:1000:\naudio:x:29:web\n"),
        ("etc/ssh/ssh_host_rsa_key", "the image's\n"),
        ("etc/ssh/sshd_config", "kept\n"),
        ("opt/plain", "no program\n"),
    ];
    for (path, text) in files {
        fs::write(tree.join(path), text).unwrap();
    }
    symlink("/run/nowhere/stub.conf", tree.join("etc/resolv.conf")).unwrap();
}

fn run(program: &str, arguments: &[&str], folder: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A newc archive with `/init`.
fn cpio_of_init(program: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, content) in [("init", 0o100_755, program), ("TRAILER!!!", 0, &[][..])] {
        let fields = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        fields
            .iter()
            .for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// The initramfs that the kernel was installed with.
fn installed_initramfs(kernel: &Path) -> PathBuf {
    let entries = fs::read_dir(kernel).expect("the kernel folder can be read");
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let is_initramfs = |path: &PathBuf| path.extension().is_some_and(|e| e == "cpio");
    paths
        .find(is_initramfs)
        .expect("the kernel was installed with an initramfs")
}
