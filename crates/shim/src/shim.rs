//! The shim itself: what containerd asks of the tasks of one pod. Everything here blocks; `service` calls it in threads.
//!
//! | task | in the machine |
//! |---|---|
//! | sandbox, or a container by itself: Create | the machine is made and boots |
//! | container: Create | its root and volumes are brought into the pod's share |
//! | container: Start | the agent makes it and starts its process |
//! | sandbox: Kill | the machine ends |

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics;
use tokio::runtime::Handle;
use zmachine_agent_protocol::{ContainerReply, ContainerRequest, ContainerStats, ExitStatus, Input, WindowSize};
use zmachine_spec::Failure;

use crate::cgroup::{self, PodGroup};
use crate::ending;
use crate::error::ShimError;
use crate::etc;
use crate::events::{Events, timestamp};
use crate::forward;
use crate::log::Log;
use crate::oci::{self, Spec};
use crate::pod::{Needs, Pod, ThisHost};
use crate::role::Role;
use crate::seccomp;
use crate::settings::Settings;
use crate::share::{PodFolder, SnapshotMount};
use crate::stats;
use crate::streams::{self, Files, Flag, Outputs};
use crate::table::{Process, Status, Table};
use crate::translate;

/// The status of a process that went with its machine: as one that was killed.
const LOST: u32 = 128 + 9;

const SIGKILL: i32 = 9;

/// How long a container may take for its end after SIGKILL. Then its machine ends: the kernel in it hangs, or nobody in it answers.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long the last output of a process may take after its end.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(30);

/// The shim of one pod.
pub(crate) struct Shim {
    /// Tells the pod from others.
    key: String,
    /// A process in the pod's network namespace, which stands for all of the pod's: their own numbers mean nothing here.
    pid: u32,
    pub(crate) log: Log,
    pub(crate) events: Events,
    table: Table,
    pod: Mutex<Option<Arc<Pod>>>,
    /// The pod's control group on this host, with the shim in it.
    group: Mutex<Option<PodGroup>>,
    /// Numbers the processes of the machine.
    sessions: Mutex<u64>,
}

/// What a task is made from.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<SnapshotMount>,
    pub(crate) files: Files,
}

/// Waits for the end of a process: its status, if anybody knows it.
fn end_of(pod: &Pod, session: &str) -> Option<ExitStatus> {
    let record = pod.engine.wait_exec(&pod.machine, session).ok()?;
    record.ended?.status
}

