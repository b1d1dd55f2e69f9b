//! The agent as a service beside another init: here, of this host. A pseudo terminal is its port: it also reads as ended and
//! polls as hung up when its other side is closed.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::io::{AsyncRead, AsyncWrite};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;
use tokio::task::LocalSet;
use zmachine_agent_protocol::{ErrorKind, ExitStatus, PORT_NAME, Reply, Request};

use crate::support::{Bench, Host, config, process};

/// The service's process; it ends with the test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The host's side of the port.
struct HostPort(AsyncFd<OwnedFd>);

impl HostPort {
    /// A new port, which `link` names from here on; the second descriptor keeps its settings.
    fn open(link: &Path) -> (HostPort, OwnedFd) {
        let host = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        unlockpt(&host).unwrap();
        let name = PathBuf::from(ptsname(&host, Vec::new()).unwrap().into_string().unwrap());
        let guest = rustix::fs::openat(
            CWD,
            &name,
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        let mut settings = tcgetattr(&guest).unwrap();
        settings.make_raw();
        tcsetattr(&guest, OptionalActions::Now, &settings).unwrap();
        let flags = rustix::fs::fcntl_getfl(&host).unwrap();
        rustix::fs::fcntl_setfl(&host, flags | OFlags::NONBLOCK).unwrap();
        let new = link.with_extension("new");
        symlink(name, &new).unwrap();
        fs::rename(new, link).unwrap();
        // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, and it is never given out.
        let host = unsafe { AsyncFd::register(host) }.unwrap();
        (HostPort(host), guest)
    }
}

impl AsyncRead for HostPort {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut *buffer)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for HostPort {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn beside_another_init_it_serves_one_host_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("port");
    let marker = folder.path().join("marker");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (port, guest) = HostPort::open(&link);
        let service = Command::new(env!("CARGO_BIN_EXE_zmachine-agent"))
            .arg(&link)
            .stdin(Stdio::null())
            .spawn();
        let mut service = Service(service.unwrap());
        let all = async {
            let host = Host::default();
            host.drive(port);
            assert_eq!(host.ask(Request::Ping).await, Reply::Done);
            assert_eq!(host.sh("echo $0 && exit 0").await.text(), "sh\n");
            assert_eq!(host.sh("exit 7").await.end, Ok(ExitStatus::Code(7)));
            let Reply::Capacity(capacity) = host.ask(Request::Capacity).await else {
                panic!("no capacity");
            };
            assert!(capacity.cpus > 0 && capacity.memory_total_bytes > 0);
            // It neither sets up nor takes over what is the init's.
            for request in [
                Request::Configure(Box::new(config())),
                Request::Run(process(&["true"])),
                Request::Signal { signal: 15 },
            ] {
                match host.ask(request.clone()).await {
                    Reply::Error(error) => assert_eq!(error.kind, ErrorKind::BadRequest, "{request:?}"),
                    other => panic!("{request:?}: {other:?}"),
                }
            }
            let line = format!("sleep 1; echo lived > {}", marker.display());
            let mut lives = host.open(&Request::Exec(process(&["sh", "-c", &line]))).await;
            assert!(matches!(lives.reply().await, Reply::Started { .. }));

            // The host goes in the middle of everything; another one comes.
            host.hang_up();
            drop((host, lives, guest));
            let (port, _guest) = HostPort::open(&link);
            let host = Host::default();
            host.drive(port);
            assert_eq!(host.ask(Request::Ping).await, Reply::Done);
            while !marker.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(host.sh("cat").await.text(), "");
        };
        let in_time = tokio::time::timeout(Duration::from_secs(60), all).await;
        assert_eq!(service.0.try_wait().unwrap(), None, "it lives on");
        in_time.expect("the test ends in time");
    });
}

#[test]
fn a_port_that_can_not_be_opened_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_zmachine-agent"))
        .arg("/nowhere/port")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let reported = String::from_utf8(output.stderr).unwrap();
    assert!(reported.contains("open /nowhere/port: No such file"), "{reported}");
}

#[test]
fn the_package_for_vms_has_program_service_and_rule_and_is_the_same_when_made_again() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/agent-package");
    let agent = &Bench::static_agent();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new(&script)
            .args([agent.as_os_str(), "1.2.3".as_ref()])
            .arg(folder.path())
            .output()
            .unwrap();
        let reported = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{reported}");
        let path = String::from_utf8(output.stdout).unwrap();
        let tree = folder.path().join("tree");
        let unpacked = Command::new("dpkg-deb")
            .args(["-x", path.trim()])
            .arg(&tree)
            .status()
            .unwrap();
        assert!(unpacked.success());
        (fs::read(path.trim()).unwrap(), folder, tree)
    };
    let (package, _folder, tree) = make();
    assert_eq!(
        fs::read(tree.join("usr/lib/zmachine/zmachine-agent")).unwrap(),
        fs::read(agent).unwrap()
    );
    let unit = fs::read_to_string(tree.join("lib/systemd/system/zmachine-agent.service")).unwrap();
    let port = PORT_NAME.replace('-', "\\x2d");
    assert!(
        unit.contains(&format!("BindsTo=dev-virtio\\x2dports-{port}.device\n")),
        "{unit}"
    );
    let rule = fs::read_to_string(tree.join("lib/udev/rules.d/60-zmachine-agent.rules")).unwrap();
    assert!(rule.contains(&format!("ATTR{{name}}==\"{PORT_NAME}\"")), "{rule}");
    assert!(make().0 == package, "the same agent gives other bytes");
}
