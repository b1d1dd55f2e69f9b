//! What a home has on its host: processes, mounts, loop devices, interfaces, rules, cgroups, leases, sockets.
//!
//! Everything is found by the home's folder or by comparing with what was there before, never by the names zmachine
//! should have used: a leak under a wrong name is one too.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::netns::NetworkNamespace;

/// Depth of cgroups looked at: `/sys/fs/cgroup/<controller>/<slice>/<service>/<group>/<machine>`.
const CGROUP_DEPTH: usize = 5;

/// Everything a home could leave behind, as sentences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings(BTreeSet<String>);

impl Surroundings {
    /// What `folder` (with a home in it) and `network` have now.
    pub(crate) fn look(folder: &Path, network: Option<&NetworkNamespace>) -> Surroundings {
        let mut seen = BTreeSet::new();
        seen.extend(
            processes(folder)
                .into_iter()
                .filter(|(_, line)| !keeps_memory(line))
                .map(|(pid, line)| format!("process {pid}: {line}")),
        );
        seen.extend(mounts(folder).into_iter().map(|mount| format!("mount {mount}")));
        seen.extend(
            loop_devices(folder)
                .into_iter()
                .map(|device| format!("loop device {device}")),
        );
        seen.extend(
            control_groups()
                .into_iter()
                .map(|group| format!("cgroup {}", group.display())),
        );
        if let Some(network) = network {
            seen.extend(network.interfaces().into_iter().map(|name| format!("interface {name}")));
            seen.extend(
                network
                    .rule_tables()
                    .into_iter()
                    .map(|name| format!("nftables table {name}")),
            );
        }
        let home = folder.join("home");
        seen.extend(
            sockets(&home)
                .into_iter()
                .map(|socket| format!("socket {}", socket.display())),
        );
        seen.extend(
            leases(&home)
                .into_iter()
                .map(|lease| format!("lease {}", lease.display())),
        );
        Surroundings(seen)
    }

    /// What is here and was not `before`.
    pub(crate) fn beyond(&self, before: &Surroundings) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }

    /// Ends the processes of `folder` that are left, so a failing test does not leave guests to the next one.
    pub(crate) fn end_processes(folder: &Path) {
        for (pid, _) in processes(folder) {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Processes, other than this one, that name `folder` in their command line or environment, or whose root is a jail of it.
fn processes(folder: &Path) -> Vec<(i32, String)> {
    let folder = folder.as_os_str().as_encoded_bytes();
    let own = std::process::id().cast_signed();
    let numbers = names_in(Path::new("/proc"))
        .into_iter()
        .filter_map(|name| name.parse::<i32>().ok());
    numbers
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            // A process that ended meanwhile, or a zombie, has neither.
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let named = names_path(&line, folder) || names_path(&environment, folder) || has_root_of(pid, folder);
            let words = String::from_utf8_lossy(&line).replace('\0', " ");
            named.then(|| (pid, words.trim_end().to_owned()))
        })
        .collect()
}

/// Whether it keeps the memory of a snapshot open that is there: it does for a minute after the last start, by design.
fn keeps_memory(line: &str) -> bool {
    let mut words = line.split(' ');
    let folder = words.clone().skip_while(|word| *word != "--folder").nth(1);
    (words.next(), words.next()) == (Some("zmachine"), Some("memory"))
        && folder.is_some_and(|folder| Path::new(folder).join("snapshot.json").exists())
}

/// Whether the root of a process is a file system of its own that is named after something in `folder`.
fn has_root_of(pid: i32, folder: &[u8]) -> bool {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let is_root = |line: &&str| line.split(' ').nth(4) == Some("/");
    table
        .lines()
        .filter(is_root)
        .any(|line| names_path(line.as_bytes(), folder))
}

/// Whether `text` has `path` itself or something below it.
fn names_path(text: &[u8], path: &[u8]) -> bool {
    let ends = |at: usize| text.get(at).is_none_or(|next| !next.is_ascii_alphanumeric());
    text.windows(path.len())
        .enumerate()
        .any(|(at, window)| window == path && ends(at + path.len()))
}

/// Mount points at or below `folder`, and others whose source is there (`/proc/self/mountinfo`, proc(5)).
fn mounts(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let folder = folder.as_os_str().as_encoded_bytes();
    table
        .lines()
        .filter(|line| names_path(line.as_bytes(), folder))
        .map(str::to_owned)
        .collect()
}

fn loop_devices(folder: &Path) -> Vec<String> {
    let block = Path::new("/sys/block");
    let backing = |name: &String| fs::read_to_string(block.join(name).join("loop/backing_file")).unwrap_or_default();
    names_in(block)
        .into_iter()
        .filter(|name| Path::new(backing(name).trim_end()).starts_with(folder))
        .collect()
}

