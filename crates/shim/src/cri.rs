//! What a pod is to be, as the kubelet says it and containerd passes it on to a sandbox of the sandbox API (`runtime.v1.PodSandboxConfig` of
//! k8s.io/cri-api). Without that API, containerd itself makes an OCI specification of it.

use std::collections::BTreeMap;

use containerd_shim_protos::protobuf::CodedInputStream;

use crate::oci::Spec;
use crate::role;

/// The type's name.
pub(crate) const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// `NamespaceMode.NODE`: the host's.
const NODE: u64 = 2;

/// Annotations of ours begin so; others of a pod are no business of a runtime.
const OWN: &str = "zmachine.io/";

/// What is understood of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodConfig {
    name: String,
    uid: String,
    namespace: String,
    pub(crate) hostname: String,
    /// Lines of `resolv.conf`; none: the host's.
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
    annotations: BTreeMap<String, String>,
    cgroup_parent: String,
    pub(crate) is_host_network: bool,
    sysctls: BTreeMap<String, String>,
    /// Of all containers: microseconds and bytes.
    cpu_period: u64,
    cpu_quota: u64,
    memory_bytes: u64,
}

/// One field of a message.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, up to where it cannot be read any more.
fn fields(bytes: &[u8]) -> Vec<(u32, Value<'_>)> {
    let mut input = CodedInputStream::from_bytes(bytes);
    let mut all = Vec::new();
    while let Ok(Some(tag)) = input.read_raw_tag_or_eof() {
        let value = match tag & 7 {
            0 => input.read_raw_varint64().ok().map(Value::Number),
            2 => (|| {
                let length = usize::try_from(input.read_raw_varint32().ok()?).ok()?;
                let at = usize::try_from(input.pos()).ok()?;
                let value = bytes.get(at..at.checked_add(length)?)?;
                input.skip_raw_bytes(u32::try_from(length).ok()?).ok()?;
                Some(Value::Bytes(value))
            })(),
            1 => input.read_fixed64().ok().map(Value::Number),
            5 => input.read_fixed32().ok().map(|number| Value::Number(number.into())),
            _ => None,
        };
        let Some(value) = value else { break };
        all.push((tag >> 3, value));
    }
    all
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An entry of a map of strings.
fn entry(bytes: &[u8]) -> (String, String) {
    let mut pair = (String::new(), String::new());
    for field in fields(bytes) {
        match field {
            (1, Value::Bytes(key)) => pair.0 = text(key),
            (2, Value::Bytes(value)) => pair.1 = text(value),
            _ => {}
        }
    }
    pair
}

impl PodConfig {
    /// Reads it. What cannot be read is as if it were not said.
    pub(crate) fn read(bytes: &[u8]) -> PodConfig {
        let mut config = PodConfig::default();
        for field in fields(bytes) {
            match field {
                (1, Value::Bytes(metadata)) => config.read_metadata(metadata),
                (2, Value::Bytes(hostname)) => config.hostname = text(hostname),
                (4, Value::Bytes(dns)) => config.read_dns(dns),
                (7, Value::Bytes(pair)) => config.annotations.extend([entry(pair)]),
                (8, Value::Bytes(linux)) => config.read_linux(linux),
                _ => {}
            }
        }
        config
    }

    fn read_metadata(&mut self, bytes: &[u8]) {
        for field in fields(bytes) {
            match field {
                (1, Value::Bytes(name)) => self.name = text(name),
                (2, Value::Bytes(uid)) => self.uid = text(uid),
                (3, Value::Bytes(namespace)) => self.namespace = text(namespace),
                _ => {}
            }
        }
    }

    fn read_dns(&mut self, bytes: &[u8]) {
        for field in fields(bytes) {
            match field {
                (1, Value::Bytes(server)) => self.servers.push(text(server)),
                (2, Value::Bytes(search)) => self.searches.push(text(search)),
                (3, Value::Bytes(option)) => self.options.push(text(option)),
                _ => {}
            }
        }
    }

    fn read_linux(&mut self, bytes: &[u8]) {
        for field in fields(bytes) {
            match field {
                (1, Value::Bytes(parent)) => self.cgroup_parent = text(parent),
                // security_context.namespace_options.network
                (2, Value::Bytes(security)) => {
                    let namespaces = fields(security).into_iter().filter(|(number, _)| *number == 1);
                    let modes = namespaces.filter_map(|(_, value)| match value {
                        Value::Bytes(options) => Some(fields(options)),
                        Value::Number(_) => None,
                    });
                    self.is_host_network = modes.flatten().any(|mode| matches!(mode, (1, Value::Number(NODE))));
                }
                (3, Value::Bytes(pair)) => self.sysctls.extend([entry(pair)]),
                (5, Value::Bytes(resources)) => self.read_resources(resources),
                _ => {}
            }
        }
    }

    fn read_resources(&mut self, bytes: &[u8]) {
        for field in fields(bytes) {
            match field {
                (1, Value::Number(period)) => self.cpu_period = period,
                // Less than nothing is none.
                (2, Value::Number(quota)) if quota.cast_signed() > 0 => self.cpu_quota = quota,
                (4, Value::Number(bytes)) if bytes.cast_signed() > 0 => self.memory_bytes = bytes,
                _ => {}
            }
        }
    }

    /// Says it in the specification of the sandbox `id`, as containerd does where it makes one. What is said there already stays.
    pub(crate) fn add_to(&self, spec: &mut Spec, id: &str) {
        if spec.hostname.is_empty() {
            spec.hostname.clone_from(&self.hostname);
        }
        spec.linux.sysctl.extend(self.sysctls.clone());
        if spec.linux.cgroups_path.is_empty() && !self.cgroup_parent.is_empty() {
            let parent = &self.cgroup_parent;
            spec.linux.cgroups_path = match parent.rsplit('/').next() {
                Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
                _ => format!("{parent}/{id}"),
            };
        }
        let own = self.annotations.iter().filter(|(name, _)| name.starts_with(OWN));
        let own = own.map(|(name, value)| (name.clone(), value.clone()));
        let named = [
            (role::POD_NAME, self.name.clone()),
            (role::POD_NAMESPACE, self.namespace.clone()),
            (role::POD_UID, self.uid.clone()),
            (role::POD_PERIOD, self.cpu_period.to_string()),
            (role::POD_QUOTA, self.cpu_quota.to_string()),
            (role::POD_MEMORY, self.memory_bytes.to_string()),
        ];
        for (name, value) in named
            .map(|(name, value)| (name.to_owned(), value))
            .into_iter()
            .chain(own)
        {
            spec.annotations.entry(name).or_insert(value);
        }
    }

    /// The contents of `resolv.conf`; `None`: it says nothing of it.
    pub(crate) fn resolv_conf(&self) -> Option<String> {
        let lines = [("search", &self.searches), ("options", &self.options)]
            .into_iter()
            .filter(|(_, words)| !words.is_empty())
            .map(|(name, words)| format!("{name} {}\n", words.join(" ")));
        let servers = self.servers.iter().map(|server| format!("nameserver {server}\n"));
        let text: String = lines.chain(servers).collect();
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, value.len() as u8], value].concat()
    }

    fn pair(key: &str, value: &str) -> Vec<u8> {
        [field(1, key.as_bytes()), field(2, value.as_bytes())].concat()
    }

    fn config() -> Vec<u8> {
        let resources = [&[1 << 3, 0x80, 0x08, 2 << 3, 0x80, 0x10, 4 << 3, 0x80, 0x20][..]].concat();
        let linux = [
            field(1, b"/kubepods/pod1"),
            field(2, &field(1, &[1 << 3, 0])),
            field(3, &pair("net.core.somaxconn", "9")),
            field(5, &resources),
        ];
        [
            field(1, &[field(1, b"web"), field(2, b"u"), field(3, b"shop")].concat()),
            field(2, b"web-0"),
            field(
                4,
                &[field(1, b"10.0.0.1"), field(2, b"a.b"), field(3, b"ndots:5")].concat(),
            ),
            field(7, &pair("zmachine.io/flist", "/srv/a.fl")),
            field(7, &pair("other", "x")),
            field(8, &linux.concat()),
        ]
        .concat()
    }

    #[test]
    fn a_pod_is_what_its_configuration_says() {
        let config = PodConfig::read(&config());
        assert!(!config.is_host_network);
        assert_eq!(
            config.resolv_conf().as_deref(),
            Some("search a.b\noptions ndots:5\nnameserver 10.0.0.1\n")
        );
        let mut spec = Spec::default();
        config.add_to(&mut spec, "id1");
        assert_eq!(
            (spec.hostname.as_str(), spec.linux.cgroups_path.as_str()),
            ("web-0", "/kubepods/pod1/id1")
        );
        assert_eq!(spec.annotations["zmachine.io/flist"], "/srv/a.fl");
        assert!(!spec.annotations.contains_key("other"));
        let size = role::size(&spec.annotations);
        assert_eq!((size.cpu_milli, size.memory_bytes), (Some(2000), Some(4096)));
        assert_eq!(role::labels(&spec.annotations).len(), 3);
    }

    #[test]
    fn the_hosts_network_is_seen_and_half_a_message_is_no_harm() {
        let host = field(8, &field(2, &field(1, &[1 << 3, 2])));
        assert!(PodConfig::read(&host).is_host_network);
        let whole = config();
        for end in 0..whole.len() {
            PodConfig::read(&whole[..end]);
        }
        assert_eq!(PodConfig::read(&[0xff; 64]), PodConfig::default());
        assert_eq!(PodConfig::default().resolv_conf(), None);
    }

    #[test]
    fn a_slice_of_systemd_is_named_as_containerd_names_it() {
        let linux = field(8, &field(1, b"/kubepods.slice/kubepods-pod1.slice"));
        let mut spec = Spec::default();
        PodConfig::read(&linux).add_to(&mut spec, "id1");
        assert_eq!(spec.linux.cgroups_path, "kubepods-pod1.slice:cri-containerd:id1");
    }
}
