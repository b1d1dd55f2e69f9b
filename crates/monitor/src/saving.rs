//! Saving a machine while it runs.
//!
//! ```text
//! client ─ Save ─> loop ─> task: agent freezes ─> loop: hypervisor stops and tells its state, memory and disk are copied,
//!                                                       hypervisor goes on ─> task: agent thaws ─> client
//! ```
//! The loop waits for no guest: what the agent does is done by tasks. What it waits for are the hypervisor and copies within this host,
//! while the machine stands still.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;
use zmachine_agent_client::clock::{self, GuestClock};
use zmachine_agent_client::session::Session;
use zmachine_agent_protocol::{Request as AgentRequest, Thaw};
use zmachine_hypervisor::{Accel, Vm};
use zmachine_plan::Plan;
use zmachine_spec::control::Reply;
use zmachine_spec::saved::{FileMark, HostMark, MemoryMark, Saved, SavedVolume};
use zmachine_spec::{Class, Failure, Phase};
use zmachine_store::log::Source;
use zmachine_store::snapshot::{DISK, FIRMWARE, MEMORY, STATE, memory, volume_file};
use zmachine_store::volume::Volume;
use zmachine_sys::file::FileError;
use zmachine_sys::sparse;

use super::follow::Follow;
use super::frozen::Frozen;
use super::guest::{self, within, within_time};
use super::inbox::Event;
use super::init::Init;
use super::launch::{in_thread, joined};

/// How long a guest may take to stand still; its agent gives up before.
pub(super) const FREEZE_TIMEOUT: Duration = Duration::from_secs(40);

impl Follow<'_> {
    /// Begins to save the machine.
    pub(super) fn save(&mut self, folder: PathBuf, client: oneshot::Sender<Reply>) {
        // An init of the guest's own has nobody who would stop its processes; its CPUs are stopped, and memory and disks of one instant
        // belong together all the same.
        let session = self.may_be_saved().and_then(|()| match self.init {
            Init::Agent { .. } => self.awake_agent().map(Some),
            Init::Own => Ok(None),
        });
        let session = match session {
            Ok(session) => session,
            Err(failure) => return guest::reply(client, Err(failure)),
        };
        self.is_saving = true;
        let events = self.monitor.events.clone();
        tokio::spawn(async move {
            let result = match session {
                Some(session) => freeze(&session).await,
                None => Ok(None),
            };
            let frozen = Frozen {
                folder,
                client,
                result,
                to_sleep: false,
            };
            // A machine that has ended tells its clients by closing their connections.
            let _ = events.send(Event::Frozen(Box::new(frozen))).await;
        });
    }

    fn may_be_saved(&self) -> Result<(), Failure> {
        let name = &self.monitor.machine.spec.name;
        let refused = |message: String, hint: &str| Err(Failure::new(Class::Conflict, message).hint(hint));
        if !self.plan.vm().is_saveable {
            return refused(
                format!("the machine '{name}' was not built to be saved while it runs"),
                "make it with --snapshots",
            );
        }
        if self.is_rewired {
            return refused(
                format!("the machine '{name}' has joined or left a network since it was started"),
                "start it anew, then it can be saved",
            );
        }
        if self.is_saving {
            return refused(
                format!("the machine '{name}' is being saved already"),
                "try again when that is done",
            );
        }
        if self.monitor.machine.state.phase != Phase::Running {
            let word = self.monitor.machine.state.phase.word();
            return refused(
                format!("the machine '{name}' is {word}"),
                "only one that runs can be saved",
            );
        }
        Ok(())
    }

    /// The guest stands still, or does not.
    pub(super) async fn frozen(&mut self, frozen: Frozen) {
        let Frozen {
            folder,
            client,
            result,
            to_sleep,
        } = frozen;
        if to_sleep {
            return self.go_to_sleep(result).await;
        }
        self.is_saving = false;
        let clock = match result {
            Ok(clock) => clock,
            Err(failure) => return guest::reply(client, Err(failure.context("the guest does not stand still"))),
        };
        self.monitor.kill.pass("save: guest frozen");
        let volumes = self.plan.volumes().iter().zip(&self.monitor.volumes);
        let saving = Saving {
            own: [DISK, FIRMWARE]
                .map(|name| self.monitor.machine.dir.join(name))
                .to_vec(),
            volumes: volumes
                .map(|(how, held)| (held.volume.clone(), how.read_only))
                .collect(),
            accel: self.plan.vm().accel,
            memory_bytes: self.plan.vm().memory_bytes,
            has_entrypoint: matches!(&*self.plan, Plan::Container(plan) if !plan.is_idle()),
            clock,
        };
        let saved = save_vm(&mut *self.running.vm, &saving, &folder);
        // Otherwise the machine is about to end.
        let Ok(saved) = self.inbox.unless_ended(saved).await else {
            return;
        };
        self.monitor.kill.pass("save: machine saved");
        if self.init == Init::Own {
            // It stood still for a moment.
            clock::tell(self.session());
            return drop(client.send(saved.map_or_else(Reply::Failed, |saved| Reply::Saved(Box::new(saved)))));
        }
        let Some(session) = self.session() else { return };
        let log = self.monitor.log.clone();
        tokio::spawn(async move {
            let thawed = thaw(&session).await;
            if let Err(failure) = &thawed {
                log.note(Source::Monitor, &format!("the guest does not go on: {failure}"));
            }
            let reply = match (saved, thawed) {
                (Ok(saved), Ok(())) => Reply::Saved(Box::new(saved)),
                (Err(failure), _) => Reply::Failed(failure),
                (_, Err(failure)) => Reply::Failed(failure.context("the guest does not go on")),
            };
            let _ = client.send(reply);
        });
    }
}

