//! The servers of what a machine has over virtio-fs: one child process each.
//!
//! One that ends takes the guest's files with it: it knew which file the guest means by which number, and no other process can
//! know that. So the machine fails then, and its restart policy decides what follows; a guest that waits for ever for a
//! file would be worse.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use zmachine_hypervisor::choice::SEARCH_PATH;
use zmachine_hypervisor::lines::Lines;
use zmachine_hypervisor::{ExitReason, Vm, VmEvent};
use zmachine_plan::{ShareUse, SharedTree};
use zmachine_spec::{Class, Failure};
use zmachine_store::journal::Resource;
use zmachine_store::log::Source;
use zmachine_sys::jail::Jailed;
use zmachine_sys::process::{ChildSetup, ProcessId};

use super::context::{AbortOnDrop, Monitor};
use super::output::SharedLog;

/// Longest line of a server that is kept, in bytes. It has met the guest and is not trusted.
const LINE_BYTES: usize = 4096;

/// How long the servers may take to end by themselves, which they do as soon as the hypervisor is gone.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the reason may come after the hypervisor's complaint.
const REASON_TIMEOUT: Duration = Duration::from_millis(500);

/// The servers of one run. Dropping it ends them.
#[derive(Default)]
pub(super) struct Shares {
    servers: Vec<AbortOnDrop>,
    ended: Option<mpsc::Receiver<Failure>>,
    /// Of processes beside them without which the machine cannot go on either.
    others: Option<mpsc::Receiver<Failure>>,
}

impl Shares {
    /// Resolves when one of them has ended, with what that means for the machine. Dropping the future loses nothing.
    pub(super) async fn ended(&mut self) -> Failure {
        tokio::select! {
            failure = next(&mut self.ended) => failure,
            failure = next(&mut self.others) => failure,
        }
    }

    /// Watches other processes that the machine needs as long as it runs, too.
    pub(super) fn also(&mut self, failures: Option<mpsc::Receiver<Failure>>) {
        self.others = failures;
    }

    /// Why a hypervisor did not start that needs them: what one of them said, if one has ended.
    pub(super) async fn reason(&mut self) -> Option<Failure> {
        tokio::time::timeout(REASON_TIMEOUT, self.ended()).await.ok()
    }

    /// Waits until they are gone, and kills what is not.
    pub(super) async fn end(self) {
        let deadline = tokio::time::Instant::now() + END_TIMEOUT;
        for mut server in self.servers {
            let _ = tokio::time::timeout_at(deadline, &mut server.0).await;
        }
    }
}

/// The next failure; without anybody left who could send one there never is any.
async fn next(failures: &mut Option<mpsc::Receiver<Failure>>) -> Failure {
    if let Some(failures) = failures
        && let Some(failure) = failures.recv().await
    {
        return failure;
    }
    std::future::pending().await
}

impl Monitor {
    /// Starts the servers of `shares`. Each is claimed before it does anything.
    pub(super) fn start_shares(&mut self, shares: &[ShareUse]) -> Result<Shares, Failure> {
        let mut started = Shares::default();
        if shares.is_empty() {
            return Ok(started);
        }
        let (sender, receiver) = mpsc::channel(shares.len());
        started.ended = Some(receiver);
        for share in shares {
            let what = describe(&share.tree);
            let context = |e: io::Error| Failure::from(e).context(format!("cannot start the server of {what}"));
            let mut child = self.spawn(share).map_err(context)?;
            if let Some(id) = child.id().and_then(ProcessId::of) {
                let role = "virtiofsd".to_owned();
                self.journal.claim(Resource::Process { role, id })?;
                self.confine(id.pid);
            }
            self.kill.pass("start: share claimed");
            // It waits for this.
            drop(child.stdin.take());
            let watch = watch(child, what, self.log.clone(), sender.clone());
            started.servers.push(AbortOnDrop(tokio::spawn(watch)));
        }
        Ok(started)
    }

