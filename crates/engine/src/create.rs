//! Creating machines: from a spec to a folder with a plan.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use zmachine_flist::Digest;
use zmachine_hypervisor::Accel;
use zmachine_hypervisor::accel::{self, AccelFacts};
use zmachine_hypervisor::choice::{self, Choice, Found, Hypervisor};
use zmachine_hypervisor::firmware::Pinned;
use zmachine_image::library::hold_images;
use zmachine_image::{FetchOptions, Image, ImageKind, Library, Mode, Progress, PullPolicy, Timeouts, open_store};
use zmachine_kernel::{FsDriver, KernelLibrary};
use zmachine_network::user::{USER_NETWORK, UserRequest};
use zmachine_network::{
    Attachment, AttachmentRequest, DEFAULT_NETWORK, HostDns, Membership, Network, NetworkError, Networks, Publish,
    can_make_networks, host_nameservers, is_host_name,
};
use zmachine_plan::container::{channel_driver, is_for_containers};
use zmachine_plan::vm::VmStart;
use zmachine_plan::{Content, ImageFacts, Inputs, KernelChoice, Plan, TreeFacts, VmFacts};
use zmachine_rootfs::prepare::RootDescription;
use zmachine_spec as spec;
use zmachine_spec::bytes::Human;
use zmachine_spec::volume::{ResolvedVolume, SharedDirectory};
use zmachine_spec::{
    Class, Failure, MachineSpec, ModeChoice, NetworkRequest, Origin, RootfsChoice, Setting, State, VolumeRequest,
};
use zmachine_store::catalog::Machine;
use zmachine_store::{catalog, volume};
use zmachine_sys::host::HostFacts;

use super::Engine;
use super::image_facts::image_facts;
use super::images::{FoundImage, ImageRequest};
use super::published::{publish_exposed, published};
use super::start::require_files;
use super::tree::{tree_facts, unpacked};
use super::vm::{host_disk, vm_disk_bytes};

/// Volumes are whole ones of these, in bytes.
const MIB: u64 = 1 << 20;

/// How an image is found.
pub struct CreateOptions<'a> {
    /// Relative paths are relative to this.
    pub cwd: &'a Path,
    /// Whether a URL or a registry is asked again.
    pub pull: PullPolicy,
    /// Whether a guest kernel is installed when there is none.
    pub installs_kernel: bool,
    /// Told about downloads.
    pub progress: &'a dyn Progress,
}

impl<'a> CreateOptions<'a> {
    /// What is here is enough, else it is pulled; nobody is told how far it is.
    pub fn quiet(cwd: &'a Path) -> CreateOptions<'a> {
        CreateOptions {
            cwd,
            pull: PullPolicy::Missing,
            installs_kernel: true,
            progress: &zmachine_image::Silent,
        }
    }
}

/// What a plan needs and does not change until the machine has its folder.
struct Facts {
    makes: Makes,
    host: HostFacts,
    accel: accel::Choice,
    hypervisor: Choice,
    cloud_firmware: Option<Pinned>,
    dns: HostDns,
}

/// What the image makes of the machine.
enum Makes {
    Container {
        image: Box<ImageFacts>,
        kernel: KernelChoice,
    },
    Tree(Box<TreeFacts>),
    Vm(Box<VmFacts>),
}

/// Why a machine that is to be saved while it runs is not made for Cloud Hypervisor.
fn not_saved_there(spec: &MachineSpec, is_vm: bool) -> Option<&'static str> {
    if !spec.snapshots && spec.idle_timeout_ms.is_none() {
        return None;
    }
    match (is_vm, spec.hypervisor) {
        (false, _) => {
            Some("a container's root comes from a server, with which no machine goes on there after it was saved")
        }
        (true, choice::Requested::Auto) => Some("machines are saved there only when it is asked for"),
        (true, _) => None,
    }
}

