//! Machines that join and leave networks after their creation, running or not.

use zmachine_network::user::USER_NETWORK;
use zmachine_network::{
    Attachment, AttachmentRequest, DEFAULT_NETWORK, Network, NetworkError, NetworkSpec, Networks, can_make_networks,
};
use zmachine_plan::check_step;
use zmachine_spec::control::{Reconnect, Request};
use zmachine_spec::{Class, Failure, NetworkRequest};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::events::{self, Event, Object};
use zmachine_sys::lock::FileLock;

use super::Engine;
use super::create::membership;

impl Engine {
    /// Makes a network.
    ///
    /// # Errors
    /// [`Class::Unsupported`] for a user who may make none; as [`Networks::create`].
    pub fn create_network(&self, spec: &NetworkSpec) -> Result<Network, Failure> {
        // It would be made, and no machine could ever join it.
        if !can_make_networks() {
            let action = format!("the network '{}'", spec.name);
            return Err(NetworkError::NeedsRoot { action }.into());
        }
        let made = self.block_on(self.networks()?.create(spec))??;
        self.tell(made.name(), &made.id(), "created", None);
        Ok(made)
    }

    /// Removes a network that no machine is in.
    ///
    /// # Errors
    /// [`Class::NotFound`]; [`Class::Conflict`] that names the machines.
    pub fn remove_network(&self, name: &str) -> Result<(), Failure> {
        // Sweeps addresses of machines that are gone.
        self.reconcile()?;
        let networks = self.networks()?;
        let id = networks.get(name).map(|network| network.id()).unwrap_or_default();
        let removed = self.block_on(networks.remove(name))?;
        removed.map_err(|error| self.with_names(error.into()))?;
        self.tell(name, &id, "removed", None);
        Ok(())
    }

    /// Writes down that something happened to a network.
    fn tell(&self, name: &str, id: &str, what: &str, machine: Option<&str>) {
        let event = Event {
            detail: machine.map(str::to_owned),
            ..Event::of(Object::Network, id, name, what)
        };
        events::record(&self.home, &event);
    }

    /// The same of a machine that came to it, or left.
    fn tell_of(&self, machine: &Machine, network: &str, what: &str) {
        let id = self.network_id(network).unwrap_or_default();
        self.tell(network, &id, what, Some(&machine.id));
    }

    /// The id of a network, which no other one has or had.
    ///
    /// # Errors
    /// [`Class::NotFound`].
    pub fn network_id(&self, name: &str) -> Result<String, Failure> {
        Ok(self.networks()?.get(name)?.id())
    }

    /// Makes the default network where no machine has used it yet.
    ///
    /// # Errors
    /// As [`Networks::default_network`].
    pub fn ensure_default_network(&self) -> Result<(), Failure> {
        self.block_on(self.networks()?.default_network())??;
        Ok(())
    }

    /// Has a machine join a network. A running one gets an interface at once: its agent sets it up; a VM sees it come.
    ///
    /// # Errors
    /// [`Class::Conflict`] for one that is in it; whatever network or hypervisor refuse. Nothing has changed then.
    pub fn connect_network(&self, name: &str, request: &NetworkRequest) -> Result<(), Failure> {
        let machine = self.machine(name)?;
        let networks = self.networks()?;
        let present = machine.plan()?.attachments().to_vec();
        refuse_user(name, &present, &request.name)?;
        if present.iter().any(|a| a.network == request.name) {
            let message = format!("machine '{name}' is in network '{}' already", request.name);
            return Err(Failure::new(Class::Conflict, message));
        }
        let result = self
            .joined(&machine, &networks, request, present)
            .and_then(|attachments| {
                let mut all = machine.spec.networks.clone();
                all.push(request.clone());
                self.reconnect(&machine, attachments, all)
            });
        // Whatever went wrong: an address that the machine has is not given away.
        if result.is_err() && !self.machine(&machine.id)?.plan()?.is_in(&request.name) {
            networks.release(&request.name, &machine.id)?;
        }
        result.inspect(|()| self.tell_of(&machine, &request.name, "connected"))
    }

    /// Has a machine leave a network, and gives its addresses there back.
    ///
    /// # Errors
    /// [`Class::Conflict`] for a network that it is not in, or that its published ports go through.
    pub fn disconnect_network(&self, name: &str, network: &str) -> Result<(), Failure> {
        let machine = self.machine(name)?;
        let networks = self.networks()?;
        let present = machine.plan()?.attachments().to_vec();
        refuse_user(name, &present, network)?;
        let Some(leaving) = present.iter().find(|a| a.network == network) else {
            let message = format!("machine '{name}' is not in network '{network}'");
            return Err(
                Failure::new(Class::Conflict, message).hint(format!("'zmachine inspect {name}' shows where it is"))
            );
        };
        if !leaving.publish.is_empty() {
            let message = format!("the published ports of machine '{name}' go through network '{network}'");
            return Err(Failure::new(Class::Conflict, message).hint("make the machine again without it"));
        }
        let attachments = self.without(&networks, &present, network)?;
        let mut all = machine.spec.networks.clone();
        all.retain(|other| other.name != network);
        self.reconnect(&machine, attachments, all)?;
        networks.release(network, &machine.id)?;
        self.tell_of(&machine, network, "disconnected");
        Ok(())
    }

