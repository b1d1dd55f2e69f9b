//! passt, which connects a machine to the network without root: one child process per such interface, behind a relay.
//!
//! It works when it says so, ports included, before the hypervisor is started. One that ends is started again and the guest
//! sees a short outage: the relay holds the hypervisor's end of the connection. One that cannot be started again (its port is
//! somebody else's now) or ends again and again fails the machine. It ends by itself with the relay's end of its socket, so
//! with this process, too.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use zmachine_hypervisor::lines::Lines;
use zmachine_network::user::{Guard, Passt, PasstArgs, Relay, way_out};
use zmachine_network::{Attachment, Networks};
use zmachine_spec::{Class, Failure};
use zmachine_store::journal::Resource;
use zmachine_store::log::Source;
use zmachine_sys::process::{ChildSetup, ProcessId, prepare_child};

use super::context::{AbortOnDrop, Monitor};
use super::output::SharedLog;

/// Longest line of passt that is kept, in bytes.
const LINE_BYTES: usize = 4096;

/// passt is ready 0.1 s after its start; on a host with ten times more work than CPUs it may take seconds.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it may be started again within [`RESTART_WINDOW`] before the machine fails.
const RESTARTS: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// Lines of it that an error text has at most.
const KEPT_LINES: usize = 3;

/// What it takes to start the passt of one interface, again and again.
struct PasstProcess {
    passt: Passt,
    attachment: Attachment,
    networks: Networks,
    relay: Arc<Relay>,
    ready_file: PathBuf,
    log: SharedLog,
}

impl Monitor {
    /// Connects an interface through passt: the hypervisor's end of the connection, and who watches it.
    pub(super) async fn start_uplink(
        &mut self,
        attachment: &Attachment,
        ended: mpsc::Sender<Failure>,
    ) -> Result<(OwnedFd, AbortOnDrop), Failure> {
        let (relay, hypervisor) = Relay::start(Guard::new(attachment))?;
        let relay = Arc::new(relay);
        let run = self.home.run_dir(&self.machine.id);
        let passt = PasstProcess {
            passt: Passt::find().map_err(zmachine_network::NetworkError::from)?,
            attachment: attachment.clone(),
            networks: self.networks.clone(),
            relay: relay.clone(),
            ready_file: run.join(format!("{}.passt", attachment.interface)),
            log: self.log.clone(),
        };
        let child = passt.start().await?;
        if let Some(id) = child.id().and_then(ProcessId::of) {
            let role = "passt".to_owned();
            self.journal.claim(Resource::Process { role, id })?;
            self.confine(id.pid);
        }
        self.kill.pass("start: passt claimed");
        let child = passt.ready(child).await?;
        self.relays.set(&attachment.interface, relay);
        let watch = tokio::spawn(async move {
            if let Some(failure) = passt.watch(child).await {
                let _ = ended.send(failure).await;
            }
        });
        Ok((hypervisor, AbortOnDrop(watch)))
    }
}

impl PasstProcess {
    async fn start(&self) -> Result<Child, Failure> {
        // passt would only say that it cannot have a port; this says who has it.
        self.networks
            .check_publish(&self.attachment.machine, &self.attachment.publish)?;
        let _ = std::fs::remove_file(&self.ready_file);
        let context = |e: io::Error| Failure::from(e).context("cannot start passt");
        let socket = self.relay.connect().map_err(context)?;
        // Looked for at each start: the host may have another since.
        let interface = way_out().await?;
        let args = PasstArgs {
            fd: socket.as_raw_fd(),
            ready_file: &self.ready_file,
            interface: interface.as_deref(),
        };
        let mut command = std::process::Command::new(self.passt.program());
        command.args(self.passt.arguments(&self.attachment, args));
        // It is told everything by its arguments, and starts nothing.
        command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        prepare_child(
            &mut command,
            ChildSetup {
                keep: vec![socket.as_raw_fd()],
                die_with_parent: true,
                ..ChildSetup::default()
            },
        );
        Command::from(command).kill_on_drop(true).spawn().map_err(context)
    }

    /// Waits until it works. One that does not is gone afterwards.
    async fn ready(&self, mut child: Child) -> Result<Child, Failure> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if std::fs::metadata(&self.ready_file).is_ok_and(|file| file.len() > 0) {
                return Ok(child);
            }
            if child.try_wait()?.is_some() {
                let (_, reported) = self.follow(&mut child).await;
                return Err(self.not_started(&reported));
            }
            if Instant::now() >= deadline {
                let message = format!("passt was not ready within {} s", READY_TIMEOUT.as_secs());
                return Err(Failure::new(Class::Failed, message));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Logs what it says until it is gone: how it ended, and its last lines.
    async fn follow(&self, child: &mut Child) -> (String, Vec<String>) {
        let mut reported = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            let mut lines = Lines::new(stderr, LINE_BYTES);
            while let Ok(Some(line)) = lines.next_line().await {
                // It complains so on hosts without a system log.
                if line.is_empty() || line.starts_with("Failed to send ") {
                    continue;
                }
                self.log.note(Source::Monitor, &format!("passt: {line}"));
                reported.push(line);
                if reported.len() > KEPT_LINES {
                    reported.remove(0);
                }
            }
        }
        let status = child.wait().await;
        (
            status.map_or_else(|e| e.to_string(), |status| status.to_string()),
            reported,
        )
    }

    fn not_started(&self, reported: &[String]) -> Failure {
        let reported = reported.join("; ");
        let interface = &self.attachment.interface;
        let failure = |class| Failure::new(class, format!("passt cannot connect {interface}: {reported}"));
        match reported.as_str() {
            reported
                if reported.contains("No external routable interface")
                    || reported.contains("External interface not usable") =>
            {
                failure(Class::Unsupported)
                    .hint("this host has no default route: connect it to a network, or run without a network")
            }
            reported if reported.contains("Failed to bind") => {
                failure(Class::Conflict).hint("choose another host port, or stop its owner (ss -lntup)")
            }
            reported if reported.contains("namespace") => failure(Class::Unsupported).hint(
                "passt needs user namespaces: sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1",
            ),
            _ => failure(Class::Failed),
        }
    }

    /// Starts it again whenever it ends, until the hypervisor is gone; the failure when that does not help.
    async fn watch(self, mut child: Child) -> Option<Failure> {
        let mut restarts: Vec<Instant> = Vec::new();
        loop {
            let (status, _) = self.follow(&mut child).await;
            if !self.relay.is_open() {
                return None;
            }
            let interface = &self.attachment.interface;
            restarts.retain(|at| at.elapsed() < RESTART_WINDOW);
            if restarts.len() >= RESTARTS {
                let message = format!(
                    "passt of {interface} ended {} times in a minute ({status})",
                    RESTARTS + 1
                );
                return Some(Failure::new(Class::Failed, message));
            }
            restarts.push(Instant::now());
            let text = format!("passt of {interface} ended ({status}); it is started again");
            self.log.note(Source::Monitor, &text);
            // Not in the journal, whose writer is busy elsewhere: it ends with its socket.
            let again = match self.start().await {
                Ok(again) => self.ready(again).await,
                Err(failure) => Err(failure),
            };
            match again {
                Ok(again) => child = again,
                Err(failure) => return Some(failure.context("the network is lost: passt cannot be started again")),
            }
        }
    }
}
