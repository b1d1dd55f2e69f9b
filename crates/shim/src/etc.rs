//! Files of `/etc` that all containers of a pod have in common, where containerd leaves them to the sandbox: with the sandbox API. They are in
//! the pod's folder, and come to the guest over its share.

use std::fs;
use std::path::Path;

use zmachine_agent_protocol::{Container, ContainerMount, MountSource};
use zmachine_spec::pod::SHARE_TARGET;

use crate::cri::PodConfig;

/// The folder of these files in the pod's share: no container has this name.
pub(crate) const FOLDER: &str = ".etc";

/// Names for this machine, where the host's own file cannot be read.
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// The files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EtcFiles {
    hostname: String,
    hosts: String,
    resolv_conf: String,
}

impl EtcFiles {
    /// Those of a pod: what its configuration does not say is as on the host.
    pub(crate) fn of(config: &PodConfig) -> EtcFiles {
        let of_host = |name: &str| fs::read_to_string(Path::new("/etc").join(name)).ok();
        let hostname = match config.hostname.as_str() {
            "" => of_host("hostname").unwrap_or_default().trim_end().to_owned(),
            given => given.to_owned(),
        };
        EtcFiles {
            hostname: format!("{hostname}\n"),
            hosts: of_host("hosts").unwrap_or_else(|| HOSTS.to_owned()),
            resolv_conf: config
                .resolv_conf()
                .or_else(|| of_host("resolv.conf"))
                .unwrap_or_default(),
        }
    }

    /// Name and contents of each.
    pub(crate) fn all(&self) -> [(&'static str, &str); 3] {
        [
            ("hostname", &self.hostname),
            ("hosts", &self.hosts),
            ("resolv.conf", &self.resolv_conf),
        ]
    }
}

/// Has a container see them, but for those that it has of its own; and what memory its pod shares.
pub(crate) fn add_to(container: &mut Container) {
    let bind = |path: String, target: String| ContainerMount {
        source: MountSource::Bind { path, recursive: false },
        target,
        flags: 0,
        propagation: 0,
        options: String::new(),
    };
    for name in ["hostname", "hosts", "resolv.conf"] {
        let target = format!("/etc/{name}");
        if !container.mounts.iter().any(|mount| mount.target == target) {
            container
                .mounts
                .push(bind(format!("{SHARE_TARGET}/{FOLDER}/{name}"), target));
        }
    }
    for mount in &mut container.mounts {
        if mount.target == "/dev/shm" && matches!(mount.source, MountSource::New { .. }) {
            *mount = bind("/dev/shm".to_owned(), "/dev/shm".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_its_own_name_and_nameservers() {
        let mut config = PodConfig::default();
        config.hostname = "web-0".to_owned();
        config.servers = vec!["10.0.0.1".to_owned()];
        let files = EtcFiles::of(&config);
        let [hostname, hosts, resolv_conf] = files.all();
        assert_eq!(hostname, ("hostname", "web-0\n"));
        assert!(!hosts.1.is_empty());
        assert_eq!(resolv_conf, ("resolv.conf", "nameserver 10.0.0.1\n"));
    }

    #[test]
    fn a_container_keeps_the_files_that_it_has() {
        let (mut container, _) = crate::translate::container(
            "c",
            &serde_json::from_value(serde_json::json!({"mounts": [
                {"destination": "/etc/hosts", "type": "bind", "source": "/var/hosts", "options": ["rbind"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"]},
            ]}))
            .unwrap(),
            crate::translate::root_in_guest("c"),
            &crate::translate::tests::Paths,
        )
        .unwrap();
        add_to(&mut container);
        let from = |target: &str| {
            let mount = container.mounts.iter().filter(|mount| mount.target == target);
            let sources: Vec<_> = mount.map(|mount| mount.source.clone()).collect();
            assert_eq!(sources.len(), 1, "{target}");
            match &sources[0] {
                MountSource::Bind { path, .. } => path.clone(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(from("/etc/hosts"), "/run/zmachine/pod/c/mounts/0");
        assert_eq!(from("/etc/resolv.conf"), "/run/zmachine/pod/.etc/resolv.conf");
        assert_eq!(from("/dev/shm"), "/dev/shm");
    }
}
