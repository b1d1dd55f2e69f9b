//! What brings a file or a block device of the host to a machine that runs.

use tokio::sync::oneshot;
use zmachine_spec::control::Reply;
use zmachine_spec::{Class, Failure};

use super::files::{Given, SERIAL, Wanted, open};
use super::follow::Follow;
use super::guest::{self, within};
use super::launch::{in_thread, joined};

impl Follow<'_> {
    /// Brings a file or a block device of the host to the guest as a disk.
    pub(super) async fn add_file(&mut self, wanted: Wanted, client: oneshot::Sender<Reply>) {
        let is_serial =
            (1..=SERIAL).contains(&wanted.serial.len()) && wanted.serial.bytes().all(|c| c.is_ascii_graphic());
        let place = match is_serial {
            true => {
                let place = self.running.files.place(&wanted);
                place.and_then(|place| self.monitor.require_awake().map(|()| place))
            }
            false => Err(Failure::new(
                Class::Usage,
                format!(
                    "{:?} is not the serial number of a disk: 1 to {SERIAL} characters",
                    wanted.serial
                ),
            )),
        };
        let place = match place {
            Ok(Some(place)) => place,
            Ok(None) => return guest::reply(client, Ok(())),
            Err(failure) => return guest::reply(client, Err(failure)),
        };
        let opening = wanted.clone();
        // A device whose storage does not answer may keep whoever opens it waiting.
        let opened = within("open a disk", joined(in_thread(move || open(&opening, place))));
        let (later, file) = match self.inbox.unless_ended(opened).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(failure)) => return guest::reply(client, Err(failure)),
            Err(_) => return,
        };
        let plugged = within("add a disk", self.running.vm.add_file(&later, file.into()));
        if let Ok(plugged) = self.inbox.unless_ended(plugged).await {
            if plugged.is_ok() {
                let Wanted { serial, read_only, .. } = wanted;
                self.running.files.given.push(Given { serial, read_only });
            }
            guest::reply(client, plugged);
        }
    }
}
