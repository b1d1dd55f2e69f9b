//! Making the machines of services what the files say, each service after what it needs, and as many at once as there is room for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use zmachine_compose::{Condition, Project, Service};
use zmachine_engine::{CreateOptions, Engine, ImageRequest};
use zmachine_image::{Mode, PullPolicy};
use zmachine_spec::{Class, Failure, MachineSpec};

use super::words::{Granted, Instance};
use super::{
    CONFIG_FILES, DEPENDS_ON, HASH, NUMBER, ONE_OFF, Owned, PROJECT, SERVICE, WORKING_DIR, health, of_service,
    resources, tell,
};
use crate::args::CreateArgs;
use crate::args::run::Pull;
use crate::progress::Bars;

/// What is to be done.
pub(super) struct Wish {
    /// Services that are looked at; what they need besides is taken as it is.
    pub(super) services: BTreeSet<String>,
    pub(super) force: bool,
    pub(super) keeps_changed: bool,
    pub(super) starts: bool,
    pub(super) pull: Option<Pull>,
    pub(super) grace: Option<Duration>,
    /// Until when health is waited for.
    pub(super) until: Option<Instant>,
    /// So many machines at once.
    pub(super) slots: usize,
}

/// How far a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Ready,
    Failed,
}

/// One run of it.
pub(super) struct Convergence<'a> {
    engine: &'a Engine,
    project: &'a Project,
    wish: Wish,
    there: Vec<Owned>,
    files: BTreeMap<(Granted, String), PathBuf>,
    joins: bool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    progress: BTreeMap<String, Progress>,
    free: usize,
    /// Nothing more is begun.
    is_stopped: bool,
    /// Services of which a machine was made anew.
    renewed: BTreeSet<String>,
    failures: Vec<Failure>,
}

