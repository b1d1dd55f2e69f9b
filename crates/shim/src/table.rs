//! The containers of a pod and their processes, as containerd knows them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use zmachine_agent_protocol::{Container, ContainerProcess, Frame, Input};
use zmachine_engine::attach::ProcessInput;

use crate::error::ShimError;
use crate::streams::{Files, InputEnd};

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// It is to be started.
    Created,
    /// It runs.
    Running,
    /// It has ended with this status, then.
    Stopped(u32, SystemTime),
}

/// One process: of the container itself, or executed in it.
#[derive(Debug)]
pub(crate) struct Process {
    /// The container.
    pub(crate) container: String,
    /// Empty for the container's first one.
    pub(crate) exec: String,
    pub(crate) bundle: String,
    pub(crate) files: Files,
    /// What it is, until it is started; none for a sandbox.
    pub(crate) spec: Mutex<Option<ContainerProcess>>,
    /// Its system call filter, which others of its container have as well.
    pub(crate) filter: Vec<u64>,
    /// Its id in the machine; 0 until it has started.
    pid_in_guest: AtomicU32,
    status: watch::Sender<Status>,
    input: Mutex<Option<ProcessInput>>,
    input_end: Mutex<Option<InputEnd>>,
}

/// A container, or a sandbox.
#[derive(Debug)]
pub(crate) struct Known {
    /// What the agent makes when it starts; none for a sandbox.
    pub(crate) container: Mutex<Option<Container>>,
    /// Nothing runs in it.
    pub(crate) is_sandbox: bool,
    pub(crate) is_paused: Mutex<bool>,
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<BTreeMap<String, Arc<Known>>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// A process that is to be started.
    pub(crate) fn new(
        container: &str,
        exec: &str,
        bundle: &str,
        files: Files,
        spec: Option<ContainerProcess>,
    ) -> Arc<Process> {
        Arc::new(Process {
            container: container.to_owned(),
            exec: exec.to_owned(),
            bundle: bundle.to_owned(),
            files,
            filter: spec
                .as_ref()
                .map(|spec| spec.system_call_filter.clone())
                .unwrap_or_default(),
            spec: Mutex::new(spec),
            pid_in_guest: AtomicU32::new(0),
            status: watch::channel(Status::Created).0,
            input: Mutex::default(),
            input_end: Mutex::default(),
        })
    }

    pub(crate) fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// It has this id in the machine.
    pub(crate) fn is_in_guest(&self, pid: u32) {
        self.pid_in_guest.store(pid, Ordering::Relaxed);
    }

    /// Its id in the machine, by which the agent knows it.
    pub(crate) fn pid_in_guest(&self) -> u32 {
        self.pid_in_guest.load(Ordering::Relaxed)
    }

    /// It runs, and is spoken to by `input`.
    pub(crate) fn started(&self, input: Option<ProcessInput>, input_end: Option<InputEnd>) {
        *lock(&self.input) = input;
        *lock(&self.input_end) = input_end;
        self.status.send_if_modified(|status| {
            let is_new = *status == Status::Created;
            if is_new {
                *status = Status::Running;
            }
            is_new
        });
    }

    /// It has ended; whether that is news.
    pub(crate) fn ended(&self, code: u32, at: SystemTime) -> bool {
        *lock(&self.input) = None;
        *lock(&self.input_end) = None;
        self.status.send_if_modified(|status| {
            let is_news = !matches!(status, Status::Stopped(..));
            if is_news {
                *status = Status::Stopped(code, at);
            }
            is_news
        })
    }

    /// Waits for its end: the status, and when.
    pub(crate) async fn wait(&self) -> (u32, SystemTime) {
        let mut status = self.status.subscribe();
        loop {
            if let Status::Stopped(code, at) = *status.borrow_and_update() {
                return (code, at);
            }
            if status.changed().await.is_err() {
                return (255, SystemTime::now());
            }
        }
    }

    /// Sends it a message; one that does not run is not there.
    ///
    /// # Errors
    /// [`ShimError::NotFound`]
    pub(crate) fn tell(&self, input: &Input) -> Result<(), ShimError> {
        let gone = || ShimError::NotFound(format!("the process {} does not run", self.name()));
        let mut stream = lock(&self.input);
        let stream = stream.as_mut().ok_or_else(gone)?;
        stream.send(&Frame::message(input)).map_err(|_| gone())
    }

    /// Its input is at its end.
    pub(crate) fn close_input(&self) {
        *lock(&self.input_end) = None;
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> String {
        match self.exec.as_str() {
            "" => self.container.clone(),
            exec => format!("{exec} of {}", self.container),
        }
    }
}

impl Known {
    fn new(container: Option<Container>, first: Arc<Process>) -> Known {
        Known {
            is_sandbox: container.is_none(),
            container: Mutex::new(container),
            is_paused: Mutex::new(false),
            processes: Mutex::new(BTreeMap::from([(String::new(), first)])),
        }
    }

