//! Health checks: a process in the guest, now and again, whose status says how the machine is.
//!
//! A task of its own makes them, one after the other, each with a deadline: a guest that is silent, slow or lies is
//! unhealthy, and keeps nobody waiting. What it finds is an event for the loop, which writes it down.
//!
//! # Invariants
//! Two checks never run at the same time, but for one whose process does not end by SIGKILL within [`KILL_TIMEOUT`]. None
//! begins while the guest is paused; one that is under way then says nothing.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use zmachine_agent_client::session::{AgentStream, Session, SessionError};
use zmachine_agent_protocol::{ExitStatus, Frame, Input, Process, Reply, Request};
use zmachine_spec::health::{NO_EXIT_CODE, OUTPUT_LIMIT, Probe};
use zmachine_spec::{Health, HealthCheck, HealthStatus, Phase};
use zmachine_store::log::Source;
use zmachine_store::{catalog, events};

use super::context::Monitor;
use super::inbox::Event;

/// How long a check that took too long is waited for after it was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

const SIGKILL: i32 = 9;

impl Monitor {
    /// Begins the health of a run: what makes its checks, when there are any. `base` is what an exec has.
    pub(super) fn start_health(
        &mut self,
        check: Option<&HealthCheck>,
        base: &Process,
        session: &watch::Receiver<Option<Session>>,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let earlier = catalog::load_health(&self.machine.dir);
        self.health = check.map(|_| Health::starting(earlier));
        self.save_health();
        let check = check?.clone();
        let checks = Checks {
            process: Process {
                args: check.command.clone(),
                terminal: None,
                stdin: false,
                init: false,
                ..base.clone()
            },
            check,
            health: self.health.clone()?,
            session: session.clone(),
            paused: self.paused.subscribe(),
            events: self.events.clone(),
        };
        Some(checks.make())
    }

    /// A check was made.
    pub(super) fn probed(&mut self, health: Health) {
        // What a machine on its way down says of itself is of no interest.
        if matches!(self.machine.state.phase, Phase::Stopping) {
            return;
        }
        let before = self.health.replace(health).map(|health| health.status);
        self.save_health();
        let Some(status) = self.health.as_ref().map(|health| health.status) else {
            return;
        };
        if before != Some(status) {
            let (id, name) = (&self.machine.id, &self.machine.spec.name);
            events::record(&self.home, &events::Event::of_health(id, name, status));
            let text = format!("the machine is {} now", status.word());
            self.log.note(Source::Monitor, &text);
        }
    }

    fn save_health(&self) {
        if let Err(error) = catalog::save_health(&self.machine.dir, self.health.as_ref()) {
            self.log
                .note(Source::Monitor, &format!("its health is not written down: {error}"));
        }
    }
}

/// What makes the checks of one run.
struct Checks {
    check: HealthCheck,
    process: Process,
    health: Health,
    session: watch::Receiver<Option<Session>>,
    paused: watch::Receiver<bool>,
    events: mpsc::Sender<Event>,
}

