//! The machine of a pod: made, started, and ended with its shim.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::StatFs;
use zmachine_agent_protocol::{ContainerLimits, ContainerRoot, DeviceNode, ImageLayer, Interface, Route};

use zmachine_engine::{AbortAt, CreateOptions, Engine, ImageRequest, Programs, Starting};
use zmachine_flist::{Digest, Flist, Metadata, RouteTable, TreeBuilder};
use zmachine_image::{Mode, PullPolicy, Silent};
use zmachine_network::pod as namespace;
use zmachine_spec::bytes::Human;
use zmachine_spec::pod::ContainerNames;
use zmachine_spec::{Class, Failure, Home, MachineSpec, PodLink, PodNetwork, PodSettings, RestartPolicy};

use crate::cgroup::PodGroup;
use crate::devices;
use crate::error::ShimError;
use crate::etc::EtcFiles;
use crate::host;
use crate::layers::{self, Layer};
use crate::log::Log;
use crate::oci::{Place, Spec};
use crate::role::{self, Role, Size};
use crate::settings::Settings;
use crate::share::{self, PodFolder, SnapshotMount};
use crate::translate::{HostPaths, module_in_guest};

/// A pod's image, in place of an empty one.
const FLIST: &str = "zmachine.io/flist";

/// The file of the empty image, in the state's folder.
const EMPTY: &str = "pod.fl";

/// So many images of our snapshotter a pod has a place for: one for each container whose image no other one of it has.
const LATER_IMAGES: u16 = 8;

/// The most that a machine has places for: each is a bridge that its guest finds at boot.
const MOST_IMAGES: u16 = 24;

/// So many files with layers of containerd's own a pod has a place for.
const LATER_LAYERS: u16 = 12;

/// The most of a container by itself.
const MOST_LAYERS: u16 = 24;

/// How long a pod's guest has for its end.
const GRACE: Duration = Duration::from_secs(3);

/// Of `/var/lib/kubelet/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>`.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// The size of a file system in memory.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The machine of a pod that runs.
pub(crate) struct Pod {
    pub(crate) engine: Arc<Engine>,
    /// The machine's name.
    pub(crate) machine: String,
    pub(crate) folder: PodFolder,
    pub(crate) size: MachineSize,
    /// The network namespace that its guest took over.
    pub(crate) namespace: Option<PathBuf>,
    /// The image of the machine itself, which its containers may have as their root.
    flist: Option<String>,
    /// Images that were asked for by name, by these.
    digests: Mutex<BTreeMap<String, Digest>>,
    names: Mutex<ContainerNames>,
    names_file: PathBuf,
    /// Its containers have files of `/etc` from it.
    has_files: AtomicBool,
    /// A container was told of the kernel's modules.
    has_modules: Mutex<bool>,
    /// The machine ends when this is dropped, or this process ends.
    starting: Mutex<Option<Starting>>,
}

/// How large a machine is, from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MachineSize {
    cpus: u32,
    memory_bytes: u64,
}

impl MachineSize {
    /// Whether a container can have these limits.
    ///
    /// # Errors
    /// [`ShimError::Unsupported`] with what the machine has.
    pub(crate) fn check(self, limits: &ContainerLimits) -> Result<(), ShimError> {
        let period = limits.cpu_period_us.unwrap_or(100_000).max(1);
        let cpu_milli = limits.cpu_quota_us.map(|quota| quota.saturating_mul(1000) / period);
        let refused = |wanted: String, has: String| {
            Err(ShimError::Unsupported(format!(
                "a limit of {wanted} is more than the pod's machine has ({has}), whose size is that of its start: make a new pod"
            )))
        };
        match (limits.memory_bytes, cpu_milli) {
            (Some(bytes), _) if bytes > self.memory_bytes => refused(
                format!("{} of memory", Human(bytes)),
                Human(self.memory_bytes).to_string(),
            ),
            (_, Some(milli)) if milli > u64::from(self.cpus) * 1000 => refused(
                format!("{}.{:03} CPUs", milli / 1000, milli % 1000),
                self.cpus.to_string(),
            ),
            _ => Ok(()),
        }
    }
}

