//! Starting machines: spawning the monitor and following its report.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use zmachine_agent_protocol::PROTOCOL_VERSION;
use zmachine_image::Progress;
use zmachine_plan::Plan;
use zmachine_spec::control::Report;
use zmachine_spec::{Class, Failure};
use zmachine_store::catalog::Machine;
use zmachine_store::volume::{Held, handed};
use zmachine_sys::file::FileError;
use zmachine_sys::lock::FileLock;
use zmachine_sys::process::{ChildSetup, ProcessId, prepare_child};
use zmachine_sys::reap::reap_later;

use super::Engine;
use super::snapshots::RestoreFrom;
use super::warm::Warm;

/// A start in progress.
#[derive(Debug)]
pub struct Starting {
    machine: Machine,
    monitor: Monitor,
    report: BufReader<File>,
    was_stopped: bool,
}

/// The process; one that nobody waits for is reaped all the same.
#[derive(Debug)]
enum Monitor {
    Child(Option<Child>),
    /// It is somebody else's.
    Other(ProcessId),
}

impl Monitor {
    fn id(&self) -> Option<ProcessId> {
        match self {
            Monitor::Child(child) => ProcessId::of(child.as_ref()?.id()),
            Monitor::Other(id) => Some(*id),
        }
    }

    /// Waits for its end.
    fn wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        match self {
            Monitor::Child(child) => child.as_mut().map(Child::wait).transpose(),
            Monitor::Other(id) => {
                while !id.wait_gone(Duration::from_secs(60)) {}
                Ok(None)
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Monitor::Child(child) = self
            && let Some(child) = child.take()
        {
            reap_later(child);
        }
    }
}

/// The fewest files that a process of a machine must be able to open: below, one of them ends somewhere in the middle, with
/// whatever it was about to open.
const LEAST_FILES: u64 = 256;

/// That the processes of a machine, which inherit it, may open enough files. A soft limit is raised as far as that goes.
///
/// # Errors
/// [`Class::Unsupported`] when the hard limit is too low.
pub(super) fn require_files() -> Result<(), Failure> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= LEAST_FILES) {
        return Ok(());
    }
    let had = limit.current.unwrap_or_default();
    limit.current = limit.maximum;
    let is_enough = limit.maximum.is_none_or(|maximum| maximum >= LEAST_FILES);
    if is_enough && setrlimit(Resource::Nofile, limit).is_ok() {
        return Ok(());
    }
    let message = format!("processes may open {had} files here, and those of a machine need {LEAST_FILES}");
    Err(Failure::new(Class::Unsupported, message).hint("raise the limit: ulimit -n 1024, or LimitNOFILE= in a unit"))
}

impl Engine {
    /// Starts a machine: spawns its monitor. With `wait_for_owner` the entrypoint waits for [`Engine::attach`] as owner.
    ///
    /// # Errors
    /// [`Class::NotFound`], or [`Class::Conflict`] when it runs already.
    pub fn start(&self, name: &str, wait_for_owner: bool) -> Result<Starting, Failure> {
        self.start_with(name, wait_for_owner.then_some("--wait-for-owner"), None)
    }

