//! The agent at work: one yamux connection, one task per stream, and the state they share.
//!
//! # Invariants
//! The state only goes forward: fresh, configured, running, stopping. Beside another init there is only that one state. A
//! request that does not fit it is answered with `BadRequest` and changes nothing.

mod freezing;
mod hosts;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use futures::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::Instant;
use zmachine_agent_protocol::{
    AgentError, BootConfig, Container, ContainerProcess, ContainerRequest, ErrorKind, ExitStatus, Frame, FrameDecoder,
    PROTOCOL_VERSION, Process, Reply, Request, Transfer,
};

use crate::boot::{Booted, Phases};
use crate::container::{Containers, Host};
use crate::dial::ProgramEnds;
use crate::freeze::{Freezer, Frozen, Prepared};
use crate::pollable::Pollable;
use crate::process::{AgentSide, Namespaces, NextStreams, Plan, Session, StartError, Started, open_stdio, start, work};
use crate::reaper::Reaper;
use crate::sessions::Sessions;
use crate::setup::{self, Layers, Outcome, SetupError, Writable};
use crate::shutdown::{self, Stop, Stoppable};
use crate::{capacity, clock, console, dial, power, processes, ready, users};

/// How long the host may take to send a request on a stream it opened.
const REQUEST: Duration = Duration::from_secs(60);

/// Why a guest that is not ours is not set up by us.
const HAS_INIT: &str = "the guest has an init of its own";

/// Why a guest with an entrypoint, or that is not ours, has no containers.
const NOT_FOR_CONTAINERS: &str = "only a machine that is set up and has no entrypoint has containers";

/// Where the machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    Configured,
    /// The entrypoint was started; its pid.
    Running(i32),
    Broken,
    Stopping,
    /// The guest has an init of its own, which it was set up and is stopped by.
    Guest,
}

/// How long a `Run` waits for its `Configure`. The host sends both at once, so this is for hosts that never will.
const CONFIGURE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a frozen guest says to everything else.
const FROZEN: &str = "the guest is frozen";
/// Its processes stand still for a moment.
const PAUSED: &str = "what the guest's processes wrote is being read";

/// What all streams share.
struct Agent {
    reaper: Rc<Reaper>,
    proc: OwnedFd,
    state: Cell<State>,
    /// Processes at a terminal.
    terminals: RefCell<Vec<i32>>,
    phases: RefCell<Option<Phases>>,
    writable: RefCell<Vec<Writable>>,
    layers: RefCell<Option<Layers>>,
    stops: mpsc::UnboundedSender<Stop>,
    /// The stream of the entrypoint, while it is served.
    serving: Cell<bool>,
    served: Notify,
    /// The first `Configure` is done, well or not.
    configured: Notify,
    /// What outlives its stream.
    sessions: Sessions,
    containers: Containers,
    /// Sockets that lead to the host, by their paths.
    sockets: RefCell<HashMap<String, Rc<UnixListener>>>,
    /// Whether its processes stand still, for the port too.
    is_frozen: Rc<Cell<bool>>,
    /// Whether they do so only to be read.
    is_paused: Cell<bool>,
    freezer: Freezer,
    /// What a copy finds open.
    prepared: RefCell<Prepared>,
    /// What a copy has found open, until there is time to close it: nobody can make a disk read-only meanwhile.
    spent: RefCell<Option<(Vec<Frozen>, Prepared)>>,
    /// The guest stands still no longer.
    thawed: Notify,
    /// It was given name servers.
    has_resolvers: Cell<bool>,
    /// File systems that nobody writes to while their disks are copied.
    held: RefCell<Vec<OwnedFd>>,
    is_holding: Cell<bool>,
    /// Somebody may have written to them before their copy was made.
    written: Notify,
}

