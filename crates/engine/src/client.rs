//! Talking to a running machine's monitor.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use zmachine_agent_protocol::{Frame, Process, Transfer};
use zmachine_spec::control::{Reply, Request};
use zmachine_spec::{Class, Exit, Failure, Phase};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::volume::Volume;
use zmachine_sys::file;
use zmachine_sys::host::boot_id;
use zmachine_sys::lock::FileLock;

use super::Engine;
use crate::attach;
use crate::attach::{ProcessInput, ProcessOutput};

const SIGKILL: i32 = 9;

/// How long the end of a monitor may take after its machine ended: undoing takes a moment.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a monitor may be deaf between the end of a run and the wait for the next one.
const BETWEEN_RUNS: Duration = Duration::from_millis(200);

impl Engine {
    /// Stops a machine in an orderly way, and waits until it has stopped. One that does not run is fine.
    ///
    /// # Errors
    /// When it does not exist, or does not stop.
    pub fn stop(&self, name: &str, grace: Option<Duration>) -> Result<(), Failure> {
        let grace_ms = grace.map(|g| g.as_millis() as u64);
        self.end(&self.machine(name)?, &Request::Stop { grace_ms })
    }

    /// Ends a machine at once, whatever its processes do, and waits until it has ended. A container's guest has a moment to write what it
    /// has in memory; a VM is cut off.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it does not run.
    pub fn kill(&self, name: &str) -> Result<(), Failure> {
        let machine = self.machine(name)?;
        require_active(&machine)?;
        self.let_guest_settle(&machine);
        // It may be gone by this, with its folder when it was made with --rm.
        match self.machine(&machine.id) {
            Ok(machine) => self.end(&machine, &Request::Kill),
            Err(failure) if failure.class == Class::NotFound => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// The same without a moment for the guest.
    pub(super) fn cut_off(&self, name: &str) -> Result<(), Failure> {
        let machine = self.machine(name)?;
        require_active(&machine)?;
        self.end(&machine, &Request::Kill)
    }

    fn end(&self, machine: &Machine, request: &Request) -> Result<(), Failure> {
        if !machine.state.phase.is_active() {
            return Ok(());
        }
        let deadline = Instant::now() + END_TIMEOUT;
        loop {
            let patience = match self.ask(machine, request) {
                Ok(()) => END_TIMEOUT,
                // The monitor is ending, which is what we want; or it is between two runs, and is asked again.
                Err(failure) if failure.class == Class::Conflict => BETWEEN_RUNS,
                Err(failure) if *request != Request::Kill => return Err(failure),
                // Whatever is wrong with the monitor: it is to end.
                Err(_) => Duration::ZERO,
            };
            match FileLock::exclusive_within(&machine.lock_path(), patience) {
                Ok(Some(_gone)) => return Ok(()),
                Ok(None) if patience == BETWEEN_RUNS && Instant::now() < deadline => {}
                Ok(None) if *request == Request::Kill => return self.end_by_force(machine),
                Ok(None) => {
                    let name = &machine.spec.name;
                    let message = format!("the monitor of machine '{name}' does not end");
                    return Err(Failure::new(Class::Failed, message).hint(format!("end it: zmachine kill {name}")));
                }
                // Made with --rm, and gone with its folder.
                Err(e) if e.is_not_found() => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Ends a machine whose monitor does not answer: it is killed, its children die with it, and what they leave is undone.
    fn end_by_force(&self, machine: &Machine) -> Result<(), Failure> {
        let state = match catalog::load_state(&machine.dir) {
            Ok(state) => state,
            Err(_) if !file::is_there(&machine.dir)? => return Ok(()),
            Err(failure) => return Err(failure),
        };
        let name = &machine.spec.name;
        if state.boot_id == boot_id() {
            let kill = rustix::process::Signal::KILL.as_raw();
            for id in [state.monitor, state.hypervisor, state.rootfs].into_iter().flatten() {
                let killed = id.signal(kill);
                killed.map_err(|e| {
                    Failure::from(e).context(format!("the monitor of machine '{name}' cannot be killed"))
                })?;
            }
        }
        match FileLock::exclusive_within(&machine.lock_path(), END_TIMEOUT) {
            Ok(Some(lock)) => {
                // Its user wanted that: it does not come back with the host.
                let mut state = catalog::load_state(&machine.dir)?;
                state.stopped_by_user = true;
                catalog::save_state(&machine.dir, &state)?;
                drop(lock);
            }
            Ok(None) => {
                let message = format!("the monitor of machine '{name}' does not end after SIGKILL");
                return Err(Failure::new(Class::Failed, message)
                    .hint("the kernel waits on its behalf, most likely for a disk: see 'dmesg'"));
            }
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        self.reconcile_one(&machine.id).map(drop)
    }

    /// Sends a Linux signal number to the entrypoint. SIGKILL is [`Engine::kill`]: whoever sends it wants the machine to end, and not to
    /// be started again.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it does not run.
    pub fn signal(&self, name: &str, signal: i32) -> Result<(), Failure> {
        match signal {
            SIGKILL => self.kill(name),
            _ => self.command(name, &Request::Signal(signal)),
        }
    }

    /// Halts the virtual CPUs.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it does not run.
    pub fn pause(&self, name: &str) -> Result<(), Failure> {
        self.command(name, &Request::Pause)
    }

    /// Lets the virtual CPUs run again.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it does not run.
    pub fn resume(&self, name: &str) -> Result<(), Failure> {
        self.command(name, &Request::Resume)
    }

    /// Waits until a machine has ended, and tells how; at once for one that does not run. `None`: it never ran.
    ///
    /// # Errors
    /// The machine's own failure, or that it does not exist.
    pub fn wait(&self, name: &str) -> Result<Option<Exit>, Failure> {
        let mut machine = self.machine(name)?;
        while machine.state.phase.is_active() {
            let asked = self
                .stream(&machine, &Request::Wait)
                .and_then(|(_input, mut output)| output.next_frame());
            if let Ok(Some(frame)) = asked
                && let Ok(Reply::Ended(ended)) = frame.parse::<Reply>()
            {
                return ended.map(Some);
            }
            // The monitor went without an answer: the state on disk tells, after what it left is put right. Or it is
            // between two runs, and is asked again.
            drop(FileLock::exclusive_within(&machine.lock_path(), BETWEEN_RUNS));
            self.reconcile_one(&machine.id)?;
            machine = Machine::load(&self.home, &machine.id)?;
        }
        match Machine::load(&self.home, &machine.id)?.state.phase {
            Phase::Stopped { exit } => Ok(Some(exit)),
            Phase::Failed { failure, .. } => Err(failure),
            _ => Ok(None),
        }
    }

    /// Makes a volume larger. A running machine that writes to it sees that at once, and the file system grows as well where
    /// its agent can; otherwise both happen at the next start.
    ///
    /// # Errors
    /// [`Class::NotFound`], [`Class::Usage`] for a size that is not larger.
    pub fn grow_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, Failure> {
        let volumes = self.volumes();
        let request = Request::GrowVolume {
            name: name.to_owned(),
            size_bytes,
        };
        match volumes.writer(name)? {
            Some(machine) => self.ask(&machine, &request)?,
            None => drop(volumes.grow(name, size_bytes)?),
        }
        volumes.get(name)
    }

    fn command(&self, name: &str, request: &Request) -> Result<(), Failure> {
        let machine = self.machine(name)?;
        require_active(&machine)?;
        self.ask(&machine, request)
    }

    /// Follows the entrypoint of a machine. `owner` is for the client that started it.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it does not run.
    pub fn attach(&self, name: &str, stdin: bool, owner: bool) -> Result<(ProcessInput, ProcessOutput), Failure> {
        let machine = self.machine(name)?;
        require_active(&machine)?;
        self.stream(&machine, &Request::Attach { stdin, owner })
    }

    /// Follows the serial console of a machine, and types on it with `stdin`.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it does not run.
    pub fn console(&self, name: &str, stdin: bool) -> Result<(ProcessInput, ProcessOutput), Failure> {
        let machine = self.machine(name)?;
        require_active(&machine)?;
        self.stream(&machine, &Request::Console { stdin })
    }

    /// Starts one more process in a machine. Its environment is over the machine's. Of a pod it is in a container: the only one, or
    /// the one that is named behind a colon.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the machine does not run; [`Class::NotFound`] when it has no such container.
    pub fn exec(&self, name: &str, process: Process) -> Result<(ProcessInput, ProcessOutput), Failure> {
        let (name, container) = match name.split_once(':') {
            Some((name, container)) => (name, Some(container)),
            None => (name, None),
        };
        let machine = self.machine(name)?;
        require_awake(&machine)?;
        if let Some(pod) = &machine.spec.pod {
            return self.exec_in_pod(&machine, pod, container, &process);
        }
        if let Some(container) = container {
            let failure = Failure::new(
                Class::Usage,
                format!("machine '{name}' is no pod, and has no container '{container}'"),
            );
            return Err(failure.hint(format!("zmachine exec {name} COMMAND")));
        }
        self.stream(&machine, &Request::Exec(process))
    }

    /// Copies files to or from a machine. The stream is that of a process; see [`zmachine_agent_protocol::Request::Transfer`].
    ///
    /// # Errors
    /// [`Class::Conflict`] when the machine does not run.
    pub fn transfer(&self, name: &str, transfer: Transfer) -> Result<(ProcessInput, ProcessOutput), Failure> {
        let machine = self.machine(name)?;
        require_awake(&machine)?;
        self.stream(&machine, &Request::Transfer(transfer))
    }

    pub(super) fn stream(
        &self,
        machine: &Machine,
        request: &Request,
    ) -> Result<(ProcessInput, ProcessOutput), Failure> {
        let stream = self.connect(machine)?;
        let (mut input, output) = attach::split(stream)?;
        match input.send(&Frame::message(request)) {
            Ok(()) => Ok((input, output)),
            // It ended between the two.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Err(not_running(machine))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Sends a command, and reads its reply; `None` when the monitor went without one.
    pub(super) fn reply(&self, machine: &Machine, request: &Request) -> Result<Option<Reply>, Failure> {
        let (_input, mut output) = self.stream(machine, request)?;
        let Some(frame) = output.next_frame_within(patience_for(request, machine))? else {
            return Ok(None);
        };
        Ok(frame.parse().ok())
    }

    pub(super) fn ask(&self, machine: &Machine, request: &Request) -> Result<(), Failure> {
        let (_input, mut output) = self.stream(machine, request)?;
        let patience = patience_for(request, machine);
        let frame = output.next_frame_within(patience).map_err(|failure| {
            let name = &machine.spec.name;
            failure
                .context(format!("the monitor of machine '{name}' does not answer"))
                .hint(format!("'zmachine kill {name}' ends it whatever it does"))
        })?;
        let Some(frame) = frame else {
            return Err(not_running(machine));
        };
        match frame
            .parse::<Reply>()
            .map_err(|e| Failure::from_error(Class::Failed, &e))?
        {
            // Whatever its end was: that it ended is what was asked for.
            Reply::Done
            | Reply::Ended(_)
            | Reply::Capacity(_)
            | Reply::Traffic(_)
            | Reply::Execs(_)
            | Reply::Container(_)
            | Reply::Saved(_)
            | Reply::Processes(_) => Ok(()),
            Reply::Failed(failure) => Err(failure),
        }
    }

    fn connect(&self, machine: &Machine) -> Result<UnixStream, Failure> {
        let path = self.home.control_socket(&machine.id);
        UnixStream::connect(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => not_running(machine),
            _ => Failure::from(e).context(format!("cannot reach the monitor at {}", path.display())),
        })
    }
}

/// How long a monitor may take for a request. Everything in it has a deadline of its own, so this one is for a monitor that
/// hangs.
pub(super) fn patience_for(request: &Request, machine: &Machine) -> Duration {
    let for_guest = Duration::from_secs(150);
    match request {
        // From here on the caller ends it.
        Request::Kill => Duration::from_secs(30),
        Request::Stop { grace_ms } => {
            // The longest default is that of VMs, two minutes.
            let default = machine.spec.stop_timeout_s.unwrap_or(120);
            let grace = grace_ms.map_or(Duration::from_secs(default), Duration::from_millis);
            grace.saturating_add(for_guest)
        }
        // Copying volumes takes as long as they are large.
        Request::GrowVolume { .. } | Request::Save { .. } => Duration::from_secs(900),
        // Whoever renames a machine has the catalog's lock meanwhile, and so must not wait for a monitor that wants it.
        Request::Change(_) => Duration::from_secs(20),
        Request::Container { .. } => Duration::from_secs(40),
        Request::Capacity | Request::Execs | Request::Processes | Request::Traffic => Duration::from_secs(10),
        _ => for_guest,
    }
}

pub(super) fn require_awake(machine: &Machine) -> Result<(), Failure> {
    match machine.state.phase {
        Phase::Paused => Err(zmachine_spec::control::paused(&machine.spec.name)),
        _ => require_active(machine),
    }
}

fn require_active(machine: &Machine) -> Result<(), Failure> {
    match machine.state.phase.is_active() {
        true => Ok(()),
        false => Err(not_running(machine)),
    }
}

fn not_running(machine: &Machine) -> Failure {
    let name = &machine.spec.name;
    let message = format!("machine '{name}' is not running (it is {})", machine.state.phase.word());
    Failure::new(Class::Conflict, message).hint(format!("'zmachine start {name}' starts it"))
}