/// Opens the state, in which machines of this host are.
///
/// # Errors
/// When it is not there, or the program `zmachine` is not.
pub(crate) fn open_engine(log: &Log) -> Result<Engine, ShimError> {
    let (data, run) = state_dirs()?;
    let home = Home::open(&data, &run)?;
    let warn = log.clone();
    Ok(Engine::open(home, programs()?, AbortAt::default(), move |line| {
        warn.line(line);
    })?)
}

/// The folders of the state, which the command line has as well.
pub(crate) fn state_dirs() -> Result<(PathBuf, PathBuf), ShimError> {
    match std::env::var_os("ZMACHINE_HOME").filter(|home| !home.is_empty()) {
        Some(home) => {
            let home = std::path::absolute(home).map_err(|e| ShimError::failed("ZMACHINE_HOME", e))?;
            let run = home.join("run");
            Ok((home, run))
        }
        None => Ok(("/var/lib/zmachine".into(), "/run/zmachine".into())),
    }
}

/// The `zmachine` beside this program, or that on the path.
fn programs() -> Result<Programs, Failure> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("zmachine")));
    match beside.filter(|program| program.is_file()) {
        Some(program) => Ok(Programs::at(&program)),
        None => Programs::find(),
    }
}

impl Pod {
    /// Makes the machine of the pod `key`, whose sandbox `spec` describes, and boots it.
    ///
    /// # Errors
    /// When no such machine can be had; nothing is left then.
    pub(crate) fn boot(
        key: &str,
        spec: &Spec,
        netns: Option<&Path>,
        settings: &Settings,
        needs: &Needs,
        group: Option<&PodGroup>,
        log: &Log,
    ) -> Result<Pod, ShimError> {
        let engine = Arc::new(open_engine(log)?);
        let folder = PodFolder::of(engine.home().run(), key);
        let flists = flists(&spec.annotations, settings)?;
        let images = Images::of(flists, needs);
        let network = network(spec, netns)?;
        let namespace = network.as_ref().map(|network| network.namespace.clone());
        folder.make_share()?;
        let machine_spec = machine(key, spec, settings, &images, network, (&folder, group), &engine)?;
        let name = machine_spec.name.clone();
        // Of a shim that was killed while it did this.
        remove_machine(&engine, &name)?;
        engine.create(&machine_spec, &CreateOptions::quiet(Path::new("/")))?;
        let started = engine.start_for_now(&name).and_then(|mut starting| {
            starting.wait_ready(&Silent)?;
            Ok(starting)
        });
        let starting = started.inspect_err(|_| drop(remove_machine(&engine, &name)))?;
        Ok(Pod {
            engine,
            machine: name,
            folder,
            size: MachineSize {
                cpus: machine_spec.cpus,
                memory_bytes: machine_spec.memory_bytes,
            },
            namespace,
            flist: images.own,
            digests: Mutex::default(),
            names: Mutex::default(),
            names_file: machine_spec
                .pod
                .as_ref()
                .map(PodSettings::names_file)
                .unwrap_or_default(),
            has_files: AtomicBool::new(false),
            has_modules: Mutex::new(false),
            starting: Mutex::new(Some(starting)),
        })
    }

    /// The root of a container that is an image of ours, by its annotations or by what the snapshotter says; `None`: it is another one.
    ///
    /// # Errors
    /// When it names an image that the pod was not made for, or that cannot be had.
    pub(crate) fn image_of(
        &self,
        annotations: &BTreeMap<String, String>,
        mounts: &[SnapshotMount],
    ) -> Result<Option<ContainerRoot>, ShimError> {
        let own = role::container_name(annotations).and_then(|name| annotations.get(&format!("{FLIST}.{name}")));
        let digest = match (own.or_else(|| annotations.get(FLIST)), &self.flist) {
            (Some(named), Some(flist)) if named == flist => return Ok(Some(ContainerRoot::Image)),
            (Some(named), _) => self.digest_of(named)?,
            (None, _) => match mounts.iter().find_map(SnapshotMount::image) {
                Some(digest) => digest?,
                None => return Ok(None),
            },
        };
        let serial = self.engine.add_image(&self.machine, &digest)?;
        Ok(Some(ContainerRoot::Disk { serial }))
    }