/// Serves the host until the machine has stopped; the power-off is the caller's.
pub(crate) fn serve(booted: Booted) {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return console::error(&format!("start the runtime: {error}")),
    };
    LocalSet::new().block_on(&runtime, async {
        let (stops, mut stopped) = mpsc::unbounded_channel();
        let agent = Rc::new(Agent::new(booted.proc, State::Fresh, Some(booted.phases), stops));
        agent.reap();
        match Pollable::new(booted.port) {
            Ok(port) => {
                let agent = Rc::clone(&agent);
                spawn_local(async move {
                    agent.hosts(Rc::new(port)).await;
                    agent.request_stop(Stop::HostGone);
                });
            }
            Err(error) => return console::error(&format!("watch the port: {error}")),
        }
        let first = stopped.recv().await.unwrap_or(Stop::HostGone);
        shutdown::stop(&*agent, first, &mut stopped).await;
    });
}

/// Serves one host after the other on the ports that `next` waits for, in a guest with an init of its own: processes live on
/// when their host is gone.
///
/// # Errors
/// Why there is no port any more.
pub(crate) fn serve_guest<E>(proc: OwnedFd, next: impl AsyncFn() -> Result<OwnedFd, E>) -> Result<Infallible, E>
where
    E: From<io::Error>,
{
    LocalSet::new().block_on(&runtime()?, async {
        // The init stops the machine, so nobody waits for a stop.
        let (stops, _) = mpsc::unbounded_channel();
        let agent = Rc::new(Agent::new(proc, State::Guest, None, stops));
        agent.reap();
        loop {
            let port = Pollable::new(next().await?)?;
            let greeted = Rc::default();
            let port = agent.port(&Rc::new(port), &greeted, Vec::new());
            drop(agent.connection(port, &greeted).await);
        }
    })
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_io().enable_time().build()
}

impl Agent {
    fn new(proc: OwnedFd, state: State, phases: Option<Phases>, stops: mpsc::UnboundedSender<Stop>) -> Self {
        Agent {
            reaper: Rc::default(),
            proc,
            state: Cell::new(state),
            terminals: RefCell::default(),
            phases: RefCell::new(phases),
            writable: RefCell::default(),
            layers: RefCell::default(),
            stops,
            serving: Cell::new(false),
            served: Notify::new(),
            configured: Notify::new(),
            sessions: Sessions::default(),
            containers: Containers::default(),
            sockets: RefCell::default(),
            is_frozen: Rc::default(),
            is_paused: Cell::default(),
            freezer: Freezer::default(),
            prepared: RefCell::default(),
            spent: RefCell::default(),
            thawed: Notify::new(),
            has_resolvers: Cell::default(),
            held: RefCell::default(),
            is_holding: Cell::default(),
            written: Notify::new(),
        }
    }

    /// Reaps children from here on.
    fn reap(&self) {
        let reaper = Rc::clone(&self.reaper);
        spawn_local(async move {
            if let Err(error) = reaper.run().await {
                console::error(&format!("wait for children: {error}"));
            }
        });
    }

    fn request_stop(&self, stop: Stop) {
        // Nobody listens any more when the machine is about to lose its power.
        let _ = self.stops.send(stop);
    }

