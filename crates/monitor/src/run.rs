//! The monitor's life: from the lock to the last line of its state.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;
use zmachine_network::Networks;
use zmachine_plan::Plan;
use zmachine_spec::control::{Reply, Report};
use zmachine_spec::{Class, Exit, Failure, Home, Phase};
use zmachine_store::catalog::Machine;
use zmachine_store::journal::Journal;
use zmachine_store::killpoint::{At, Killpoints};
use zmachine_store::log::{LogWriter, Source};
use zmachine_store::volume::Volumes;
use zmachine_store::{attempt, catalog, leftovers, restoring};
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use super::asleep::Woken;
use super::backoff::StopReason;
use super::context::{Monitor, Outcome};
use super::frozen::Restore;
use super::inbox::{Event, Inbox};
use super::output::{ReportPipe, SharedLog};

/// What a monitor is started with.
#[derive(Debug)]
pub struct MonitorArgs {
    /// The state it works on.
    pub home: Home,
    /// The machine.
    pub id: String,
    /// Where [`Report`] lines go.
    pub report: OwnedFd,
    /// The entrypoint starts only when the starting client is attached.
    pub wait_for_owner: bool,
    /// The machine is ended when whoever reads the report is gone.
    pub ends_with_client: bool,
    /// What the first run goes on from, instead of booting.
    pub restore: Option<Restore>,
    /// Its volumes that whoever started it has held for it: name and lock.
    pub held_volumes: Vec<(String, FileLock)>,
    /// The key of the template that the first run makes.
    pub template: Option<String>,
    /// The guest waits, before its entrypoint, to be taken for a machine like it.
    pub stands_by: bool,
    /// See [`zmachine_store::killpoint`].
    pub abort_at: Option<At>,
}

/// Runs the machine of `args` from start to end.
pub(super) async fn run(args: MonitorArgs) -> Result<(), Failure> {
    let client = args.ends_with_client.then(|| args.report.try_clone()).transpose()?;
    let mut report = ReportPipe::new(args.report);
    let kill = Killpoints::new(args.abort_at);
    let claimed = claim(&args.home, &args.id).await;
    let (lock, machine, plan, journal, networks) = match claimed {
        Ok(claimed) => claimed,
        Err(failure) => {
            report.send(&Report::Failed(failure.clone()));
            return Err(failure);
        }
    };
    let log = match LogWriter::open(&machine.dir, machine.spec.log_limits.clone()) {
        Ok(writer) => SharedLog::new(writer),
        Err(error) => {
            let failure = Failure::from(error);
            report.send(&Report::Failed(failure.clone()));
            return Err(failure);
        }
    };
    let forwarder = super::forwarding::start(&machine, &log);
    super::cache::start(args.home.clone(), log.clone());
    let (events, mut inbox) = Inbox::new()?;
    if let Some(client) = client {
        end_with(client, events.clone());
    }
    let mut monitor = Monitor::new(args.home, machine, journal, networks, log, report, events);
    monitor.kill = kill;
    monitor.wait_for_owner = args.wait_for_owner;
    monitor.forwarder = forwarder;
    monitor.handed = args.held_volumes.into_iter().collect();
    monitor.restore = args.restore.or_else(|| monitor.saved_idle());
    monitor.template = args.template;
    monitor.stands_by = args.stands_by;
    monitor.runs(lock, plan, &mut inbox).await
}

/// Ends the machine when nobody reads the pipe any more.
pub(super) fn end_with(client: OwnedFd, events: mpsc::Sender<Event>) {
    std::thread::spawn(move || {
        let mut watched = [PollFd::new(&client, PollFlags::empty())];
        while let Err(Errno::INTR) = poll(&mut watched, None) {}
        // The monitor is at its end already otherwise.
        let _ = events.blocking_send(Event::Terminate);
    });
}

/// What is known of a run that has ended.
pub(super) struct Settled {
    /// Nothing of it is left on the host.
    undone: bool,
}

impl Monitor {
    /// Runs it, again and again as its restart policy says.
    pub(super) async fn runs(mut self, lock: FileLock, mut plan: Plan, inbox: &mut Inbox) -> Result<(), Failure> {
        self.machine.state.restarts = 0;
        loop {
            let mut outcome = self.life(&mut plan, inbox).await;
            inbox.end_of_run();
            if std::mem::take(&mut self.is_asleep) {
                match self.slept(&plan, inbox).await {
                    Ok(Woken::Up) => continue,
                    Ok(Woken::Ended { by_user }) => outcome = Ok(self.end_of_sleep(by_user)),
                    Err(failure) => outcome = Err(("idle".to_owned(), failure)),
                }
            }
            // Whoever waits for it to run waits for nothing.
            drop(self.activity.wake());
            if outcome.is_err() {
                self.note_kept();
            }
            (self.kept, self.listener) = (None, None);
            let (phase, settled) = self.settle(outcome).await;
            let (phase, wait) = match settled.undone {
                true => self.decide(phase),
                // What is left over would be in the way of the next run.
                false => (phase, None),
            };
            match wait {
                Some(wait) if self.wait_to_restart(&phase, wait, inbox).await => {
                    self.machine.state.restarts += 1;
                    self.restore = self.saved_idle();
                    self.wait_for_owner = false;
                    // It may be in other networks by now.
                    if let Ok(changed) = self.machine.plan() {
                        plan = changed;
                    }
                }
                _ => return self.finish(lock, phase, &settled).await,
            }
        }
    }