    /// The root of a container that is layers of containerd's; `None`: it is another one, or the machine has no place for them.
    ///
    /// # Errors
    /// Those of [`layers::of`], and when a layer cannot be read.
    pub(crate) fn layers_of(&self, mounts: &[SnapshotMount], log: &Log) -> Result<Option<ContainerRoot>, ShimError> {
        let Some(layers) = layers::of(mounts)? else {
            return Ok(None);
        };
        for file in layers.iter().flat_map(Layer::files) {
            match self.engine.add_file(&self.machine, file, &layers::serial(file), true) {
                Err(failure) if failure.class == Class::Conflict => {
                    log.line(&format!("layers of a container come over the share: {failure}"));
                    return Ok(None);
                }
                other => other?,
            }
        }
        let serials = |files: &[PathBuf]| files.iter().map(|file| layers::serial(file)).collect();
        let layer = |layer: &Layer| ImageLayer {
            serial: layers::serial(&layer.file),
            devices: serials(&layer.devices),
        };
        Ok(Some(ContainerRoot::Layers {
            layers: layers.iter().map(layer).collect(),
        }))
    }

    /// Brings those of a container's devices to the machine that are the host's.
    ///
    /// # Errors
    /// When one is not there, is in use, or there is no place for it.
    pub(crate) fn add_devices(&self, nodes: &[DeviceNode]) -> Result<(), ShimError> {
        for node in nodes {
            if let Some(serial) = &node.serial {
                let path = devices::path_of(node.major, node.minor)?;
                self.engine.add_file(&self.machine, &path, serial, node.read_only)?;
            }
        }
        Ok(())
    }

    /// The image that is meant by `named`.
    fn digest_of(&self, named: &str) -> Result<Digest, ShimError> {
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = digests.get(named) {
            return Ok(*digest);
        }
        let found = self.engine.image(&ImageRequest {
            text: named,
            cwd: Path::new("/"),
            pull: PullPolicy::Missing,
            mode: Mode::Container,
            is_lazy: true,
            stores: &[],
            progress: &Silent,
        })?;
        digests.insert(named.to_owned(), found.image.digest);
        Ok(found.image.digest)
    }

    /// Brings files that all containers have in common.
    ///
    /// # Errors
    /// Naming the file.
    pub(crate) fn bring_files(&self, files: &EtcFiles) -> Result<(), ShimError> {
        self.folder.bring_files(files)?;
        self.has_files.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether there are some.
    pub(crate) fn has_files(&self) -> bool {
        self.has_files.load(Ordering::Relaxed)
    }

    /// Notes the name of a container, for operators.
    pub(crate) fn add_name(&self, annotations: &BTreeMap<String, String>, id: &str) {
        let name = role::container_name(annotations).unwrap_or(id);
        self.change_names(|names| drop(names.insert(name.to_owned(), id.to_owned())));
    }

    /// Forgets it.
    pub(crate) fn remove_name(&self, id: &str) {
        self.change_names(|names| names.retain(|_, known| known != id));
    }

    fn change_names(&self, change: impl FnOnce(&mut ContainerNames)) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut names);
        // The pod is as good without it.
        let _ = zmachine_sys::file::replace_json_unsynced(&self.names_file, &*names);
    }

    /// The modules that a container may need which manages networks, brought to the guest; none when they are not to be had, or are in
    /// the guest's kernel already.
    pub(crate) fn modules(&self) -> Vec<String> {
        let mut are_there = self.has_modules.lock().unwrap_or_else(PoisonError::into_inner);
        if *are_there {
            return Vec::new();
        }
        let files = self.engine.network_modules(&self.machine).unwrap_or_default();
        let Some(folder) = files.first().and_then(|file| file.parent()) else {
            return Vec::new();
        };
        if self.folder.bind_modules(folder).is_err() {
            return Vec::new();
        }
        *are_there = true;
        files.iter().filter_map(|file| module_in_guest(file)).collect()
    }

    /// Waits until the machine has ended; why.
    pub(crate) fn wait(&self) -> String {
        match self.engine.wait(&self.machine) {
            Ok(Some(exit)) => format!("the machine has ended: {exit:?}"),
            Ok(None) => "the machine has ended".to_owned(),
            // It removes itself at its end.
            Err(failure) if failure.class == Class::NotFound => "the machine has ended".to_owned(),
            Err(failure) => format!("the machine has failed: {failure}"),
        }
    }

    /// Ends the machine; what it had on this host is gone then.
    pub(crate) fn end(&self) {
        let starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut starting) = starting else { return };
        if self.engine.stop(&self.machine, Some(GRACE)).is_err() {
            let _ = self.engine.kill(&self.machine);
        }
        starting.wait_gone();
        let _ = remove_machine(&self.engine, &self.machine);
    }
}

