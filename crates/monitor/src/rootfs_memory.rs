//! What a monitor remembers of its rootfs servers in one run.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zmachine_rootfs::PrefetchList;
use zmachine_rootfs::prefetch_list::BLOCKS_MAX;
use zmachine_rootfs::report::Stats;

/// How many servers may end in [`RESTART_WINDOW`] before the next one is made to wait: the guest would notice a pause.
pub(super) const RESTARTS: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(60);

/// The pause before one more than that, doubled for each further one.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
/// The longest such pause. A guest that could make its server end at will would be slowed down, not the host.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(1);

/// For how long after the entrypoint's start it is noted what the guest reads.
const RECORDING: Duration = Duration::from_secs(60);

/// How often the counters are written into the state, at the most.
const COUNTERS_PERIOD: Duration = Duration::from_secs(5);

/// What is remembered about the server in one run.
#[derive(Debug)]
pub(super) struct RootfsWatch {
    /// The directory of the image that is served.
    pub(super) image: PathBuf,
    /// The counters of servers that ended; those of the current one come on top.
    pub(super) earlier: Stats,
    /// Last time the counters were written into the state.
    pub(super) saved: Instant,
    /// They changed since.
    pub(super) changed: bool,
    pub(super) restarts: Vec<Instant>,
    /// The current server has said that it serves.
    pub(super) is_serving: bool,
    /// Servers in a row that never did.
    pub(super) in_vain: u32,
    pub(super) failed_blocks: BTreeSet<String>,
    pub(super) recording: Option<Recording>,
}

/// What the guest reads first, while that is noted.
#[derive(Debug)]
pub(super) struct Recording {
    /// Where the list is kept.
    pub(super) image: PathBuf,
    pub(super) blocks: Vec<u32>,
    pub(super) known: HashSet<u32>,
    /// When it is over.
    pub(super) until: Option<Instant>,
}

impl RootfsWatch {
    pub(super) fn new() -> RootfsWatch {
        RootfsWatch {
            image: PathBuf::new(),
            earlier: Stats::default(),
            saved: Instant::now(),
            changed: false,
            restarts: Vec::new(),
            is_serving: false,
            in_vain: 0,
            failed_blocks: BTreeSet::new(),
            recording: None,
        }
    }

    /// A start begins: whether the server of `image` should tell what is read first.
    pub(super) fn record_first_reads(&mut self, image: &Path) -> bool {
        let recording = Recording {
            image: image.to_owned(),
            blocks: Vec::new(),
            known: HashSet::new(),
            until: None,
        };
        image.clone_into(&mut self.image);
        self.recording = PrefetchList::read(image).wants_recording().then_some(recording);
        self.recording.is_some()
    }

    /// The entrypoint runs.
    pub(super) fn entrypoint_started(&mut self) {
        if let Some(recording) = &mut self.recording {
            recording.until = Some(Instant::now() + RECORDING);
        }
    }

    pub(super) fn first_reads(&mut self, blocks: Vec<u32>) {
        let Some(recording) = &mut self.recording else { return };
        // A server that was started again tells them once more.
        let new = blocks.into_iter().filter(|block| recording.known.insert(*block));
        recording.blocks.extend(new);
        recording.blocks.truncate(BLOCKS_MAX);
    }

    /// How long the next server has to wait.
    pub(super) fn pause(&mut self) -> Duration {
        self.restarts.retain(|at| at.elapsed() < RESTART_WINDOW);
        self.restarts.push(Instant::now());
        match self.restarts.len().checked_sub(RESTARTS + 1) {
            None => Duration::ZERO,
            Some(more) => RESTART_PAUSE_MAX.min(RESTART_PAUSE * 2u32.saturating_pow(more as u32)),
        }
    }

    /// When something is to be written; `None` when all is.
    pub(super) fn due(&self) -> Option<Instant> {
        let recording = self.recording.as_ref().and_then(|recording| recording.until);
        let both = self.counters_due().into_iter().chain(recording);
        both.min()
    }

    pub(super) fn counters_due(&self) -> Option<Instant> {
        self.changed.then(|| self.saved + COUNTERS_PERIOD)
    }
}

#[cfg(test)]
mod tests {
    use zmachine_rootfs::prefetch_list::BLOCKS_MAX;

    use super::*;

    #[test]
    fn servers_that_end_often_have_to_wait_but_never_long() {
        let mut watch = RootfsWatch::new();
        let pauses: Vec<u128> = (0..100).map(|_| watch.pause().as_millis()).collect();
        assert_eq!(pauses[..10], [0, 0, 0, 0, 0, 100, 200, 400, 800, 1000]);
        assert!(pauses[10..].iter().all(|pause| *pause == 1000));
    }

    #[test]
    fn what_is_read_first_is_kept_once_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = RootfsWatch::new();
        watch.first_reads(vec![1]);
        assert!(watch.record_first_reads(dir.path()));
        watch.first_reads(vec![4, 2, 4]);
        watch.first_reads(vec![2, 3]);
        assert_eq!(watch.recording.as_ref().unwrap().blocks, [4, 2, 3]);
        watch.first_reads((0..100_000).collect());
        assert_eq!(watch.recording.as_ref().unwrap().blocks.len(), BLOCKS_MAX);
        assert_eq!(watch.due(), None);
        watch.entrypoint_started();
        assert!(watch.due().is_some());
    }
}
