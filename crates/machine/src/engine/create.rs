//! Creating machines: from a spec to a folder with a plan.

use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use zmachine_hypervisor::accel::{self, AccelFacts, Requested};
use zmachine_image::library::hold_images;
use zmachine_image::{
    FetchOptions, Image, Library, Mode, Progress, PullPolicy, Reference, ResolveError, Timeouts, open_store,
};
use zmachine_kernel::{FsDriver, KernelLibrary};
use zmachine_network::{
    Attachment, AttachmentRequest, DEFAULT_NETWORK, HostDns, NetworkError, Networks, Publish, host_nameservers,
};
use zmachine_rootfs::prepare::RootDescription;
use zmachine_sys::host::HostFacts;

use super::image_facts::image_facts;
use super::tree::{tree_facts, unpacked};
use super::vm::host_disk;
use super::{Engine, release_leases};
use crate::catalog::{self, Machine};
use crate::failure::{Class, Failure};
use crate::plan::container::is_for_containers;
use crate::plan::{Content, ImageFacts, Inputs, KernelChoice, Plan, TreeFacts, VmFacts};
use crate::spec::{self, MachineSpec, ModeChoice, RootfsChoice};
use crate::state::State;
use crate::volume::{SharedDirectory, Wanted};

/// How an image is found.
pub struct CreateOptions<'a> {
    /// Relative paths are relative to this.
    pub cwd: &'a Path,
    /// Whether a URL is asked again.
    pub pull: PullPolicy,
    /// Told about downloads.
    pub progress: &'a dyn Progress,
}

