//! Containers of a guest that has several: each has a root, a control group and processes of its own. The network and the memory of
//! System V and POSIX are the guest's, as those of a pod are.
//!
//! ```text
//! /run/zmachine/containers/<id>/root     where a container's root is put together; the mount is in its own namespace alone
//! /run/zmachine/memory/<name>            file systems in memory that containers share
//! /sys/fs/cgroup/container-<id>          its control group
//! ```
//! | module | owns |
//! |---|---|
//! | `spawn` | the child: fork, namespaces, exec |
//! | `root` | mounts, devices, the change of the root |
//! | `credentials` | user, capabilities, limits, the system call filter |
//! | `cgroup` | limits, figures, all processes at once |
//!
//! # Invariants
//! A container is over when its first process is: what is left of it is killed then.

mod cgroup;
mod credentials;
mod devices;
mod error;
mod memory;
mod root;
mod spawn;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::{Instant, timeout_at};
use zmachine_agent_protocol::{
    Container, ContainerProcess, ContainerReply, ContainerRequest, ContainerRoot, ImageLayer,
};

use self::cgroup::Cgroup;
pub(crate) use self::error::ContainerError;
use self::error::{errno, step};
use self::spawn::Place;
use crate::modules;
use crate::process::{AgentSide, Started, open_stdio, pidfd};
use crate::reaper::Reaper;
use crate::setup::Layers;
use crate::users::Identity;

/// Where roots are put together.
const FOLDER: &str = "/run/zmachine/containers";

/// How long killed processes may take to vanish.
const VANISH: Duration = Duration::from_secs(5);

/// One container.
#[derive(Debug)]
struct Known {
    /// Its first process; 0 while it is starting.
    pid: i32,
    own_pids: bool,
    cgroup: Cgroup,
}

/// All of a boot.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    known: RefCell<BTreeMap<String, Known>>,
}

/// What the agent lends to a start.
pub(crate) struct Host<'a> {
    /// The agent's `/proc`.
    pub(crate) proc: &'a OwnedFd,
    /// Whoever reaps the process.
    pub(crate) reaper: &'a Reaper,
    /// What the machine's image is made of.
    pub(crate) layers: Option<&'a Layers>,
}

impl Containers {
    /// Makes a container, and starts its first process.
    ///
    /// # Errors
    /// [`ContainerError`]; nothing is left then.
    pub(crate) async fn make(
        &self,
        id: &str,
        container: &Container,
        process: &ContainerProcess,
        host: &Host<'_>,
    ) -> Result<(Started, AgentSide), ContainerError> {
        if !memory::is_name(id) {
            let what = format!("the container's id {id:?}");
            return Err(ContainerError::Unusable { what });
        }
        if self.known.borrow().contains_key(id) {
            let what = format!("the id {id:?}, which another container has,");
            return Err(ContainerError::Unusable { what });
        }
        let failed = |error: cgroup::CgroupError| ContainerError::Unusable {
            what: error.to_string(),
        };
        let cgroup = Cgroup::make(id, &container.limits).map_err(failed)?;
        let known = Known {
            pid: 0,
            own_pids: container.own_pids,
            cgroup: cgroup.clone(),
        };
        self.known.borrow_mut().insert(id.to_owned(), known);
        let started = self.start_first(id, container, process, &cgroup, host).await;
        match &started {
            Ok((started, _)) => {
                if let Some(known) = self.known.borrow_mut().get_mut(id) {
                    known.pid = started.pid;
                }
            }
            Err(_) => self.remove(id, host.reaper).await,
        }
        started
    }

    async fn start_first(
        &self,
        id: &str,
        container: &Container,
        process: &ContainerProcess,
        cgroup: &Cgroup,
        host: &Host<'_>,
    ) -> Result<(Started, AgentSide), ContainerError> {
        for module in &container.modules {
            // Who needs it is told by the kernel that it is not there.
            let _ = modules::load(Path::new(module));
        }
        memory::make_all(&container.mounts)?;
        let folder = folder_of(id).join("root");
        fs::create_dir_all(&folder).map_err(|error| step("make the root's folder")(errno(&error)))?;
        let _image = match &container.root {
            ContainerRoot::Image => Some(root::Image::mount(id, &folder, host.layers)?),
            ContainerRoot::Disk { serial } => {
                let only = ImageLayer {
                    serial: serial.clone(),
                    devices: Vec::new(),
                };
                Some(root::Image::mount_disks(id, &folder, host.layers, &[only]).await?)
            }
            ContainerRoot::Layers { layers } => Some(root::Image::mount_disks(id, &folder, host.layers, layers).await?),
            ContainerRoot::Directory { .. } => None,
        };
        let devices = devices::found(container).await?;
        if container.devices_alone {
            devices::restrict(cgroup.folder(), &devices)?;
        }
        let place = Place::New {
            container,
            devices: &devices,
            folder: &folder,
        };
        start(&place, process, cgroup, host).await
    }

