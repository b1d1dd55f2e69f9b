//! Whether this host can be a node of Kubernetes whose pods are machines: what is there, what is lost without it, and what mends it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use zmachine_sys::jail::find_program;

/// The shim that containerd starts.
const SHIM: &str = "containerd-shim-zmachine-v2";

/// The runtime's type, as configurations of containerd name it.
const RUNTIME: &str = "io.containerd.zmachine.v2";

/// Where containerd has its configuration, and what it imports by common usage.
const CONFIGURATIONS: [&str; 2] = ["/etc/containerd/config.toml", "/etc/containerd/conf.d"];

/// Where distributions have the network plugins.
const PLUGINS: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];

/// Where configurations of networks are.
const NETWORKS: &str = "/etc/cni/net.d";

/// One thing that a node needs.
#[derive(Debug)]
pub struct NodeFinding {
    /// What.
    pub requirement: &'static str,
    /// Pods do not start without it.
    pub required: bool,
    /// What there is of it; or why there is nothing, which may be empty.
    pub found: Result<String, String>,
    /// What cannot be done without it.
    pub lost: &'static str,
    /// What brings it.
    pub mend: &'static str,
}

/// Looks at this host; `programs` are where `zmachine` itself is.
pub fn findings(programs: &Path) -> Vec<NodeFinding> {
    vec![
        NodeFinding {
            requirement: "kubernetes: containerd 1.6 or later",
            required: true,
            found: containerd(),
            lost: "no pod can be a machine",
            mend: "apt-get install containerd",
        },
        NodeFinding {
            requirement: "kubernetes: the shim",
            required: true,
            found: shim(programs),
            lost: "containerd cannot start machines",
            mend: "install zmachine-kubernetes, or put containerd-shim-zmachine-v2 (make shim) beside containerd",
        },
        NodeFinding {
            requirement: "kubernetes: the runtime in containerd's configuration",
            required: true,
            found: configured(&CONFIGURATIONS.map(Path::new)),
            lost: "runtimeClassName: zmachine is refused",
            mend: "put the lines of examples/kubernetes/containerd-1.toml or -2.toml there (docs/kubernetes.md), and restart containerd",
        },
        NodeFinding {
            requirement: "kubernetes: network plugins",
            required: false,
            found: plugins(),
            lost: "pods have no network",
            mend: "apt-get install containernetworking-plugins, or what the cluster's network brings",
        },
        NodeFinding {
            requirement: "kubernetes: a network for pods",
            required: false,
            found: networks(Path::new(NETWORKS)),
            lost: "the node is not ready",
            mend: "install the cluster's network",
        },
        NodeFinding {
            requirement: "kubernetes: nft, for kubectl port-forward",
            required: false,
            found: on_path("nft"),
            lost: "ports of pods are not forwarded",
            mend: "apt-get install nftables",
        },
    ]
}

fn on_path(program: &str) -> Result<String, String> {
    let found = find_program(Path::new(program));
    found.map(|file| file.display().to_string()).ok_or_else(String::new)
}

fn containerd() -> Result<String, String> {
    let program = on_path("containerd")?;
    let said = Command::new(&program)
        .arg("--version")
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = version(&text).ok_or_else(|| format!("{program} --version says '{}'", text.trim()))?;
    match version >= (1, 6) {
        true => Ok(format!("{program} {}.{}", version.0, version.1)),
        false => Err(format!("{program} is {}.{}", version.0, version.1)),
    }
}

/// Major and minor number in what `containerd --version` says: `containerd github.com/containerd/containerd v1.6.20 ...`.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split(['.', '~', '-']).map(str::parse);
        match (numbers.next()?, numbers.next()?) {
            (Ok(major), Ok(minor)) => Some((major, minor)),
            _ => None,
        }
    })
}

fn shim(programs: &Path) -> Result<String, String> {
    let beside = programs.join(SHIM);
    match on_path(SHIM) {
        Ok(found) => Ok(found),
        Err(_) if beside.is_file() => Err(format!("{} is not on the PATH", beside.display())),
        Err(reason) => Err(reason),
    }
}

/// The file that has the runtime, of these files and those in these folders.
fn configured(places: &[&Path]) -> Result<String, String> {
    let mut files: Vec<PathBuf> = Vec::new();
    for place in places {
        match fs::read_dir(place) {
            Ok(entries) => files.extend(entries.flatten().map(|entry| entry.path())),
            Err(_) => files.push((*place).to_owned()),
        }
    }
    let has_runtime = |file: &PathBuf| fs::read_to_string(file).is_ok_and(|text| text.contains(RUNTIME));
    let found = files.into_iter().find(has_runtime);
    found.map(|file| file.display().to_string()).ok_or_else(|| {
        let names: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        format!("none of {} has it", names.join(", "))
    })
}

fn plugins() -> Result<String, String> {
    let found = PLUGINS
        .into_iter()
        .find(|folder| Path::new(folder).join("loopback").is_file());
    found.map(str::to_owned).ok_or_else(String::new)
}

fn networks(folder: &Path) -> Result<String, String> {
    let entries = fs::read_dir(folder).map_err(|_| format!("there is no {}", folder.display()))?;
    let is_one = |path: &PathBuf| {
        path.extension()
            .is_some_and(|end| ["conf", "conflist", "json"].iter().any(|e| end == *e))
    };
    let first = entries.flatten().map(|entry| entry.path()).filter(is_one).min();
    first
        .map(|file| file.display().to_string())
        .ok_or_else(|| format!("{} is empty", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_containerd_are_read_as_distributions_write_them() {
        let debian = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n";
        assert_eq!(version(debian), Some((1, 6)));
        assert_eq!(
            version("containerd github.com/containerd/containerd/v2 v2.3.4 \n"),
            Some((2, 3))
        );
        assert_eq!(version("something else"), None);
    }

    #[test]
    fn the_runtime_is_found_in_a_file_or_in_a_drop_in() {
        let folder = tempfile::tempdir().unwrap();
        let (file, drop_ins) = (folder.path().join("config.toml"), folder.path().join("conf.d"));
        fs::create_dir(&drop_ins).unwrap();
        fs::write(&file, "version = 2\n").unwrap();
        let missing = configured(&[&file, &drop_ins]).unwrap_err();
        assert!(
            missing.contains("config.toml") && missing.contains("conf.d"),
            "{missing}"
        );
        let drop_in = drop_ins.join("zmachine.toml");
        fs::write(&drop_in, format!("runtime_type = \"{RUNTIME}\"\n")).unwrap();
        assert_eq!(configured(&[&file, &drop_ins]).unwrap(), drop_in.display().to_string());
    }

    #[test]
    fn a_network_is_a_file_of_the_plugins() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("README"), "").unwrap();
        assert!(networks(folder.path()).unwrap_err().ends_with("is empty"));
        fs::write(folder.path().join("10-net.conflist"), "{}").unwrap();
        assert!(networks(folder.path()).unwrap().ends_with("10-net.conflist"));
    }
}
