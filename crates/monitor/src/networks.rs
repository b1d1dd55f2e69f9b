//! A machine's networks on this host: attached at a start, kept until its end.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use tokio::sync::mpsc;
use zmachine_network::{Attachment, Made};
use zmachine_spec::Failure;
use zmachine_store::journal::Resource;
use zmachine_store::log::Source;

use super::context::{AbortOnDrop, Kept, Monitor};

/// What a machine has of its networks when its hypervisor starts.
#[derive(Default)]
pub(super) struct Attached {
    /// The open tap, or connection to passt, of each interface.
    pub(super) taps: HashMap<String, OwnedFd>,
    /// What is kept until the end.
    pub(super) hold: NetworkHold,
    /// What ends a machine whose network is lost.
    pub(super) failures: Option<mpsc::Receiver<Failure>>,
}

/// What a machine keeps of its networks until it ends.
#[derive(Default)]
pub(super) struct NetworkHold {
    /// The published host ports, so that nobody else takes one.
    ports: Vec<OwnedFd>,
    /// Those who start a network's name service, or passt, again, by the network's name.
    pub(super) watches: HashMap<String, AbortOnDrop>,
}

impl NetworkHold {
    /// Keeps published ports from being taken by others.
    pub(super) fn keep_ports(&mut self, ports: Vec<OwnedFd>) {
        self.ports.extend(ports);
    }

    /// The same with the machine's taps, while it is asleep.
    pub(super) fn kept(self, taps: Vec<(String, OwnedFd)>) -> Kept {
        Kept {
            _ports: self.ports,
            _watches: self.watches,
            taps,
        }
    }
}

impl Monitor {
    /// Makes every resource of the machine's networks, each claimed before.
    pub(super) async fn attach(&mut self, attachments: &[Attachment]) -> Result<Attached, Failure> {
        let mut attached = Attached::default();
        let (ended, failures) = mpsc::channel(attachments.len().max(1));
        attached.failures = Some(failures);
        for attachment in attachments {
            if attachment.user.is_some() {
                let (hypervisor, watch) = self.start_uplink(attachment, ended.clone()).await?;
                attached.taps.insert(attachment.interface.clone(), hypervisor);
                attached.hold.watches.insert(attachment.network.clone(), watch);
                continue;
            }
            self.attach_one(attachment, &mut attached).await?;
        }
        if attachments.iter().any(|a| !a.resources().is_empty()) {
            for rule in zmachine_network::external_firewalls().await {
                self.log.note(Source::Monitor, &rule);
                let warning = format!("{rule}: docs/networks.md says what lets machines through");
                self.machine.state.warn(warning);
            }
        }
        Ok(attached)
    }

    pub(super) async fn attach_one(&mut self, attachment: &Attachment, attached: &mut Attached) -> Result<(), Failure> {
        for resource in attachment.resources() {
            // The address belongs to the machine until it is removed, so no run may give it back.
            if !resource.outlives_stop() {
                self.journal.claim(Resource::Network(resource.clone()))?;
            }
            self.kill.pass("start: network resource claimed");
            match resource.make(&self.networks).await? {
                Made::Nothing => {}
                Made::Tap(tap) => drop(attached.taps.insert(attachment.interface.clone(), tap)),
                Made::Ports(held) => attached.hold.ports.extend(held),
            }
            self.kill.pass("start: network resource made");
        }
        let watch = self.watch_network(&attachment.network);
        attached.hold.watches.insert(attachment.network.clone(), watch);
        Ok(())
    }

    /// Keeps the name service of a network running for as long as the task is.
    fn watch_network(&self, network: &str) -> AbortOnDrop {
        let (networks, network, log) = (self.networks.clone(), network.to_owned(), self.log.clone());
        AbortOnDrop(tokio::spawn(async move {
            let note = |line: String| log.note(Source::Monitor, &line);
            networks.keep_served(&network, note).await;
        }))
    }

    /// Undoes what an attachment has on the host, but for its lease. It stays in the journal, whose undo finds nothing.
    pub(super) async fn detach(&self, attachment: &Attachment) -> Result<(), Failure> {
        for resource in attachment.resources().iter().rev().filter(|r| !r.outlives_stop()) {
            resource.undo(&self.networks).await?;
        }
        Ok(())
    }
}
