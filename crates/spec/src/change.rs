//! What of a machine may become something else after it was made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cpus::{CpuSet, Cpus};
use crate::{MachineSpec, RestartPolicy, Setting};

/// What is to be something else; the rest stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its restart policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// Labels it has in addition, or with another value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Labels it has no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels_removed: Vec<String>,
    /// Its CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// The CPUs of this host that it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<CpuSet>,
    /// Its memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// For how many milliseconds nobody has had to do with it before it is saved and its hypervisor ends; 0: it is never idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
}

impl Change {
    /// The first setting of it that a running machine keeps.
    pub fn needs_stop(&self, spec: &MachineSpec) -> Option<Setting> {
        match () {
            () if self.cpus.is_some_and(|cpus| cpus.count != spec.cpus) => Some(Setting::Cpus),
            () if self.memory_bytes.is_some_and(|bytes| bytes != spec.memory_bytes) => Some(Setting::Memory),
            () => None,
        }
    }

    /// Whether nothing but what happens after a run is another.
    pub fn is_of_restarts(&self) -> bool {
        let rest = Change {
            restart: None,
            ..self.clone()
        };
        rest == Change::default()
    }

    /// The spec with it.
    pub fn applied(&self, spec: &MachineSpec) -> MachineSpec {
        let mut changed = spec.clone();
        if let Some(name) = &self.name {
            // As with docker, what the machine calls itself stays.
            changed.hostname.get_or_insert_with(|| spec.name.clone());
            changed.name.clone_from(name);
        }
        changed.restart = self.restart.unwrap_or(spec.restart);
        changed.labels.retain(|label, _| !self.labels_removed.contains(label));
        changed.labels.extend(self.labels.clone());
        if let Some(cpus) = self.cpus {
            (changed.cpus, changed.cpu_limit_milli) = (cpus.count, cpus.limit_milli);
        }
        if let Some(cpuset) = &self.cpuset {
            changed.cpuset.clone_from(cpuset);
        }
        if let Some(timeout) = self.idle_timeout_ms {
            changed.idle_timeout_ms = (timeout > 0).then_some(timeout);
        }
        changed.memory_bytes = self.memory_bytes.unwrap_or(spec.memory_bytes);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_stays_and_a_name_leaves_the_host_name() {
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.labels = [("a", "1"), ("b", "2")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        assert_eq!(Change::default().applied(&spec), spec);
        let change = Change {
            name: Some("front".into()),
            labels: [("c".to_owned(), "3".to_owned())].into(),
            labels_removed: vec!["a".into(), "none".into()],
            cpus: Some("0.5".parse().unwrap()),
            idle_timeout_ms: Some(500),
            ..Change::default()
        };
        let changed = change.applied(&spec);
        assert_eq!(
            (changed.name.as_str(), changed.hostname.as_deref()),
            ("front", Some("web"))
        );
        assert_eq!(changed.labels.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!((changed.cpus, changed.cpu_limit_milli), (1, Some(500)));
        assert_eq!(changed.memory_bytes, spec.memory_bytes);
        let again = Change {
            name: Some("back".into()),
            ..Change::default()
        };
        assert_eq!(again.applied(&changed).hostname.as_deref(), Some("web"));
        assert_eq!(again.applied(&changed).idle_timeout_ms, Some(500));
        let never = Change {
            idle_timeout_ms: Some(0),
            ..Change::default()
        };
        assert_eq!(never.applied(&changed).idle_timeout_ms, None);
    }

    #[test]
    fn virtual_cpus_and_memory_wait_for_a_stop_and_limits_do_not() {
        let spec = MachineSpec::new("web", "/x.fl");
        let cpus = |text: &str| Change {
            cpus: Some(text.parse().unwrap()),
            ..Change::default()
        };
        assert_eq!(cpus("0.5").needs_stop(&spec), None);
        assert_eq!(cpus("1.5").needs_stop(&spec), Some(Setting::Cpus));
        let memory = Change {
            memory_bytes: Some(1 << 30),
            ..Change::default()
        };
        assert_eq!(memory.needs_stop(&spec), Some(Setting::Memory));
        let restart = Change {
            restart: Some(RestartPolicy::Always),
            ..Change::default()
        };
        assert!(restart.is_of_restarts() && !memory.is_of_restarts());
    }
}
