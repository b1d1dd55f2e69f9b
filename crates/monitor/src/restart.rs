//! Between two runs: whether there is another one, and the wait for it.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use zmachine_spec::restart::{Ended, Next};
use zmachine_spec::{Class, Failure, Phase, Setting};
use zmachine_store::log::Source;

use super::context::{AbortOnDrop, Monitor};
use super::inbox::Inbox;
use super::server;

impl Monitor {
    /// What follows a run that ended in `phase`. The phase tells when it was restarted as often as it may be.
    pub(super) fn decide(&mut self, phase: Phase) -> (Phase, Option<Duration>) {
        let ended = Ended {
            failed: Ended::is_failure(&phase),
            ran: self.backoff.ready.take().map(|since| since.elapsed()),
        };
        if self.backoff.stop_reason.is_some() {
            return (phase, None);
        }
        let policy = self.machine.spec.restart;
        match policy.after(ended, self.backoff.restarts) {
            Next::End => (phase, None),
            Next::Restart { wait, restarts } => {
                self.backoff.restarts = restarts;
                (phase, Some(wait))
            }
            Next::GiveUp => {
                let restarts = self.backoff.restarts;
                let message = format!("{}, after {restarts} restarts in a row", in_words(&phase));
                let failure = match &phase {
                    Phase::Failed { failure, .. } => Failure {
                        message,
                        ..failure.clone()
                    },
                    _ => Failure::new(Class::Failed, message),
                };
                let name = &self.machine.spec.name;
                let failure = failure
                    .hint(format!(
                        "the restart policy {policy} allows no more; 'zmachine why {name}' tells of each run"
                    ))
                    .about(Setting::Restart);
                let step = "running".to_owned();
                (Phase::Failed { step, failure }, None)
            }
        }
    }

    /// Waits in the phase `restarting`; `false` when somebody wants the machine to end meanwhile.
    pub(super) async fn wait_to_restart(&mut self, ended: &Phase, wait: Duration, inbox: &mut Inbox) -> bool {
        let at = Timestamp::now()
            .checked_add(SignedDuration::try_from(wait).unwrap_or_default())
            .unwrap_or(Timestamp::MAX);
        let after = in_words(ended);
        self.log.note(
            Source::Monitor,
            &format!("{after}; it is started again in {} s", wait.as_secs()),
        );
        self.advance_if_possible(Phase::Restarting { after, at });
        let until = tokio::time::Instant::now() + wait;
        let shared = self.nobody();
        let _server = match self.make_run_dir() {
            Ok(listener) => Some(AbortOnDrop(tokio::spawn(server::serve(Arc::new(listener), shared)))),
            Err(failure) => {
                self.log
                    .note(Source::Monitor, &format!("no commands are taken now: {failure}"));
                None
            }
        };
        let goes_on = loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => break true,
                event = inbox.next() => {
                    if self.without_guest(event, "the machine waits to be started again").is_break() {
                        break false;
                    }
                }
            }
        };
        if let Err(failure) = self.journal.undo_all(&self.networks).await {
            self.log
                .note(Source::Monitor, &format!("not everything could be undone: {failure}"));
        }
        goes_on
    }
}

/// How a run ended, in words.
fn in_words(phase: &Phase) -> String {
    use zmachine_spec::Exit;
    match phase {
        Phase::Stopped { exit: Exit::Code(code) } => format!("the entrypoint ended with code {code}"),
        Phase::Stopped {
            exit: Exit::Signal(signal),
        } => format!("the entrypoint was ended by signal {signal}"),
        Phase::Stopped { exit: Exit::Killed } => "the guest was killed".to_owned(),
        Phase::Stopped { exit: Exit::PoweredOff } => "the guest powered off".to_owned(),
        Phase::Failed { step, failure } => format!("it failed at {step}: {failure}"),
        other => format!("it was {}", other.word()),
    }
}