/// Removes a machine, however it is; one that is not there is fine.
pub(crate) fn remove_machine(engine: &Engine, name: &str) -> Result<(), Failure> {
    match engine.remove(name, true, true) {
        Err(failure) if failure.class == Class::NotFound => Ok(()),
        other => other,
    }
}

/// The name of the machine of the pod `key`.
pub(crate) fn machine_name(key: &str) -> String {
    format!("pod-{:.12}", key)
}

/// The flists that a pod's annotations name, each once.
fn flists(annotations: &BTreeMap<String, String>, settings: &Settings) -> Result<BTreeSet<String>, ShimError> {
    let is_one = |name: &str| name == FLIST || name.strip_prefix(FLIST).is_some_and(|rest| rest.starts_with('.'));
    let named: BTreeSet<String> = annotations
        .iter()
        .filter(|(name, _)| is_one(name))
        .map(|(_, value)| value.clone())
        .collect();
    match named.iter().find(|flist| !settings.allows_flist(flist)) {
        None => Ok(named),
        Some(flist) => Err(ShimError::Invalid(format!(
            "this node does not let pods name the flist {flist}: its beginning is not among 'flists' in /etc/zmachine/kubernetes.toml"
        ))),
    }
}

/// The images that a pod's machine is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Images {
    /// The machine's own.
    own: Option<String>,
    /// So many more may come while it runs.
    later: u16,
    /// So many layers of others may.
    layers: u16,
}

/// What the machine of a pod is made for, by where the root of its sandbox comes from: those of its containers come from there as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Images of our snapshotter.
    images: bool,
    /// So many files with layers of containerd's own, each a disk.
    layers: u16,
}

impl Needs {
    /// What a root of these mounts says.
    ///
    /// # Errors
    /// Those of [`layers::of`].
    pub(crate) fn of(role: &Role, mounts: &[SnapshotMount]) -> Result<Needs, ShimError> {
        let files = layers::of(mounts)?.map(|layers| layers.iter().flat_map(Layer::files).count());
        let layers = match (role, files) {
            (_, None) => 0,
            // Its root is the only one.
            (Role::Alone, Some(count)) => u16::try_from(count).unwrap_or(u16::MAX).min(MOST_LAYERS),
            (_, Some(_)) => LATER_LAYERS,
        };
        Ok(Needs {
            images: mounts.iter().any(|mount| mount.image().is_some()),
            layers,
        })
    }
}

impl Images {
    /// A pod of one flist has that as its own image: nothing has to come later. Of several, all do.
    fn of(flists: BTreeSet<String>, needs: &Needs) -> Images {
        let from_snapshotter = if needs.images { LATER_IMAGES } else { 0 };
        let named = u16::try_from(flists.len()).unwrap_or(u16::MAX);
        match named {
            0 | 1 => Images {
                own: flists.into_iter().next(),
                later: from_snapshotter,
                layers: needs.layers,
            },
            _ => Images {
                own: None,
                later: from_snapshotter.saturating_add(named).min(MOST_IMAGES),
                layers: needs.layers,
            },
        }
    }
}

/// That a pod wants the network of its host.
pub(crate) fn no_host_network() -> ShimError {
    ShimError::Unsupported(
        "a pod that is a virtual machine cannot have the host's network (hostNetwork): use a hostPort, or another runtime class"
            .to_owned(),
    )
}

fn network(spec: &Spec, netns: Option<&Path>) -> Result<Option<PodNetwork>, ShimError> {
    let path = match (netns, spec.namespace("network")) {
        (Some(path), _) | (None, Place::At(path)) => path,
        (None, Place::Own) => return Ok(None),
        (None, Place::Host) => {
            return Err(no_host_network());
        }
    };
    let (links, routes) = namespace::read(path).map_err(Failure::from)?;
    let link = |link: namespace::FoundLink| PodLink {
        interface: Interface {
            name: link.name.clone(),
            mac: link.mac,
            addresses: link.addresses.iter().map(ToString::to_string).collect(),
            mtu: link.mtu,
        },
        link: link.name,
    };
    let route = |route: namespace::FoundRoute| Route {
        destination: route.destination.to_string(),
        gateway: route.gateway,
        interface: route.link,
    };
    Ok(Some(PodNetwork {
        namespace: path.to_owned(),
        links: links.into_iter().map(link).collect(),
        routes: routes.into_iter().map(route).collect(),
    }))
}