    /// The attachments of a machine with one more, for which it has an address from here on.
    fn joined(
        &self,
        machine: &Machine,
        networks: &Networks,
        request: &NetworkRequest,
        mut attachments: Vec<Attachment>,
    ) -> Result<Vec<Attachment>, Failure> {
        let wanted = zmachine_network::AddressRequest {
            ipv4: request.ipv4,
            ipv6: request.ipv6,
        };
        let (network, lease) = self.block_on(async {
            let network = match request.name.as_str() {
                DEFAULT_NETWORK => networks.default_network().await?,
                name => networks.get(name)?,
            };
            let lease = networks.lease(&network, &machine.id, wanted).await?;
            Ok::<_, Failure>((network, lease))
        })??;
        let mut all: Vec<Network> = Vec::new();
        for attachment in &mut attachments {
            all.push(networks.get(&attachment.network)?);
            attachment.membership.also_in.push(request.name.clone());
        }
        all.push(network.clone());
        let is_default = !network.is_internal() && !attachments.iter().any(Attachment::is_default);
        let taken = |index: u8| attachments.iter().any(|a| a.interface == format!("eth{index}"));
        let index = (0..u8::MAX).find(|index| !taken(*index)).unwrap_or(u8::MAX);
        let search = attachments.first().map(|a| a.search.clone()).unwrap_or_default();
        let secondary = !is_default && attachments.iter().any(Attachment::is_default);
        attachments.push(Attachment::plan(
            &network,
            AttachmentRequest {
                machine: &machine.id,
                lease,
                index,
                is_default,
                publish: &[],
                membership: &membership(&machine.spec, request, &all, secondary),
                nameservers: &[],
                search: &search,
            },
        )?);
        Ok(attachments)
    }

    /// The attachments of a machine but for one, with default routes through another one when they went through that.
    fn without(&self, networks: &Networks, present: &[Attachment], network: &str) -> Result<Vec<Attachment>, Failure> {
        let mut attachments: Vec<Attachment> = present.iter().filter(|a| a.network != network).cloned().collect();
        for attachment in &mut attachments {
            attachment.membership.also_in.retain(|other| other != network);
        }
        if !attachments.iter().any(Attachment::is_default) {
            for attachment in &mut attachments {
                let other = networks.get(&attachment.network)?;
                if !other.is_internal() {
                    attachment.make_default(&other);
                    break;
                }
            }
        }
        Ok(attachments)
    }

    /// Has the machine be in these networks: by its monitor, or on disk when it has none.
    fn reconnect(
        &self,
        machine: &Machine,
        attachments: Vec<Attachment>,
        networks: Vec<NetworkRequest>,
    ) -> Result<(), Failure> {
        if machine.state.phase.is_active() {
            let wanted = Reconnect { attachments, networks };
            return self.ask(machine, &Request::Reconnect(Box::new(wanted)));
        }
        let Some(_lock) = FileLock::try_exclusive(&machine.lock_path())? else {
            let message = format!("machine '{}' is starting or ending", machine.spec.name);
            return Err(Failure::new(Class::Conflict, message).hint("try again in a moment"));
        };
        let plan = machine.plan()?;
        check_step(plan.attachments(), &attachments)?;
        let mut spec = machine.spec.clone();
        spec.networks = networks;
        let plan = plan.with_attachments(&spec, attachments)?;
        catalog::write_networks(&machine.dir, &spec, &plan)?;
        let mut state = catalog::load_state(&machine.dir)?;
        state.addresses = plan.addresses();
        Ok(catalog::save_state(&machine.dir, &state)?)
    }
}

/// The network without root is a machine's only one, from its creation to its end, and others need root.
fn refuse_user(machine: &str, present: &[Attachment], network: &str) -> Result<(), Failure> {
    if network == USER_NETWORK || present.iter().any(|a| a.user.is_some()) {
        let message = format!("network '{USER_NETWORK}', which needs no root, is a machine's only one and stays it");
        return Err(Failure::new(Class::Unsupported, message).hint(format!(
            "make the machine '{machine}' again with other networks, as root"
        )));
    }
    if !can_make_networks() {
        let action = format!("the network '{network}'");
        return Err(NetworkError::NeedsRoot { action }.into());
    }
    Ok(())
}
