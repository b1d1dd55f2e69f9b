//! Real machines on a real QEMU with a real kernel. Needs `ZMACHINE_TEST_KERNEL` (the folder of an installed kernel), QEMU
//! and a static busybox; each test that lacks one says so.

use std::fs::{self, File};
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, MutexGuard};
use zmachine_hypervisor::qemu::{self, Qemu};
use zmachine_hypervisor::{
    Accel, Boot, Disk, Driver, ExitReason, LaunchError, Resources, RunDir, Vm, VmEvent, VmSpec, kernel_cmdline,
};
use zmachine_kernel::Kernel;
use zmachine_sys::process::ProcessId;
use zmachine_testkit::{Need, lacking, skip, test_kernel};

/// Guests one after another: several emulated ones at once starve each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
/// An emulated guest on a busy host once took two minutes.
const TIMEOUT: Duration = Duration::from_secs(180);

struct Bench {
    _turn: MutexGuard<'static, ()>,
    dir: TempDir,
    qemu: Qemu,
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Bench {
    async fn new() -> Option<Self> {
        if let Some(lack) = lacking(&[Need::Guest]) {
            skip(lack);
            return None;
        }
        let kernel = test_kernel()?;
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|p| Path::new(p).exists())
            .expect("scripts/setup installs busybox in /bin or /usr/bin");
        let qemu = qemu::probe(None).unwrap_or_else(|error| panic!("{error}; {}", error.hint()));
        let turn = ONE_AT_A_TIME.lock().await;
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel::read(&kernel).unwrap();
        let initrd = pack_guest(dir.path(), &kernel, busybox);
        Some(Self {
            _turn: turn,
            dir,
            qemu,
            kernel: kernel.vmlinux(),
            initrd,
        })
    }

    fn spec(&self, test: &str) -> VmSpec {
        VmSpec {
            name: format!("test-{test}"),
            uuid: "0d3f1a52-8f0e-4a77-9a57-2f6f9cbb1d10".into(),
            cpus: 1,
            memory_bytes: 256 << 20,
            accel: Accel::Tcg,
            boot: Boot::Kernel {
                kernel: self.kernel.clone(),
                initrd: Some(self.initrd.clone()),
                cmdline: format!("{} test={test}", kernel_cmdline(Accel::Tcg, 1)),
            },
            disks: Vec::new(),
            shares: Vec::new(),
            nics: Vec::new(),
            agent: true,
            platform: zmachine_hypervisor::Platform::Lean,
            is_saveable: false,
            later_disks: Vec::new(),
            later_files: 0,
        }
    }

    async fn launch(&self, spec: &VmSpec) -> Result<Running, LaunchError> {
        let mut vm = self
            .qemu
            .launch(spec, Resources::default(), &RunDir::new(self.dir.path()))
            .await?;
        let process = ProcessId::of(vm.pid()).expect("a running process");
        let console = Console {
            stream: vm.take_console().unwrap(),
            text: String::new(),
        };
        Ok(Running { vm, process, console })
    }
}

struct Running {
    vm: Box<dyn Vm>,
    process: ProcessId,
    console: Console,
}

impl Running {
    /// The machine's exit; meanwhile the console is read. Fails when the process is still there.
    async fn exit(&mut self) -> ExitReason {
        loop {
            if let VmEvent::Exited(reason) = self.event().await {
                assert!(
                    self.process.wait_gone(Duration::ZERO),
                    "the hypervisor's process is still there"
                );
                return reason;
            }
        }
    }

    async fn event(&mut self) -> VmEvent {
        let (vm, console) = (&mut self.vm, &mut self.console);
        patiently(async {
            let mut open = true;
            loop {
                tokio::select! {
                    event = vm.next_event() => return event,
                    read = console.read(), if open => open = read,
                }
            }
        })
        .await
    }

    async fn ready(&mut self) {
        patiently(self.console.until("guest ready")).await;
    }
}

struct Console {
    stream: tokio::net::UnixStream,
    text: String,
}

impl Console {
    async fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let n = self.stream.read(&mut bytes).await.unwrap_or(0);
        self.text.push_str(&String::from_utf8_lossy(&bytes[..n]));
        n > 0
    }

    async fn until(&mut self, wanted: &str) {
        while !self.text.contains(wanted) {
            assert!(self.read().await, "the console ended before '{wanted}': {}", self.text);
        }
    }

    /// Lines that come within `time`.
    async fn lines_within(&mut self, time: Duration) -> usize {
        self.text.clear();
        let _ = tokio::time::timeout(time, async { while self.read().await {} }).await;
        self.text.lines().count()
    }
}

async fn patiently<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what)
        .await
        .expect("the guest takes too long")
}