    /// A start whose machine ends when [`Starting`] is dropped, or this process is gone.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_for_now(&self, name: &str) -> Result<Starting, Failure> {
        self.start_with(name, Some("--ends-with-client"), None)
    }

    /// A start from what was saved.
    pub(super) fn start_from(&self, name: &str, from: Option<&RestoreFrom<'_>>) -> Result<Starting, Failure> {
        self.start_with(name, None, from)
    }

    /// A start of a machine whose volumes this process has for it: they are handed over.
    pub(super) fn start_holding(
        &self,
        name: &str,
        from: Option<&RestoreFrom<'_>>,
        volumes: Vec<Held>,
    ) -> Result<Starting, Failure> {
        let volumes: Vec<(String, FileLock)> = volumes.into_iter().map(Held::into_lock).collect();
        self.start_handing(name, None, from, &volumes)
    }

    pub(super) fn start_with(
        &self,
        name: &str,
        option: Option<&str>,
        from: Option<&RestoreFrom<'_>>,
    ) -> Result<Starting, Failure> {
        self.start_handing(name, option, from, &[])
    }

    fn start_handing(
        &self,
        name: &str,
        option: Option<&str>,
        from: Option<&RestoreFrom<'_>>,
        volumes: &[(String, FileLock)],
    ) -> Result<Starting, Failure> {
        let machine = self.machine(name)?;
        if let Some(starting) = self.claim_standby(&machine, option)? {
            return Ok(starting);
        }
        if machine.state.phase.is_active() || FileLock::is_held(&machine.lock_path())? {
            let message = format!(
                "machine '{}' is {} already",
                machine.spec.name,
                machine.state.phase.word()
            );
            return Err(Failure::new(Class::Conflict, message));
        }
        require_files()?;
        self.renew_initramfs(&machine)
            .inspect_err(|failure| self.record_failed_start(&machine, failure))?;
        let (template, warm) = match from {
            Some(_) => (None, None),
            None => self.template_of(&machine).unzip(),
        };
        let key = template.clone();
        let warm = warm.flatten();
        let warm = warm.as_ref().map(Warm::from);
        let from = from.or(warm.as_ref());
        self.kill.pass("start: before the monitor");
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
        let mut command = self.role("monitor");
        command
            .arg("--id")
            .arg(&machine.id)
            .arg("--report-fd")
            .arg(writer.as_raw_fd().to_string());
        command.args(option);
        if let Some(from) = from {
            command.args(from.arguments());
        } else if let Some(key) = &template {
            command.arg("--template").arg(key);
        }
        for (volume, lock) in volumes {
            command.arg("--held-volume").arg(handed::argument(volume, lock));
        }
        if let Some(at) = &self.monitor_abort_at {
            command.arg("--abort-at").arg(at.to_string());
        }
        command.stderr(stderr_file(&machine)?);
        let setup = ChildSetup {
            keep: [Some(writer.as_raw_fd()), from.map(|from| from.memory.as_raw_fd())]
                .into_iter()
                .flatten()
                .chain(volumes.iter().map(|(_, lock)| lock.file().as_raw_fd()))
                .collect(),
            new_session: true,
            ..ChildSetup::default()
        };
        prepare_child(&mut command, setup);
        let monitor = command
            .spawn()
            .map_err(|e| Failure::from(e).context("cannot start the machine's monitor"))?;
        drop(writer);
        let monitor = Monitor::Child(Some(monitor));
        // Where the next one finds it; without that it reads the file.
        if let Some(holders) = from.and_then(|from| from.shared)
            && let Some(id) = monitor.id()
        {
            let _ = holders.add(id);
        }
        self.kill.pass("start: monitor spawned");
        self.complete_image_of(&machine);
        if let Some(key) = &key {
            self.fill_pool(&machine, key);
        }
        Ok(Starting {
            machine,
            monitor,
            report: BufReader::new(File::from(reader)),
            was_stopped: false,
        })
    }
}

impl Starting {
    /// A start by a monitor that is there, which reports on `report`.
    pub(super) fn by(machine: Machine, monitor: ProcessId, report: File) -> Starting {
        Starting {
            machine,
            monitor: Monitor::Other(monitor),
            report: BufReader::new(report),
            was_stopped: false,
        }
    }
}

impl Engine {
    /// Begins to bring what is missing of the machine's image.
    pub(super) fn complete_image_of(&self, machine: &Machine) {
        let plan = machine.plan().ok();
        let Some(image) = plan.as_ref().and_then(Plan::image) else {
            return;
        };
        let directory = self.home.data().join("images").join(image);
        if let Err(failure) = self.complete_later(&directory) {
            (self.warn)(&failure.message);
        }
    }