    /// What the end of a server means: nothing when the hypervisor went first, else that the machine fails.
    pub(super) async fn share_ended(
        &mut self,
        vm: &mut dyn Vm,
        failure: Failure,
    ) -> Result<ExitReason, (String, Failure)> {
        let gone = async {
            loop {
                if let VmEvent::Exited(reason) = vm.next_event().await {
                    return reason;
                }
            }
        };
        match tokio::time::timeout(REASON_TIMEOUT, gone).await {
            Ok(reason) => Ok(reason),
            Err(_) => Err(("running".to_owned(), failure)),
        }
    }

    fn spawn(&self, share: &ShareUse) -> io::Result<Child> {
        let run = self.home.run_dir(&self.machine.id);
        let mount_point = run.join(&share.id);
        std::fs::create_dir_all(&mount_point)?;
        let socket = run.join(format!("{}.sock", share.id));
        // Of an earlier attempt of this run.
        let _ = std::fs::remove_file(&socket);
        // Closed here when it is passed on: a server that ends early then ends the hypervisor's wait.
        let listener = UnixListener::bind(&socket)?;
        if let Some(sandbox) = &self.sandbox {
            sandbox.give(&socket)?;
        }
        let mut command = zmachine_sys::process::own_program("share", SEARCH_PATH);
        command.arg("--mount-point").arg(&mount_point);
        command.arg("--listener-fd").arg(listener.as_raw_fd().to_string());
        tree_arguments(&mut command, &share.tree);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.arg0("zmachine");
        let jailed = match self.jail() {
            Some(jail) => Jailed::role(&jail, command)?,
            None => Jailed::free(command),
        };
        let setup = ChildSetup {
            keep: vec![listener.as_raw_fd()],
            die_with_parent: true,
            ..ChildSetup::default()
        };
        jailed.spawn(setup, |command| Command::from(command).kill_on_drop(true).spawn())
    }
}

fn tree_arguments(command: &mut std::process::Command, tree: &SharedTree) {
    match tree {
        SharedTree::Directory {
            path,
            read_only,
            follows_mounts,
        } => {
            command.arg("--directory").arg(path);
            if *follows_mounts {
                command.arg("--following");
            }
            if *read_only {
                command.arg("--read-only");
            }
        }
        SharedTree::Image { image, layer } => {
            command.arg("--image").arg(image);
            if let Some(layer) = layer {
                command.arg("--layer").arg(layer);
            }
        }
    }
}

fn describe(tree: &SharedTree) -> String {
    let directory = |path: &Path| format!("the shared directory {}", path.display());
    match tree {
        SharedTree::Directory { path, .. } => directory(path),
        SharedTree::Image { .. } => "the root directory".to_owned(),
    }
}

/// Logs what the server says, until it is gone.
async fn watch(mut child: Child, what: String, log: SharedLog, ended: mpsc::Sender<Failure>) {
    let mut reported = String::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = Lines::new(stderr, LINE_BYTES);
        while let Ok(Some(line)) = lines.next_line().await {
            log.note(Source::Monitor, &format!("virtiofsd, {what}: {line}"));
            reported = reason(reported, &line);
        }
    }
    let status = match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    let failure = Failure::new(
        Class::Failed,
        format!("the server of {what} ended ({status}){reported}"),
    );
    let _ = ended.send(failure.hint("start the machine again")).await;
}

/// The reason in what a server says, to be put behind a sentence: its last line, with the causes when it has some.
fn reason(before: String, line: &str) -> String {
    match (line.strip_prefix("error: "), line.strip_prefix("caused by: ")) {
        (_, Some(cause)) => format!("{before}: {cause}"),
        _ if line.starts_with("hint: ") || before.len() > LINE_BYTES => before,
        (Some(error), None) => format!(": {error}"),
        (None, None) => format!(": {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_server_are_its_reason() {
        let reported = |lines: &[&str]| {
            lines
                .iter()
                .fold(String::new(), |reported, line| reason(reported, line))
        };
        let ours = ["error: cannot share /x", "caused by: No such file", "hint: make it"];
        assert_eq!(reported(&ours), ": cannot share /x: No such file");
        assert_eq!(reported(&["noise", "virtio_loop: broken"]), ": virtio_loop: broken");
    }
}
