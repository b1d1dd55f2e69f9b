//! Supervision: every attached machine's monitor watches the network's dnsmasq, and the first that finds it gone starts it
//! again, under the network's lock.

use std::io;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::unix::pipe::Receiver;
use zmachine_sys::process::ProcessId;

use super::process::{find, refresh};
use crate::dns;
use crate::error::NetworkError;
use crate::home::Networks;
use crate::reconcile;

/// The pause before the first try to start it again; it doubles with each failure, up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Between two looks at whom the host asks, which changes with the place of a portable one.
const LOOK: Duration = Duration::from_secs(10);

impl Networks {
    /// Keeps network `name` served for as long as machines are attached to it: when its dnsmasq ends, it is started again,
    /// and whatever else is missing is made. `note` is told about it in a sentence. Ends when nobody is attached.
    pub async fn keep_served(&self, name: &str, note: impl Fn(String)) {
        let mut pause = FIRST;
        loop {
            let Ok(network) = self.get(name) else { return };
            if let Some(process) = find(self, &network) {
                let since = tokio::time::Instant::now();
                tokio::select! {
                    _ = ended(process) => {}
                    () = self.follow_resolvers(name) => {}
                }
                if since.elapsed() > LONGEST {
                    pause = FIRST;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
            match self.serve_again(name).await {
                Ok(Some(true)) => note(format!("the dnsmasq of network {name:?} had ended: started again")),
                Ok(Some(false)) => {}
                Ok(None) => return,
                Err(error) => note(format!("network {name:?} has no name service: {error}")),
            }
        }
    }

    /// Tells dnsmasq whenever the host asks other resolvers than before. Never ends.
    async fn follow_resolvers(&self, name: &str) {
        let mut known = dns::own_resolvers();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = dns::own_resolvers();
            if now != known && self.refresh(name).await.is_ok() {
                known = now;
            }
        }
    }

    async fn refresh(&self, name: &str) -> Result<(), NetworkError> {
        let network = self.get(name)?;
        let _lock = self.lock(name).await?;
        refresh(self, &network, &reconcile::attached(self, name)?)
    }

    /// Whether dnsmasq had to be started; `None` when the network needs none.
    async fn serve_again(&self, name: &str) -> Result<Option<bool>, NetworkError> {
        let network = self.get(name)?;
        let lock = self.lock(name).await?;
        if reconcile::attached(self, name)?.is_empty() {
            return Ok(None);
        }
        if find(self, &network).is_some() {
            return Ok(Some(false));
        }
        reconcile::reconcile(self, &network, &lock).await?;
        Ok(Some(true))
    }
}

/// Resolves when the process is gone.
async fn ended(process: ProcessId) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(process.pid as i32) else {
        return Ok(());
    };
    // Only waited for, never read: the runtime has no word for a descriptor that is neither pipe nor socket.
    let pidfd = Receiver::from_owned_fd_unchecked(pidfd_open(pid, PidfdFlags::NONBLOCK)?)?;
    // Checked after the descriptor is open: from here on the number cannot change its owner.
    if ProcessId::of(process.pid) != Some(process) {
        return Ok(());
    }
    pidfd.readable().await
}