    /// The time between two runs in which it is asleep.
    async fn slept(&mut self, plan: &Plan, inbox: &mut Inbox) -> Result<Woken, Failure> {
        let noted = self.note_disks();
        self.end_record(attempt::Outcome::Stopped {
            exit: Exit::Killed,
            asked: true,
        });
        if let Err(failure) = noted {
            // On a full disk, say. Without that what was saved counts only now, and to this process.
            self.log.note(
                Source::Monitor,
                &format!("it cannot stay asleep, and goes on: {failure}"),
            );
            self.restore = self.saved_just_now();
            self.wait_for_owner = false;
            return Ok(Woken::Up);
        }
        let (kept, listener) = match (self.kept.take(), &self.listener) {
            (Some(kept), Some(listener)) => (kept, Arc::clone(listener)),
            _ => return Err(Failure::new(Class::Failed, "nothing was kept of the machine")),
        };
        let woken = self.sleep(plan, &kept, listener, inbox).await;
        self.kept = Some(kept);
        if woken == Woken::Up {
            self.restore = self.saved_idle();
            self.wait_for_owner = false;
        }
        Ok(woken)
    }

    fn end_record(&mut self, ended: attempt::Outcome) {
        let console = self.log.take_console();
        if let Some(recorder) = self.recorder.take() {
            recorder.end(ended, &self.machine.state, &console);
        }
    }

    /// Undoes everything a run had on the host, and ends its record. The phase it ended in.
    pub(super) async fn settle(&mut self, outcome: Outcome) -> (Phase, Settled) {
        self.kill.pass("end: before undo");
        let undone = self.journal.undo_all(&self.networks).await;
        self.kill.pass("end: undone");
        // After its processes: nobody else may have their user before.
        self.sandbox = None;
        if let Err(failure) = &undone {
            self.log
                .note(Source::Monitor, &format!("not everything could be undone: {failure}"));
            self.machine
                .state
                .warn(format!("not everything could be undone: {failure}"));
        }
        let (phase, ended) = match outcome {
            Ok(exit) => {
                let asked = self.backoff.stop_reason.is_some();
                (Phase::Stopped { exit }, attempt::Outcome::Stopped { exit, asked })
            }
            Err((step, mut failure)) => {
                if failure.hint.is_none() {
                    failure.hint = attempt::hint_for(failure.class, &failure.to_string()).map(str::to_owned);
                }
                self.log.note(Source::Monitor, &format!("failed at {step}: {failure}"));
                let phase = Phase::Failed {
                    step: step.clone(),
                    failure: failure.clone(),
                };
                (phase, attempt::Outcome::Failed { step, failure })
            }
        };
        self.end_record(ended);
        (phase, Settled { undone: undone.is_ok() })
    }

    /// Writes the last state, tells everybody, and removes the machine when it was made so.
    async fn finish(mut self, lock: FileLock, phase: Phase, settled: &Settled) -> Result<(), Failure> {
        // Before the last state: whoever sees it may remove the files that are still to be sent.
        super::forwarding::finish(self.forwarder.take());
        let result = match &phase {
            Phase::Failed { failure, .. } => Err(failure.clone()),
            _ => Ok(()),
        };
        self.machine.state.stopped_by_user = self.backoff.stop_reason == Some(StopReason::User);
        self.machine.state.advance(phase.clone(), Timestamp::now());
        let saved = self.save();
        self.tell();
        self.kill.pass("end: state written");
        if self.machine.spec.auto_remove && settled.undone {
            self.remove()?;
        }
        if let Err(failure) = &result {
            self.report.send(&Report::Failed(failure.clone()));
        }
        self.report.close();
        drop(lock);
        self.answer_waiters(&phase).await;
        saved.and(result)
    }

    /// Tells those who wait how the machine ended.
    async fn answer_waiters(&mut self, phase: &Phase) {
        let ended = match phase {
            Phase::Failed { failure, .. } => Err(failure.clone()),
            Phase::Stopped { exit } => Ok(*exit),
            _ => Ok(Exit::PoweredOff),
        };
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(Reply::Ended(ended.clone()));
        }
        // The connections' tasks write the answers; this process ends right after.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }

    fn remove(&mut self) -> Result<(), Failure> {
        let _catalog = catalog::lock(&self.home)?;
        self.networks.release_all(|id| id == self.machine.id)?;
        Volumes::new(&self.home).remove_anonymous(&self.machine.id)?;
        catalog::remove(&self.home, &self.machine.id, &self.kill)
    }
}

type Claimed = (FileLock, Machine, Plan, Journal, Networks);

/// Takes the machine's lock, and undoes what a crashed run left.
async fn claim(home: &Home, id: &str) -> Result<Claimed, Failure> {
    let machine = Machine::load(home, id)?;
    let plan = machine.plan()?;
    let Some(lock) = FileLock::try_exclusive(&machine.lock_path())? else {
        return Err(Failure::new(
            Class::Conflict,
            format!("the machine '{}' is running already", machine.spec.name),
        ));
    };
    // Before anything looks at its disks.
    restoring::settle(home, id)?;
    // Loaded again: the state may have changed before the lock was ours.
    let machine = Machine::load(home, id)?;
    let networks = Networks::open(home.data())?.with_jail();
    let mut journal = Journal::open(&machine.dir)?;
    journal.undo_all(&networks).await?;
    match machine.state.phase.is_active() {
        // The run before this one had no end, and a power cut may have taken its journal.
        true => leftovers::undo(home, &machine, &networks).await?,
        false => file::discard_dir_all(&home.run_dir(id))?,
    }
    Ok((lock, machine, plan, journal, networks))
}