    /// Starts one more process in a container.
    ///
    /// # Errors
    /// [`ContainerError`], also when there is no such container, or its first process has ended.
    pub(crate) async fn add(
        &self,
        id: &str,
        process: &ContainerProcess,
        host: &Host<'_>,
    ) -> Result<(Started, AgentSide), ContainerError> {
        let found = self.known.borrow().get(id).map(|known| {
            let is_running = known.pid != 0 && host.reaper.is_alive(known.pid);
            (is_running, known.pid, known.own_pids, known.cgroup.clone())
        });
        match found {
            Some((true, pid, own_pids, cgroup)) => {
                let first = pidfd(pid).map_err(step("find the container"))?;
                start(&Place::Beside { first, own_pids }, process, &cgroup, host).await
            }
            Some(_) => Err(ContainerError::Unusable {
                what: format!("the container {id:?}, which does not run,"),
            }),
            None => Err(ContainerError::Unusable {
                what: format!("the container {id:?}, which is not there,"),
            }),
        }
    }

    /// The first process of a container has ended: so does all that it started.
    pub(crate) fn ended(&self, id: &str) {
        if let Some(known) = self.known.borrow().get(id) {
            known.cgroup.kill();
        }
    }

    /// Does what the host asks.
    ///
    /// # Errors
    /// When there is no such container, or the guest refuses.
    pub(crate) async fn request(
        &self,
        id: &str,
        request: &ContainerRequest,
        reaper: &Rc<Reaper>,
    ) -> Result<ContainerReply, ContainerError> {
        if *request == ContainerRequest::Remove {
            self.remove(id, reaper).await;
            return Ok(ContainerReply::Done);
        }
        let cgroup = self.known.borrow().get(id).map(|known| known.cgroup.clone());
        let cgroup = cgroup.ok_or_else(|| ContainerError::Unusable {
            what: format!("the container {id:?}, which is not there,"),
        })?;
        let failed = |error: cgroup::CgroupError| ContainerError::Unusable {
            what: error.to_string(),
        };
        match request {
            ContainerRequest::KillAll { signal: libc::SIGKILL } => cgroup.kill(),
            ContainerRequest::KillAll { signal } => {
                for pid in cgroup.pids() {
                    send(pid, *signal).map_err(step(format!("send signal {signal}")))?;
                }
            }
            ContainerRequest::Signal { pid, signal } => {
                let is_own = cgroup.pids().contains(pid);
                if let (true, Ok(pid)) = (is_own, i32::try_from(*pid)) {
                    let sent = reaper.signal(pid, *signal);
                    sent.map_err(step(format!("send signal {signal}")))?;
                }
            }
            ContainerRequest::Update(limits) => cgroup.limit(limits).map_err(failed)?,
            ContainerRequest::Freeze(frozen) => cgroup.freeze(*frozen).map_err(failed)?,
            ContainerRequest::Stats => return Ok(ContainerReply::Stats(Box::new(cgroup.stats()))),
            ContainerRequest::Pids => return Ok(ContainerReply::Pids(cgroup.pids())),
            ContainerRequest::Remove => {}
        }
        Ok(ContainerReply::Done)
    }

    /// Kills what is left of a container, and forgets it.
    async fn remove(&self, id: &str, reaper: &Reaper) {
        let Some(known) = self.known.borrow_mut().remove(id) else {
            return;
        };
        known.cgroup.kill();
        let deadline = Instant::now() + VANISH;
        while known.cgroup.remove().is_err() && Instant::now() < deadline {
            let _ = timeout_at(Instant::now() + Duration::from_millis(50), reaper.reaped()).await;
        }
        let folder = folder_of(id);
        let _ = fs::remove_dir(folder.join("root"));
        let _ = fs::remove_dir(&folder);
    }
}

fn folder_of(id: &str) -> PathBuf {
    Path::new(FOLDER).join(id)
}

async fn start(
    place: &Place<'_>,
    process: &ContainerProcess,
    cgroup: &Cgroup,
    host: &Host<'_>,
) -> Result<(Started, AgentSide), ContainerError> {
    let identity = Identity {
        uid: process.uid,
        gid: process.gid,
        groups: process.groups.clone(),
        home: String::new(),
    };
    let streams = open_stdio(process.terminal, process.stdin, &identity);
    let (child, side) = streams.map_err(|error| ContainerError::Unusable {
        what: format!("the standard streams ({error})"),
    })?;
    let started = spawn::start(place, process, cgroup, child, host.proc, host.reaper).await?;
    Ok((started, side))
}

/// Sends a signal; a process that is gone has got it.
fn send(pid: u32, signal: i32) -> Result<(), Errno> {
    let (Some(pid), true) = (
        rustix::process::Pid::from_raw(pid.cast_signed()),
        (1..=64).contains(&signal),
    ) else {
        return Err(Errno::INVAL);
    };
    let sent = nix::sys::signal::Signal::try_from(signal).map_or(Err(Errno::INVAL), |signal| {
        let pid = nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get());
        nix::sys::signal::kill(pid, signal).map_err(|error| Errno::from_raw_os_error(error as i32))
    });
    match sent {
        Err(Errno::SRCH) => Ok(()),
        other => other,
    }
}
