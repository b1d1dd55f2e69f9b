//! The life of a machine on Cloud Hypervisor, and what the driver does at each of its traps.
//!
//! The life cycle is written once and runs three times: on the program `recorded-vmm`, which answers as the real one was recorded,
//! on the same program in the jail, and on the real one in the jail, with the guest of `tests/tiny-guest`, where there is a
//! `cloud-hypervisor` and `/dev/kvm` opens. That guest needs no long mode, so it also runs where KVM is too weak for a kernel. A test
//! that cannot run says so.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zmachine_hypervisor::cloud_hypervisor::{self, CloudHypervisor};
use zmachine_hypervisor::{
    Accel, Boot, ControlError, Disk, Driver, ExitReason, LaunchError, Nic, NicKind, Platform, Resources, RunDir, Share,
    Vm, VmEvent, VmSpec,
};
use zmachine_sys::jail::Jail;
use zmachine_sys::process::ProcessId;
use zmachine_testkit::{Need, lacking, skip};

mod ch_jail;
mod ch_saved;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A user that no machine of this host has: theirs begin at 2,000,000,000.
const USER: u32 = 1_999_999_997;

struct Bench {
    folder: TempDir,
    driver: CloudHypervisor,
    jail: Option<Jail>,
}

/// The program that answers as recorded. `cargo test` builds the examples beside the test programs.
fn recorded_vmm() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/recorded-vmm");
    assert!(program.exists(), "cargo build --examples makes {}", program.display());
    program
}

impl Bench {
    /// On the program that answers as recorded.
    fn recorded() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            driver: CloudHypervisor::unasked(Some(&recorded_vmm())),
            jail: None,
        }
    }

    /// The same in the jail that machines of this user have.
    fn jailed() -> Self {
        Self::recorded().in_jail()
    }

    /// The same where it is one with all its protections.
    fn jailed_by_root() -> Option<Self> {
        match lacking(&[Need::Root]) {
            None => Some(Self::jailed()),
            Some(lack) => {
                skip(lack);
                None
            }
        }
    }

    fn in_jail(mut self) -> Self {
        let user = rustix::process::geteuid().is_root().then_some(USER);
        let folder = self.path("jail");
        fs::create_dir_all(&folder).unwrap();
        self.jail = Some(Jail {
            launcher: Some(recorded_vmm()),
            ..Jail::new(folder, user)
        });
        self
    }

    /// On the real one in its jail, where it can run.
    fn real() -> Option<Self> {
        let driver = match cloud_hypervisor::probe(None) {
            Ok(driver) => driver,
            Err(error) => {
                skip(&format!("{error}; {}", error.hint()));
                return None;
            }
        };
        if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
            skip(&format!("/dev/kvm: {error}"));
            return None;
        }
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
            driver,
            jail: None,
        };
        Some(bench.in_jail())
    }

    fn scripted(script: Value) -> Self {
        let bench = Self::recorded();
        bench.script(script);
        bench
    }

    fn script(&self, script: Value) {
        fs::write(self.path("script.json"), script.to_string()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spec(&self) -> VmSpec {
        let data = self.path("data.img");
        File::create(&data).unwrap().set_len(1 << 20).unwrap();
        VmSpec {
            name: "test".into(),
            uuid: "0d3f1a52-8f0e-4a77-9a57-2f6f9cbb1d10".into(),
            cpus: 1,
            memory_bytes: 64 << 20,
            accel: Accel::Kvm,
            boot: Boot::Kernel {
                kernel: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny-guest/tiny.elf"),
                initrd: None,
                cmdline: "console=ttyS0".into(),
            },
            disks: vec![Disk::File {
                id: "data".into(),
                path: data,
                serial: "zm-data".into(),
                read_only: false,
                discard: true,
            }],
            shares: Vec::new(),
            nics: Vec::new(),
            agent: true,
            platform: Platform::Lean,
            is_saveable: false,
            later_disks: Vec::new(),
            later_files: 0,
        }
    }

    async fn launch(&self, spec: &VmSpec, resources: Resources) -> Result<Running, LaunchError> {
        let resources = Resources {
            jail: self.jail.clone(),
            ..resources
        };
        let run = RunDir::new(self.folder.path());
        let mut vm = self.driver.launch(spec, resources, &run).await?;
        let process = ProcessId::of(vm.pid()).expect("a running process");
        let console = vm.take_console().unwrap();
        let text = String::new();
        Ok(Running {
            vm,
            process,
            console,
            text,
        })
    }

    async fn launched(&self, spec: &VmSpec) -> Running {
        let mut running = self.launch(spec, Resources::default()).await.unwrap();
        running.until("TICK").await;
        running
    }

    async fn failure(&self, spec: &VmSpec) -> LaunchError {
        match self.launch(spec, Resources::default()).await {
            Ok(_) => panic!("it was launched"),
            Err(error) => error,
        }
    }

    /// What the recorded program was asked, by route.
    fn requests(&self, route: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path("requests.jsonl")).unwrap_or_default();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|request| request["route"] == route).collect()
    }
}