fn machine(
    key: &str,
    spec: &Spec,
    settings: &Settings,
    images: &Images,
    network: Option<PodNetwork>,
    (folder, group): (&PodFolder, Option<&PodGroup>),
    engine: &Engine,
) -> Result<MachineSpec, ShimError> {
    let image = match &images.own {
        Some(flist) => flist.clone(),
        None => empty_image(engine.home().data())?,
    };
    let mut machine = MachineSpec::new(machine_name(key), image);
    let (cpus, memory_bytes) = sized(spec, settings);
    machine.cpus = cpus;
    machine.memory_bytes = memory_bytes;
    machine.idle = true;
    machine.auto_remove = true;
    // What containers write to an image as their root goes to its disk; else there is nothing to write to.
    machine.read_only = images.own.is_none() && images.later == 0 && images.layers == 0;
    machine.restart = RestartPolicy::No;
    machine.networks.clear();
    machine.hostname = Some(spec.hostname.clone()).filter(|hostname| !hostname.is_empty());
    machine.kernel.clone_from(&settings.kernel);
    machine.labels = role::labels(&spec.annotations);
    machine.guest.sysctls = spec.linux.sysctl.clone();
    machine.pod = Some(PodSettings {
        share: folder.share(),
        images: images.later,
        files: settings.devices + images.layers,
        group: group.and_then(PodGroup::machine),
        network,
    });
    Ok(machine)
}

/// CPUs and memory of a pod: what its containers may use, and what the guest needs beside them.
fn sized(spec: &Spec, settings: &Settings) -> (u32, u64) {
    let of_pod = role::size(&spec.annotations);
    let of_container = crate::translate::limits(spec.linux.resources.as_ref());
    let own = Size {
        cpu_milli: of_container
            .cpu_quota_us
            .map(|quota| quota.saturating_mul(1000) / of_container.cpu_period_us.unwrap_or(100_000).max(1)),
        memory_bytes: of_container.memory_bytes,
    };
    let host = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let cpu_milli = of_pod.cpu_milli.or(own.cpu_milli);
    let cpus = cpu_milli.map_or(u64::from(settings.cpus), |milli| milli.div_ceil(1000));
    let memory = of_pod.memory_bytes.or(own.memory_bytes);
    let memory = memory.map_or_else(
        || settings.memory_bytes(),
        |bytes| bytes.saturating_add(settings.overhead_bytes()),
    );
    (cpus.clamp(1, host) as u32, memory.max(zmachine_spec::pod::LEAST_MEMORY))
}

/// The image of a machine whose containers bring all that they need: one empty directory.
fn empty_image(data: &Path) -> Result<String, ShimError> {
    let path = data.join(EMPTY);
    if !path.is_file() {
        let failed =
            |error: &dyn std::fmt::Display| ShimError::failed(&format!("cannot write {}", path.display()), error);
        let root = Metadata {
            mode: 0o755,
            ..Metadata::default()
        };
        let flist = Flist {
            tree: TreeBuilder::new(root).finish().map_err(|e| failed(&e))?,
            routes: RouteTable::default(),
            tags: BTreeMap::new(),
        };
        // Two shims may do this at once: each has a file of its own until it is whole.
        let unfinished = data.join(format!("{EMPTY}.new-{}", std::process::id()));
        flist.write(&unfinished).map_err(|e| failed(&e))?;
        std::fs::rename(&unfinished, &path).map_err(|e| failed(&e))?;
    }
    Ok(path.display().to_string())
}

/// The paths of this host.
#[derive(Debug)]
pub(crate) struct ThisHost;

impl HostPaths for ThisHost {
    fn memory_volume(&self, path: &Path) -> Option<u64> {
        let is_volume = path.components().any(|part| part.as_os_str() == EMPTY_DIR);
        let system: StatFs = host::within(|| Ok(rustix::fs::statfs(path)?))
            .ok()
            .filter(|_| is_volume)?;
        (system.f_type == TMPFS_MAGIC).then(|| system.f_blocks.saturating_mul(system.f_bsize.cast_unsigned()))
    }

    fn has_mounts_below(&self, path: &Path) -> bool {
        share::has_mounts_below(path)
    }