impl Makes {
    /// What of the machine Cloud Hypervisor cannot do.
    fn beyond_cloud_hypervisor(&self, uses_shares: bool, has_firmware: bool) -> Option<&'static str> {
        const SHARES: &str = "shared directories do not survive there when the guest's own kernel restarts";
        match self {
            Makes::Container { .. } => None,
            Makes::Tree(_) => Some(SHARES),
            Makes::Vm(_) if uses_shares => Some(SHARES),
            Makes::Vm(facts) => (matches!(facts.start, VmStart::Firmware { .. }) && !has_firmware)
                .then_some("no firmware is configured for it ('zmachine firmware set FILE')"),
        }
    }

    fn content<'a>(&'a self, volumes: &'a [ResolvedVolume]) -> Content<'a> {
        match self {
            Makes::Container { image, kernel } => Content::Container { image, kernel, volumes },
            Makes::Tree(facts) => Content::Tree(facts),
            Makes::Vm(facts) => Content::Vm(facts),
        }
    }

    /// What a container's image says of itself.
    fn labels(&self) -> Option<&BTreeMap<String, String>> {
        match self {
            Makes::Container { image, .. } => Some(&image.labels),
            Makes::Tree(_) | Makes::Vm(_) => None,
        }
    }

    /// Where a container's image keeps its data.
    fn data_paths(&self) -> &[String] {
        match self {
            Makes::Container { image, .. } => &image.volumes,
            Makes::Tree(_) | Makes::Vm(_) => &[],
        }
    }

    /// Ports that a container's image exposes; a VM's publishes what it likes.
    fn exposed_ports(&self) -> &[String] {
        match self {
            Makes::Container { image, .. } => &image.exposed_ports,
            Makes::Tree(facts) => &facts.image.exposed_ports,
            Makes::Vm(_) => &[],
        }
    }
}

impl Engine {
    /// Creates a machine. It is not started.
    ///
    /// # Errors
    /// Whatever is wrong with the request, the image or the host; nothing is left then.
    pub fn create(&self, spec: &MachineSpec, options: &CreateOptions<'_>) -> Result<Machine, Failure> {
        self.create_from(spec, options, None, |_| Ok(()))
    }

    /// [`Engine::create`] for who starts it at once: it may be one that stands by, see [`MachineSpec::pool`].
    ///
    /// # Errors
    /// As [`Engine::create`].
    pub fn create_to_start(&self, spec: &MachineSpec, options: &CreateOptions<'_>) -> Result<Machine, Failure> {
        self.reconcile_anew()?;
        match spec.pool > 0 && spec.warm && !spec.warm_ready {
            true => match self.take_standby(spec, options)? {
                Some(taken) => Ok(taken),
                None => self.create(spec, options),
            },
            false => self.create(spec, options),
        }
    }

    /// [`Engine::create`] from the image with this digest, whatever the spec's name leads to by now. `fill` puts more into the
    /// machine's folder before that has its name.
    pub(super) fn create_from(
        &self,
        spec: &MachineSpec,
        options: &CreateOptions<'_>,
        image: Option<&Digest>,
        fill: impl FnOnce(&Path) -> Result<(), Failure>,
    ) -> Result<Machine, Failure> {
        self.reconcile_anew()?;
        self.warn_of_cpu_time(spec);
        self.planned(spec, options, image, None, |id, spec, mut plan, wanted| {
            if let Plan::Vm(plan) = &mut plan
                && plan.install().is_some()
            {
                // A VM is one without 'zmachine ssh', too.
                match self.ssh_key() {
                    Ok(Some((_, key))) if !plan.seed.ssh_keys.contains(&key) => plan.seed.ssh_keys.push(key),
                    Ok(_) => {}
                    Err(failure) => (self.warn)(&format!("the VM is not told of the home's SSH key: {failure}")),
                }
            }
            let addresses = plan
                .attachments()
                .iter()
                .flat_map(|a| &a.addresses)
                .map(|net| net.addr())
                .collect();
            let mut state = State::created(Timestamp::now(), addresses);
            state.kind = plan.kind();
            let volumes = self.volumes();
            let made = volumes.make(wanted)?;
            self.kill.pass("create: volumes made");
            if let Err(failure) = catalog::add(&self.home, id, spec, &plan, &state, &self.kill, fill) {
                volumes.unmake(&made);
                return Err(failure);
            }
            Ok(Machine {
                id: id.to_owned(),
                dir: self.home.machine(id),
                spec: spec.clone(),
                state,
            })
        })
    }

