//! Machines that stand by: their guests are there as their template was, before an entrypoint, and wait to be told who they are.
//!
//! Those of a pool are made like the machine that asked for it, by a process that outlives the command (role `standby`). Each is a machine as
//! any other, but that nobody chose its name and that it ends by itself after a while. Who starts a machine that one fits takes it: it
//! is that machine from then on, with the id and the addresses that it has, and is claimed from its monitor.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use zmachine_agent_protocol::Frame;
use zmachine_image::{PullPolicy, Silent};
use zmachine_plan::Plan;
use zmachine_spec::control::Request;
use zmachine_spec::{Class, Failure, HealthRequest, MachineSpec, NetworkRequest, Phase, RestartPolicy};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::template::Templates;
use zmachine_sys::lock::FileLock;

use super::Engine;
use super::create::CreateOptions;
use super::start::Starting;

/// How long the first machine of a kind may take until its template is there.
const TEMPLATE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(100);

/// What has to be the same of a machine that stands by; all else it is told when it is taken.
fn fixed(spec: &MachineSpec) -> MachineSpec {
    let networks = spec.networks.iter().map(|request| NetworkRequest {
        aliases: Vec::new(),
        ..request.clone()
    });
    MachineSpec {
        name: String::new(),
        pinned: None,
        hostname: None,
        env: Vec::new(),
        entrypoint: None,
        command: Vec::new(),
        workdir: None,
        user: None,
        networks: networks.collect(),
        publish: Vec::new(),
        publish_all: false,
        network_aliases: Vec::new(),
        terminal: false,
        stdin: false,
        auto_remove: false,
        init: false,
        idle: false,
        stop_signal: None,
        stop_timeout_s: None,
        labels: std::collections::BTreeMap::new(),
        restart: RestartPolicy::No,
        secrets: Vec::new(),
        health: HealthRequest::default(),
        warm: true,
        warm_ready: false,
        pool: 0,
        standby: false,
        ..spec.clone()
    }
}

/// Whether nothing in it could only be had by a machine that is made for it: addresses of its choice, and a log that is sent elsewhere under
/// its name from the beginning.
fn can_be_taken(spec: &MachineSpec) -> bool {
    let is_any = |request: &NetworkRequest| request.ipv4.is_none() && request.ipv6.is_none();
    spec.log_to.is_none() && spec.networks.iter().all(is_any)
}

impl Engine {
    /// Takes a machine that stands by and is like `spec`, if there is one: from then on it is that.
    pub(super) fn take_standby(
        &self,
        spec: &MachineSpec,
        options: &CreateOptions<'_>,
    ) -> Result<Option<Machine>, Failure> {
        if !can_be_taken(spec) || options.pull == PullPolicy::Always {
            return Ok(None);
        }
        let Some(found) = self.standing_by(spec)?.into_iter().next() else {
            return Ok(None);
        };
        let had = found.plan()?;
        self.planned(spec, options, None, Some(&found.id), |id, spec, plan, _| {
            // Somebody else may have taken it before the catalog was ours; and what its name leads to now decides.
            let now = Machine::load(&self.home, id);
            let is_there = now.is_ok_and(|now| now.spec == found.spec) && self.home.standby_mark(id).exists();
            let (Plan::Container(is), Plan::Container(was)) = (&plan, &had) else {
                return Ok(None);
            };
            if !is_there || is.image != was.image || is.kernel != was.kernel || is.misfit(was).is_some() {
                return Ok(None);
            }
            catalog::take_name(&self.home, &spec.name, id)?;
            catalog::write_networks(&found.dir, spec, &plan)?;
            catalog::give_up_name(&self.home, &found.spec.name, id)?;
            self.kill.pass("create: standby taken");
            Ok(Some(Machine {
                id: id.to_owned(),
                dir: found.dir.clone(),
                spec: spec.clone(),
                state: found.state.clone(),
            }))
        })
    }

    /// The machines that stand by for one like `spec`.
    fn standing_by(&self, spec: &MachineSpec) -> Result<Vec<Machine>, Failure> {
        let wanted = fixed(spec);
        let mut all = Vec::new();
        for id in catalog::ids(&self.home)? {
            let Ok(machine) = Machine::load(&self.home, &id) else {
                continue;
            };
            if machine.spec.standby
                && machine.state.phase == Phase::Starting
                && self.home.standby_mark(&id).exists()
                && fixed(&machine.spec) == wanted
                && FileLock::is_held(&machine.lock_path())?
            {
                all.push(machine);
            }
        }
        Ok(all)
    }