/// Has the guest stand still, and looks at its clock.
///
/// # Errors
/// When it does not stand still. It goes on then.
pub(super) async fn freeze(session: &Session) -> Result<Option<GuestClock>, Failure> {
    guest::ask(session, &AgentRequest::Freeze, FREEZE_TIMEOUT).await?;
    Ok(GuestClock::read(session).await)
}

/// Lets the processes of a guest go on that is the machine which it was.
///
/// # Errors
/// When it does not.
pub(super) async fn thaw(session: &Session) -> Result<(), Failure> {
    let thaw = Thaw {
        seed: Vec::new(),
        unix_nanos: unix_nanos(),
        monotonic_began: None,
        identity: None,
    };
    guest::ask(session, &AgentRequest::Thaw(Box::new(thaw)), guest::ANSWER_TIMEOUT).await
}

/// How long a hypervisor may take to save a machine, beside its memory.
const SAVE_TIMEOUT: Duration = Duration::from_secs(120);

/// What the slowest disk takes of the memory in a second, in bytes.
const SLOWEST: u64 = 32 << 20;

/// What is saved, beside what the hypervisor has.
#[derive(Debug)]
pub(super) struct Saving {
    /// The files of its folder that are disks, where they are there.
    pub(super) own: Vec<PathBuf>,
    /// Its volumes, and which of them it only reads.
    pub(super) volumes: Vec<(Volume, bool)>,
    /// What executes the guest's code.
    pub(super) accel: Accel,
    /// Its memory.
    pub(super) memory_bytes: u64,
    /// Its entrypoint has been started.
    pub(super) has_entrypoint: bool,
    /// What its guest's clock shows.
    pub(super) clock: Option<GuestClock>,
}

/// Saves a machine, whose guest stands still, and lets the hypervisor go on whatever comes of it.
///
/// # Errors
/// Whatever could not be written, or that the hypervisor does not go on.
pub(super) async fn save_vm(vm: &mut dyn Vm, saving: &Saving, folder: &Path) -> Result<Saved, Failure> {
    let begun = Instant::now();
    let saved = save_still(vm, saving, folder).await;
    within("resume", vm.go_on()).await?;
    Ok(Saved {
        paused_us: begun.elapsed().as_micros() as u64,
        ..saved?
    })
}

