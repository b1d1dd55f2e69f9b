//! Processes of a machine that outlive their clients, by id.

use zmachine_agent_protocol::{Process, ProcessState};
use zmachine_spec::control::{ExecRecord, Reply, Request};
use zmachine_spec::{Class, Failure};

use super::Engine;
use crate::attach::{ProcessInput, ProcessOutput};
use crate::client::{patience_for, require_awake};

impl Engine {
    /// Starts one more process in a machine, which goes on when the caller does not. [`Engine::attach_exec`] reaches it by its
    /// id, from any program, until the machine ends; an id is made up where none is given. Nothing that it writes is lost:
    /// until somebody attaches it waits when its pipes are full, unless its output is to be discarded.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the machine does not run or the id is in use; the guest's reason when it does not start.
    pub fn start_exec(
        &self,
        name: &str,
        id: Option<String>,
        process: Process,
        discard: bool,
    ) -> Result<ExecRecord, Failure> {
        let machine = self.machine(name)?;
        require_awake(&machine)?;
        self.one(name, &Request::StartExec { id, process, discard })
    }

    /// Follows such a process, in the place of whoever does so far: first the agent's `Resumed`, then what it wrote after
    /// `received` bytes (of standard output and error together), at last `Exited`, also when it ended before.
    ///
    /// # Errors
    /// [`Class::NotFound`], or [`Class::Conflict`] when the machine does not run.
    pub fn attach_exec(&self, name: &str, id: &str, received: u64) -> Result<(ProcessInput, ProcessOutput), Failure> {
        let machine = self.machine(name)?;
        require_awake(&machine)?;
        if !self.execs(name)?.iter().any(|exec| exec.id == id) {
            let message = format!("there is no process '{id}' in machine '{name}'");
            return Err(Failure::new(Class::NotFound, message).hint("ids are known until the machine ends"));
        }
        let request = Request::AttachExec {
            id: id.to_owned(),
            received,
        };
        self.stream(&machine, &request)
    }

    /// Waits for the end of such a process, and tells its record.
    ///
    /// # Errors
    /// [`Class::NotFound`], or [`Class::Conflict`] when the machine does not run.
    pub fn wait_exec(&self, name: &str, id: &str) -> Result<ExecRecord, Failure> {
        self.one(name, &Request::WaitExec { id: id.to_owned() })
    }

    /// The processes of a running machine that have an id, those that ended among them, oldest first.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it does not run.
    pub fn execs(&self, name: &str) -> Result<Vec<ExecRecord>, Failure> {
        self.records(name, &Request::Execs)
    }

    /// The processes of a running container, or of a VM's whole guest.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the machine does not run, or that its agent does not answer.
    pub fn processes(&self, name: &str) -> Result<Vec<ProcessState>, Failure> {
        let machine = self.machine(name)?;
        require_awake(&machine)?;
        match self.reply(&machine, &Request::Processes)? {
            Some(Reply::Processes(processes)) => Ok(processes),
            Some(Reply::Failed(failure)) => Err(failure),
            _ => Err(unexpected(name)),
        }
    }

    pub(crate) fn one(&self, name: &str, request: &Request) -> Result<ExecRecord, Failure> {
        let records = self.records(name, request)?;
        records.into_iter().next().ok_or_else(|| unexpected(name))
    }

    fn records(&self, name: &str, request: &Request) -> Result<Vec<ExecRecord>, Failure> {
        let machine = self.machine(name)?;
        let (_input, mut output) = self.stream(&machine, request)?;
        let frame = match request {
            // As long as the process takes.
            Request::WaitExec { .. } => output.next_frame()?,
            _ => output.next_frame_within(patience_for(request, &machine))?,
        };
        let frame = frame.ok_or_else(|| Failure::new(Class::Conflict, format!("machine '{name}' has ended")))?;
        match frame.parse() {
            Ok(Reply::Execs(records)) => Ok(records),
            Ok(Reply::Failed(failure)) => Err(failure),
            _ => Err(unexpected(name)),
        }
    }
}

pub(crate) fn unexpected(name: &str) -> Failure {
    Failure::new(
        Class::Failed,
        format!("the monitor of machine '{name}' gave an answer that does not fit"),
    )
    .hint("it may be of an older version: restart the machine")
}