    /// Says at once that a limit which was asked for will not hold here.
    pub(super) fn warn_of_cpu_time(&self, spec: &MachineSpec) {
        if spec.cpu_limit_milli.is_some() && !HostFacts::gather().cgroup_v2 {
            let (name, cpus) = (&spec.name, spec.all_cpus());
            (self.warn)(&format!(
                "the CPU time of '{name}' is not limited to {cpus} CPUs: this host offers no cgroup v2 cpu controller"
            ));
        }
    }

    /// Brings the image of a machine here, so that its creation needs nothing from elsewhere.
    ///
    /// # Errors
    /// When it is nowhere, or cannot be had.
    pub fn bring_image(&self, spec: &MachineSpec, options: &CreateOptions<'_>) -> Result<(), Failure> {
        self.found(spec, options, None).map(drop)
    }

    /// The plan that [`Engine::create`] would make; nothing is created.
    ///
    /// # Errors
    /// As [`Engine::create`].
    pub fn plan(&self, spec: &MachineSpec, options: &CreateOptions<'_>) -> Result<Plan, Failure> {
        let networks = self.networks()?;
        self.planned(spec, options, None, None, |id, _, plan, _| {
            networks.release_all(|machine| machine == id)?;
            Ok(plan)
        })
    }

    /// Brings the image here; `None` for a disk image of this host. Whatever comes from a server comes by this: whoever prunes waits for
    /// those who hold images.
    fn found(
        &self,
        spec: &MachineSpec,
        options: &CreateOptions<'_>,
        image: Option<&Digest>,
    ) -> Result<Option<FoundImage>, Failure> {
        if let Some(digest) = image {
            let library = Library::open(self.home.data())?;
            let image = library.by_its_digest(digest, mode_of(spec), &spec.flist)?;
            return Ok(Some(FoundImage::plain(image)));
        }
        if host_disk(spec, options.cwd)?.is_some() {
            return Ok(None);
        }
        let found = self.image(&ImageRequest {
            text: &spec.flist,
            cwd: options.cwd,
            pull: options.pull,
            mode: mode_of(spec),
            // A tree that is unpacked is read as a whole.
            is_lazy: spec.rootfs != RootfsChoice::Virtiofs,
            stores: &spec.stores,
            progress: options.progress,
        })?;
        if matches!(found.image.facts.kind, ImageKind::Container) && spec.kernel.is_none() {
            self.require_kernel(options.installs_kernel, options.progress)?;
        }
        Ok(Some(found))
    }