/// Control groups with the project's name in their path that are empty and have nobody below them; whose they are shows in the
/// comparison with before. One with processes is somebody else's, or its processes are reported anyway; of another home that
/// comes or goes meanwhile, it does not stay empty.
fn control_groups() -> Vec<PathBuf> {
    let groups = below(Path::new("/sys/fs/cgroup"), CGROUP_DEPTH, &|kind| kind.is_dir());
    let named = groups
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("zmachine"));
    let (empty, populated): (Vec<_>, Vec<_>) = named
        .partition(|path| fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty()));
    let is_bare = |path: &PathBuf| !populated.iter().any(|other| other.starts_with(path));
    empty.into_iter().filter(is_bare).collect()
}

fn sockets(home: &Path) -> Vec<PathBuf> {
    below(home, 6, &|kind| kind.is_socket())
}

/// Address leases, `networks/<name>/leases/<address>`, when no machine exists that could hold one.
fn leases(home: &Path) -> Vec<PathBuf> {
    let machines = names_in(&home.join("machines"));
    if machines.iter().any(|name| name != "by-name") {
        return Vec::new();
    }
    let networks = home.join("networks");
    let folders = names_in(&networks)
        .into_iter()
        .map(|name| networks.join(name).join("leases"));
    // A name with a dot in front is a lock or a file under way.
    folders
        .flat_map(|folder| below(&folder, 1, &|kind| kind.is_file()))
        .filter(|path| !is_hidden(path))
        .collect()
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Paths of the wanted kind at most `depth` folders below `folder`; links are not followed.
fn below(folder: &Path, depth: usize, wanted: &dyn Fn(fs::FileType) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if wanted(kind) {
            found.push(entry.path());
        }
        if kind.is_dir() && depth > 1 {
            found.extend(below(&entry.path(), depth - 1, wanted));
        }
    }
    found
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needs::{Need, lacking, skip};
    use std::process::Command;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("z").tempdir_in("/tmp").unwrap()
    }

    #[test]
    fn a_process_is_found_by_its_environment_and_can_be_ended() {
        let folder = folder();
        let mut child = Command::new("sleep")
            .arg("60")
            .env("ZMACHINE_HOME", folder.path().join("home"))
            .spawn()
            .unwrap();
        // The environment is the new one as soon as the program runs.
        let found = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            Surroundings::look(folder.path(), None)
                .beyond(&Surroundings::default())
                .iter()
                .any(|l| l.contains("sleep 60"))
        });
        Surroundings::end_processes(folder.path());
        assert!(found);
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()),
            Some(9)
        );
        assert_eq!(
            Surroundings::look(folder.path(), None).beyond(&Surroundings::default()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_path_that_only_begins_alike_is_somebody_elses() {
        assert!(names_path(b"A=1\0ZMACHINE_HOME=/tmp/zab/home\0", b"/tmp/zab"));
        assert!(names_path(b"qemu -chardev socket,path=/tmp/zab", b"/tmp/zab"));
        assert!(!names_path(b"/tmp/zabc/home", b"/tmp/zab"));
    }

    #[test]
    fn a_socket_and_a_lease_without_a_machine_are_found() {
        let folder = folder();
        let leases = folder.path().join("home/networks/default/leases");
        fs::create_dir_all(&leases).unwrap();
        fs::write(leases.join("10.0.0.2"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("home/ctl.sock")).unwrap();
        let left = Surroundings::look(folder.path(), None).beyond(&Surroundings::default());
        assert_eq!(
            left.iter()
                .filter(|line| line.starts_with("lease") || line.starts_with("socket"))
                .count(),
            2,
            "{left:?}"
        );
    }

    #[test]
    fn a_mount_an_interface_and_a_rule_table_are_found() {
        let needs = [
            Need::Root,
            Need::Command("ip"),
            Need::Command("nft"),
            Need::Command("nsenter"),
        ];
        if let Some(reason) = lacking(&needs) {
            return skip(&reason);
        }
        let folder = folder();
        let name = folder.path().file_name().unwrap().to_string_lossy().into_owned();
        let network = NetworkNamespace::new(&format!("zmachine-test-{name}"));
        let before = Surroundings::look(folder.path(), Some(&network));
        let ip = crate::needs::command_path("ip").unwrap();
        let nft = crate::needs::command_path("nft").unwrap();
        network
            .command(&ip, ["link", "add", "zleak0", "type", "bridge"])
            .finish()
            .expect_success();
        network
            .command(&nft, ["add", "table", "inet", "zleak"])
            .finish()
            .expect_success();
        let point = folder.path().join("mnt");
        fs::create_dir(&point).unwrap();
        assert!(
            Command::new("mount")
                .args(["-t", "tmpfs", "leak"])
                .arg(&point)
                .status()
                .unwrap()
                .success()
        );
        let left = Surroundings::look(folder.path(), Some(&network)).beyond(&before);
        assert!(Command::new("umount").arg(&point).status().unwrap().success());
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(
            left.contains(&"interface zleak0".to_owned()) && left.contains(&"nftables table inet zleak".to_owned())
        );
    }
}