    fn is_node_of(&self, path: &Path, major: u32, minor: u32) -> bool {
        let numbers = host::within(|| Ok(std::fs::metadata(path)?.rdev()));
        numbers.is_ok_and(|rdev| (rustix::fs::major(rdev), rustix::fs::minor(rdev)) == (major, minor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_host_decides_which_flists_a_pod_may_name() {
        let settings = Settings {
            flists: vec!["/srv/".into()],
            ..Settings::default()
        };
        let one = annotations(&[(FLIST, "/srv/a.fl"), ("zmachine.io/flist.web", "/srv/a.fl")]);
        let named = flists(&one, &settings).unwrap();
        assert_eq!(named, BTreeSet::from(["/srv/a.fl".to_owned()]));
        let refused = flists(&one, &Settings::default()).unwrap_err();
        assert!(refused.to_string().contains("flists"));
        let none = annotations(&[("zmachine.io/flists", "/srv/a.fl")]);
        assert!(flists(&none, &settings).unwrap().is_empty());
    }

    #[test]
    fn a_machine_has_places_for_the_images_that_it_may_need() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let images = |own: Option<&str>, later| Images {
            own: own.map(str::to_owned),
            later,
            layers: 0,
        };
        let (plain, ours) = (
            Needs::default(),
            Needs {
                images: true,
                layers: 0,
            },
        );
        assert_eq!(Images::of(set(&[]), &plain), images(None, 0));
        assert_eq!(Images::of(set(&["a"]), &plain), images(Some("a"), 0));
        assert_eq!(Images::of(set(&["a", "b"]), &plain), images(None, 2));
        assert_eq!(Images::of(set(&["a"]), &ours), images(Some("a"), LATER_IMAGES));
        assert_eq!(Images::of(set(&["a", "b"]), &ours), images(None, LATER_IMAGES + 2));
        let erofs = [SnapshotMount {
            kind: "erofs".to_owned(),
            source: "/l".to_owned(),
            options: Vec::new(),
        }];
        let layers = |role| Needs::of(&role, &erofs).unwrap().layers;
        assert_eq!((layers(Role::Sandbox), layers(Role::Alone)), (LATER_LAYERS, 1));
    }

    #[test]
    fn a_pod_is_as_large_as_its_limits_and_what_the_guest_needs() {
        let settings = Settings::default();
        let mut spec = Spec::default();
        assert_eq!(sized(&spec, &settings), (1, 512 << 20));
        spec.annotations = annotations(&[
            ("io.kubernetes.cri.sandbox-memory", "268435456"),
            ("io.kubernetes.cri.sandbox-cpu-quota", "10000"),
            ("io.kubernetes.cri.sandbox-cpu-period", "100000"),
        ]);
        assert_eq!(sized(&spec, &settings), (1, (256 + 128) << 20));
    }

    #[test]
    fn limits_that_a_machine_cannot_give_are_refused_with_what_it_has() {
        let size = MachineSize {
            cpus: 1,
            memory_bytes: 256 << 20,
        };
        let limits = |memory_bytes, cpu_quota_us| ContainerLimits {
            memory_bytes,
            cpu_quota_us,
            ..ContainerLimits::default()
        };
        size.check(&limits(Some(256 << 20), Some(100_000))).unwrap();
        size.check(&ContainerLimits::default()).unwrap();
        let memory = size.check(&limits(Some(257 << 20), None)).unwrap_err().to_string();
        assert!(memory.contains("257 MiB") && memory.contains("256 MiB"), "{memory}");
        let cpus = size.check(&limits(None, Some(150_000))).unwrap_err().to_string();
        assert!(cpus.contains("1.500 CPUs"), "{cpus}");
    }

    #[test]
    fn the_hosts_network_is_refused_with_a_way_out() {
        let refused = network(&Spec::default(), None).unwrap_err().to_string();
        assert!(
            refused.contains("hostNetwork") && refused.contains("runtime class"),
            "{refused}"
        );
    }

    #[test]
    fn the_empty_image_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = empty_image(folder.path()).unwrap();
        assert_eq!(empty_image(folder.path()).unwrap(), path);
        assert_eq!(
            Flist::open(Path::new(&path)).unwrap().tree.counts(),
            Flist::open(Path::new(&path)).unwrap().tree.counts()
        );
    }
}