/// [`save_vm`] that leaves the hypervisor as it is then: it does not go on by itself.
///
/// # Errors
/// Whatever could not be written.
pub(super) async fn save_still(vm: &mut dyn Vm, saving: &Saving, folder: &Path) -> Result<Saved, Failure> {
    let begun = Instant::now();
    let Copied {
        memory,
        is_memory_in_state,
        state,
        own_bytes,
        volumes,
        stopped,
    } = copy(vm, saving, folder).await?;
    Ok(Saved {
        hypervisor: vm.version(),
        host: HostMark::of_this_host(saving.accel == Accel::Kvm),
        has_entrypoint: saving.has_entrypoint,
        state,
        memory,
        is_memory_in_state,
        disk_bytes: own_bytes.get(DISK).copied(),
        firmware_bytes: own_bytes.get(FIRMWARE).copied(),
        volumes,
        paused_us: begun.elapsed().as_micros() as u64,
        guest_monotonic: saving.clock.map(|clock| clock.at(stopped)),
        is_thawed_first: saving.clock.is_some_and(|clock| clock.is_thawed_first),
    })
}

/// Stops the hypervisor, and copies what the machine is.
async fn copy(vm: &mut dyn Vm, saving: &Saving, folder: &Path) -> Result<Copied, Failure> {
    // Of one that shares its memory with others, what it has written is in the hypervisor alone, which puts all of it into the state.
    let own = vm.memory().map(|memory| memory.try_clone_to_owned()).transpose()?;
    let is_memory_in_state = own.is_none();
    let memory = own.map_or_else(|| memory::zeros(saving.memory_bytes), Ok)?;
    let mut disks = Vec::new();
    let mut own_bytes = BTreeMap::new();
    for path in &saving.own {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match File::open(path) {
            Ok(file) => {
                own_bytes.insert(name.to_owned(), file.metadata()?.len());
                disks.push((file, make(folder, name)?));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(FileError::io("open", path, error).into()),
        }
    }
    for (index, (volume, read_only)) in saving.volumes.iter().enumerate() {
        if !read_only {
            let path = volume.data();
            let file = File::open(&path).map_err(|e| FileError::io("open", &path, e))?;
            disks.push((file, make(folder, &volume_file(index))?));
        }
    }
    let files = Files {
        memory: (memory, make(folder, MEMORY)?),
        disks,
    };
    let state = make(folder, STATE)?;
    // Some hypervisors write the memory as well.
    let limit = SAVE_TIMEOUT + Duration::from_secs(saving.memory_bytes / SLOWEST);
    let saved = within_time("save", limit, vm.save(OwnedFd::from(state.try_clone()?))).await;
    let stopped = saved.map_err(|failure| failure.context("the hypervisor does not save the machine"))?;
    // From here on nothing is written to the disks.
    let volumes = saving.volumes.iter();
    let volumes = volumes.map(|(volume, read_only)| volume.saved(*read_only));
    let volumes = volumes.collect::<Result<_, Failure>>()?;
    let (memory, state) = joined(in_thread(move || files.copy(&state))).await?;
    Ok(Copied {
        memory,
        is_memory_in_state,
        state,
        own_bytes,
        volumes,
        stopped,
    })
}

/// Makes a file of a folder that nobody else reads.
fn make(folder: &Path, name: &str) -> Result<File, FileError> {
    let path = folder.join(name);
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&path).map_err(|e| FileError::io("make", &path, e))
}

/// What was saved of the machine itself.
struct Copied {
    memory: MemoryMark,
    is_memory_in_state: bool,
    state: FileMark,
    /// Lengths of its own disks, by their names.
    own_bytes: BTreeMap<String, u64>,
    volumes: Vec<SavedVolume>,
    stopped: SystemTime,
}

/// What is copied while the machine stands still, each with where it goes.
struct Files {
    memory: (OwnedFd, File),
    disks: Vec<(File, File)>,
}

impl Files {
    fn copy(self, state: &File) -> Result<(MemoryMark, FileMark), Failure> {
        let context = |what: &'static str| move |e: std::io::Error| Failure::from(e).context(what);
        let (from, to) = &self.memory;
        let memory = memory::save(from, to).map_err(context("the memory cannot be saved"))?;
        for (from, to) in &self.disks {
            sparse::copy(from, to).map_err(context("a disk cannot be saved"))?;
        }
        let state = memory::mark(state).map_err(context("the state cannot be read"))?;
        Ok((memory, state))
    }
}

/// The host's time.
pub(super) fn unix_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
