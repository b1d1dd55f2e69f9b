//! An image onto the boot volume, once, and the file system on it as large as the volume.
//!
//! ```text
//! empty ─> installing{digest} ─copy, verify, sync─> installed{digest}
//! ```
//! What is `installing` is never booted: the copy is done again from its beginning. What is `installed` belongs to the guest.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use zmachine_disk::{self as disk, CopyError};
use zmachine_plan::VmPlan;
use zmachine_plan::vm::{DiskSource, Install};
use zmachine_spec::control::Report;
use zmachine_spec::volume::Content;
use zmachine_spec::{Class, Exit, Failure, Home, Setting};
use zmachine_store::disk_source::open_source;
use zmachine_store::log::Source;
use zmachine_store::volume::Held;

use super::super::context::Monitor;
use super::super::inbox::Inbox;
use super::super::launch::{in_thread, joined};

/// How long the copying thread may take to notice that it is to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

impl Monitor {
    /// Sees to it that the boot volume holds the machine's image. `Some` when the machine was stopped meanwhile.
    pub(super) async fn install(&mut self, plan: &VmPlan, inbox: &mut Inbox) -> Result<Option<Exit>, Failure> {
        let Some(install) = plan.install().cloned() else {
            return Ok(None);
        };
        let mut volumes = std::mem::take(&mut self.volumes);
        let result = match volumes.first_mut() {
            Some(boot) => self.install_on(boot, install, inbox).await,
            None => Ok(None),
        };
        self.volumes = volumes;
        result
    }

    async fn install_on(
        &mut self,
        held: &mut Held,
        install: Install,
        inbox: &mut Inbox,
    ) -> Result<Option<Exit>, Failure> {
        let over = install.reinstall && !self.machine.state.reinstalled;
        match &held.volume.record.content {
            Content::Installed { digest } if *digest == install.digest && !over => return Ok(None),
            Content::Empty | Content::Formatting => {}
            Content::Installing { digest } if *digest == install.digest => {}
            _ if over => {}
            other => return Err(occupied(&held.volume.name, other)),
        }
        if held.volume.size_bytes < install.bytes {
            let message = format!("the volume '{}' is smaller than the image", held.volume.name);
            let hint = format!(
                "'zmachine volume grow {} {}' makes it large enough",
                held.volume.name, install.bytes
            );
            return Err(Failure::new(Class::Conflict, message).hint(hint));
        }
        held.set_content(Content::Installing {
            digest: install.digest.clone(),
        })?;
        self.kill.pass("install: the volume is marked");
        if over {
            // From here on the volume's own state tells that the copy is to be done.
            self.machine.state.reinstalled = true;
            self.save()?;
        }
        let started = Instant::now();
        if let Some(exit) = self.copy(&install, held.volume.data(), inbox).await? {
            return Ok(Some(exit));
        }
        self.kill.pass("install: copied");
        held.set_content(Content::Installed { digest: install.digest })?;
        let text = format!("the image was installed in {:.1} s", started.elapsed().as_secs_f64());
        self.log.note(Source::Monitor, &text);
        self.kill.pass("install: done");
        Ok(None)
    }

    /// Copies in a thread; commands are answered meanwhile, and a request to stop stops it.
    async fn copy(&mut self, install: &Install, target: PathBuf, inbox: &mut Inbox) -> Result<Option<Exit>, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let (progress, mut steps) = mpsc::unbounded_channel();
        let (home, source, stopped) = (self.home.clone(), install.source.clone(), stop.clone());
        let copying = joined(in_thread(move || copy_all(&home, &source, &target, &stopped, progress)));
        tokio::pin!(copying);
        let total = install.bytes;
        let what = "installing the image".to_owned();
        let mut given_up = None;
        loop {
            tokio::select! {
                done = &mut copying => match done {
                    Err(_) if stop.load(Ordering::Relaxed) => return Ok(Some(Exit::Killed)),
                    other => return other.map(|()| None),
                },
                Some(done) = steps.recv() => {
                    self.report.send_if_read(&Report::Progress { what: what.clone(), done, total });
                }
                event = inbox.next() => {
                    if self.without_guest(event, "the machine's image is still being installed").is_break() {
                        stop.store(true, Ordering::Relaxed);
                        given_up.get_or_insert(tokio::time::Instant::now() + STOP_TIMEOUT);
                    }
                }
                // The thread may be waiting for a store. What it still writes is done again at the next start, and it
                // ends with this process, which follows.
                () = tokio::time::sleep_until(given_up.unwrap_or(tokio::time::Instant::now())), if given_up.is_some() => {
                    return Ok(Some(Exit::Killed));
                }
            }
        }
    }
}

fn occupied(volume: &str, content: &Content) -> Failure {
    let holds = match content {
        Content::Formatted => "a file system".to_owned(),
        Content::Raw => "what another VM put there".to_owned(),
        _ => "another image".to_owned(),
    };
    Failure::new(
        Class::Conflict,
        format!("the volume '{volume}' holds {holds}, not this machine's image"),
    )
    .hint("make the machine anew with another volume, or install over what it holds")
    .about(Setting::Reinstall)
}

fn copy_all(
    home: &Home,
    source: &DiskSource,
    target: &Path,
    stop: &AtomicBool,
    progress: mpsc::UnboundedSender<u64>,
) -> Result<(), Failure> {
    let mut source = open_source(home, source)?;
    let file = OpenOptions::new().read(true).write(true).open(target);
    let file = file.map_err(|e| Failure::from(e).context(format!("cannot open {}", target.display())))?;
    let mut reported = Instant::now();
    let mut tell = |done| {
        if reported.elapsed() >= PROGRESS_PERIOD {
            reported = Instant::now();
            let _ = progress.send(done);
        }
    };
    disk::copy(source.as_mut(), &file, stop, &mut tell).map_err(|e: CopyError| {
        let class = match e {
            CopyError::Read { .. } => Class::Fetch,
            _ => Class::Failed,
        };
        let failure = Failure::from_error(class, &e).context("the image could not be installed");
        failure.hint(e.hint().unwrap_or("start the machine again; the copy begins anew"))
    })
}