/// The status as containerd has it.
fn status_code(status: Option<ExitStatus>) -> u32 {
    status.map_or(LOST, |status| u32::from(status.shell_code()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shim {
    /// The shim of the pod `key`, for which the process `pid` stands.
    pub(crate) fn new(key: String, pid: u32, log: Log, events: Events) -> Shim {
        Shim {
            key,
            pid,
            log,
            events,
            table: Table::default(),
            pod: Mutex::default(),
            group: Mutex::default(),
            sessions: Mutex::default(),
        }
    }

    /// The process that stands for the pod's.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// A process.
    ///
    /// # Errors
    /// [`ShimError::NotFound`]
    pub(crate) fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>, ShimError> {
        self.table.process(id, exec)
    }

    /// Whether nothing of the pod is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(crate) fn pod(&self) -> Result<Arc<Pod>, ShimError> {
        let pod = lock(&self.pod).clone();
        pod.ok_or_else(|| ShimError::State("the pod's machine does not run".to_owned()))
    }

    /// Boots the pod's machine, unless it runs.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) fn boot(self: &Arc<Shim>, spec: &Spec, netns: Option<&Path>, needs: &Needs) -> Result<(), ShimError> {
        let mut held = lock(&self.pod);
        if held.is_some() {
            return Ok(());
        }
        let settings = Settings::read()?;
        let group = self.enter_group(spec);
        let booted = Pod::boot(&self.key, spec, netns, &settings, needs, group.as_ref(), &self.log);
        let pod = Arc::new(booted?);
        *held = Some(Arc::clone(&pod));
        if let Some(namespace) = &pod.namespace
            && let Err(error) = forward::start(namespace, &pod, &self.log)
        {
            self.log.line(&error.to_string());
        }
        let shim = Arc::clone(self);
        let watched = std::thread::Builder::new().name("machine".to_owned()).spawn(move || {
            let reason = pod.wait();
            shim.log.line(&reason);
            shim.machine_ended();
        });
        watched
            .map(drop)
            .map_err(|e| ShimError::failed("cannot watch the machine", e))
    }

    /// Moves the shim, and with it all that it starts from now on, into the pod's control group on this host.
    fn enter_group(&self, spec: &Spec) -> Option<PodGroup> {
        let path = &spec.linux.cgroups_path;
        let group = PodGroup::of(Path::new(cgroup::ROOT), path);
        let entered = match &group {
            Some(group) => group.enter(&[self.pid, std::process::id()]),
            None if path.is_empty() => return None,
            None => Err(std::io::Error::other("this host has no control groups there")),
        };
        if let Err(error) = entered {
            self.log.line(&format!(
                "what the pod uses is not counted in its control group on this host ({path}): {error}"
            ));
            return None;
        }
        lock(&self.group).clone_from(&group);
        group
    }

    /// Everything in the machine is over.
    fn machine_ended(&self) {
        // What the processes wrote last is on its way to its readers, and their end with it.
        std::thread::sleep(std::time::Duration::from_millis(500));
        for process in self.table.processes() {
            if process.status() != Status::Created {
                self.ended(&process, LOST);
            }
        }
    }

    /// Adds a sandbox that is not a container.
    ///
    /// # Errors
    /// [`ShimError::Exists`]
    pub(crate) fn add_sandbox(&self, id: &str, bundle: &str) -> Result<(), ShimError> {
        self.table
            .add(None, Process::new(id, "", bundle, Files::default(), None))
    }

    /// Makes a task.
    ///
    /// # Errors
    /// Why there is none; nothing is left then.
    pub(crate) fn create(self: &Arc<Shim>, creation: &Creation) -> Result<u32, ShimError> {
        let spec = Spec::read(&creation.bundle)?;
        let role = Role::of(&spec.annotations);
        if self.table.container(&creation.id).is_ok() {
            return Err(ShimError::Exists(format!("there is a task {} already", creation.id)));
        }
        if !matches!(role, Role::Member { .. }) {
            self.boot(&spec, None, &Needs::of(&role, &creation.rootfs)?)?;
        }
        let bundle = creation.bundle.display().to_string();
        if role == Role::Sandbox {
            let first = Process::new(&creation.id, "", &bundle, creation.files.clone(), None);
            self.table.add(None, first)?;
        } else {
            self.create_container(creation, &spec, &bundle)?;
        }
        self.events.send(
            topics::TASK_CREATE_EVENT_TOPIC,
            &events::TaskCreate {
                container_id: creation.id.clone(),
                bundle,
                pid: self.pid,
                io: MessageField::some(events::TaskIO {
                    stdin: creation.files.stdin.clone(),
                    stdout: creation.files.stdout.clone(),
                    stderr: creation.files.stderr.clone(),
                    terminal: creation.files.terminal,
                    ..Default::default()
                }),
                ..Default::default()
            },
        );
        Ok(self.pid)
    }

    fn create_container(&self, creation: &Creation, spec: &Spec, bundle: &str) -> Result<(), ShimError> {
        let pod = self.pod()?;
        let Creation { id, files, .. } = creation;
        let described = spec.process.as_ref();
        let described = described.ok_or_else(|| ShimError::Invalid(format!("{bundle}: nothing is to run")))?;
        let filter = spec.linux.seccomp.as_ref().map(seccomp::program).transpose()?;
        let process = translate::process(
            described,
            files.terminal,
            !files.stdin.is_empty(),
            filter.unwrap_or_default(),
        )?;
        let image = match pod.image_of(&spec.annotations, &creation.rootfs)? {
            None => pod.layers_of(&creation.rootfs, &self.log)?,
            image => image,
        };
        let is_image = image.is_some();
        let root = image.unwrap_or_else(|| translate::root_in_guest(id));
        let (mut container, binds) = translate::container(id, spec, root, &ThisHost)?;
        if pod.has_files() {
            etc::add_to(&mut container);
        }
        if translate::manages_networks(&process) {
            container.modules = pod.modules();
        }
        pod.add_devices(&container.devices)?;
        let brought = (|| {
            if !is_image {
                let root = spec.root.as_ref().map(|root| root.path.clone()).unwrap_or_default();
                pod.folder
                    .mount_root(id, &creation.rootfs, &creation.bundle.join(root))?;
            }
            pod.folder.bind_all(id, &binds)?;
            let first = Process::new(id, "", bundle, files.clone(), Some(process));
            self.table.add(Some(container), first)
        })();
        brought.inspect_err(|_| drop(pod.folder.remove_container(id)))?;
        pod.add_name(&spec.annotations, id);
        Ok(())
    }

    /// Describes one more process of a container.
    ///
    /// # Errors
    /// When there is no such container, or the process is there already.
    pub(crate) fn exec(&self, id: &str, exec: &str, described: &[u8], files: Files) -> Result<(), ShimError> {
        let spec: oci::Process = serde_json::from_slice(described)
            .map_err(|error| ShimError::Invalid(format!("the process {exec} cannot be read: {error}")))?;
        let first = self.process(id, "")?;
        let filter = first.filter.clone();
        let spec = translate::process(&spec, files.terminal, !files.stdin.is_empty(), filter)?;
        self.table
            .add_process(Process::new(id, exec, &first.bundle, files, Some(spec)))?;
        self.events.send(
            topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            &events::TaskExecAdded {
                container_id: id.to_owned(),
                exec_id: exec.to_owned(),
                ..Default::default()
            },
        );
        Ok(())
    }

    /// Starts a process.
    ///
    /// # Errors
    /// When it is not to be started any more, or the guest cannot.
    pub(crate) fn start(self: &Arc<Shim>, id: &str, exec: &str) -> Result<u32, ShimError> {
        let known = self.table.container(id)?;
        let process = self.process(id, exec)?;
        if process.status() != Status::Created {
            return Err(ShimError::State(format!(
                "the process {} was started already",
                process.name()
            )));
        }
        if known.is_sandbox && exec.is_empty() {
            process.started(None, None);
            self.tell_start(&process);
            return Ok(self.pid);
        }
        let pod = self.pod()?;
        let spec = lock(&process.spec).take();
        let spec = spec.ok_or_else(|| ShimError::State(format!("the process {} is being started", process.name())))?;
        let new = match exec {
            "" => lock(&known.container).take(),
            _ => None,
        };
        let session = self.next_session();
        let is_first = new.is_some();
        let started = (|| {
            let outputs = Outputs::open(&process.files)?;
            let record = pod.engine.start_in_container(&pod.machine, &session, id, new, spec)?;
            process.is_in_guest(record.pid);
            let (input, output) = pod.engine.attach_exec(&pod.machine, &session, 0)?;
            let typed = input.try_clone().map_err(Failure::from)?;
            let end = streams::start_input(&process.files, typed)?;
            Ok::<_, ShimError>((outputs, input, output, end))
        })();
        let (outputs, input, output, end) = match started {
            Ok(started) => started,
            Err(error) => {
                if is_first {
                    let _ = pod.engine.container(&pod.machine, id, ContainerRequest::Remove);
                }
                // It has never run; who waits for it is not left waiting.
                process.ended(127, SystemTime::now());
                return Err(error);
            }
        };
        process.started(Some(input), end);
        self.tell_start(&process);
        let has_ended = Flag::default();
        self.watch_end(&pod, &session, &process, &has_ended);
        let shim = Arc::clone(self);
        let carried = Arc::clone(&process);
        let thread = std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            let status = streams::carry_output(output, outputs, &has_ended);
            if is_first {
                shim.tell_shortage(&carried.container);
            }
            // A stream that broke is not yet the end of its process.
            let status = status.or_else(|| end_of(&pod, &session));
            shim.ended(&carried, status_code(status));
        });
        thread.map_err(|e| ShimError::failed("cannot follow the process", e))?;
        Ok(self.pid)
    }

    /// Notes when a process has ended, in case its end is not seen behind what it wrote: nobody reads that, or the stream broke.
    fn watch_end(self: &Arc<Shim>, pod: &Arc<Pod>, session: &str, process: &Arc<Process>, has_ended: &Flag) {
        let (shim, pod, process) = (Arc::clone(self), Arc::clone(pod), Arc::clone(process));
        let (session, has_ended, runtime) = (session.to_owned(), Arc::clone(has_ended), Handle::current());
        let watched = std::thread::Builder::new().name("end".to_owned()).spawn(move || {
            let status = end_of(&pod, &session);
            AtomicBool::store(&has_ended, true, Ordering::Relaxed);
            let is_told = runtime.block_on(ending::within(process.wait(), OUTPUT_PATIENCE));
            if !is_told {
                shim.log
                    .line(&format!("{}: it has ended, and its output has not", process.name()));
                shim.ended(&process, status_code(status));
            }
        });
        if let Err(error) = watched {
            self.log
                .line(&format!("cannot watch for the end of a process: {error}"));
        }
    }

    fn next_session(&self) -> String {
        let mut sessions = lock(&self.sessions);
        *sessions += 1;
        format!("pod-{}", *sessions)
    }

    fn tell_start(&self, process: &Process) {
        let container_id = process.container.clone();
        match process.exec.as_str() {
            "" => self.events.send(
                topics::TASK_START_EVENT_TOPIC,
                &events::TaskStart {
                    container_id,
                    pid: self.pid,
                    ..Default::default()
                },
            ),
            exec => self.events.send(
                topics::TASK_EXEC_STARTED_EVENT_TOPIC,
                &events::TaskExecStarted {
                    container_id,
                    exec_id: exec.to_owned(),
                    pid: self.pid,
                    ..Default::default()
                },
            ),
        }
    }

    /// Says that the kernel killed a process of a container for want of memory.
    fn tell_shortage(&self, id: &str) {
        if self.container_stats(id).is_ok_and(|stats| stats.oom_kills > 0) {
            self.events.send(
                topics::TASK_OOM_EVENT_TOPIC,
                &events::TaskOOM {
                    container_id: id.to_owned(),
                    ..Default::default()
                },
            );
        }
    }

    /// A process has ended: notes it, and says so, once.
    fn ended(&self, process: &Process, code: u32) {
        let at = SystemTime::now();
        if !process.ended(code, at) {
            return;
        }
        let id = match process.exec.as_str() {
            "" => &process.container,
            exec => exec,
        };
        self.events.send(
            topics::TASK_EXIT_EVENT_TOPIC,
            &events::TaskExit {
                container_id: process.container.clone(),
                id: id.to_owned(),
                pid: self.pid,
                exit_status: code,
                exited_at: MessageField::some(timestamp(at)),
                ..Default::default()
            },
        );
    }

    /// Sends a signal to a process, or to all of a container. A sandbox ends by any that would end a program.
    ///
    /// # Errors
    /// [`ShimError::NotFound`] also for a process that has ended.
    pub(crate) fn kill(self: &Arc<Shim>, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), ShimError> {
        let known = self.table.container(id)?;
        let process = self.process(id, exec)?;
        let signal = i32::try_from(signal).map_err(|_| ShimError::Invalid(format!("there is no signal {signal}")))?;
        match process.status() {
            Status::Stopped(..) => {
                return Err(ShimError::NotFound(format!("the process {} has ended", process.name())));
            }
            Status::Created => {
                self.ended(&process, 128 + signal.unsigned_abs());
                return Ok(());
            }
            Status::Running => {}
        }
        if known.is_sandbox {
            self.end_machine();
            self.ended(&process, 128 + signal.unsigned_abs());
            return Ok(());
        }
        let request = match (exec, signal) {
            // All of a container ends with its first process. Both need no stream, which may be full, and reach what is being made.
            ("", SIGKILL) => ContainerRequest::KillAll { signal },
            ("", _) if all => ContainerRequest::KillAll { signal },
            _ => ContainerRequest::Signal {
                pid: process.pid_in_guest(),
                signal,
            },
        };
        if (exec, signal) != ("", SIGKILL) {
            return self.ask(id, request).map(drop);
        }
        self.expect_end(&process);
        if let Err(error) = self.ask(id, request) {
            // The end comes all the same.
            self.log.line(&format!("kill {id}: {error}"));
        }
        Ok(())
    }

    /// Ends the machine unless a container ends that was killed: whoever waits for that is not left waiting.
    fn expect_end(self: &Arc<Shim>, process: &Arc<Process>) {
        let (shim, process) = (Arc::clone(self), Arc::clone(process));
        Handle::current().spawn(async move {
            if ending::within(process.wait(), KILL_PATIENCE).await {
                return;
            }
            shim.log.line(&format!(
                "{}: it has not ended {} s after SIGKILL: the pod's machine is ended",
                process.name(),
                KILL_PATIENCE.as_secs()
            ));
            let ended = Handle::current().spawn_blocking(move || shim.end_machine());
            let _ = ended.await;
        });
    }

    /// Ends the machine, if there is one.
    pub(crate) fn end_machine(&self) {
        let pod = lock(&self.pod).clone();
        if let Some(pod) = pod {
            pod.end();
        }
    }

    /// Forgets a process that has ended, with all that it has on this host. Its status, and when it ended.
    ///
    /// # Errors
    /// [`ShimError::State`] while it runs.
    pub(crate) fn delete(&self, id: &str, exec: &str) -> Result<(u32, SystemTime), ShimError> {
        let process = self.process(id, exec)?;
        let (code, at) = match process.status() {
            Status::Running => {
                return Err(ShimError::State(format!("the process {} still runs", process.name())));
            }
            Status::Created => (0, SystemTime::now()),
            Status::Stopped(code, at) => (code, at),
        };
        if exec.is_empty() {
            let is_sandbox = self.table.container(id)?.is_sandbox;
            if let (false, Ok(pod)) = (is_sandbox, self.pod()) {
                // The guest first: what it has open is in use here. A machine that is gone has nothing.
                let _ = pod.engine.container(&pod.machine, id, ContainerRequest::Remove);
                pod.remove_name(id);
                let removed = pod.folder.remove_container(id);
                removed.map_err(|e| ShimError::failed(&format!("the files of {id} stay"), e))?;
            }
            self.events.send(
                topics::TASK_DELETE_EVENT_TOPIC,
                &events::TaskDelete {
                    container_id: id.to_owned(),
                    pid: self.pid,
                    exit_status: code,
                    exited_at: MessageField::some(timestamp(at)),
                    ..Default::default()
                },
            );
        }
        self.table.remove(id, exec);
        Ok((code, at))
    }

    fn ask(&self, id: &str, request: ContainerRequest) -> Result<ContainerReply, ShimError> {
        let known = self.table.container(id)?;
        let runs = known.first().is_some_and(|first| first.status() == Status::Running);
        if !runs {
            return Err(ShimError::NotFound(format!("the container {id} does not run")));
        }
        let pod = self.pod()?;
        Ok(pod.engine.container(&pod.machine, id, request)?)
    }

    /// Stops the processes of a container, or lets them go on.
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) fn freeze(&self, id: &str, is_paused: bool) -> Result<(), ShimError> {
        let known = self.table.container(id)?;
        if known.is_sandbox {
            return Err(ShimError::Unsupported(
                "a sandbox cannot be paused: pause its containers".to_owned(),
            ));
        }
        self.ask(id, ContainerRequest::Freeze(is_paused))?;
        *lock(&known.is_paused) = is_paused;
        let container_id = id.to_owned();
        match is_paused {
            true => self.events.send(
                topics::TASK_PAUSED_EVENT_TOPIC,
                &events::TaskPaused {
                    container_id,
                    ..Default::default()
                },
            ),
            false => self.events.send(
                topics::TASK_RESUMED_EVENT_TOPIC,
                &events::TaskResumed {
                    container_id,
                    ..Default::default()
                },
            ),
        }
        Ok(())
    }

    /// Whether a container stands still.
    pub(crate) fn is_paused(&self, id: &str) -> bool {
        self.table.container(id).is_ok_and(|known| *lock(&known.is_paused))
    }

    /// Processes of a container, as its machine numbers them; of a sandbox the one that stands for it.
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) fn pids(&self, id: &str) -> Result<Vec<u32>, ShimError> {
        if self.table.container(id)?.is_sandbox {
            return Ok(vec![self.pid]);
        }
        match self.ask(id, ContainerRequest::Pids)? {
            ContainerReply::Pids(pids) => Ok(pids),
            _ => Err(ShimError::Failed(
                "the guest's agent gave an answer that does not fit".to_owned(),
            )),
        }
    }

    fn container_stats(&self, id: &str) -> Result<ContainerStats, ShimError> {
        let pod = self.pod()?;
        match pod.engine.container(&pod.machine, id, ContainerRequest::Stats)? {
            ContainerReply::Stats(stats) => Ok(*stats),
            _ => Err(ShimError::Failed(
                "the guest's agent gave an answer that does not fit".to_owned(),
            )),
        }
    }

    /// What a container uses; for a sandbox, all of its pod: on this host where that is counted, otherwise its containers in the guest.
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) fn stats(&self, id: &str) -> Result<ContainerStats, ShimError> {
        if !self.table.container(id)?.is_sandbox {
            self.ask(id, ContainerRequest::Pids)?;
            return self.container_stats(id);
        }
        if let Some(stats) = lock(&self.group).as_ref().and_then(PodGroup::stats) {
            return Ok(stats);
        }
        let containers = self.table.containers();
        let all: Vec<ContainerStats> = containers
            .iter()
            .filter_map(|id| self.container_stats(id).ok())
            .collect();
        Ok(stats::sum(&all))
    }

    /// Changes what a container may use. That of a sandbox is its machine's size, which stays.
    ///
    /// # Errors
    /// When it does not run, it would be more than the machine has, or the guest refuses.
    pub(crate) fn update(&self, id: &str, described: &[u8]) -> Result<(), ShimError> {
        let resources: oci::Resources = serde_json::from_slice(described)
            .map_err(|error| ShimError::Invalid(format!("the resources of {id} cannot be read: {error}")))?;
        if self.table.container(id)?.is_sandbox {
            return Ok(());
        }
        let limits = translate::limits(Some(&resources));
        self.pod()?.size.check(&limits)?;
        self.ask(id, ContainerRequest::Update(limits)).map(drop)
    }

    /// Gives a terminal another size.
    ///
    /// # Errors
    /// When the process does not run.
    pub(crate) fn resize(&self, id: &str, exec: &str, columns: u32, rows: u32) -> Result<(), ShimError> {
        let side = |value: u32| value.min(u32::from(u16::MAX)) as u16;
        let size = WindowSize {
            rows: side(rows),
            columns: side(columns),
        };
        self.process(id, exec)?.tell(&Input::Resize(size))
    }

    /// Ends the pod: nothing of it is on this host afterwards.
    pub(crate) fn finish(&self, folder: &PodFolder) {
        self.end_machine();
        drop(lock(&self.pod).take());
        if let Err(error) = folder.remove() {
            self.log.line(&format!("the pod's folder stays: {error}"));
        }
    }

    /// Leaves the pod's control group, after all others, and removes it.
    pub(crate) fn leave_group(&self) {
        if let Some(Err(error)) = lock(&self.group).take().map(|group| group.leave()) {
            self.log.line(&format!("the pod's control group stays: {error}"));
        }
    }
}