    /// The plan of a machine, and what is to be done with it while its addresses are held; that of the machine `id`, which has its own
    /// already, or of a new one.
    pub(super) fn planned<T>(
        &self,
        spec: &MachineSpec,
        options: &CreateOptions<'_>,
        image: Option<&Digest>,
        present: Option<&str>,
        then: impl FnOnce(&str, &MachineSpec, Plan, &[ResolvedVolume]) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        spec::check_name(&spec.name)?;
        require_files()?;
        catalog::require_free(&self.home, &spec.name)?;
        let mut publish = published(&spec.publish)?;
        Plan::check_request(spec, &HostFacts::gather())?;
        check_stores(&spec.stores)?;
        if spec.pool > 0 && (spec.warm_ready || spec.cold) {
            let why = "guests of a pool wait for warm starts, with no entrypoint";
            return Err(Failure::new(Class::Usage, why).hint("take --pool without --warm=ready and --warm=off"));
        }
        let id = present.map_or_else(catalog::new_id, str::to_owned);
        let wanted = self.volumes().wanted(&spec.volumes, &id)?;
        let shares = volume::shared(&spec.volumes, &self.home)?;
        let mut found = self.found(spec, options, image)?;
        // Until the machine is there, nothing says that its image is needed.
        let mut _images = hold_images(self.home.data())?;
        if found.as_ref().is_some_and(|found| !found.image.directory.is_dir()) {
            // It was pruned in between.
            drop(_images);
            found = self.found(spec, options, image)?;
            _images = hold_images(self.home.data())?;
        }
        let spec = &match found.as_ref().and_then(|found| found.pinned.clone()) {
            None => Cow::Borrowed(spec),
            pinned => Cow::Owned(MachineSpec { pinned, ..spec.clone() }),
        };
        let image = found.map(|found| found.image);
        let (spec, wanted) = self.with_boot_volume(spec, (options, image.as_ref()), wanted, &id)?;
        let spec = &*spec;
        let facts = self.facts(spec, (options, image.as_ref()), &wanted, !shares.is_empty())?;
        let (spec, wanted) = self.with_data_paths(spec, facts.makes.data_paths(), wanted, &shares, &id)?;
        let spec = &*warmed(&spec, facts.makes.labels());
        if spec.publish_all {
            publish.extend(publish_exposed(facts.makes.exposed_ports(), &publish)?);
        }
        let networks = self.networks()?;
        // From here on addresses are taken: nobody may sweep them away before the machine's folder is there.
        let _catalog = catalog::lock(&self.home)?;
        let result = self
            .attachments(spec, &id, &publish, &facts.dns, &networks)
            .and_then(|attachments| {
                let inputs = Inputs {
                    id: &id,
                    home: &self.home,
                    host: &facts.host,
                    accel: facts.accel.accel,
                    hypervisor: facts.hypervisor.clone(),
                    cloud_firmware: facts.cloud_firmware.clone(),
                    attachments,
                    host_dns: &facts.dns,
                    shares: &shares,
                    has_share_server: zmachine_share::Server::find().is_ok(),
                };
                let plan = Plan::new(spec, facts.makes.content(&wanted), inputs)?;
                then(&id, spec, plan, &wanted)
            });
        if result.is_err() && present.is_none() {
            networks.release_all(|machine| machine == id)?;
        }
        result
    }

    /// The spec of a VM and its volumes, with one for its operating system when there is none: as large as was asked for, or as the image.
    fn with_boot_volume<'a>(
        &self,
        spec: &'a MachineSpec,
        (options, image): (&CreateOptions<'_>, Option<&Image>),
        wanted: Vec<ResolvedVolume>,
        id: &str,
    ) -> Result<(Cow<'a, MachineSpec>, Vec<ResolvedVolume>), Failure> {
        let Some(bytes) = vm_disk_bytes(spec, options.cwd, image)? else {
            return Ok((Cow::Borrowed(spec), wanted));
        };
        if !wanted.is_empty() {
            return Ok((Cow::Borrowed(spec), wanted));
        }
        if spec.size_bytes != 0 && spec.size_bytes < bytes {
            let message = format!(
                "a disk of {} is smaller than the image of {}",
                Human(spec.size_bytes),
                Human(bytes)
            );
            return Err(Failure::new(Class::Usage, message)
                .hint("leave the size out, and the disk is as large as the image")
                .about(Setting::Size));
        }
        let boot = VolumeRequest::new(Origin::Anonymous, "/")
            .map_err(|why| Failure::new(Class::Failed, format!("no volume can be at /: {why}")))?;
        let boot = VolumeRequest {
            // What is empty is refused for that.
            size_bytes: Some(bytes.max(spec.size_bytes).max(1).next_multiple_of(MIB)),
            ..boot
        };
        let spec = MachineSpec {
            // Directories of this host may be there.
            volumes: [vec![boot], spec.volumes.clone()].concat(),
            size_bytes: 0,
            ..spec.clone()
        };
        let wanted = self.volumes().wanted(&spec.volumes, id)?;
        Ok((Cow::Owned(spec), wanted))
    }

