//! Freezing a guest for a copy of it, and letting it, or the copy, go on. What that takes is in [`crate::freeze`].

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use futures::io::AsyncWriteExt;
use tokio::task::spawn_local;
use tokio::time::Instant;
use zmachine_agent_protocol::greeting::Greeting;
use zmachine_agent_protocol::{ErrorKind, ExitStatus, Frame, FrameDecoder, Process, Reply, Thaw};

use super::{Agent, FROZEN, HAS_INIT, PAUSED, State, answer, bad_request, failure, first_frame};
use crate::pollable::Pollable;
use crate::process::{Namespaces, rehearsal, work};
use crate::{console, freeze, host, power, setup};

/// How long a process may wait to be started in a guest that is frozen.
const THAW: Duration = Duration::from_secs(60);

/// How long what a copy needed stays open: whoever waits for it is not to wait for that.
const CLOSE: Duration = Duration::from_millis(500);

/// What a guest says to a host that takes it for a copy.
const NOT_FROZEN: &str = "the guest is not frozen";

/// Processes stand still as long as it is there.
pub(super) struct Paused(Rc<Agent>);

impl Drop for Paused {
    fn drop(&mut self) {
        drop(self.0.freezer.thaw());
        self.0.is_paused.set(false);
    }
}

impl Agent {
    /// Stops all processes, so that the machine can be saved.
    pub(super) async fn freeze(&self) -> Reply {
        match self.state.get() {
            State::Configured | State::Running(_) => {}
            State::Guest => return bad_request(HAS_INIT),
            State::Fresh | State::Broken => return bad_request("the machine is not configured"),
            State::Stopping => return bad_request("the machine is stopping"),
        }
        if self.is_frozen.get() {
            return bad_request(FROZEN);
        }
        if self.is_paused.get() {
            return bad_request(PAUSED);
        }
        // The host waits longer: it must never take a guest for one that runs which stands still a moment later.
        let stands_still = tokio::time::timeout(freeze::IN_ALL, self.stand_still()).await;
        let late = || format!("the guest did not stand still within {} s", freeze::IN_ALL.as_secs());
        match stands_still.unwrap_or_else(|_| Err(late())) {
            Ok(()) => Reply::Done,
            Err(error) => {
                self.release();
                failure(ErrorKind::Setup, error)
            }
        }
    }

    async fn stand_still(&self) -> Result<(), String> {
        self.run_hooks(freeze::hooks(freeze::BEFORE), freeze::BEFORE, false)
            .await?;
        // While all still run, so that little is left to write when they do not. In a child: a slow disk keeps nobody's output waiting.
        let sync = || {
            rustix::fs::sync();
            Ok::<_, Infallible>(())
        };
        work(&self.reaper, sync).await?;
        self.is_frozen.set(true);
        let stopped = self.freezer.freeze(&self.proc).await;
        stopped.map_err(|error| format!("stop all processes: {error}"))?;
        self.prepared.replace(freeze::Prepared::new(self.has_resolvers.get()));
        work(&self.reaper, sync).await?;
        tokio::time::sleep(freeze::SETTLE).await;
        Ok(())
    }

    /// Lets them go on, once everything is as it is to be. A copy that cannot be made another machine never runs.
    /// The host's time was right when the request `arrived`.
    pub(super) async fn thaw(&self, thaw: &Thaw, arrived: Instant, stream: yamux::Stream) {
        if !self.is_frozen.get() {
            return answer(stream, bad_request(NOT_FROZEN)).await;
        }
        match self.renew(thaw, arrived).await {
            Ok(prepared) => {
                self.run_again(prepared);
                answer(stream, Reply::Done).await;
                self.close_spent().await;
            }
            Err(error) => {
                answer(stream, failure(ErrorKind::Setup, &error)).await;
                give_up(&error).await;
            }
        }
    }