/// An initramfs of busybox, the kernel's boot modules, the power button's, and the test guest's init.
fn pack_guest(dir: &Path, kernel: &Kernel, busybox: &str) -> PathBuf {
    let tree = dir.join("tree");
    for sub in ["bin", "dev", "proc", "sys", "lib/modules"] {
        fs::create_dir_all(tree.join(sub)).unwrap();
    }
    fs::copy(busybox, tree.join("bin/busybox")).unwrap();
    fs::write(tree.join("init"), include_str!("guest/init")).unwrap();
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut order = String::new();
    let mut modules: Vec<&str> = kernel.description.boot_modules().collect();
    for module in ["button.ko", "evdev.ko"] {
        if !modules.contains(&module) && kernel.dir.join("modules").join(module).exists() {
            modules.push(module);
        }
    }
    for module in modules {
        fs::copy(
            kernel.dir.join("modules").join(module),
            tree.join("lib/modules").join(module),
        )
        .unwrap();
        order += &format!("{module}\n");
    }
    fs::write(tree.join("lib/modules/order"), order).unwrap();
    let cpio = dir.join("guest.cpio");
    let script = "find . | busybox cpio -o -H newc 2>/dev/null";
    let mut pack = Command::new("sh");
    pack.args(["-c", script])
        .current_dir(&tree)
        .stdout(Stdio::from(File::create(&cpio).unwrap()));
    assert!(pack.status().unwrap().success());
    cpio
}

#[tokio::test]
async fn a_guest_that_powers_off() {
    let Some(bench) = Bench::new().await else { return };
    let mut machine = bench.launch(&bench.spec("poweroff")).await.unwrap();
    assert_eq!(machine.exit().await, ExitReason::GuestShutdown);
    assert_eq!(
        machine.vm.next_event().await,
        VmEvent::Exited(ExitReason::GuestShutdown),
        "the end stays the end"
    );
}

#[tokio::test]
async fn a_guest_that_resets() {
    let Some(bench) = Bench::new().await else { return };
    let mut machine = bench.launch(&bench.spec("reset")).await.unwrap();
    assert_eq!(machine.exit().await, ExitReason::GuestReset);
}

#[tokio::test]
async fn a_guest_that_panics_is_reported_twice_and_its_words_reach_the_console() {
    let Some(bench) = Bench::new().await else { return };
    let mut machine = bench.launch(&bench.spec("panic")).await.unwrap();
    assert_eq!(machine.event().await, VmEvent::Panicked);
    assert_eq!(machine.exit().await, ExitReason::GuestPanic);
    assert!(
        machine.console.text.contains("Kernel panic - not syncing"),
        "{}",
        machine.console.text
    );
}

#[tokio::test]
async fn a_guest_without_init_panics_too_and_is_a_reset_as_no_driver_tells() {
    let Some(bench) = Bench::new().await else { return };
    let mut spec = bench.spec("none");
    let Boot::Kernel { initrd, .. } = &mut spec.boot else {
        unreachable!()
    };
    *initrd = None;
    let mut machine = bench.launch(&spec).await.unwrap();
    assert_eq!(machine.exit().await, ExitReason::GuestReset);
    assert!(
        machine.console.text.contains("Kernel panic"),
        "{}",
        machine.console.text
    );
}

#[tokio::test]
async fn signals_from_the_host_are_told_by_their_number() {
    let Some(bench) = Bench::new().await else { return };
    for signal in [15, 9] {
        let mut machine = bench.launch(&bench.spec("sleep")).await.unwrap();
        machine.process.signal(signal).unwrap();
        assert_eq!(machine.exit().await, ExitReason::HostSignal(signal));
    }
}

#[tokio::test]
async fn a_hypervisor_that_aborts_has_crashed() {
    let Some(bench) = Bench::new().await else { return };
    let mut machine = bench.launch(&bench.spec("sleep")).await.unwrap();
    machine.process.signal(6).unwrap();
    let ExitReason::Crashed { status, .. } = machine.exit().await else {
        panic!("not a crash")
    };
    assert!(status.contains("signal: 6"), "{status}");
}

#[tokio::test]
async fn quit_and_kill_end_a_machine() {
    let Some(bench) = Bench::new().await else { return };
    let mut machine = bench.launch(&bench.spec("sleep")).await.unwrap();
    machine.vm.quit().await.unwrap();
    assert_eq!(machine.exit().await, ExitReason::HostQuit);
    let mut machine = bench.launch(&bench.spec("sleep")).await.unwrap();
    machine.vm.kill();
    assert_eq!(machine.exit().await, ExitReason::HostSignal(9));
}

#[tokio::test]
async fn dropping_a_machine_leaves_no_process() {
    let Some(bench) = Bench::new().await else { return };
    let machine = bench.launch(&bench.spec("sleep")).await.unwrap();
    let process = machine.process;
    drop(machine);
    assert!(process.wait_gone(Duration::from_secs(10)));
}

#[tokio::test]
async fn pausing_stops_the_guests_ticks_and_resuming_lets_them_go_on() {
    let Some(bench) = Bench::new().await else { return };
    let mut machine = bench.launch(&bench.spec("ticks")).await.unwrap();
    patiently(machine.console.until("tick")).await;
    machine.vm.pause().await.unwrap();
    assert_eq!(machine.event().await, VmEvent::Paused);
    machine.console.lines_within(Duration::from_millis(300)).await; // what was on its way
    assert_eq!(machine.console.lines_within(Duration::from_secs(2)).await, 0);
    machine.vm.resume().await.unwrap();
    assert_eq!(machine.event().await, VmEvent::Resumed);
    machine.console.text.clear();
    patiently(machine.console.until("tick")).await;
}