    /// Its first process.
    pub(crate) fn first(&self) -> Option<Arc<Process>> {
        lock(&self.processes).get("").cloned()
    }
}

impl Table {
    /// Adds a container, with its first process; without a description it is a sandbox.
    ///
    /// # Errors
    /// [`ShimError::Exists`]
    pub(crate) fn add(&self, container: Option<Container>, first: Arc<Process>) -> Result<(), ShimError> {
        let mut all = lock(&self.0);
        let id = first.container.clone();
        if all.contains_key(&id) {
            return Err(ShimError::Exists(format!("there is a task {id} already")));
        }
        all.insert(id, Arc::new(Known::new(container, first)));
        Ok(())
    }

    /// A container.
    ///
    /// # Errors
    /// [`ShimError::NotFound`]
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Known>, ShimError> {
        let found = lock(&self.0).get(id).cloned();
        found.ok_or_else(|| ShimError::NotFound(format!("there is no task {id}")))
    }

    /// A process.
    ///
    /// # Errors
    /// [`ShimError::NotFound`]
    pub(crate) fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>, ShimError> {
        let found = lock(&self.container(id)?.processes).get(exec).cloned();
        found.ok_or_else(|| ShimError::NotFound(format!("there is no process {exec} of {id}")))
    }

    /// Adds a process of a container.
    ///
    /// # Errors
    /// [`ShimError::NotFound`], [`ShimError::Exists`]
    pub(crate) fn add_process(&self, process: Arc<Process>) -> Result<(), ShimError> {
        let known = self.container(&process.container)?;
        let mut all = lock(&known.processes);
        if all.contains_key(&process.exec) {
            return Err(ShimError::Exists(format!(
                "there is a process {} already",
                process.name()
            )));
        }
        all.insert(process.exec.clone(), process);
        Ok(())
    }

    /// Forgets a container, or one of its processes.
    pub(crate) fn remove(&self, id: &str, exec: &str) {
        if exec.is_empty() {
            lock(&self.0).remove(id);
        } else if let Ok(known) = self.container(id) {
            lock(&known.processes).remove(exec);
        }
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// Every process, those of sandboxes last: what is in a pod ends before it.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        let all = lock(&self.0);
        let mut found: Vec<(bool, Arc<Process>)> = Vec::new();
        for known in all.values() {
            let processes = lock(&known.processes);
            // Those that were executed before the container itself.
            found.extend(
                processes
                    .values()
                    .rev()
                    .map(|process| (known.is_sandbox, Arc::clone(process))),
            );
        }
        found.sort_by_key(|(is_sandbox, _)| *is_sandbox);
        found.into_iter().map(|(_, process)| process).collect()
    }

    /// The ids of all containers that are no sandboxes.
    pub(crate) fn containers(&self) -> Vec<String> {
        let all = lock(&self.0);
        let containers = all.iter().filter(|(_, known)| !known.is_sandbox);
        containers.map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zmachine_agent_protocol::ContainerRoot;

    fn process(container: &str, exec: &str) -> Arc<Process> {
        Process::new(container, exec, "/b", Files::default(), None)
    }

    fn container() -> Option<Container> {
        Some(Container {
            modules: Vec::new(),
            root: ContainerRoot::Image,
            read_only: false,
            mounts: Vec::new(),
            devices_alone: false,
            devices: Vec::new(),
            masked: Vec::new(),
            read_only_paths: Vec::new(),
            own_pids: true,
            hostname: None,
            sysctls: Vec::new(),
            limits: Default::default(),
        })
    }

    #[test]
    fn what_is_in_a_pod_ends_before_it() {
        let table = Table::default();
        table.add(None, process("a", "")).unwrap();
        table.add(container(), process("b", "")).unwrap();
        table.add_process(process("b", "x")).unwrap();
        let order: Vec<String> = table.processes().iter().map(|process| process.name()).collect();
        assert_eq!(order, ["x of b", "b", "a"]);
        assert_eq!(table.containers(), ["b"]);
    }

    #[test]
    fn what_is_there_is_not_added_twice_and_what_is_not_is_told() {
        let table = Table::default();
        table.add(container(), process("b", "")).unwrap();
        assert!(matches!(
            table.add(container(), process("b", "")),
            Err(ShimError::Exists(_))
        ));
        assert!(matches!(
            table.add_process(process("c", "x")),
            Err(ShimError::NotFound(_))
        ));
        assert!(matches!(table.process("b", "x"), Err(ShimError::NotFound(_))));
        let dead = table.process("b", "").unwrap();
        assert!(matches!(dead.tell(&Input::Signal(9)), Err(ShimError::NotFound(_))));
        table.remove("b", "");
        assert!(table.is_empty());
    }

    #[test]
    fn an_end_is_told_once_and_to_those_who_ask_later() {
        let one = process("b", "");
        let at = SystemTime::now();
        assert!(one.ended(3, at));
        assert!(!one.ended(4, at));
        one.started(None, None);
        assert_eq!(one.status(), Status::Stopped(3, at));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(one.wait()), (3, at));
    }
}