    /// The same for a copy whose host says it before its connection begins. The answer is on its way when they go on.
    pub(super) async fn thaw_first(self: &Rc<Self>, port: &Pollable, greeting: Greeting, thaw: &Thaw) {
        let sent = self.sessions.sent_of_entrypoint();
        let renewed = match self.is_frozen.get() {
            true => Some(self.renew(thaw, Instant::now()).await),
            false => None,
        };
        let reply = match &renewed {
            Some(Ok(_)) => Reply::Thawed { sent },
            Some(Err(error)) => failure(ErrorKind::Setup, error),
            None => bad_request(NOT_FROZEN),
        };
        let mut bytes = greeting.to_bytes().to_vec();
        Frame::message(&reply).encode(&mut bytes);
        // A host that is gone already is noticed by the connection.
        let _ = host::write(port, &bytes).await;
        match renewed {
            Some(Ok(prepared)) => {
                self.run_again(prepared);
                let agent = Rc::clone(self);
                spawn_local(async move { agent.close_spent().await });
            }
            Some(Err(error)) => give_up(&error).await,
            None => {}
        }
    }

    /// Makes the guest what it is to be. What it found open for that is returned.
    async fn renew(&self, thaw: &Thaw, arrived: Instant) -> Result<freeze::Prepared, String> {
        let is_copy = thaw.identity.is_some();
        let mut prepared = self.prepared.take();
        let renewed = match freeze::renew(thaw, arrived, &prepared) {
            Ok(()) => {
                let programs = prepared.hooks.take().unwrap_or_else(|| freeze::hooks(freeze::AFTER));
                self.run_hooks(programs, freeze::AFTER, is_copy).await
            }
            Err(error) => Err(error.to_string()),
        };
        match renewed {
            // What the machine that was saved has to undo must not end it.
            Err(error) if !is_copy => console::error(&error),
            renewed => renewed?,
        }
        Ok(prepared)
    }

    /// Lets processes go on.
    fn run_again(&self, prepared: freeze::Prepared) {
        let frozen = self.go_on();
        self.spent.replace(Some((frozen, prepared)));
    }

    async fn close_spent(&self) {
        tokio::time::sleep(CLOSE).await;
        self.spent.take();
    }

    /// Does once what [`Agent::thaw`] and the start of a process will do: what they need of the kernel and of the image is in memory then,
    /// and translated where the guest is emulated. What fails is tried again when it counts, and told, as nobody would notice it otherwise.
    pub(super) async fn rehearse(&self, like: Process) -> Reply {
        if !self.is_frozen.get() {
            return bad_request(NOT_FROZEN);
        }
        freeze::rehearse(&self.prepared.borrow());
        rehearsal::read_program(&like);
        let process = Process {
            args: rehearsal::command(),
            // It would be made.
            cwd: None,
            ..like
        };
        // They are in no group that is frozen.
        let (first, side) = match self.start(&process, &Namespaces::New, true).await {
            Ok(started) => started,
            Err(error) => return failure(error.kind(), error),
        };
        let second = self.start(&process, &Namespaces::Join(first.pid), false).await;
        let reply = match second {
            Ok((second, side)) => {
                drop(side);
                let _ = self.reaper.signal(second.pid, libc::SIGKILL);
                let _ = second.exited.await;
                Reply::Done
            }
            Err(error) => failure(error.kind(), error),
        };
        drop(side);
        let _ = self.reaper.signal(first.pid, libc::SIGKILL);
        let _ = first.exited.await;
        reply
    }

