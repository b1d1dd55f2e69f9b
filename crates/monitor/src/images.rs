//! Images that come to a pod while it runs: each is a disk with a server of its own, on a socket that was there from the start.

use std::future::{Future, poll_fn};
use std::os::unix::net::UnixListener;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use zmachine_hypervisor::LaterDisk;
use zmachine_image::library::blocks_directory;
use zmachine_image::store::CREDENTIALS_FILE;
use zmachine_spec::control::Reply;
use zmachine_spec::pod::image_serial;
use zmachine_spec::{Class, Failure};
use zmachine_store::journal::Resource;
use zmachine_store::log::Source;

use super::context::at;
use super::follow::Follow;
use super::guest::{self, within};
use super::rootfs_child::{self, RootfsEvent, RootfsServer, Settings};
use super::sandbox::Sandbox;

/// How long after its end a server is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// The places of a machine for images, and the images in them.
#[derive(Debug, Default)]
pub(super) struct Images {
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    disk: LaterDisk,
    /// Until the server has it.
    listener: Option<UnixListener>,
    served: Option<Served>,
}

#[derive(Debug)]
struct Served {
    digest: String,
    server: RootfsServer,
    /// The guest has the disk.
    is_plugged: bool,
}

impl Images {
    /// Listens for each of `disks`.
    ///
    /// # Errors
    /// When a socket cannot be bound.
    pub(super) fn listen(disks: &[LaterDisk], sandbox: Option<&Sandbox>) -> Result<Images, Failure> {
        let place = |disk: &LaterDisk| {
            Ok(Place {
                listener: Some(rootfs_child::listen(&disk.socket, sandbox)?),
                disk: disk.clone(),
                served: None,
            })
        };
        let places = disks.iter().map(place).collect::<Result<_, Failure>>()?;
        Ok(Images { places })
    }

    /// The place that has this image, or the first one that is free.
    fn place(&self, digest: &str) -> Option<usize> {
        let has = |place: &Place| place.served.as_ref().is_some_and(|served| served.digest == digest);
        let is_free = |place: &Place| place.listener.is_some();
        self.places
            .iter()
            .position(has)
            .or_else(|| self.places.iter().position(is_free))
    }

    /// The next thing that happens to a server, and its place. Dropping the future loses nothing.
    pub(super) async fn next_event(&mut self) -> (usize, RootfsEvent) {
        let servers = self
            .places
            .iter_mut()
            .enumerate()
            .filter_map(|(at, place)| Some((at, place.served.as_mut()?)));
        // Kept while it is waited for: a time that nobody waits for any more wakes nobody.
        let mut all: Vec<_> = servers
            .map(|(at, served)| Box::pin(async move { (at, served.server.next_event().await) }))
            .collect();
        poll_fn(|cx| {
            let ready = all.iter_mut().find_map(|waiting| match waiting.as_mut().poll(cx) {
                Poll::Ready(event) => Some(event),
                Poll::Pending => None,
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Ends the servers, and waits for them.
    pub(super) async fn end(self) {
        for served in self.places.into_iter().filter_map(|place| place.served) {
            served.server.kill().await;
        }
    }
}

impl Follow<'_> {
    /// Brings an image of this host to the guest as a disk.
    pub(super) async fn add_image(&mut self, digest: &str, client: oneshot::Sender<Reply>) {
        let at = match self.serve_image(digest) {
            Ok(at) => at,
            Err(failure) => return guest::reply(client, Err(failure)),
        };
        let place = &mut self.running.images.places[at];
        let Some(served) = place.served.as_mut().filter(|served| !served.is_plugged) else {
            return guest::reply(client, Ok(()));
        };
        let plugged = within("add a disk", self.running.vm.add_disk(&place.disk));
        if let Ok(plugged) = self.inbox.unless_ended(plugged).await {
            served.is_plugged = plugged.is_ok();
            guest::reply(client, plugged);
        }
    }

    /// Has a server for the image, unless there is one; its place.
    fn serve_image(&mut self, digest: &str) -> Result<usize, Failure> {
        let at = self.running.images.place(digest).ok_or_else(|| {
            let count = self.running.images.places.len();
            let message = format!("the machine has no place for one more image: it was made for {count}");
            Failure::new(Class::Conflict, message)
        })?;
        self.monitor.require_awake()?;
        let monitor = &mut *self.monitor;
        let place = &mut self.running.images.places[at];
        let Some(listener) = &place.listener else { return Ok(at) };
        let data = monitor.home.data();
        let image = data.join("images").join(digest);
        let is_digest = digest.len() == 64 && digest.bytes().all(|c| c.is_ascii_hexdigit());
        if !is_digest || !image.is_dir() {
            return Err(Failure::new(
                Class::NotFound,
                format!("there is no image {digest} on this host"),
            ));
        }
        let settings = Settings {
            image,
            serial: image_serial(digest),
            blocks: blocks_directory(data)?,
            credentials: data.join(CREDENTIALS_FILE),
            stores: Vec::new(),
            queues: place.disk.queues,
            is_nbd: false,
            prefetch: Default::default(),
            record: false,
        };
        let server = RootfsServer::on(listener.try_clone()?, settings, monitor.sandbox.as_ref())?;
        place.listener = None;
        place.served = Some(Served {
            digest: digest.to_owned(),
            server,
            is_plugged: false,
        });
        self.claim_image(at)?;
        Ok(at)
    }

    /// Claims the server's process, so that another command can end it should this monitor die.
    fn claim_image(&mut self, at: usize) -> Result<(), Failure> {
        let place = &self.running.images.places[at];
        if let Some(id) = place.served.as_ref().and_then(|served| served.server.id()) {
            let role = format!("rootfs {}", place.disk.id);
            self.monitor.journal.claim(Resource::Process { role, id })?;
            self.monitor.confine(id.pid);
        }
        Ok(())
    }

    /// What happens to a server; when it ends, another one takes its place.
    pub(super) fn image_event(&mut self, at_place: usize, event: RootfsEvent) -> Result<(), (String, Failure)> {
        let name = self.running.images.places[at_place].disk.id.clone();
        match event {
            RootfsEvent::Line(line) => self.monitor.log.note(Source::Monitor, &format!("{name}: {line}")),
            RootfsEvent::Ended(status) => {
                let text = format!("the server of {name} ended ({status}); it is started again");
                self.monitor.log.note(Source::Monitor, &text);
                if let Some(served) = &mut self.running.images.places[at_place].served {
                    served.server.restart_after(PAUSE);
                }
            }
            RootfsEvent::Restarted => self.claim_image(at_place).map_err(at("rootfs server"))?,
            RootfsEvent::NotRestarted(failure) => return Err(("rootfs server".to_owned(), failure)),
        }
        Ok(())
    }
}