#[tokio::test]
async fn the_power_button_reaches_the_guest() {
    let Some(bench) = Bench::new().await else { return };
    let mut machine = bench.launch(&bench.spec("button")).await.unwrap();
    machine.ready().await;
    // The guest opens its input device a moment after it said that it is ready.
    tokio::time::sleep(Duration::from_secs(1)).await;
    machine.vm.power_button().await.unwrap();
    assert_eq!(machine.exit().await, ExitReason::GuestShutdown);
}

#[tokio::test]
async fn the_agents_stream_goes_both_ways() {
    let Some(bench) = Bench::new().await else { return };
    let mut machine = bench.launch(&bench.spec("agent")).await.unwrap();
    let mut agent = machine.vm.take_agent().unwrap().connected().await.unwrap();
    agent.write_all(b"hello guest\n").await.unwrap();
    assert_eq!(machine.exit().await, ExitReason::GuestShutdown);
    let mut answer = String::new();
    agent.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "HELLO GUEST\n");
}

#[tokio::test]
async fn disks_come_in_order_with_serial_and_read_only_flag() {
    let Some(bench) = Bench::new().await else { return };
    let mut spec = bench.spec("disks");
    for (id, read_only) in [("first", false), ("second", true)] {
        let path = bench.dir.path().join(format!("{id},with comma.img"));
        fs::write(&path, id).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        let serial = format!("zm-{id}");
        spec.disks.push(Disk::File {
            id: id.into(),
            path,
            serial,
            read_only,
            discard: !read_only,
        });
    }
    let mut machine = bench.launch(&spec).await.unwrap();
    assert_eq!(machine.exit().await, ExitReason::GuestShutdown);
    for line in ["vda: first serial zm-first", "vda is writable", "vdb read-only: 1"] {
        assert!(
            machine.console.text.contains(line),
            "{line} in {}",
            machine.console.text
        );
    }
    assert!(
        fs::read(bench.dir.path().join("first,with comma.img"))
            .unwrap()
            .starts_with(b"changed\n")
    );
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let Some(bench) = Bench::new().await else { return };
    let output = async |change: &dyn Fn(&mut VmSpec)| {
        let mut spec = bench.spec("sleep");
        change(&mut spec);
        bench
            .launch(&spec)
            .await
            .err()
            .expect("a launch that fails")
            .to_string()
    };
    let gone = PathBuf::from("/nonexistent/thing");
    let file = |path: PathBuf| Disk::File {
        id: "d".into(),
        path,
        serial: "s".into(),
        read_only: true,
        discard: false,
    };
    let socket = |socket: PathBuf| Disk::VhostUser {
        id: "d".into(),
        socket,
        queues: 1,
    };

    let kernel = |vm: &mut VmSpec| {
        vm.boot = Boot::Kernel {
            kernel: gone.clone(),
            initrd: None,
            cmdline: "".into(),
        }
    };
    assert_eq!(output(&kernel).await, "the kernel /nonexistent/thing cannot be used");
    let disk = output(&|vm| vm.disks = vec![file(gone.clone())]).await;
    assert_eq!(disk, "the disk /nonexistent/thing cannot be used");
    assert_eq!(
        output(&|vm| vm.disks = vec![socket(gone.clone())]).await,
        "the disk's socket /nonexistent/thing cannot be used"
    );
    let memory = output(&|vm| vm.memory_bytes = 1 << 50).await;
    assert!(memory.contains("the hypervisor gave up (exit status: 1)"), "{memory}");
}

#[tokio::test]
async fn two_machines_cannot_write_to_one_disk() {
    let Some(bench) = Bench::new().await else { return };
    let mut spec = bench.spec("sleep");
    let path = bench.dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    spec.disks = vec![Disk::File {
        id: "d".into(),
        path,
        serial: "s".into(),
        read_only: false,
        discard: false,
    }];
    let _first = bench.launch(&spec).await.unwrap();
    let error = bench.launch(&spec).await.err().expect("a launch that fails");
    assert_eq!(
        error.hint(),
        Some("another machine uses that disk; stop it first"),
        "{error}"
    );
}

#[tokio::test]
async fn a_served_disk_that_nobody_serves_is_an_error_within_seconds() {
    let Some(bench) = Bench::new().await else { return };
    let socket = bench.dir.path().join("silent.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let mut spec = bench.spec("sleep");
    spec.disks = vec![Disk::VhostUser {
        id: "root".into(),
        socket,
        queues: 1,
    }];
    let error = bench.launch(&spec).await.err().expect("a launch that fails");
    assert!(matches!(error, LaunchError::Unserved { .. }), "{error}");
    assert!(
        error.to_string().contains("silent.sock': Connection refused"),
        "{error}"
    );
}