    async fn stream(self: Rc<Self>, mut stream: yamux::Stream) {
        let mut decoder = FrameDecoder::new();
        let frame = match tokio::time::timeout(REQUEST, first_frame(&mut stream, &mut decoder)).await {
            Ok(Ok(Some(frame))) => frame,
            // The host closed without a word, or is out of step: there is nobody to answer.
            _ => return,
        };
        let arrived = Instant::now();
        let request = match frame.parse::<Request>() {
            Ok(request) => request,
            Err(error) => return answer(stream, failure(ErrorKind::BadRequest, error)).await,
        };
        let may_be_frozen = matches!(
            request,
            Request::Freeze
                | Request::Thaw(_)
                | Request::Rehearse(_)
                | Request::Ping
                | Request::Clock
                | Request::Shutdown { .. }
        );
        let waits = matches!(request, Request::Run(_) | Request::Resume { .. });
        if self.is_frozen.get() && !may_be_frozen && !(waits && self.until_thawed().await) {
            return answer(stream, bad_request(FROZEN)).await;
        }
        match request {
            Request::Freeze => {
                let reply = self.freeze().await;
                answer(stream, reply).await;
            }
            Request::Thaw(thaw) => self.thaw(&thaw, arrived, stream).await,
            Request::Rehearse(rehearsal) => {
                let reply = self.rehearse(rehearsal.process).await;
                answer(stream, reply).await;
            }
            Request::Configure(config) => {
                let reply = self.configure(&config);
                answer(stream, reply).await;
            }
            Request::Run(process) => self.run(process, stream, decoder).await,
            Request::Exec(process) => self.exec(process, None, stream, decoder).await,
            Request::ExecSession { id, process } => self.exec(process, Some(id), stream, decoder).await,
            Request::ContainerSession {
                id,
                container,
                new,
                process,
            } => {
                let place = (container, new);
                self.container_session(id, place, *process, stream, decoder).await;
            }
            Request::Dial { port } => match dial::connect(port).await {
                Ok(connection) => dial::carry(stream, decoder, connection, ProgramEnds::All).await,
                Err(error) => answer(stream, failure(ErrorKind::Internal, error)).await,
            },
            Request::Accept { path } => self.accept(&path, stream, decoder).await,
            Request::Container { id, request } => {
                let reply = self.container(&id, &request).await;
                answer(stream, reply).await;
            }
            Request::Resume { id, received } => {
                if let Err(stream) = self.sessions.resume(&id, stream, decoder, received).await {
                    let message = match id {
                        Some(id) => format!("there is no session {id:?}"),
                        None => "no entrypoint was started".to_owned(),
                    };
                    answer(stream, bad_request(&message)).await;
                }
            }
            Request::WaitSession { id } => {
                let message = format!("there is no session {id:?}");
                let status = self.sessions.wait(&Some(id)).await;
                answer(stream, status.map_or_else(|| bad_request(&message), Reply::Exited)).await;
            }
            Request::Sessions => answer(stream, Reply::Sessions(self.sessions.states())).await,
            Request::Transfer(transfer) => self.transfer(transfer, stream, decoder).await,
            Request::Signal { signal } => answer(stream, self.signal(signal)).await,
            Request::Shutdown { .. } if self.state.get() == State::Guest => {
                let asked = power::ask_for_power_off();
                let reply = asked.map_or_else(|error| failure(ErrorKind::Internal, error), |()| Reply::Done);
                answer(stream, reply).await;
            }
            Request::Shutdown { signal, grace_ms } => {
                self.release();
                answer(stream, Reply::Done).await;
                self.request_stop(Stop::Requested {
                    signal,
                    grace: Duration::from_millis(grace_ms),
                });
            }
            Request::Grow {
                serial,
                partition,
                fstype,
                disk_bytes,
            } => {
                // Here, because a child never is PID 1.
                let is_init = std::process::id() == 1;
                let grow = || setup::grow(&self.proc, is_init, &serial, partition, &fstype, disk_bytes);
                let reply = self.set_up(grow).await;
                answer(stream, reply).await;
            }
            Request::Hold { disks } => self.hold(&disks, stream, decoder).await,
            Request::Connect(_) | Request::Disconnect(_) if self.state.get() == State::Guest => {
                answer(stream, bad_request(HAS_INIT)).await;
            }
            Request::Connect(connection) => {
                if !connection.nameservers.is_empty() {
                    self.has_resolvers.set(true);
                }
                let reply = self.set_up(|| setup::connect(&connection)).await;
                answer(stream, reply).await;
            }
            Request::Disconnect(connection) => {
                let reply = self.set_up(|| setup::disconnect(&connection)).await;
                answer(stream, reply).await;
            }
            Request::SetTime { unix_nanos } => {
                let set = clock::set(Duration::from_nanos(unix_nanos));
                let failed = |error| failure(ErrorKind::Internal, format!("set the clock: {error}"));
                answer(stream, set.map_or_else(failed, |()| Reply::Done)).await;
            }
            Request::AwaitReady => await_ready(stream).await,
            Request::Ping => answer(stream, Reply::Done).await,
            Request::Clock => {
                let monotonic = clock::monotonic();
                let is_thawed_first = true;
                let reply = Reply::Clock {
                    monotonic,
                    is_thawed_first,
                };
                answer(stream, reply).await;
            }
            Request::Processes => {
                let listed = processes::list(&self.proc, self.state.get() == State::Guest);
                let reply = listed.map_or_else(|error| failure(ErrorKind::Internal, error), Reply::Processes);
                answer(stream, reply).await;
            }
            Request::Capacity => {
                let measured = capacity::measure(&self.proc);
                answer(
                    stream,
                    measured.map_or_else(|error| failure(ErrorKind::Internal, error), Reply::Capacity),
                )
                .await;
            }
        }
    }

