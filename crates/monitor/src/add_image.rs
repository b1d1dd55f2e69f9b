//! What brings an image to a machine that runs, and keeps its server running.

use std::time::Duration;

use tokio::sync::oneshot;
use zmachine_image::library::blocks_directory;
use zmachine_image::store::CREDENTIALS_FILE;
use zmachine_spec::control::Reply;
use zmachine_spec::pod::image_serial;
use zmachine_spec::{Class, Failure};
use zmachine_store::cache::note_later_images;
use zmachine_store::journal::Resource;
use zmachine_store::log::Source;

use super::context::at;
use super::follow::Follow;
use super::guest::{self, within};
use super::images::Served;
use super::rootfs_child::{RootfsEvent, RootfsServer, Settings};

/// How long after its end a server is started again.
const PAUSE: Duration = Duration::from_secs(1);

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
        let mut all = self.running.images.digests();
        all.push(digest.to_owned());
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
        note_later_images(&monitor.home, &monitor.machine.id, &all)?;
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
