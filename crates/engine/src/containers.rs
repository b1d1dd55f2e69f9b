//! Containers in a machine that is made for several of them: one without an entrypoint (`idle` in its spec).
//!
//! A process of a container is one with an id: [`Engine::attach_exec`] and [`Engine::wait_exec`] reach it.

use std::path::{Path, PathBuf};

use zmachine_agent_protocol::{Container, ContainerProcess, ContainerReply, ContainerRequest};
use zmachine_flist::Digest;
use zmachine_hypervisor::Boot;
use zmachine_image::library::hold_images;
use zmachine_image::{ImageName, Library, Mode};
use zmachine_kernel::{FsDriver, Kernel};
use zmachine_plan::Plan;
use zmachine_spec::control::{ExecRecord, Reply, Request};
use zmachine_spec::pod::{begun_image_name, image_serial};
use zmachine_spec::{Class, Failure};

use super::Engine;
use crate::attach::{ProcessInput, ProcessOutput};
use crate::client::require_awake;
use crate::create::prepare_root;
use crate::execs::unexpected;

impl Engine {
    /// Starts a process of a container of a machine, known by `id` in the machine. With `new`, it is the first one of a container that
    /// is made for it, and ends with it. What it writes waits until somebody attaches.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the machine does not run or the id is in use; the guest's reason when it does not start.
    pub fn start_in_container(
        &self,
        machine: &str,
        id: &str,
        container: &str,
        new: Option<Container>,
        process: ContainerProcess,
    ) -> Result<ExecRecord, Failure> {
        require_awake(&self.machine(machine)?)?;
        let request = Request::StartInContainer {
            id: id.to_owned(),
            container: container.to_owned(),
            new: new.map(Box::new),
            process: Box::new(process),
        };
        self.one(machine, &request)
    }

    /// Brings an image of this host to a machine that was made for it (`images` of a pod), as a disk that is read as it is needed. Its
    /// serial number in the guest; an image that is there already stays.
    ///
    /// # Errors
    /// [`Class::NotFound`] for an image that is not here, [`Class::Conflict`] when the machine does not run or has no place left.
    pub fn add_image(&self, machine: &str, image: &Digest) -> Result<String, Failure> {
        let found = self.machine(machine)?;
        require_awake(&found)?;
        // What is pruned is so either before, or not at all.
        let _kept = hold_images(self.home.data())?;
        let library = Library::open(self.home.data())?;
        let image = self.whole_one(&library, image)?;
        let digest = image.to_string();
        prepare_root(&library.by_its_digest(&image, Mode::Container, &digest)?, &digest)?;
        let serial = image_serial(&digest);
        self.ask(&found, &Request::AddImage { digest })?;
        Ok(serial)
    }

    /// The image that is here in the place of one that our snapshotter began, when all of that has come; else `image` itself.
    fn whole_one(&self, library: &Library, image: &Digest) -> Result<Digest, Failure> {
        let name = begun_image_name(&image.to_string());
        let name = ImageName::new(&name).map_err(|error| Failure::from_error(Class::Failed, &error))?;
        Ok(library.find(&name)?.unwrap_or(*image))
    }

    /// Brings a file or a block device of this host to a machine that was made for it (`files` of a pod), as a disk with this serial number
    /// of at most 20 bytes; one with this number that is there already stays.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the machine does not run or has no place left, or the device is in use.
    pub fn add_file(&self, machine: &str, path: &Path, serial: &str, read_only: bool) -> Result<(), Failure> {
        let found = self.machine(machine)?;
        require_awake(&found)?;
        let request = Request::AddFile {
            path: path.to_owned(),
            serial: serial.to_owned(),
            read_only,
        };
        self.ask(&found, &request)
    }

    /// Connects to a TCP port of a guest's loopback. The stream begins with the agent's `Done`, or why nobody accepts.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the machine does not run.
    pub fn dial(&self, machine: &str, port: u16) -> Result<(ProcessInput, ProcessOutput), Failure> {
        let machine = self.machine(machine)?;
        require_awake(&machine)?;
        self.stream(&machine, &Request::Dial { port })
    }

    /// Modules of a machine's kernel for what manages networks in it: files of this host, in loading order.
    ///
    /// # Errors
    /// When there is no such machine, or its kernel is gone.
    pub fn network_modules(&self, machine: &str) -> Result<Vec<PathBuf>, Failure> {
        let plan = self.machine(machine)?.plan()?;
        let Plan::Container(plan) = &plan else {
            return Ok(Vec::new());
        };
        let Boot::Kernel { kernel, .. } = &plan.vm.boot else {
            return Ok(Vec::new());
        };
        let folder = kernel.parent().unwrap_or(Path::new("/"));
        Ok(Kernel::read(folder)?.driver_files(FsDriver::Nested))
    }

    /// Does something to a container of a machine.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the machine does not run; the guest's reason.
    pub fn container(
        &self,
        machine: &str,
        container: &str,
        request: ContainerRequest,
    ) -> Result<ContainerReply, Failure> {
        let found = self.machine(machine)?;
        require_awake(&found)?;
        let request = Request::Container {
            id: container.to_owned(),
            request,
        };
        match self.reply(&found, &request)? {
            Some(Reply::Container(reply)) => Ok(reply),
            Some(Reply::Failed(failure)) => Err(failure),
            None => Err(Failure::new(Class::Conflict, format!("machine '{machine}' has ended"))),
            Some(_) => Err(unexpected(machine)),
        }
    }
}
