//! Where the networks of a home are: their folders, files and locks.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use zmachine_sys::file::{self, FileError};
use zmachine_sys::lock::FileLock;

use crate::error::NetworkError;
use crate::links::Links;
use crate::name;
use crate::network::{Network, NetworkRecord, VERSION};
use crate::subnet;

/// What all homes of this host share: the record of sysctls (see `sysctl`). Gone after a reboot, as they are.
const HOST_DIR: &str = "/run/zmachine-host";

/// A hook that is called with a name after each single step in the kernel or on disk.
pub(crate) type StepHook = Arc<dyn Fn(&'static str) + Send + Sync>;

/// The networks of a home.
#[derive(Clone)]
pub struct Networks {
    dir: PathBuf,
    host_dir: PathBuf,
    home: String,
    step: Option<StepHook>,
    jail: bool,
    launcher: Option<PathBuf>,
}

impl std::fmt::Debug for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Networks")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Networks {
    /// The networks in `<home>/networks`; the folder is made when missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(home: &Path) -> Result<Networks, NetworkError> {
        let dir = home.join("networks");
        file::make_dirs(&dir)?;
        let canonical = home.canonicalize().map_err(|e| FileError::io("find", home, e))?;
        Ok(Networks {
            dir,
            host_dir: HOST_DIR.into(),
            home: name::home_id(&canonical),
            step: None,
            jail: false,
            launcher: None,
        })
    }

    /// Locks the servers of names in. The calling program has the role [`zmachine_sys::jail::ROLE`].
    pub fn with_jail(mut self) -> Networks {
        self.jail = true;
        self
    }

    /// The program that has this role, in the place of the calling one.
    pub fn with_launcher(mut self, program: &Path) -> Networks {
        self.launcher = Some(program.to_owned());
        self
    }

    pub(crate) fn launcher(&self) -> Option<PathBuf> {
        self.launcher.clone()
    }

    pub(crate) fn has_jail(&self) -> bool {
        self.jail
    }

    /// Keeps the host-wide record elsewhere than in `/run/zmachine-host`. All homes of one host must agree on it.
    pub fn with_host_dir(mut self, dir: &Path) -> Networks {
        self.host_dir = dir.to_owned();
        self
    }

    /// Calls `hook` after each single step with the step's name: the place for kill-point tests to abort.
    pub fn with_step_hook(mut self, hook: impl Fn(&'static str) + Send + Sync + 'static) -> Networks {
        self.step = Some(Arc::new(hook));
        self
    }

    pub(crate) fn step(&self, name: &'static str) {
        if let Some(hook) = &self.step {
            hook(name);
        }
    }

    /// Where the folders of all networks are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Tells this home from others of the host.
    pub(crate) fn home_id(&self) -> &str {
        &self.home
    }

    pub(crate) fn host_dir(&self) -> &Path {
        &self.host_dir
    }

    /// The folder of network `name`.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, NetworkError> {
        name::check(name)?;
        Ok(self.dir.join(name))
    }

    /// The network `name`.
    ///
    /// # Errors
    /// [`NetworkError::NoSuchNetwork`], or when its file cannot be read or is of another version.
    pub fn get(&self, name: &str) -> Result<Network, NetworkError> {
        let path = self.folder(name)?.join("network.json");
        let record: NetworkRecord = match file::read_json(&path) {
            Ok(record) => record,
            Err(e) if e.is_not_found() => return Err(NetworkError::NoSuchNetwork { name: name.to_owned() }),
            Err(e) => return Err(e.into()),
        };
        if record.version != VERSION {
            let path = path.display().to_string();
            return Err(NetworkError::Version {
                path,
                found: record.version,
                known: VERSION,
            });
        }
        Ok(Network::new(record, &self.home))
    }

    /// All networks, by name.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn list(&self) -> Result<Vec<Network>, NetworkError> {
        let mut names = entries(&self.dir)?;
        names.retain(|n| !n.starts_with('.'));
        names.sort();
        names.iter().map(|n| self.get(n)).collect()
    }

    /// The route of the host, other than the network's own, that overlaps its subnet.
    pub(crate) async fn collision(&self, network: &Network) -> Result<Option<Ipv4Net>, NetworkError> {
        let routes = Links::open()?.ipv4_routes(network.bridge()).await?;
        Ok(subnet::overlapping(network.ipv4(), &routes))
    }

    /// Takes the lock of network `name`, under which its attachments and its presence in the kernel change.
    pub(crate) async fn lock(&self, name: &str) -> Result<FileLock, NetworkError> {
        lock(&self.folder(name)?.join("lock")).await
    }
}

/// Takes a lock without blocking the thread, whose other tasks may be those that hold it.
pub(crate) async fn lock(path: &Path) -> Result<FileLock, NetworkError> {
    loop {
        if let Some(lock) = FileLock::try_exclusive(path)? {
            return Ok(lock);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Names of the entries of `dir`.
pub(crate) fn entries(dir: &Path) -> Result<Vec<String>, FileError> {
    let read = fs::read_dir(dir).map_err(|e| FileError::io("list", dir, e))?;
    read.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()
        .map_err(|e| FileError::io("list", dir, e))
}
