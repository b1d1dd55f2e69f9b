//! Making the machines of services what the files say, each service after what it needs, and as many at once as there is room for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use zmachine_compose::{Condition, Project, Service};
use zmachine_engine::{CreateOptions, Engine, ImageRequest};
use zmachine_image::{Mode, PullPolicy};
use zmachine_spec::{Class, Failure};

use crate::end::{remove, remove_but};
use crate::owned::{HASH, Owned, labels, owned};
use crate::words::{Granted, Instance};
use crate::{Front, health, of_service, resources};

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Services that are looked at; what they need besides is taken as it is.
    pub services: BTreeSet<String>,
    /// Machines that have not changed are made anew, too.
    pub force: bool,
    /// Machines that have changed are left as they are.
    pub keeps_changed: bool,
    /// Machines are started, and not only made.
    pub starts: bool,
    /// When images are asked for again, in place of what services say.
    pub pull: Option<PullPolicy>,
    /// Time to stop, in place of that of each machine.
    pub grace: Option<Duration>,
    /// Until when health is waited for.
    pub until: Option<Instant>,
    /// So many machines at once.
    pub slots: usize,
}

/// How far a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Ready,
    Failed,
}

/// One run of it.
pub struct Convergence<'a> {
    engine: &'a Engine,
    front: &'a dyn Front,
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
    pub fn new(
        engine: &'a Engine,
        front: &'a dyn Front,
        project: &'a Project,
        wish: Wish,
    ) -> Result<Convergence<'a>, Failure> {
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
        let joins = resources::networks(engine, front, project, &used, machines)?;
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
            there: owned(engine, &project.name)?,
            engine,
            front,
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
    pub fn stop(&self) {
        self.state().is_stopped = true;
        self.changed.notify_all();
    }

    /// Does all of it. What runs goes on.
    ///
    /// # Errors
    /// One of the failures; the others are told.
    pub fn run(&self) -> Result<(), Failure> {
        thread::scope(|scope| {
            for name in &self.wish.services {
                if let Some(service) = self.project.services.get(name) {
                    scope.spawn(move || self.service(service));
                }
            }
        });
        let mut state = self.state();
        let last = state.failures.pop();
        state.failures.iter().for_each(|failure| self.front.failed(failure));
        match last {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn service(&self, service: &Service) {
        // Whoever waits for it hears of a thread that panics, too.
        let _over = Over(|| {
            let mut state = self.state();
            if let Some(progress @ Progress::Waiting) = state.progress.get_mut(&service.name) {
                *progress = Progress::Failed;
            }
            drop(state);
            self.changed.notify_all();
        });
        let done = self.wait_for_needs(service).and_then(|goes_on| match goes_on {
            true => self.machines(service).map(|()| true),
            false => Ok(false),
        });
        let mut state = self.state();
        let progress = match done {
            Ok(true) => Progress::Ready,
            Ok(false) => Progress::Failed,
            Err(failure) => {
                state.failures.push(of_service(self.front, &service.name, failure));
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
            Condition::Healthy | Condition::Completed => owned(self.engine, &self.project.name)?
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
    ///
    /// # Errors
    /// When one is unhealthy or has ended, or the time is over.
    pub fn wait_healthy(&self) -> Result<(), Failure> {
        for owned in owned(self.engine, &self.project.name)? {
            if owned.is_once || !self.wish.services.contains(&owned.service) {
                continue;
            }
            let name = owned.name();
            health::wait_up(self.engine, name, self.wish.until)
                .map_err(|failure| of_service(self.front, &owned.service, failure))?;
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
            remove(self.engine, self.front, owned, self.wish.grace)?;
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

    fn machine(&self, service: &Service, number: u32, there: Option<&Owned>, is_forced: bool) -> Result<(), Failure> {
        let name = name(self.project, service, number);
        let hash = resources::hash(self.project, service);
        if let Some(owned) = there {
            let is_same = owned.label(HASH) == Some(&hash) && owned.name() == name && !self.has_newer_image(owned);
            if (is_same || self.wish.keeps_changed) && !self.wish.force && !is_forced {
                return self.start(owned.name(), owned.is_active());
            }
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
        let mut spec = self
            .front
            .spec(instance.create_words(self.front)?, &self.project.folder)?;
        let options = CreateOptions {
            cwd: &self.project.folder,
            pull: pull(self.wish.pull, service),
            installs_kernel: true,
            progress: &*self.front.progress(),
        };
        let mut own = BTreeMap::new();
        if let Some(owned) = there {
            // What can fail for what the files say fails while the old one is still there.
            self.engine.bring_image(&spec, &options)?;
            own = self.engine.own_volumes(&owned.machine)?;
            remove_but(self.engine, self.front, owned, self.wish.grace, true)?;
            self.state().renewed.insert(service.name.clone());
            spec = self.engine.with_volumes_of(spec, &own);
        }
        let machine = self.engine.create(&spec, &options)?;
        self.engine.take_over(&machine, &own)?;
        self.front.done(
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
            is_lazy: true,
            stores: &spec.stores,
            progress: &*self.front.progress(),
        });
        found.is_ok_and(|found| found.pinned.is_some_and(|now| now != *pinned))
    }

    fn start(&self, name: &str, is_active: bool) -> Result<(), Failure> {
        if is_active {
            self.front.done(&format!("Machine {name}"), "running");
            return Ok(());
        }
        if !self.wish.starts || self.state().is_stopped {
            return Ok(());
        }
        self.engine.start(name, false)?.wait_ready(&*self.front.progress())?;
        self.front.done(&format!("Machine {name}"), "started");
        Ok(())
    }
}

/// The name of a machine.
pub fn name(project: &Project, service: &Service, number: u32) -> String {
    let own = || format!("{}-{}-{number}", project.name, service.name);
    service.container_name.clone().unwrap_or_else(own)
}

/// What the user says, else the service.
fn pull(wish: Option<PullPolicy>, service: &Service) -> PullPolicy {
    wish.unwrap_or(match service.pull_policy.as_deref() {
        Some("always") => PullPolicy::Always,
        Some("never") => PullPolicy::Never,
        _ => PullPolicy::Missing,
    })
}
/// Does something when it is dropped.
struct Over<F: FnMut()>(F);

impl<F: FnMut()> Drop for Over<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
