//! What a shim has to say: standard error is nowhere, so a file of the pod's folder gets it, and containerd's own log for the shim
//! where it listens.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The longest log, in bytes: it begins again then.
const LIMIT: u64 = 1 << 20;

/// A log that all threads write to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Sinks>>);

#[derive(Debug, Default)]
struct Sinks {
    file: Option<File>,
    containerd: Option<File>,
}

impl Log {
    /// Opens it; what cannot be opened is done without.
    pub(crate) fn open(file: &Path, bundle: &Path) -> Log {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(file).ok();
        // Without a reader there is none, and one that does not read is not waited for.
        let no_wait = (rustix::fs::OFlags::NONBLOCK.bits()).cast_signed();
        let fifo = bundle.join("log");
        let containerd = OpenOptions::new().write(true).custom_flags(no_wait).open(fifo).ok();
        Log(Arc::new(Mutex::new(Sinks { file, containerd })))
    }

    /// Adds a line.
    pub(crate) fn line(&self, text: &str) {
        let line = format!("{} {text}\n", jiff::Timestamp::now());
        let mut sinks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut sinks.file {
            if file.metadata().is_ok_and(|metadata| metadata.len() > LIMIT) {
                let _ = file.set_len(0);
            }
            let _ = file.write_all(line.as_bytes());
        }
        if let Some(containerd) = &mut sinks.containerd {
            let message = serde_json::json!({"level": "info", "msg": text, "runtime": "io.containerd.zmachine.v2"});
            let _ = containerd.write_all(format!("{message}\n").as_bytes());
        }
    }

    /// Lets it have panics too.
    pub(crate) fn take_panics(&self) {
        let log = self.clone();
        std::panic::set_hook(Box::new(move |info| log.line(&format!("panic: {info}"))));
    }
}