    /// Gives the host the next connection of a program to a socket that leads there.
    async fn accept(&self, path: &str, mut stream: yamux::Stream, decoder: FrameDecoder) {
        let listener = self.sockets.borrow().get(path).cloned();
        let Some(listener) = listener else {
            return answer(stream, bad_request(&format!("there is no socket at {path:?}"))).await;
        };
        match dial::accept(&listener, &mut stream).await {
            Ok(Some(connection)) => dial::carry(stream, decoder, connection, ProgramEnds::ItsOwn).await,
            Ok(None) => {}
            Err(error) => answer(stream, failure(ErrorKind::Internal, error)).await,
        }
    }

    /// Changes the running guest in a child: devices take their time to appear, and the kernel takes its own to grow a file
    /// system, while this thread carries everybody's output.
    async fn set_up<E: std::fmt::Display>(&self, change: impl FnOnce() -> Result<(), E>) -> Reply {
        let done = work(&self.reaper, change).await;
        done.map_or_else(|error| failure(ErrorKind::Setup, error), |()| Reply::Done)
    }

    fn configure(&self, config: &BootConfig) -> Reply {
        if config.protocol != PROTOCOL_VERSION {
            let text = format!(
                "the host speaks protocol {}, the agent {PROTOCOL_VERSION}",
                config.protocol
            );
            return failure(ErrorKind::BadRequest, text);
        }
        if self.state.get() == State::Guest {
            return bad_request(HAS_INIT);
        }
        let phases = self.phases.borrow_mut().take();
        let (State::Fresh, Some(mut phases)) = (self.state.get(), phases) else {
            return failure(ErrorKind::BadRequest, "the machine is configured already");
        };
        phases.end("host");
        let mut outcome = Outcome::default();
        let result = setup::configure(config, &mut phases, &mut outcome);
        self.writable.replace(outcome.writable);
        self.layers.replace(outcome.layers);
        self.has_resolvers.set(!config.nameservers.is_empty());
        let sockets = outcome.sockets.into_iter().map(|(path, listener)| {
            let listener = UnixListener::from_std(listener).map_err(|source| SetupError::File {
                path: path.clone(),
                source,
            })?;
            Ok::<_, SetupError>((path, Rc::new(listener)))
        });
        let result = result.and_then(|()| {
            self.sockets.replace(sockets.collect::<Result<_, _>>()?);
            Ok(())
        });
        self.configured.notify_waiters();
        match result {
            Ok(()) => {
                self.state.set(State::Configured);
                let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
                let (phases, warnings) = (phases.into_vec(), outcome.warnings);
                Reply::Configured {
                    protocol: PROTOCOL_VERSION,
                    kernel,
                    phases,
                    warnings,
                }
            }
            Err(error) => {
                console::error(&error.to_string());
                self.state.set(State::Broken);
                failure(ErrorKind::Setup, error)
            }
        }
    }