    /// Puts today's agent into a machine that was planned with an older one: an upgrade counts at the next start.
    fn renew_initramfs(&self, machine: &Machine) -> Result<(), Failure> {
        let path = machine.dir.join("plan.json");
        let modified = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
        let mut plan = match machine.plan()? {
            Plan::Container(plan) => plan,
            Plan::Vm(mut plan) => {
                let kernel = plan
                    .install()
                    .and_then(|_| self.appliance_kernel(plan.hypervisor.driver));
                if plan.appliance != kernel {
                    plan.appliance = kernel;
                    zmachine_sys::file::replace_json(&path, &Plan::Vm(plan))?;
                }
                return Ok(());
            }
        };
        let is_current =
            modified(self.programs.agent()).is_some_and(|agent| modified(&path).is_some_and(|plan| plan > agent));
        if is_current && plan.kernel.initramfs.is_file() {
            return Ok(());
        }
        let choice = self.kernel(Some(&plan.kernel.name), &plan.fs_drivers())?;
        if choice != plan.kernel || plan.boot.protocol != PROTOCOL_VERSION {
            plan.use_kernel(choice);
            zmachine_sys::file::replace_json(&path, &Plan::Container(plan))?;
        }
        Ok(())
    }
}

/// Where a monitor's panic would be found.
fn stderr_file(machine: &Machine) -> Result<File, Failure> {
    let path = machine.dir.join("logs").join("monitor.stderr");
    zmachine_sys::file::make_dirs(&machine.dir.join("logs"))?;
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    Ok(opened.map_err(|e| FileError::io("open", &path, e))?)
}

impl Starting {
    /// Waits until clients can attach.
    ///
    /// # Errors
    /// When the start failed before that.
    pub fn wait_listening(&mut self) -> Result<(), Failure> {
        match self.next()? {
            Report::Failed(failure) => Err(self.failed(failure)),
            Report::Listening | Report::Booting | Report::Ready | Report::Progress { .. } => Ok(()),
        }
    }

    /// Waits until the entrypoint, or the VM, runs. `progress` is told of work that takes its time before.
    ///
    /// # Errors
    /// When the start failed; everything is undone then.
    pub fn wait_ready(&mut self, progress: &dyn Progress) -> Result<(), Failure> {
        let mut step: Option<(String, u64)> = None;
        let name = self.machine.spec.name.clone();
        progress.waiting(&format!("starting {name}"));
        loop {
            match self.next()? {
                Report::Listening => {}
                Report::Booting => progress.waiting(&format!("booting {name}")),
                Report::Progress { what, done, total } => {
                    let before = match &step {
                        Some((same, before)) if *same == what => *before,
                        _ => {
                            progress.begin(Some(total), &what);
                            0
                        }
                    };
                    progress.advance(done.saturating_sub(before));
                    step = Some((what, done));
                }
                Report::Ready => return Ok(()),
                Report::Failed(failure) => return Err(self.failed(failure)),
            }
        }
    }

    /// The monitor's process; `None` when it has ended already.
    pub fn monitor_id(&self) -> Option<ProcessId> {
        self.monitor.id()
    }

    /// Waits until the monitor is gone, and with it everything the machine had on the host.
    pub fn wait_gone(&mut self) {
        let _ = self.monitor.wait();
    }

    /// Whether the start came to nothing because another command stopped the machine.
    pub fn was_stopped(&self) -> bool {
        self.was_stopped
    }

    fn failed(&mut self, failure: Failure) -> Failure {
        // The report is the monitor's last word but one: it ends, and with that releases the machine, right after.
        let _ = self.monitor.wait();
        failure
    }

    fn next(&mut self) -> Result<Report, Failure> {
        let mut line = String::new();
        let n = self.report.read_line(&mut line)?;
        if n == 0 {
            let status = self.monitor.wait()?;
            let name = &self.machine.spec.name;
            if status.is_some_and(|status| status.success()) {
                self.was_stopped = true;
                return Err(Failure::new(
                    Class::Conflict,
                    format!("machine '{name}' was stopped while it started"),
                ));
            }
            let status = status.map(|status| format!(" ({status})")).unwrap_or_default();
            let message = format!("the monitor of machine '{name}' ended without a word{status}");
            return Err(Failure::new(Class::Failed, message)
                .hint(format!("'zmachine logs --source monitor {name}' may tell more")));
        }
        serde_json::from_str(&line)
            .map_err(|e| Failure::from_error(Class::Failed, &e).context("the monitor's report cannot be read"))
    }
}