    /// Starts a machine that was taken; `None` for any other.
    pub(super) fn claim_standby(&self, machine: &Machine, option: Option<&str>) -> Result<Option<Starting>, Failure> {
        if machine.spec.standby || !machine.state.phase.is_active() || !self.home.standby_mark(&machine.id).exists() {
            return Ok(None);
        }
        let Some(monitor) = machine.state.monitor else {
            return Ok(None);
        };
        let gone = |e: std::io::Error| {
            Failure::from(e)
                .context(format!(
                    "machine '{}' cannot be started from the one that stood by",
                    machine.spec.name
                ))
                .hint("try again: another one is made then")
        };
        let mut stream = UnixStream::connect(self.home.control_socket(&machine.id)).map_err(gone)?;
        let claim = Request::Claim {
            wait_for_owner: option == Some("--wait-for-owner"),
            ends_with_client: option == Some("--ends-with-client"),
        };
        stream.write_all(&Frame::message(&claim).to_bytes()).map_err(gone)?;
        self.complete_image_of(machine);
        if let Some(key) = self.template_key(machine) {
            self.fill_pool(machine, &key);
        }
        Ok(Some(Starting::by(
            machine.clone(),
            monitor,
            File::from(OwnedFd::from(stream)),
        )))
    }

    /// Has a process make what the machine's pool lacks. A start needs none of it.
    pub(super) fn fill_pool(&self, machine: &Machine, key: &str) {
        if machine.spec.pool == 0 || machine.spec.warm_ready || machine.spec.standby || !can_be_taken(&machine.spec) {
            return;
        }
        if let Err(failure) = self.begin_to_fill(machine, key) {
            (self.warn)(&format!(
                "no guests are kept waiting for machines like '{}': {failure}",
                machine.spec.name
            ));
        }
    }

    fn begin_to_fill(&self, machine: &Machine, key: &str) -> Result<(), Failure> {
        let spec = MachineSpec {
            // Nobody has to give this one up.
            auto_remove: true,
            standby: true,
            pool: machine.spec.pool,
            // The next one most likely runs the same, so the guest prepares for that.
            entrypoint: machine.spec.entrypoint.clone(),
            command: machine.spec.command.clone(),
            user: machine.spec.user.clone(),
            init: machine.spec.init,
            ..fixed(&machine.spec)
        };
        let plan = machine.plan()?;
        let Some(image) = plan.image() else { return Ok(()) };
        let mut command = self.role("standby");
        command.args(["--template", key, "--image", image]);
        // Not among its arguments, which everybody sees.
        let (stdin, mut told) = std::io::pipe()?;
        let text = serde_json::to_vec(&spec).map_err(std::io::Error::from)?;
        command.stdin(stdin);
        Engine::start_beside(command, &self.home.run().join(format!("standby-{key}.log")), &[])?;
        told.write_all(&text)?;
        Ok(())
    }

    /// Makes machines like `spec` that stand by, until there are as many as its pool has. `key` is that of their template.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn make_standbys(&self, spec: &MachineSpec, image: &str, key: &str) -> Result<(), Failure> {
        // One at a time: two would make too many.
        let Some(_alone) = FileLock::try_exclusive(&self.home.run().join(format!("standby-{key}.lock")))? else {
            return Ok(());
        };
        let deadline = Instant::now() + TEMPLATE;
        while Templates::of(&self.home).find(key).is_none() {
            if Instant::now() > deadline {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        let image = image
            .parse()
            .map_err(|e: zmachine_flist::DigestError| Failure::from_error(Class::Usage, &e))?;
        while self.standing_by(spec)?.len() < usize::from(spec.pool) {
            let spec = MachineSpec {
                name: format!("standby-{}", catalog::new_id()),
                ..spec.clone()
            };
            let options = CreateOptions {
                cwd: Path::new("/"),
                pull: PullPolicy::Never,
                installs_kernel: false,
                progress: &Silent,
            };
            let machine = self.create_from(&spec, &options, Some(&image), |_| Ok(()))?;
            let started = self.start_standby(&machine);
            if let Err(failure) = started {
                let _ = self.remove(&machine.id, true, true);
                return Err(failure);
            }
        }
        Ok(())
    }

    fn start_standby(&self, machine: &Machine) -> Result<(), Failure> {
        let warm = self.template_of(machine).and_then(|(_, warm)| warm);
        let warm = warm.ok_or_else(|| Failure::new(Class::Conflict, "the template is gone"))?;
        let mut starting = self.start_with(&machine.id, Some("--stands-by"), Some(&warm.from()))?;
        starting.wait_ready(&Silent)
    }
}