/// What a plan needs and does not change until the machine has its folder.
struct Facts {
    makes: Makes,
    host: HostFacts,
    accel: accel::Choice,
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

impl Makes {
    fn content<'a>(&'a self, volumes: &'a [Wanted]) -> Content<'a> {
        match self {
            Makes::Container { image, kernel } => Content::Container { image, kernel, volumes },
            Makes::Tree(facts) => Content::Tree(facts),
            Makes::Vm(facts) => Content::Vm(facts),
        }
    }
}

impl Engine {
    /// Creates a machine. It is not started.
    ///
    /// # Errors
    /// Whatever is wrong with the request, the image or the host; nothing is left then.
    pub fn create(&self, spec: &MachineSpec, options: &CreateOptions<'_>) -> Result<Machine, Failure> {
        self.planned(spec, options, |id, plan, wanted| {
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
            if let Err(failure) = catalog::add(&self.home, id, spec, &plan, &state, &self.kill) {
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

    /// The plan that [`Engine::create`] would make; nothing is created.
    ///
    /// # Errors
    /// As [`Engine::create`].
    pub fn plan(&self, spec: &MachineSpec, options: &CreateOptions<'_>) -> Result<Plan, Failure> {
        let networks = self.networks()?;
        self.planned(spec, options, |id, plan, _| {
            release_leases(&networks, |machine| machine == id)?;
            Ok(plan)
        })
    }

    fn planned<T>(
        &self,
        spec: &MachineSpec,
        options: &CreateOptions<'_>,
        then: impl FnOnce(&str, Plan, &[Wanted]) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        spec::check_name(&spec.name)?;
        catalog::require_free(&self.home, &spec.name)?;
        let publish = parse_publish(&spec.publish)?;
        Plan::check_request(spec, &HostFacts::gather())?;
        check_stores(&spec.stores)?;
        let id = catalog::new_id();
        let wanted = self.volumes().wanted(&spec.volumes, &id)?;
        let shares = SharedDirectory::wanted(&spec.volumes, &self.home)?;
        // Until the machine is there, nothing says that its image is needed.
        let _images = hold_images(self.home.data())?;
        let facts = self.facts(spec, options, &wanted, !shares.is_empty())?;
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
                    attachments,
                    host_dns: &facts.dns,
                    shares: &shares,
                    has_share_server: zmachine_share::Server::find().is_ok(),
                };
                then(&id, Plan::new(spec, facts.makes.content(&wanted), inputs)?, &wanted)
            });
        if result.is_err() {
            release_leases(&networks, |machine| machine == id)?;
        }
        result
    }

    fn facts(
        &self,
        spec: &MachineSpec,
        options: &CreateOptions<'_>,
        wanted: &[Wanted],
        uses_shares: bool,
    ) -> Result<Facts, Failure> {
        let requested = match spec.accel.as_str() {
            "kvm" => Requested::Kvm,
            "tcg" => Requested::Tcg,
            _ => Requested::Auto,
        };
        let accel = accel::choose(requested, &AccelFacts::gather())
            .map_err(|e| Failure::from_error(Class::Unsupported, &e).hint(e.hint()))?;
        Ok(Facts {
            makes: self.makes(spec, options, wanted, uses_shares)?,
            host: HostFacts::gather(),
            accel,
            dns: host_nameservers(),
        })
    }

    fn makes(
        &self,
        spec: &MachineSpec,
        options: &CreateOptions<'_>,
        wanted: &[Wanted],
        uses_shares: bool,
    ) -> Result<Makes, Failure> {
        if let Some(path) = host_disk(spec, options.cwd)? {
            return self
                .host_disk_facts(&path, wanted)
                .map(|facts| Makes::Vm(Box::new(facts)));
        }
        let reference = Reference::parse(&spec.flist, options.cwd)
            .map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint().unwrap_or_default()))?;
        let fetch = FetchOptions {
            stores: spec.stores.clone(),
            ..FetchOptions::default()
        };
        let library = Library::open(self.home.data())?.with_fetch_options(fetch);
        let mode = match spec.mode {
            ModeChoice::Auto => Mode::Auto,
            ModeChoice::Container => Mode::Container,
            ModeChoice::Vm => Mode::Vm,
        };
        let image = library.resolve_as(&reference, options.pull, mode, options.progress)?;
        if let Some(facts) = self.flist_facts(&library, &image, spec, wanted)? {
            return Ok(Makes::Vm(Box::new(facts)));
        }
        if let Some(facts) = tree_facts(&library, &image, spec, wanted, options.progress)? {
            return Ok(Makes::Tree(Box::new(facts)));
        }
        wanted.iter().try_for_each(Wanted::check_mountable)?;
        let mut drivers: Vec<FsDriver> = wanted.iter().filter_map(|v| FsDriver::of(v.fs.name())).collect();
        let is_tree = spec.rootfs == RootfsChoice::Virtiofs;
        drivers.extend((uses_shares || is_tree).then_some(FsDriver::Virtiofs));
        let has_nested = wanted.iter().any(|volume| is_for_containers(&volume.target));
        drivers.extend(has_nested.then_some(FsDriver::Nested));
        let image = match is_tree {
            true => ImageFacts {
                tree: Some(unpacked(&library, &image, &spec.flist, options.progress)?),
                ..image_facts(&image, &spec.flist)?
            },
            false => container_facts(&image, &spec.flist)?,
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
        let initramfs = library.initramfs(&kernel, &self.agent, drivers)?;
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
        networks.check_publish(id, publish)?;
        let dns_servers: &[IpAddr] = &dns.nameservers;
        let mut attachments = Vec::new();
        for (index, text) in spec.networks.iter().enumerate() {
            let (name, want) = spec::parse_network(text)?;
            // The interfaces of a machine are told apart by their networks: a second one would take the first one's place.
            let is_first = attachments.iter().all(|other: &Attachment| other.network != name);
            if !is_first {
                return Err(
                    Failure::new(Class::Usage, format!("the network '{name}' is named twice"))
                        .hint("a machine has one interface in a network; leave out the second --network"),
                );
            }
            let attachment = self.block_on(async {
                let network = match name {
                    DEFAULT_NETWORK => networks.default_network().await?,
                    name => networks.get(name)?,
                };
                let ipv4 = networks.lease(&network, id, want).await?;
                let request = AttachmentRequest {
                    machine: id,
                    ipv4,
                    index: index as u8,
                    publish: if index == 0 { publish } else { &[] },
                    nameservers: dns_servers,
                    search: &dns.search,
                };
                Attachment::plan(&network, request)
            })??;
            attachments.push(attachment);
        }
        Ok(attachments)
    }
}

fn parse_publish(texts: &[String]) -> Result<Vec<Publish>, Failure> {
    let parse = |text: &String| Publish::parse(text).map_err(|e| Failure::from(NetworkError::from(e)));
    texts.iter().map(parse).collect()
}

/// That each is the URL of a store. Whether it answers shows when a block is asked for.
fn check_stores(urls: &[String]) -> Result<(), Failure> {
    for url in urls {
        open_store(url, Timeouts::default()).map_err(|e| {
            let hint = e
                .hint()
                .unwrap_or_else(|| "stores are dir:///PATH, http:// and https:// URLs".to_owned());
            Failure::from_error(Class::Usage, &e).hint(hint)
        })?;
    }
    Ok(())
}

/// What the planner needs of a container's image, whose root disk is prepared.
fn container_facts(image: &Image, flist: &str) -> Result<ImageFacts, Failure> {
    let digest = image.digest.to_string();
    // Opening a large flist takes longer than all else here, so it is done once per image.
    if RootDescription::read(&image.directory).is_err() {
        let content = image.open_flist()?;
        zmachine_rootfs::prepare(&image.directory, &digest, &content).map_err(|e| {
            Failure::from_error(Class::Failed, &e).context(format!("no root disk can be made of {flist}"))
        })?;
    }
    image_facts(image, flist)
}

impl From<ResolveError> for Failure {
    fn from(error: ResolveError) -> Failure {
        let class = match () {
            () if error.is_not_found() => Class::NotFound,
            () if error.is_fetch_failure() => Class::Fetch,
            () => Class::Failed,
        };
        Failure::from_error(class, &error).hint(error.hint().unwrap_or_default())
    }
}