    /// The spec and its volumes, with one more for each of `paths` that nothing is mounted on, when the root cannot be
    /// written: there an image's data have no place else. They go with the machine as all volumes without a name.
    fn with_data_paths<'a>(
        &self,
        spec: &'a MachineSpec,
        paths: &[String],
        wanted: Vec<ResolvedVolume>,
        shares: &[SharedDirectory],
        id: &str,
    ) -> Result<(Cow<'a, MachineSpec>, Vec<ResolvedVolume>), Failure> {
        let is_free = |path: &&String| {
            let path = path.trim_end_matches('/');
            path.starts_with('/')
                && !wanted.iter().any(|volume| volume.target == path)
                && !shares.iter().any(|shared| shared.target == path)
        };
        let free: Vec<&String> = paths.iter().filter(is_free).collect();
        if !spec.read_only || free.is_empty() {
            return Ok((Cow::Borrowed(spec), wanted));
        }
        let anonymous = |path: &&String| {
            VolumeRequest::new(Origin::Anonymous, path).map_err(|why| {
                let message = format!("the image keeps data in '{path}', where no volume can be: {why}");
                Failure::new(Class::Usage, message)
                    .hint("run it with a root that can be written")
                    .about(Setting::ReadOnly)
            })
        };
        let free: Vec<VolumeRequest> = free.iter().map(anonymous).collect::<Result<_, _>>()?;
        let spec = MachineSpec {
            volumes: [spec.volumes.clone(), free].concat(),
            ..spec.clone()
        };
        let wanted = self.volumes().wanted(&spec.volumes, id)?;
        wanted.iter().try_for_each(volume::check_mountable)?;
        Ok((Cow::Owned(spec), wanted))
    }

    fn facts(
        &self,
        spec: &MachineSpec,
        image: (&CreateOptions<'_>, Option<&Image>),
        wanted: &[ResolvedVolume],
        uses_shares: bool,
    ) -> Result<Facts, Failure> {
        let accel = accel::choose(spec.accel, &AccelFacts::gather()).map_err(|e| {
            Failure::from_error(Class::Unsupported, &e)
                .hint(e.hint())
                .about(Setting::Accel)
        })?;
        // Asked only where it counts: it is a program to run.
        let found = match spec.hypervisor {
            choice::Requested::Qemu => Found::default(),
            choice::Requested::Auto if accel.accel != Accel::Kvm => Found::default(),
            _ => Found::gather(),
        };
        let choose = |lacks| {
            choice::choose(spec.hypervisor, &accel, &found, lacks).map_err(|e| {
                Failure::from_error(Class::Unsupported, &e)
                    .hint(e.hint())
                    .about(Setting::Hypervisor)
            })
        };
        let mut hypervisor = choose(None)?;
        let cloud_firmware = zmachine_store::firmware::configured(&self.home)?;
        let makes = self.makes(spec, image, wanted, (uses_shares, hypervisor.driver))?;
        if hypervisor.driver == Hypervisor::CloudHypervisor {
            // Its interfaces are taps, and passt has none.
            let by_passt = uses_passt(&spec.networks).then_some("it has no network without root");
            let saved = not_saved_there(spec, matches!(makes, Makes::Vm(_)));
            if let Some(lacks) = by_passt
                .or(saved)
                .or(makes.beyond_cloud_hypervisor(uses_shares, cloud_firmware.is_some()))
            {
                hypervisor = choose(Some(lacks))?;
            }
        }
        Ok(Facts {
            makes,
            host: HostFacts::gather(),
            hypervisor,
            cloud_firmware,
            accel,
            dns: host_nameservers(),
        })
    }

    fn makes(
        &self,
        spec: &MachineSpec,
        (options, image): (&CreateOptions<'_>, Option<&Image>),
        wanted: &[ResolvedVolume],
        (uses_shares, hypervisor): (bool, Hypervisor),
    ) -> Result<Makes, Failure> {
        let Some(image) = image else {
            let path = host_disk(spec, options.cwd)?;
            let path = path.ok_or_else(|| Failure::new(Class::Conflict, format!("{} is gone", spec.flist)))?;
            return self
                .host_disk_facts(&path, wanted, hypervisor)
                .map(|facts| Makes::Vm(Box::new(facts)));
        };
        let library = Library::open(self.home.data())?.with_fetch_options(fetch_options(spec));
        if let Some(facts) = self.flist_facts(&library, image, spec, wanted, hypervisor)? {
            return Ok(Makes::Vm(Box::new(facts)));
        }
        if let Some(facts) = tree_facts(&library, image, spec, wanted, options.progress)? {
            return Ok(Makes::Tree(Box::new(facts)));
        }
        wanted.iter().try_for_each(volume::check_mountable)?;
        let mut drivers: Vec<FsDriver> = wanted.iter().filter_map(|v| FsDriver::of(v.fs.name())).collect();
        let is_tree = spec.rootfs == RootfsChoice::Virtiofs;
        drivers.extend((uses_shares || is_tree).then_some(FsDriver::Virtiofs));
        drivers.extend(channel_driver(hypervisor));
        let has_nested = wanted.iter().any(|volume| is_for_containers(&volume.target));
        drivers.extend(has_nested.then_some(FsDriver::Nested));
        let image = match is_tree {
            true => ImageFacts {
                tree: Some(unpacked(&library, image, &spec.flist, options.progress)?),
                ..image_facts(image, &spec.flist)?
            },
            false => container_facts(image, &spec.flist)?,
        };
        Ok(Makes::Container {
            image: Box::new(image),
            kernel: self.kernel(spec.kernel.as_deref(), &drivers)?,
        })
    }

    pub(super) fn kernel(&self, name: Option<&str>, drivers: &[FsDriver]) -> Result<KernelChoice, Failure> {
        let library = KernelLibrary::open(self.home.data())?;
        let kernel = match name {
            Some(name) => library.get(name)?,
            None => library.default()?,
        };
        let initramfs = library.initramfs(&kernel, self.programs.agent(), drivers)?;
        Ok(KernelChoice {
            name: kernel.name().to_owned(),
            vmlinux: kernel.vmlinux(),
            initramfs,
        })
    }

    fn attachments(
        &self,
        spec: &MachineSpec,
        id: &str,
        publish: &[Publish],
        dns: &HostDns,
        networks: &Networks,
    ) -> Result<Vec<Attachment>, Failure> {
        let named = |error: NetworkError| self.with_names(error.into());
        networks.check_publish(id, publish).map_err(named)?;
        let wanted = &spec.networks;
        if let Some(attachments) = user_attachments(wanted, id, publish, dns, networks)? {
            return Ok(attachments);
        }
        let mut found: Vec<Network> = Vec::new();
        for request in wanted {
            // The interfaces of a machine are told apart by their networks: a second one would take the first one's place.
            if found.iter().any(|other| other.name() == request.name) {
                let message = format!("the network '{}' is named twice", request.name);
                return Err(Failure::new(Class::Usage, message)
                    .hint("a machine has one interface in a network; name it once")
                    .about(Setting::Networks));
            }
            found.push(self.block_on(async {
                match request.name.as_str() {
                    DEFAULT_NETWORK => networks.default_network().await,
                    name => networks.get(name),
                }
            })??);
        }
        // Nothing goes out of an internal network, nor in.
        let outward = found.iter().position(|network| !network.is_internal());
        if outward.is_none() && !publish.is_empty() {
            let message = format!(
                "the port '{}' cannot be published: every network of the machine is internal",
                publish[0]
            );
            return Err(Failure::new(Class::Usage, message)
                .hint("add a network that is not, or publish nothing")
                .about(Setting::Networks)
                .about(Setting::Publish));
        }
        let mut attachments = Vec::new();
        for (index, (request, network)) in wanted.iter().zip(&found).enumerate() {
            let is_default = outward == Some(index);
            let addresses = zmachine_network::AddressRequest {
                ipv4: request.ipv4,
                ipv6: request.ipv6,
            };
            let lease = self.block_on(networks.lease(network, id, addresses))?.map_err(named)?;
            attachments.push(Attachment::plan(
                network,
                AttachmentRequest {
                    machine: id,
                    lease,
                    index: index as u8,
                    is_default,
                    publish: if is_default { publish } else { &[] },
                    membership: &membership(spec, request, &found, outward.is_some_and(|nth| nth != index)),
                    nameservers: &[],
                    search: &dns.search,
                },
            )?);
        }
        Ok(attachments)
    }
}

/// Whether one of the networks is the one through passt, for a user who may make no others.
fn uses_passt(networks: &[NetworkRequest]) -> bool {
    let is_able = can_make_networks();
    networks.iter().any(|request| is_by_passt(request, is_able))
}

fn is_by_passt(request: &NetworkRequest, is_able: bool) -> bool {
    match request.name.as_str() {
        USER_NETWORK => true,
        DEFAULT_NETWORK => !is_able,
        _ => false,
    }
}

/// The machine's only network, when that is the one through passt: because it was asked for, or because nobody may make
/// bridges here and nothing else was asked for.
fn user_attachments(
    wanted: &[NetworkRequest],
    id: &str,
    publish: &[Publish],
    dns: &HostDns,
    networks: &Networks,
) -> Result<Option<Vec<Attachment>>, Failure> {
    let is_able = can_make_networks();
    let Some(request) = wanted.iter().find(|request| is_by_passt(request, is_able)) else {
        return match wanted.first() {
            Some(first) if !is_able => {
                let action = format!("the network '{}'", first.name);
                Err(NetworkError::NeedsRoot { action }.into())
            }
            _ => Ok(None),
        };
    };
    if wanted.len() > 1 {
        let message = format!("the network '{USER_NETWORK}' does not go with other networks");
        return Err(Failure::new(Class::Usage, message)
            .hint("leave the others out, or run it as root in the network 'default'")
            .about(Setting::Networks));
    }
    if *request != NetworkRequest::new(&request.name) {
        let message = format!(
            "without root a machine cannot choose its addresses, names and limits in the network '{}'",
            request.name
        );
        return Err(Failure::new(Class::Unsupported, message)
            .hint("name the network alone, or run it as root")
            .about(Setting::Networks));
    }
    let attachment = networks.user_attachment(UserRequest {
        machine: id,
        index: 0,
        is_default: true,
        publish,
        dns,
    })?;
    Ok(Some(vec![attachment]))
}

/// What a network is told of a machine.
pub(super) fn membership(spec: &MachineSpec, request: &NetworkRequest, all: &[Network], secondary: bool) -> Membership {
    let own = spec.name.to_ascii_lowercase();
    // A name such as `a..b` is one of a machine, but none that can be looked up.
    let mut names: Vec<String> = Some(own).filter(|name| is_host_name(name)).into_iter().collect();
    for alias in spec.network_aliases.iter().chain(&request.aliases) {
        if !names.contains(alias) {
            names.push(alias.clone());
        }
    }
    let others = all.iter().filter(|network| network.name() != request.name);
    Membership {
        names,
        also_in: others.map(|network| network.name().to_owned()).collect(),
        secondary,
        policy: request.policy.clone(),
    }
}

fn fetch_options(spec: &MachineSpec) -> FetchOptions {
    FetchOptions {
        stores: spec.stores.clone(),
        ..FetchOptions::default()
    }
}

fn mode_of(spec: &MachineSpec) -> Mode {
    match spec.mode {
        ModeChoice::Auto => Mode::Auto,
        ModeChoice::Container => Mode::Container,
        ModeChoice::Vm => Mode::Vm,
    }
}

/// That each is the URL of a store. Whether it answers shows when a block is asked for.
fn check_stores(urls: &[String]) -> Result<(), Failure> {
    for url in urls {
        open_store(url, Timeouts::default()).map_err(|e| {
            let hint = e
                .hint()
                .unwrap_or_else(|| "stores are dir:///PATH, http:// and https:// URLs".to_owned());
            Failure::from_error(Class::Usage, &e).hint(hint).about(Setting::Stores)
        })?;
    }
    Ok(())
}

/// The label of an image whose machines begin from templates: `start` or `ready`, as `--warm` has it.
const WARM: &str = "org.zmachine.warm";

/// The spec, with the wish of its image where it has none of its own.
fn warmed<'a>(spec: &'a MachineSpec, labels: Option<&BTreeMap<String, String>>) -> Cow<'a, MachineSpec> {
    let wish = labels.and_then(|labels| labels.get(WARM)).map(String::as_str);
    // A machine that is to be idle is no warm one, and was asked for by its owner.
    if spec.is_warm() || spec.cold || spec.idle || spec.idle_timeout_ms.is_some() {
        return Cow::Borrowed(spec);
    }
    match wish {
        Some("start") => Cow::Owned(MachineSpec {
            warm: true,
            ..spec.clone()
        }),
        Some("ready") => Cow::Owned(MachineSpec {
            warm_ready: true,
            ..spec.clone()
        }),
        _ => Cow::Borrowed(spec),
    }
}