impl Checks {
    /// Makes them from when the guest can be asked until the end of the run.
    async fn make(mut self) {
        if self.session.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let started = Instant::now();
        let start_period = Duration::from_millis(self.check.start_period_ms);
        loop {
            // The monitor is gone when that is.
            if self.paused.wait_for(|paused| !*paused).await.is_err() {
                return;
            }
            let wait = interval(&self.check, self.health.status, started.elapsed() < start_period);
            let (probed, in_start_period) = tokio::select! {
                // The wait begins anew when the guest runs on.
                Ok(_) = self.paused.wait_for(|paused| *paused) => continue,
                probed = async {
                    sleep(wait).await;
                    let in_start_period = started.elapsed() < start_period;
                    let session = self.session.borrow().clone();
                    let limit = Duration::from_millis(self.check.timeout_ms);
                    (probe(session, self.process.clone(), limit).await, in_start_period)
                } => probed,
            };
            self.health.record(probed, &self.check, in_start_period);
            let event = Event::Probed(Box::new(self.health.clone()));
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// The time before the next check.
fn interval(check: &HealthCheck, status: HealthStatus, in_start_period: bool) -> Duration {
    Duration::from_millis(match (status, in_start_period) {
        (HealthStatus::Starting, true) => check.start_interval_ms,
        _ => check.interval_ms,
    })
}

/// Makes one check.
async fn probe(session: Option<Session>, process: Process, limit: Duration) -> Probe {
    let start = Timestamp::now();
    let mut output = Output::default();
    let exit_code = match session {
        Some(session) => {
            let mut stream = None;
            let ran = timeout(limit, run(&session, process, &mut stream, &mut output)).await;
            let exit_code = match ran {
                Ok(Ok(status)) => i32::from(status.shell_code()),
                Ok(Err(error)) => {
                    output = Output::of(&error.to_string());
                    NO_EXIT_CODE
                }
                Err(_) => {
                    output.put_in_front(&format!("the health check took more than {limit:?}"));
                    if let Some(stream) = &mut stream {
                        let _ = timeout(KILL_TIMEOUT, kill(stream)).await;
                    }
                    NO_EXIT_CODE
                }
            };
            if let Some(mut stream) = stream {
                // A guest that does not even take this is not waited for.
                let _ = timeout(KILL_TIMEOUT, stream.writer.close()).await;
            }
            exit_code
        }
        None => {
            output = Output::of("no agent of ours answers in the guest");
            NO_EXIT_CODE
        }
    };
    Probe {
        start,
        end: Timestamp::now(),
        exit_code,
        output: output.text(),
    }
}

/// Runs the process to its end. `stream` is its stream as soon as it has one.
async fn run(
    session: &Session,
    process: Process,
    stream: &mut Option<AgentStream>,
    output: &mut Output,
) -> Result<ExitStatus, SessionError> {
    let stream = stream.insert(session.open(&Request::Exec(process)).await?);
    if !matches!(stream.reader.reply().await?, Reply::Started { .. }) {
        return Err(SessionError::Unexpected);
    }
    loop {
        match stream.reader.next().await?.ok_or(SessionError::Closed)? {
            Frame::Stdout(bytes) | Frame::Stderr(bytes) => output.push(&bytes),
            message => match message.parse()? {
                Reply::Exited(status) => return Ok(status),
                Reply::Error(error) => return Err(SessionError::Agent(error)),
                _ => return Err(SessionError::Unexpected),
            },
        }
    }
}

/// Ends the process of a stream, and waits until it is gone.
async fn kill(stream: &mut AgentStream) -> Result<(), SessionError> {
    stream.writer.send(&Frame::message(&Input::Signal(SIGKILL))).await?;
    while let Some(frame) = stream.reader.next().await? {
        if matches!(frame.parse(), Ok(Reply::Exited(_))) {
            break;
        }
    }
    Ok(())
}

/// The beginning of what a check wrote.
#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Output {
    fn of(text: &str) -> Output {
        let mut output = Output::default();
        output.push(text.as_bytes());
        output
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = OUTPUT_LIMIT - self.bytes.len();
        self.is_cut |= bytes.len() > room;
        self.bytes.extend(bytes.iter().take(room));
    }

    fn put_in_front(&mut self, text: &str) {
        let Output { bytes, is_cut } = std::mem::replace(self, Output::of(text));
        if !bytes.is_empty() {
            self.push(b": ");
            self.push(&bytes);
            self.is_cut |= is_cut;
        }
    }

    fn text(self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).into_owned();
        if self.is_cut {
            text.push_str("...");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_output_the_beginning_is_kept() {
        let mut output = Output::default();
        for _ in 0..3 {
            output.push(&[b'x'; OUTPUT_LIMIT / 2]);
        }
        output.put_in_front("late");
        let text = output.text();
        assert!(text.starts_with("late: xxx") && text.ends_with("x..."));
        assert_eq!(text.len(), OUTPUT_LIMIT + 3);
        assert_eq!(Output::of("short").text(), "short");
    }
}