    fn signal(&self, signal: i32) -> Reply {
        let State::Running(pid) = self.state.get() else {
            return failure(ErrorKind::BadRequest, "no entrypoint is running");
        };
        match self.reaper.signal(pid, signal) {
            Ok(()) => Reply::Done,
            Err(error) => failure(ErrorKind::BadRequest, format!("signal {signal}: {error}")),
        }
    }

    /// The host sends `Run` right behind `Configure`, to save a round trip; streams are not ordered among each other.
    async fn wait_configured(&self) {
        let done = async {
            while self.state.get() == State::Fresh {
                self.configured.notified().await;
            }
        };
        let _ = tokio::time::timeout(CONFIGURE_TIMEOUT, done).await;
    }

    async fn run(self: Rc<Self>, process: Process, stream: yamux::Stream, decoder: FrameDecoder) {
        self.wait_configured().await;
        let refusal = match self.state.get() {
            State::Configured if !self.serving.get() => None,
            State::Configured | State::Running(_) => Some(bad_request("the entrypoint was started already")),
            State::Fresh | State::Broken => Some(bad_request("the machine is not configured")),
            State::Stopping => Some(bad_request("the machine is stopping")),
            State::Guest => Some(bad_request(HAS_INIT)),
        };
        if let Some(refusal) = refusal {
            return answer(stream, refusal).await;
        }
        let next = match self.sessions.begin(None) {
            Ok(next) => next,
            Err(error) => return answer(stream, bad_request(&error)).await,
        };
        self.serving.set(true);
        let ran = match self.start(&process, &Namespaces::New, true).await {
            Ok(started) => {
                if self.state.get() == State::Configured {
                    self.state.set(State::Running(started.0.pid));
                }
                self.sessions.started(&None, started.0.pid);
                self.session(started, true, Some((None, next)), stream, decoder).await;
                true
            }
            Err(error) => {
                self.sessions.end(None, None);
                answer(stream, failure(error.kind(), error)).await;
                false
            }
        };
        self.serving.set(false);
        self.served.notify_waiters();
        if ran {
            self.request_stop(Stop::EntrypointEnded);
        }
    }

    /// With an id, the process outlives its stream.
    async fn exec(self: Rc<Self>, process: Process, id: Option<String>, stream: yamux::Stream, decoder: FrameDecoder) {
        let namespaces = match self.namespaces() {
            Ok(namespaces) => namespaces,
            Err(refusal) => return answer(stream, refusal).await,
        };
        let next = match id.is_some().then(|| self.sessions.begin(id.clone())).transpose() {
            Ok(next) => next,
            Err(error) => return answer(stream, bad_request(&error)).await,
        };
        match self.start(&process, &namespaces, false).await {
            Ok(started) => {
                self.sessions.started(&id, started.0.pid);
                let next = next.map(|next| (id, next));
                self.session(started, false, next, stream, decoder).await;
            }
            Err(error) => {
                if id.is_some() {
                    self.sessions.end(id, None);
                }
                answer(stream, failure(error.kind(), error)).await;
            }
        }
    }

    /// Starts a process of a container, the first one of a new container among them.
    async fn container_session(
        self: Rc<Self>,
        id: String,
        (container, new): (String, Option<Box<Container>>),
        process: ContainerProcess,
        stream: yamux::Stream,
        decoder: FrameDecoder,
    ) {
        if self.state.get() != State::Configured {
            return answer(stream, bad_request(NOT_FOR_CONTAINERS)).await;
        }
        let next = match self.sessions.begin(Some(id.clone())) {
            Ok(next) => next,
            Err(error) => return answer(stream, bad_request(&error)).await,
        };
        let started = {
            let layers = self.layers.borrow();
            let layers = layers.as_ref().map(Layers::try_clone).transpose();
            layers.map_err(|error| failure(ErrorKind::Internal, error))
        };
        let layers = match started {
            Ok(layers) => layers,
            Err(reply) => {
                self.sessions.end(Some(id), None);
                return answer(stream, reply).await;
            }
        };
        let host = Host {
            proc: &self.proc,
            reaper: &self.reaper,
            layers: layers.as_ref(),
        };
        let started = match &new {
            Some(new) => self.containers.make(&container, new, &process, &host).await,
            None => self.containers.add(&container, &process, &host).await,
        };
        match started {
            Ok((mut process, side)) => {
                let id = Some(id);
                self.sessions.started(&id, process.pid);
                process.exited = Rc::clone(&self).told(id.clone(), process.exited);
                let started = (process, side);
                let watched = new
                    .is_some()
                    .then(|| Rc::clone(&self).follow_first(container, started.0.pid));
                watched.map(spawn_local);
                self.session(started, false, Some((id, next)), stream, decoder).await;
            }
            Err(error) => {
                self.sessions.end(Some(id), None);
                answer(stream, failure(error.kind(), error)).await;
            }
        }
    }

