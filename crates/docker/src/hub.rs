//! Tells who waits that something has happened to a machine.
//!
//! What happens is written to `events.jsonl` of the home by monitors and commands; one thread looks whether that file has
//! grown, for as long as somebody waits. Whoever is told looks for itself what it was.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use zmachine_spec::Home;

/// How often is looked while somebody waits.
const LOOK: Duration = Duration::from_millis(20);

/// How often is looked whether somebody waits.
const IDLE: Duration = Duration::from_millis(50);

/// Where to wait.
#[derive(Debug)]
pub struct Hub {
    changed: watch::Sender<u64>,
}

impl Hub {
    /// Begins to watch a home.
    pub fn start(home: &Home) -> std::io::Result<Hub> {
        let (changed, _) = watch::channel(0);
        let path = home.data().join("events.jsonl");
        let sender = changed.clone();
        let builder = std::thread::Builder::new().name("events".into());
        builder
            .stack_size(128 << 10)
            .spawn(move || watch_file(&path, &sender))?;
        Ok(Hub { changed })
    }

    /// A place in the stream of events from here on.
    pub fn subscribe(&self) -> Subscription {
        Subscription(self.changed.subscribe())
    }
}

/// A place in the stream of events.
#[derive(Debug)]
pub struct Subscription(watch::Receiver<u64>);

impl Subscription {
    /// Waits until something has happened since the last call, for at most `most`.
    pub async fn next(&mut self, most: Duration) {
        let _ = tokio::time::timeout(most, self.0.changed()).await;
    }
}

fn watch_file(path: &Path, changed: &watch::Sender<u64>) {
    let mark = || path.metadata().map_or((0, 0), |file| (file.ino(), file.len()));
    let mut last = mark();
    loop {
        if changed.receiver_count() == 0 {
            std::thread::sleep(IDLE);
            continue;
        }
        let now = mark();
        if now != last {
            last = now;
            changed.send_modify(|count| *count = count.wrapping_add(1));
        }
        std::thread::sleep(LOOK);
    }
}