impl<'a> Convergence<'a> {
    /// Gets networks and files ready.
    ///
    /// # Errors
    /// What is wrong before anything is made.
    pub(super) fn new(engine: &'a Engine, project: &'a Project, wish: Wish) -> Result<Convergence<'a>, Failure> {
        let services: Vec<&Service> = wish
            .services
            .iter()
            .filter_map(|name| project.services.get(name))
            .collect();
        for service in &services {
            if service.container_name.is_some() && service.scale > 1 {
                let message = format!(
                    "service '{}': container_name is one name, and there are {}",
                    service.name, service.scale
                );
                return Err(Failure::new(Class::Usage, message).hint("leave it out, or scale to 1"));
            }
        }
        resources::check_volumes(engine, project, &services)?;
        let files = resources::files(engine, project, &services)?;
        let machines: u32 = services.iter().map(|service| service.scale).sum();
        let used = resources::used(services.iter().copied());
        let joins = resources::networks(engine, project, &used, machines)?;
        let progress = wish
            .services
            .iter()
            .map(|name| (name.clone(), Progress::Waiting))
            .collect();
        let state = State {
            progress,
            free: wish.slots.max(1),
            is_stopped: false,
            renewed: BTreeSet::new(),
            failures: Vec::new(),
        };
        Ok(Convergence {
            there: super::owned(engine, &project.name)?,
            engine,
            project,
            wish,
            files,
            joins,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins nothing more.
    pub(super) fn stop(&self) {
        self.state().is_stopped = true;
        self.changed.notify_all();
    }

    /// Does all of it; what failed is told at once but for the last, which is the answer. What runs goes on.
    pub(super) fn run(&self) -> Result<(), Failure> {
        thread::scope(|scope| {
            for name in &self.wish.services {
                if let Some(service) = self.project.services.get(name) {
                    scope.spawn(move || self.service(service));
                }
            }
        });
        let mut state = self.state();
        let last = state.failures.pop();
        state.failures.iter().for_each(crate::failure::print);
        match last {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn service(&self, service: &Service) {
        let done = self.wait_for_needs(service).and_then(|goes_on| match goes_on {
            true => self.machines(service).map(|()| true),
            false => Ok(false),
        });
        let mut state = self.state();
        let progress = match done {
            Ok(true) => Progress::Ready,
            Ok(false) => Progress::Failed,
            Err(failure) => {
                state.failures.push(of_service(&service.name)(failure));
                Progress::Failed
            }
        };
        state.progress.insert(service.name.clone(), progress);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for what a service needs; `false` when it is not to be begun.
    fn wait_for_needs(&self, service: &Service) -> Result<bool, Failure> {
        let mut state = self.state();
        for (needed, dependency) in &service.depends_on {
            loop {
                match state.progress.get(needed) {
                    _ if state.is_stopped => return Ok(false),
                    Some(Progress::Waiting) => {
                        state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                    // The failure is told once.
                    Some(Progress::Failed) if dependency.required => return Ok(false),
                    Some(Progress::Failed | Progress::Ready) | None => break,
                }
            }
        }
        drop(state);
        if !self.wish.starts {
            return Ok(true);
        }
        for (needed, dependency) in &service.depends_on {
            if !self.wish.services.contains(needed) {
                continue;
            }
            match self.wait_for(needed, dependency.condition) {
                Ok(goes_on) if !goes_on => return Ok(false),
                Err(failure) if dependency.required => return Err(failure),
                _ => {}
            }
        }
        Ok(true)
    }

    /// Waits until the machines of a service are as `condition` says.
    fn wait_for(&self, needed: &str, condition: Condition) -> Result<bool, Failure> {
        let names: Vec<String> = match condition {
            Condition::Started => return Ok(true),
            Condition::Healthy | Condition::Completed => super::owned(self.engine, &self.project.name)?
                .iter()
                .filter(|owned| owned.service == needed && !owned.is_once)
                .map(|owned| owned.name().to_owned())
                .collect(),
        };
        let goes_on = || !self.state().is_stopped;
        for name in names {
            let is_so = match condition {
                Condition::Completed => health::wait_completed(self.engine, &name, goes_on)?,
                _ => health::wait_healthy(self.engine, &name, self.wish.until, goes_on)?,
            };
            if !is_so {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until all machines of the services that have a health check are healthy, and the others run.
    pub(super) fn wait_healthy(&self) -> Result<(), Failure> {
        for owned in super::owned(self.engine, &self.project.name)? {
            if owned.is_once || !self.wish.services.contains(&owned.service) {
                continue;
            }
            let name = owned.name();
            health::wait_up(self.engine, name, self.wish.until).map_err(of_service(&owned.service))?;
        }
        Ok(())
    }

    /// Makes the machines of a service what they are to be.
    fn machines(&self, service: &Service) -> Result<(), Failure> {
        let needs_renewed = {
            let state = self.state();
            let mut needs = service.depends_on.iter();
            needs.any(|(name, dependency)| dependency.restart && state.renewed.contains(name))
        };
        let own = |owned: &&Owned| owned.service == service.name && !owned.is_once;
        let surplus = self
            .there
            .iter()
            .filter(own)
            .filter(|owned| owned.number > service.scale);
        for owned in surplus {
            self.remove(owned)?;
        }
        let first: Mutex<Option<Failure>> = Mutex::new(None);
        thread::scope(|scope| {
            for number in 1..=service.scale {
                let (first, there) = (
                    &first,
                    self.there.iter().filter(own).find(|owned| owned.number == number),
                );
                scope.spawn(move || {
                    self.enter();
                    // Not in the match, which would keep the state locked.
                    let is_stopped = self.state().is_stopped;
                    let done = match is_stopped {
                        true => Ok(()),
                        false => self.machine(service, number, there, needs_renewed),
                    };
                    self.leave();
                    if let Err(failure) = done {
                        first
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .get_or_insert(failure);
                    }
                });
            }
        });
        match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Waits for a place among those that work.
    fn enter(&self) {
        let mut state = self.state();
        while state.free == 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.free -= 1;
    }

    fn leave(&self) {
        self.state().free += 1;
        self.changed.notify_all();
    }

    fn remove(&self, owned: &Owned) -> Result<(), Failure> {
        self.engine.stop(owned.name(), self.wish.grace)?;
        self.engine.remove(owned.name(), true, true)?;
        tell(&format!("Machine {}", owned.name()), "removed");
        Ok(())
    }

    fn machine(&self, service: &Service, number: u32, there: Option<&Owned>, is_forced: bool) -> Result<(), Failure> {
        let name = name(self.project, service, number);
        let hash = resources::hash(self.project, service);
        if let Some(owned) = there {
            let is_same = owned.label(HASH) == Some(&hash) && owned.name() == name && !self.has_newer_image(owned);
            if (is_same || self.wish.keeps_changed) && !self.wish.force && !is_forced {
                return self.start(owned.name(), owned.is_active());
            }
            self.remove(owned)?;
            self.state().renewed.insert(service.name.clone());
        }
        let instance = Instance {
            project: self.project,
            service,
            labels: labels(self.project, service, number, &hash, false),
            name: name.clone(),
            files: &self.files,
            joins: self.joins,
            publishes: true,
            once: false,
        };
        let mut args = instance.create_args()?;
        args.pull = pull(self.wish.pull, service);
        create(self.engine, self.project, &args)?;
        tell(
            &format!("Machine {name}"),
            if there.is_some() { "made anew" } else { "created" },
        );
        self.start(&name, false)
    }

    /// Whether the image that its name stands for now, as far as this host knows, is another one than that of the machine.
    fn has_newer_image(&self, owned: &Owned) -> bool {
        let spec = &owned.machine.spec;
        let Some(pinned) = &spec.pinned else { return false };
        let found = self.engine.image(&ImageRequest {
            text: &spec.flist,
            cwd: &self.project.folder,
            pull: PullPolicy::Never,
            mode: Mode::Auto,
            stores: &spec.stores,
            progress: &Bars::bytes(),
        });
        found.is_ok_and(|found| found.pinned.is_some_and(|now| now != *pinned))
    }

    fn start(&self, name: &str, is_active: bool) -> Result<(), Failure> {
        if is_active {
            tell(&format!("Machine {name}"), "running");
            return Ok(());
        }
        if !self.wish.starts || self.state().is_stopped {
            return Ok(());
        }
        self.engine.start(name, false)?.wait_ready(&Bars::bytes())?;
        tell(&format!("Machine {name}"), "started");
        Ok(())
    }
}

/// The name of a machine.
pub(super) fn name(project: &Project, service: &Service, number: u32) -> String {
    let own = || format!("{}-{}-{number}", project.name, service.name);
    service.container_name.clone().unwrap_or_else(own)
}

/// What the user says, else the service.
fn pull(wish: Option<Pull>, service: &Service) -> Pull {
    wish.unwrap_or(match service.pull_policy.as_deref() {
        Some("always") => Pull::Always,
        Some("never") => Pull::Never,
        _ => Pull::Missing,
    })
}

/// Makes a machine.
fn create(engine: &Engine, project: &Project, args: &CreateArgs) -> Result<(), Failure> {
    let spec = spec(project, args)?;
    let made = crate::commands::run::with_options(args, |options| {
        engine.create(
            &spec,
            &CreateOptions {
                cwd: &project.folder,
                ..*options
            },
        )
    });
    made.map(drop)
}

fn spec(project: &Project, args: &CreateArgs) -> Result<MachineSpec, Failure> {
    args.spec(&project.folder, String::new, |name| std::env::var(name).ok())
}

/// The labels by which a machine is known, and the service's own.
pub(super) fn labels(
    project: &Project,
    service: &Service,
    number: u32,
    hash: &str,
    is_once: bool,
) -> BTreeMap<String, String> {
    let condition = |condition| match condition {
        Condition::Started => "service_started",
        Condition::Healthy => "service_healthy",
        Condition::Completed => "service_completed_successfully",
    };
    let needs: Vec<String> = service
        .depends_on
        .iter()
        .map(|(name, needed)| format!("{name}:{}:{}", condition(needed.condition), needed.restart))
        .collect();
    let files: Vec<String> = project.files.iter().map(|file| file.display().to_string()).collect();
    let mut labels = service.labels.clone();
    labels.extend(
        [
            (PROJECT, project.name.clone()),
            (SERVICE, service.name.clone()),
            (NUMBER, number.to_string()),
            (HASH, hash.to_owned()),
            (ONE_OFF, if is_once { "True" } else { "False" }.to_owned()),
            (WORKING_DIR, project.folder.display().to_string()),
            (CONFIG_FILES, files.join(",")),
            (DEPENDS_ON, needs.join(",")),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    labels
}