    /// Tells who waits for a session of the end of its process, whether or not anybody reads what it wrote. Resolves as `exited` does.
    fn told(
        self: Rc<Self>,
        id: Option<String>,
        exited: oneshot::Receiver<ExitStatus>,
    ) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        spawn_local(async move {
            if let Ok(status) = exited.await {
                self.sessions.exited(&id, status);
                let _ = sender.send(status);
            }
        });
        receiver
    }

    /// Ends a container with its first process.
    async fn follow_first(self: Rc<Self>, container: String, pid: i32) {
        while self.reaper.is_alive(pid) {
            self.reaper.reaped().await;
        }
        self.containers.ended(&container);
    }

    async fn container(&self, id: &str, request: &ContainerRequest) -> Reply {
        if self.state.get() != State::Configured {
            return bad_request(NOT_FOR_CONTAINERS);
        }
        let done = self.containers.request(id, request, &self.reaper).await;
        done.map_or_else(|error| failure(error.kind(), error), Reply::Container)
    }

    async fn transfer(self: Rc<Self>, transfer: Transfer, stream: yamux::Stream, decoder: FrameDecoder) {
        let namespaces = match (self.namespaces(), &transfer) {
            (Err(refusal), _) => return answer(stream, refusal).await,
            (Ok(_), Transfer::Changes { .. } | Transfer::Root) if self.state.get() == State::Guest => {
                return answer(stream, bad_request("a VM has no image below its root")).await;
            }
            // What a container's programs mounted for themselves is no part of its root.
            (Ok(_), Transfer::Changes { .. } | Transfer::Root) => Namespaces::Shared,
            (Ok(namespaces), Transfer::Send { .. } | Transfer::Receive { .. }) => namespaces,
        };
        let paused = matches!(transfer, Transfer::Changes { paused: true, .. });
        // However this ends, the processes go on.
        let _paused = match paused.then_some(self.pause()) {
            None => None,
            Some(pausing) => match pausing.await {
                Ok(paused) => Some(paused),
                Err(refusal) => return answer(stream, refusal).await,
            },
        };
        let started = async {
            let identity = users::root();
            let takes_input = matches!(transfer, Transfer::Receive { .. });
            let (child, side) = open_stdio(None, takes_input, &identity)?;
            let plan = Plan::transfer(transfer, self.layers.borrow().as_ref(), identity);
            Ok::<_, StartError>((start(&plan, child, &namespaces, &self.proc, &self.reaper).await?, side))
        };
        match started.await {
            Ok(started) => self.session(started, false, None, stream, decoder).await,
            Err(error) => answer(stream, failure(error.kind(), error)).await,
        }
    }

    /// Where one more process lives, or why there may be none.
    fn namespaces(&self) -> Result<Namespaces, Reply> {
        match self.state.get() {
            // Its number is that of another process, or of none, once it is reaped.
            State::Running(pid) if !self.reaper.is_alive(pid) => Err(bad_request("the entrypoint has ended")),
            State::Running(pid) => Ok(Namespaces::Join(pid)),
            // What comes before the entrypoint has no container to be in.
            State::Configured | State::Guest => Ok(Namespaces::Shared),
            State::Fresh | State::Broken => Err(bad_request("the machine is not configured")),
            State::Stopping => Err(bad_request("the machine is stopping")),
        }
    }

    async fn start(
        &self,
        process: &Process,
        namespaces: &Namespaces,
        entrypoint: bool,
    ) -> Result<(Started, AgentSide), StartError> {
        let mut identity = users::identify(process.user.as_deref())?;
        if let Some(restrictions) = &process.restrictions {
            users::add_groups(&mut identity, &restrictions.groups)?;
        }
        let (child, side) = open_stdio(process.terminal, process.stdin, &identity)?;
        let plan = Plan::new(process, identity, entrypoint)?;
        let started = start(&plan, child, namespaces, &self.proc, &self.reaper).await?;
        Ok((started, side))
    }

    async fn session(
        &self,
        (started, side): (Started, AgentSide),
        is_entrypoint: bool,
        next: Option<(Option<String>, NextStreams)>,
        mut stream: yamux::Stream,
        decoder: FrameDecoder,
    ) {
        let pid = started.pid;
        let reply = Frame::message(&Reply::Started { pid: pid as u32 });
        // A host that is gone already is noticed by the session.
        let _ = stream.write_all(&reply.to_bytes()).await;
        let terminal = matches!(side, AgentSide::Terminal { .. });
        if terminal {
            self.terminals.borrow_mut().push(pid);
        }
        let (id, next) = next.unzip();
        let over = |ended| {
            if let Some(id) = id {
                self.sessions.end(id, ended);
            }
        };
        Session {
            stream,
            decoder,
            process: started,
            side,
            reaper: Rc::clone(&self.reaper),
            is_entrypoint,
            next,
        }
        .run(over)
        .await;
        if terminal {
            self.terminals.borrow_mut().retain(|other| *other != pid);
        }
    }
}