/// What the planner needs of a container's image, whose root disk is prepared.
fn container_facts(image: &Image, flist: &str) -> Result<ImageFacts, Failure> {
    prepare_root(image, flist)?;
    image_facts(image, flist)
}

/// Makes the root disk of an image, unless it is made.
pub(super) fn prepare_root(image: &Image, flist: &str) -> Result<(), Failure> {
    let digest = image.digest.to_string();
    // Opening a large flist takes longer than all else here, so it is done once per image.
    if RootDescription::read(&image.directory).is_err() {
        let content = image.open_flist()?;
        zmachine_rootfs::prepare(&image.directory, &digest, &content).map_err(|e| {
            Failure::from_error(Class::Failed, &e).context(format!("no root disk can be made of {flist}"))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_may_wish_for_templates_and_its_user_decides() {
        let with = |wish: &str, change: &dyn Fn(&mut MachineSpec)| {
            let mut spec = MachineSpec::new("m", "image");
            change(&mut spec);
            let labels = BTreeMap::from([(WARM.to_owned(), wish.to_owned())]);
            let warmed = warmed(&spec, Some(&labels));
            (warmed.warm, warmed.warm_ready)
        };
        assert_eq!(with("start", &|_| ()), (true, false));
        assert_eq!(with("ready", &|_| ()), (false, true));
        assert_eq!(with("often", &|_| ()), (false, false));
        assert_eq!(with("ready", &|spec| spec.warm = true), (true, false));
        assert_eq!(with("ready", &|spec| spec.cold = true), (false, false));
        assert_eq!(with("start", &|spec| spec.idle_timeout_ms = Some(1)), (false, false));
        let spec = MachineSpec::new("m", "image");
        assert!(!warmed(&spec, None).is_warm());
    }

    #[test]
    fn only_vms_are_saved_on_cloud_hypervisor_and_only_when_it_is_asked_for() {
        let why = |is_vm, change: &dyn Fn(&mut MachineSpec)| {
            let mut spec = MachineSpec {
                hypervisor: choice::Requested::CloudHypervisor,
                ..MachineSpec::new("m", "image")
            };
            change(&mut spec);
            not_saved_there(&spec, is_vm).unwrap_or_default()
        };
        assert_eq!(why(false, &|_| ()), "");
        assert!(why(false, &|spec| spec.snapshots = true).contains("comes from a server"));
        assert!(why(false, &|spec| spec.idle_timeout_ms = Some(1)).contains("comes from a server"));
        assert_eq!(why(true, &|spec| spec.snapshots = true), "");
        let asked_for = why(true, &|spec| {
            spec.snapshots = true;
            spec.hypervisor = choice::Requested::Auto;
        });
        assert!(asked_for.contains("only when it is asked for"), "{asked_for}");
    }
}
