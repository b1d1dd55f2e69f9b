//! Images that come to a pod while it runs: each is a disk with a server of its own, on a socket that was there from the start.

use std::future::{Future, poll_fn};
use std::os::unix::net::UnixListener;
use std::task::Poll;

use zmachine_hypervisor::LaterDisk;
use zmachine_spec::Failure;

use super::rootfs_child::{self, RootfsEvent, RootfsServer};
use super::sandbox::Sandbox;

/// The places of a machine for images, and the images in them.
#[derive(Debug, Default)]
pub(super) struct Images {
    pub(super) places: Vec<Place>,
}

/// A place.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) disk: LaterDisk,
    /// Until the server has it.
    pub(super) listener: Option<UnixListener>,
    pub(super) served: Option<Served>,
}

/// An image in its place.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) digest: String,
    pub(super) server: RootfsServer,
    /// The guest has the disk.
    pub(super) is_plugged: bool,
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

    /// The images in their places.
    pub(super) fn digests(&self) -> Vec<String> {
        let served = self.places.iter().filter_map(|place| place.served.as_ref());
        served.map(|served| served.digest.clone()).collect()
    }

    /// The place that has this image, or the first one that is free.
    pub(super) fn place(&self, digest: &str) -> Option<usize> {
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