struct Running {
    vm: Box<dyn Vm>,
    process: ProcessId,
    console: UnixStream,
    text: String,
}

impl Running {
    /// Waits until the console says `wanted`, and forgets everything up to that.
    async fn until(&mut self, wanted: &str) {
        let read = async {
            loop {
                if let Some(at) = self.text.find(wanted) {
                    self.text.drain(..at + wanted.len());
                    return;
                }
                let mut buffer = [0; 4096];
                let n = self.console.read(&mut buffer).await.unwrap();
                assert!(n > 0, "the console ended before it said '{wanted}'");
                self.text.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        };
        tokio::time::timeout(TIMEOUT, read).await.expect(wanted);
    }

    /// The number of the next tick.
    async fn tick(&mut self) -> u64 {
        self.until("TICK ").await;
        while self.text.len() < 9 {
            let mut buffer = [0; 64];
            let n = self.console.read(&mut buffer).await.unwrap();
            self.text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        u64::from_str_radix(&self.text[..8], 16).expect("a number")
    }

    async fn tell(&mut self, byte: u8) {
        self.console.write_all(&[byte]).await.unwrap();
    }

    /// The stream of the agent, once the guest has called and said so.
    async fn called_by_the_agent(&mut self) -> UnixStream {
        let stream = self.vm.take_agent().expect("a stream");
        self.tell(b'a').await;
        let connected = tokio::time::timeout(TIMEOUT, stream.connected()).await;
        let mut stream = connected.unwrap().unwrap();
        let mut output = [0; 20];
        stream.read_exact(&mut output).await.unwrap();
        assert_eq!(&output, b"hello from the guest");
        stream
    }

    async fn event(&mut self) -> VmEvent {
        // Whoever has the console must read it.
        let (vm, console) = (&mut self.vm, &mut self.console);
        let next = async {
            let (mut buffer, mut is_open) = ([0; 4096], true);
            loop {
                tokio::select! {
                    event = vm.next_event() => return event,
                    read = console.read(&mut buffer), if is_open => is_open = read.is_ok_and(|n| n > 0),
                }
            }
        };
        tokio::time::timeout(TIMEOUT, next).await.expect("an event")
    }

    /// The machine's exit, after which no process is left.
    async fn exit(&mut self) -> ExitReason {
        loop {
            if let VmEvent::Exited(reason) = self.event().await {
                assert!(self.process.wait_gone(Duration::ZERO), "its process is still there");
                return reason;
            }
        }
    }

    /// Whether the guest ticks within a while.
    async fn ticks(&mut self) -> bool {
        // What was said before is of no interest.
        let mut buffer = [0; 65536];
        while tokio::time::timeout(Duration::from_millis(300), self.console.read(&mut buffer[..]))
            .await
            .is_ok()
        {
            if self.text.len() > 50 {
                self.text.clear();
                return true;
            }
            self.text.push('.');
        }
        self.text.clear();
        false
    }
}

/// A test of the life cycle, on all of them.
macro_rules! life {
    ($($name:ident)*) => { $(
        mod $name {
            #[tokio::test]
            async fn as_recorded() {
                super::lives::$name(super::Bench::recorded()).await;
            }

            #[tokio::test]
            async fn as_recorded_in_the_jail() {
                super::lives::$name(super::Bench::jailed()).await;
            }

            #[tokio::test]
            async fn on_the_real_one() {
                if let Some(bench) = super::Bench::real() {
                    super::lives::$name(bench).await;
                }
            }
        }
    )* };
}

life! {
    a_guest_that_powers_off_has_shut_down
    a_guest_of_ours_that_resets_ends_as_reset
    a_guest_of_its_own_that_resets_starts_again_and_keeps_its_console
    a_triple_fault_ends_as_reset
    a_paused_guest_does_not_tick_and_a_resumed_one_does
    what_is_quit_or_killed_is_told_apart
    a_machine_starts_where_a_killed_one_left_its_sockets
    a_disk_is_resized_and_a_wrong_one_is_refused_with_the_whole_reason
    a_saved_machine_goes_on_where_it_was_and_can_be_saved_again
}

mod lives {
    use super::*;

    pub(super) use super::ch_saved::a_saved_machine_goes_on_where_it_was_and_can_be_saved_again;

    pub(super) async fn a_guest_that_powers_off_has_shut_down(bench: Bench) {
        let mut running = bench.launched(&bench.spec()).await;
        assert!(
            running.vm.version().starts_with("cloud-hypervisor 5"),
            "{}",
            running.vm.version()
        );
        running.tell(b'q').await;
        assert_eq!(running.exit().await, ExitReason::GuestShutdown);
        assert_eq!(
            running.event().await,
            VmEvent::Exited(ExitReason::GuestShutdown),
            "for ever"
        );
    }

    pub(super) async fn a_guest_of_ours_that_resets_ends_as_reset(bench: Bench) {
        let mut running = bench.launched(&bench.spec()).await;
        running.tell(b'r').await;
        assert_eq!(running.exit().await, ExitReason::GuestReset);
    }

    pub(super) async fn a_guest_of_its_own_that_resets_starts_again_and_keeps_its_console(bench: Bench) {
        let spec = VmSpec {
            platform: Platform::Pc,
            ..bench.spec()
        };
        let mut running = bench.launched(&spec).await;
        for _ in 0..2 {
            running.tell(b'r').await;
            assert_eq!(running.event().await, VmEvent::Rebooted);
            running.until("TICK").await;
        }
        running.tell(b'q').await;
        assert_eq!(running.exit().await, ExitReason::GuestShutdown);
    }

    pub(super) async fn a_triple_fault_ends_as_reset(bench: Bench) {
        let mut running = bench.launched(&bench.spec()).await;
        running.tell(b't').await;
        assert_eq!(running.exit().await, ExitReason::GuestReset);
    }

    pub(super) async fn a_paused_guest_does_not_tick_and_a_resumed_one_does(bench: Bench) {
        let mut running = bench.launched(&bench.spec()).await;
        running.vm.pause().await.unwrap();
        running.vm.pause().await.expect("a second time is as good");
        assert_eq!(running.event().await, VmEvent::Paused);
        assert!(!running.ticks().await, "a paused guest ticks");
        running.vm.resume().await.unwrap();
        running.vm.resume().await.expect("a second time is as good");
        assert_eq!(running.event().await, VmEvent::Resumed);
        assert!(running.ticks().await, "a resumed guest does not tick");
        running.vm.kill();
    }

    pub(super) async fn what_is_quit_or_killed_is_told_apart(bench: Bench) {
        let mut running = bench.launched(&bench.spec()).await;
        running.vm.quit().await.unwrap();
        assert_eq!(running.exit().await, ExitReason::HostQuit);
        let mut running = bench.launched(&bench.spec()).await;
        running.vm.kill();
        assert_eq!(running.exit().await, ExitReason::HostSignal(9));
        running.vm.pause().await.expect_err("it is gone");
    }

    pub(super) async fn a_machine_starts_where_a_killed_one_left_its_sockets(bench: Bench) {
        for _ in 0..2 {
            let mut running = bench.launched(&bench.spec()).await;
            running.process.signal(9).unwrap();
            assert_eq!(running.exit().await, ExitReason::HostSignal(9));
            // Those in the memory of a jail are gone with it.
            let in_memory = bench.jail.as_ref().is_some_and(|jail| jail.user.is_some());
            let is_left = |name: &str| bench.path(name).exists();
            assert_eq!(is_left("ch/com1") && is_left("ch/api"), !in_memory);
        }
    }

    pub(super) async fn a_disk_is_resized_and_a_wrong_one_is_refused_with_the_whole_reason(bench: Bench) {
        let mut running = bench.launched(&bench.spec()).await;
        running.vm.resize_disk("data", 2 << 20).await.unwrap();
        let refused = running.vm.resize_disk("nope", 2 << 20).await.unwrap_err().to_string();
        assert!(
            refused.starts_with("the hypervisor refused 'vm.resize-disk': "),
            "{refused}"
        );
        assert!(
            refused.contains("Failed to find device corresponding to the given"),
            "{refused}"
        );
        running.vm.power_button().await.unwrap();
        running.vm.kill();
    }
}

#[tokio::test]
async fn a_boot_that_is_refused_leaves_no_process_and_the_next_one_starts_afresh() {
    let bench = Bench::scripted(json!({"refuse": {"vm.boot": ["basic", 21]}}));
    let spec = bench.spec();
    let error = bench.failure(&spec).await;
    let LaunchError::Control(cause) = &error else {
        panic!("{error:?}")
    };
    let cause = cause.to_string();
    assert!(
        cause.contains("'vm.boot'") && cause.contains("Cannot open disk path: I/O error"),
        "{cause}"
    );
    assert!(UnixStream::connect(bench.path("ch/api")).await.is_err(), "it lives");
    bench.script(json!({}));
    bench.launched(&spec).await.vm.kill();
}

#[tokio::test]
async fn a_description_that_is_refused_is_not_sent_to_the_same_process_again() {
    let bench = Bench::scripted(json!({"refuse": {"vm.create": ["validation", 3]}}));
    let spec = bench.spec();
    let error = bench.failure(&spec).await;
    assert!(format!("{error:?}").contains("Address already in use"), "{error:?}");
    assert!(
        bench.path("ch/com1").exists(),
        "the stale socket that the next one must not find"
    );
    bench.script(json!({}));
    bench.launched(&spec).await.vm.kill();
    assert_eq!(bench.requests("vmm.ping").len(), 2, "a process each");
}

#[tokio::test]
async fn a_disk_in_use_is_refused_with_a_hint() {
    let bench = Bench::scripted(json!({"refuse": {"vm.boot": ["full", 14]}}));
    let error = bench.failure(&bench.spec()).await;
    assert_eq!(error.hint(), Some("another machine uses that disk; stop it first"));
}

#[tokio::test]
async fn a_field_that_is_dropped_without_a_word_is_found_before_the_boot() {
    let bench = Bench::scripted(json!({"drop": "pvpanic"}));
    let error = bench.failure(&bench.spec()).await;
    assert!(
        matches!(&error, LaunchError::Misunderstood { field } if field == "pvpanic"),
        "{error:?}"
    );
    assert!(bench.requests("vm.boot").is_empty());
}

#[tokio::test]
async fn a_socket_that_nobody_serves_is_found_before_there_is_a_process() {
    let bench = Bench::recorded();
    let socket = bench.path("rootfs.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let mut spec = bench.spec();
    spec.disks = vec![Disk::VhostUser {
        id: "root".into(),
        socket: socket.clone(),
        queues: 1,
    }];
    let error = bench.failure(&spec).await;
    assert!(matches!(error, LaunchError::Unserved { .. }), "{error:?}");
    assert!(bench.requests("vmm.ping").is_empty());
    spec.disks.clear();
    spec.shares = vec![Share {
        id: "share0".into(),
        tag: "t".into(),
        socket,
    }];
    let error = bench.failure(&spec).await;
    assert!(matches!(error, LaunchError::Unserved { .. }), "{error:?}");
}

#[tokio::test]
async fn a_served_share_gets_no_connection_before_the_hypervisors() {
    let bench = Bench::recorded();
    let socket = bench.path("share0.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let share = Share {
        id: "share0".into(),
        tag: "t".into(),
        socket,
    };
    let spec = VmSpec {
        shares: vec![share],
        ..bench.spec()
    };
    bench.launched(&spec).await.vm.kill();
    assert!(listener.accept().is_err(), "its server would have ended with that");
    assert_eq!(bench.requests("vm.create")[0]["body"]["memory"]["shared"], true);
}

#[tokio::test]
async fn an_api_that_hangs_is_given_up_and_its_process_killed() {
    let mut bench = Bench::scripted(json!({"hang": "vm.info"}));
    bench.driver.patience = Duration::from_millis(1500);
    let error = bench.failure(&bench.spec()).await;
    assert!(matches!(error, LaunchError::Silent { .. }), "{error:?}");
    assert!(UnixStream::connect(bench.path("ch/api")).await.is_err(), "it lives");
}

#[tokio::test]
async fn a_program_that_gives_up_is_quoted() {
    let bench = Bench::scripted(json!({"exit": 1}));
    let error = bench.failure(&bench.spec()).await.to_string();
    assert!(
        error.contains("exit status: 1") && error.contains("0: it was told to"),
        "{error}"
    );
}

#[tokio::test]
async fn a_version_that_is_too_old_gets_no_machine() {
    let bench = Bench::scripted(json!({"version": "48.0.0"}));
    let error = bench.failure(&bench.spec()).await.to_string();
    assert!(error.ends_with("its version 48.0.0 is older than 53.0"), "{error}");
    assert!(bench.requests("vm.create").is_empty());
}

#[tokio::test]
async fn a_panic_is_told_even_when_the_guest_takes_the_process_along() {
    let bench = Bench::recorded();
    let mut running = bench.launched(&bench.spec()).await;
    running.tell(b'p').await;
    assert_eq!(running.event().await, VmEvent::Panicked);
    assert_eq!(running.exit().await, ExitReason::GuestPanic);
}

#[tokio::test]
async fn a_virtual_cpu_that_can_not_run_is_a_crash_with_the_reason() {
    let bench = Bench::recorded();
    let mut running = bench.launched(&bench.spec()).await;
    running.tell(b'v').await;
    let ExitReason::Crashed { last_stderr_lines, .. } = running.exit().await else {
        panic!("taken for the guest's wish");
    };
    assert!(
        last_stderr_lines.concat().contains("KVM_RUN failed"),
        "{last_stderr_lines:?}"
    );
}

#[tokio::test]
async fn an_interface_is_gone_when_the_guest_has_let_it_go() {
    let nic = Nic {
        id: "eth1".into(),
        mac: "02:00:00:00:00:02".into(),
        mtu: None,
        kind: NicKind::Tap,
    };
    for (shown, looks) in [(3, 4), (u32::MAX, 0)] {
        let mut bench = Bench::scripted(json!({"eject": shown}));
        bench.driver.patience = Duration::from_secs(5);
        let mut running = bench.launched(&bench.spec()).await;
        let tap = File::open("/dev/null").unwrap().into();
        running.vm.add_nic(&nic, tap).await.unwrap();
        let before = bench.requests("vm.info").len();
        match running.vm.remove_nic("eth1").await {
            Ok(()) => assert_eq!(bench.requests("vm.info").len() - before, looks),
            Err(error) => assert!(looks == 0 && error.to_string().contains("let the interface"), "{error}"),
        }
        running.vm.kill();
    }
}

#[tokio::test]
async fn a_power_off_is_seen_when_its_event_is_lost() {
    let bench = Bench::recorded();
    let mut running = bench.launched(&bench.spec()).await;
    running.tell(b's').await;
    assert_eq!(running.exit().await, ExitReason::GuestShutdown);
}

#[tokio::test]
async fn a_tap_is_passed_as_one_descriptor_and_never_by_name() {
    let bench = Bench::recorded();
    let nic = Nic {
        id: "net0".into(),
        mac: "02:00:00:00:00:01".into(),
        mtu: Some(1500),
        kind: NicKind::Tap,
    };
    let spec = VmSpec {
        nics: vec![nic],
        ..bench.spec()
    };
    let error = bench.failure(&spec).await;
    assert!(matches!(error, LaunchError::NoTap { .. }), "{error:?}");
    let tap = File::open("/dev/null").unwrap().into();
    let resources = Resources {
        taps: [("net0".to_owned(), tap)].into(),
        ..Resources::default()
    };
    let mut running = bench.launch(&spec, resources).await.unwrap();
    running.until("TICK").await;
    let asked = bench.requests("vm.add-net");
    assert_eq!((asked.len(), &asked[0]["fds"]), (1, &json!(1)));
    assert_eq!(
        asked[0]["body"],
        json!({"id": "net0", "mac": "02:00:00:00:00:01", "num_queues": 2, "queue_size": 256})
    );
    assert!(bench.requests("vm.create")[0]["body"].get("net").is_none());
}

#[tokio::test]
async fn interfaces_come_and_go_while_the_machine_runs() {
    let bench = Bench::recorded();
    let mut running = bench.launched(&bench.spec()).await;
    running.until("TICK").await;
    let nic = Nic {
        id: "eth1".into(),
        mac: "02:00:00:00:00:02".into(),
        mtu: None,
        kind: NicKind::Tap,
    };
    let tap = File::open("/dev/null").unwrap().into();
    running.vm.add_nic(&nic, tap).await.unwrap();
    let asked = bench.requests("vm.add-net");
    assert_eq!((asked.len(), &asked[0]["fds"]), (1, &json!(1)));
    assert_eq!(asked[0]["body"]["id"], "eth1");
    running.vm.remove_nic("eth1").await.unwrap();
    assert_eq!(bench.requests("vm.remove-device")[0]["body"], json!({"id": "eth1"}));
    let error = running.vm.remove_nic("eth1").await.unwrap_err();
    assert!(matches!(error, ControlError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("Failed to find device"), "{error}");
    running.vm.kill();
}

#[tokio::test]
async fn the_agents_stream_is_there_when_the_guest_calls() {
    let bench = Bench::recorded();
    let mut running = bench.launched(&bench.spec()).await;
    let mut stream = running.called_by_the_agent().await;
    assert!(running.vm.take_agent().is_none(), "once");
    let mut output = [0; 4];
    stream.write_all(b"ping").await.unwrap();
    stream.read_exact(&mut output).await.unwrap();
    assert_eq!(&output, b"ping");
    running.vm.kill();
}

#[tokio::test]
async fn a_guest_that_never_calls_leaves_nobody_waiting() {
    let bench = Bench::recorded();
    let mut running = bench.launched(&bench.spec()).await;
    let stream = running.vm.take_agent().unwrap();
    running.tell(b't').await;
    running.exit().await;
    assert!(
        tokio::time::timeout(TIMEOUT, stream.connected())
            .await
            .unwrap()
            .is_err()
    );
}

#[tokio::test]
async fn the_agent_of_an_operating_system_may_call_again_and_again() {
    let bench = Bench::recorded();
    let spec = VmSpec {
        platform: Platform::Pc,
        ..bench.spec()
    };
    let mut running = bench.launched(&spec).await;
    assert!(running.vm.take_agent().is_none());
    for _ in 0..2 {
        running.tell(b'a').await;
        assert_eq!(running.event().await, VmEvent::AgentPort { is_open: true });
        let mut stream = running.vm.connect_agent().await.unwrap();
        let mut output = [0; 20];
        stream.read_exact(&mut output).await.unwrap();
    }
    running.vm.connect_agent().await.expect_err("nobody has called since");
    running.vm.kill();
}

#[tokio::test]
async fn firmware_that_is_not_the_pinned_one_is_not_started() {
    let bench = Bench::recorded();
    let code = bench.path("CLOUDHV.fd");
    fs::write(&code, b"\x7fELF firmware").unwrap();
    let pinned = zmachine_hypervisor::firmware::pin(&code, None).unwrap();
    let spec = VmSpec {
        platform: Platform::Pc,
        boot: Boot::Firmware {
            code: code.clone(),
            variables: None,
            sha256: Some(pinned.sha256),
        },
        ..bench.spec()
    };
    bench.launched(&spec).await.vm.kill();
    fs::write(&code, b"\x7fELF another").unwrap();
    let error = bench.failure(&spec).await;
    assert!(format!("{error:?}").contains("is pinned"), "{error:?}");
}

#[tokio::test]
async fn nobody_but_its_owner_reaches_the_sockets() {
    let bench = Bench::recorded();
    let mut running = bench.launched(&bench.spec()).await;
    for name in ["ch", "ch/vs_1024", "ch/events"] {
        let mode = fs::metadata(bench.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
    running.vm.kill();
}

#[tokio::test]
async fn a_disk_that_is_not_there_is_named_before_there_is_a_process() {
    let bench = Bench::recorded();
    let spec = bench.spec();
    fs::remove_file(bench.path("data.img")).unwrap();
    let error = bench.failure(&spec).await;
    assert!(
        matches!(&error, LaunchError::Missing { path, .. } if path.ends_with("data.img")),
        "{error:?}"
    );
    assert!(bench.requests("vmm.ping").is_empty());
}