    /// Runs the image's `programs`, those of `folder`, in the order of their names, in the container: while nothing is frozen yet, or all else is.
    async fn run_hooks(&self, programs: Vec<String>, folder: &str, is_copy: bool) -> Result<(), String> {
        let deadline = Instant::now() + freeze::HOOKS;
        for program in programs {
            let namespaces = self
                .namespaces()
                .map_err(|_| format!("{program}: the machine is not configured"))?;
            let mut process = Process::new([program.as_str()]);
            if is_copy {
                process.env.push(("ZMACHINE_COPY".to_owned(), "1".to_owned()));
            }
            let started = self.start(&process, &namespaces, false).await;
            let (started, side) = started.map_err(|error| error.to_string())?;
            let ended = tokio::time::timeout_at(deadline, started.exited).await;
            drop(side);
            match ended {
                Ok(Ok(ExitStatus::Code(0))) => {}
                Ok(Ok(status)) => return Err(format!("{program} ended with {}", status.shell_code())),
                Ok(Err(_)) | Err(_) => {
                    let _ = self.reaper.signal(started.pid, libc::SIGKILL);
                    return Err(format!(
                        "{program} had not ended after {} s for all of {folder}",
                        freeze::HOOKS.as_secs()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Stops the processes that there are while they are read. The host is served as always, and what it starts meanwhile runs.
    pub(super) async fn pause(self: &Rc<Self>) -> Result<Paused, Reply> {
        if self.is_paused.replace(true) {
            return Err(bad_request(PAUSED));
        }
        let paused = Paused(Rc::clone(self));
        let stopped = self.freezer.freeze(&self.proc).await;
        stopped.map_err(|error| failure(ErrorKind::Setup, format!("stop all processes: {error}")))?;
        Ok(paused)
    }

    /// Lets processes go on.
    pub(super) fn release(&self) {
        drop(self.go_on());
        self.prepared.take();
    }

    /// The same. What is returned is closed when there is time for that.
    fn go_on(&self) -> Vec<freeze::Frozen> {
        let closed = self.freezer.thaw();
        self.is_frozen.set(false);
        self.thawed.notify_waiters();
        closed
    }

    /// Waits until a copy is told who it is: its host need not wait for that before it says what is to run in it.
    pub(super) async fn until_thawed(&self) -> bool {
        let thawed = async {
            loop {
                let notified = self.thawed.notified();
                if !self.is_frozen.get() {
                    return;
                }
                notified.await;
            }
        };
        tokio::time::timeout(THAW, thawed).await.is_ok()
    }

    /// Lets nobody write to the file systems on `disks` until the stream ends.
    pub(super) async fn hold(&self, disks: &[String], mut stream: yamux::Stream, mut decoder: FrameDecoder) {
        match self.state.get() {
            State::Configured | State::Running(_) | State::Guest => {}
            State::Fresh | State::Broken => return answer(stream, bad_request("the machine is not configured")).await,
            State::Stopping => return answer(stream, bad_request("the machine is stopping")).await,
        }
        if self.is_holding.replace(true) {
            return answer(stream, bad_request("disks of the machine are being copied already")).await;
        }
        let mut written = std::pin::pin!(self.written.notified());
        written.as_mut().enable();
        let held = async {
            let roots =
                setup::hold::mounted(&self.proc, disks, &self.writable.borrow()).map_err(|error| error.to_string())?;
            // In a child: a slow disk keeps nobody's output waiting.
            work(&self.reaper, || setup::hold::freeze(&roots)).await?;
            self.held.replace(roots);
            match self.state.get() {
                // It has begun to stop meanwhile, and found nothing to let go on.
                State::Stopping => Err("the machine is stopping".to_owned()),
                _ => Ok(()),
            }
        };
        let reply = held
            .await
            .map_or_else(|error: String| failure(ErrorKind::Setup, error), |()| Reply::Done);
        let is_held = reply == Reply::Done;
        let told = stream.write_all(&Frame::message(&reply).to_bytes()).await.is_ok();
        if told && is_held {
            let ended = async { while let Ok(Some(_)) = first_frame(&mut stream, &mut decoder).await {} };
            // A machine that stops meanwhile writes, whatever becomes of the copy: the host is told by the end of the stream.
            tokio::select! {
                () = ended => {}
                () = written => {}
            }
        }
        self.let_write();
        self.is_holding.set(false);
        let _ = stream.close().await;
    }

    /// Lets file systems be written to again.
    pub(super) fn let_write(&self) {
        let held = self.held.take();
        if !held.is_empty() {
            setup::hold::thaw(&held);
            self.written.notify_waiters();
        }
    }
}

/// Ends a copy that cannot be made another machine.
async fn give_up(error: &str) {
    console::error(&format!("go on as another machine: {error}"));
    // What is on its way reaches the host first.
    tokio::time::sleep(Duration::from_millis(200)).await;
    power::power_off();
}
