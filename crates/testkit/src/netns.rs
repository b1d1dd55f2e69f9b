//! A network namespace for one test: loopback and nothing else, so no test reaches a real network.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::Invocation;
use crate::needs::command_path;

/// A named network namespace with its loopback up, removed at drop with every interface and rule in it.
///
/// Only the network is separate: `/sys/class/net` still shows the caller's, cgroups and mounts are the host's.
#[derive(Debug)]
pub struct NetworkNamespace {
    name: String,
}

impl NetworkNamespace {
    /// A fresh one called `name`, which must be unused on this host.
    ///
    /// # Panics
    /// When it cannot be made (it needs root and `ip`).
    pub fn new(name: &str) -> NetworkNamespace {
        let made = NetworkNamespace { name: name.to_owned() };
        ip(&["netns", "add", name]);
        ip(&["-n", name, "link", "set", "lo", "up"]);
        made
    }

    /// Its file, to enter it by.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// `program` with `args`, to run in it.
    pub fn command(&self, program: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Invocation {
        let enter = format!("--net={}", self.path().display());
        let mut words = vec![enter.into(), "--".into(), program.as_os_str().to_owned()];
        words.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        Invocation::new(&command_path("nsenter").unwrap_or_else(|| "nsenter".into()), words)
    }

    /// Names of the interfaces in it.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        let listed = self.command(&tool("ip"), ["-oneline", "link", "show"]).finish();
        // `3: name@peer: <FLAGS> ...`
        let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        listed.expect_success().stdout().lines().filter_map(name).collect()
    }

    /// Names of the nftables tables in it, with their families; none on a host without nftables.
    pub(crate) fn rule_tables(&self) -> Vec<String> {
        let Some(nft) = command_path("nft") else {
            return Vec::new();
        };
        let listed = self.command(&nft, ["list", "tables"]).finish();
        listed
            .expect_success()
            .stdout()
            .lines()
            .map(|line| line.trim_start_matches("table ").to_owned())
            .collect()
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        let _ = Command::new(tool("ip")).args(["netns", "delete", &self.name]).status();
    }
}

fn tool(name: &str) -> PathBuf {
    command_path(name).unwrap_or_else(|| name.into())
}

fn ip(args: &[&str]) {
    Invocation::new(&tool("ip"), args).finish().expect_success();
}