impl Stoppable for Agent {
    fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    fn proc(&self) -> &OwnedFd {
        &self.proc
    }

    fn begin_stop(&self) -> Option<i32> {
        let state = self.state.replace(State::Stopping);
        self.spent.take();
        // Nobody ends who waits to write.
        self.let_write();
        match state {
            State::Running(pid) => Some(pid),
            _ => None,
        }
    }

    async fn entrypoint_served(&self) {
        while self.serving.get() {
            self.served.notified().await;
        }
    }

    fn at_terminals(&self) -> Vec<i32> {
        self.terminals.borrow().clone()
    }

    fn take_writable(&self) -> Vec<Writable> {
        self.writable.take()
    }
}

async fn first_frame(stream: &mut yamux::Stream, decoder: &mut FrameDecoder) -> io::Result<Option<Frame>> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        if let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
            return Ok(Some(frame));
        }
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            count => decoder.push(&buffer[..count]),
        }
    }
}

/// Tells the host when the entrypoint says that it is ready, unless the host has gone by then.
async fn await_ready(mut stream: yamux::Stream) {
    let socket = match ready::listen() {
        Ok(socket) => socket,
        Err(error) => return answer(stream, failure(ErrorKind::Internal, error)).await,
    };
    if stream
        .write_all(&Frame::message(&Reply::Done).to_bytes())
        .await
        .is_err()
    {
        return;
    }
    let mut end = [0];
    let said = tokio::select! {
        said = ready::said(&socket) => said,
        _ = stream.read(&mut end) => return,
    };
    drop(socket);
    answer(
        stream,
        said.map_or_else(|error| failure(ErrorKind::Internal, error), |()| Reply::Done),
    )
    .await;
}

async fn answer(mut stream: yamux::Stream, reply: Reply) {
    let _ = stream.write_all(&Frame::message(&reply).to_bytes()).await;
    let _ = stream.close().await;
}

fn failure(kind: ErrorKind, message: impl std::fmt::Display) -> Reply {
    Reply::Error(AgentError {
        kind,
        message: message.to_string(),
    })
}

fn bad_request(message: &str) -> Reply {
    failure(ErrorKind::BadRequest, message)
}
