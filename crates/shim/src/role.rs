//! What a container is to a pod, as the annotations of CRI implementations say it.

use std::collections::BTreeMap;

use zmachine_spec::pod;

/// `sandbox` or `container`.
const KIND: &str = "io.kubernetes.cri.container-type";
/// The id of the sandbox that a container belongs to.
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
pub(crate) const POD_NAME: &str = "io.kubernetes.cri.sandbox-name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.cri.sandbox-uid";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
/// Sums over the containers of a pod, in microseconds and bytes; 0: no limit.
pub(crate) const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
pub(crate) const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
pub(crate) const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// What a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// A pod's sandbox: nothing runs in it.
    Sandbox,
    /// One of a pod's containers.
    Member {
        /// The sandbox's id.
        sandbox: String,
    },
    /// A container by itself, which is the only one of its machine.
    Alone,
}

impl Role {
    /// The role that `annotations` give it.
    pub(crate) fn of(annotations: &BTreeMap<String, String>) -> Role {
        let text = |name: &str| annotations.get(name).map(String::as_str);
        match (text(KIND), text(SANDBOX)) {
            (Some("sandbox"), _) => Role::Sandbox,
            (Some("container"), Some(sandbox)) if !sandbox.is_empty() => Role::Member {
                sandbox: sandbox.to_owned(),
            },
            _ => Role::Alone,
        }
    }

    /// The id of the sandbox, or of the container that is by itself, that container `id` belongs to.
    pub(crate) fn group<'a>(&'a self, id: &'a str) -> &'a str {
        match self {
            Role::Member { sandbox } => sandbox,
            Role::Sandbox | Role::Alone => id,
        }
    }
}

/// The name of a pod's container.
pub(crate) fn container_name(annotations: &BTreeMap<String, String>) -> Option<&str> {
    annotations.get(CONTAINER_NAME).map(String::as_str)
}

/// The labels by which operators find a pod's machine, as the kubelet writes them.
pub(crate) fn labels(annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let pairs = [
        (POD_NAME, pod::NAME_LABEL),
        (POD_NAMESPACE, pod::NAMESPACE_LABEL),
        (POD_UID, pod::UID_LABEL),
    ];
    let label = |(from, to): (&str, &str)| Some((to.to_owned(), annotations.get(from)?.clone()));
    pairs.into_iter().filter_map(label).collect()
}

/// What a pod may use in all, where somebody says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// CPU time in thousandths of a CPU.
    pub(crate) cpu_milli: Option<u64>,
    /// Memory in bytes.
    pub(crate) memory_bytes: Option<u64>,
}

/// The sum over a pod's containers.
pub(crate) fn size(annotations: &BTreeMap<String, String>) -> Size {
    let number = |name: &str| {
        let number: Option<u64> = annotations.get(name).and_then(|text| text.parse().ok());
        number.filter(|number| *number > 0)
    };
    let cpu_milli = number(POD_QUOTA)
        .zip(number(POD_PERIOD))
        .map(|(quota, period)| quota.saturating_mul(1000) / period);
    Size {
        cpu_milli,
        memory_bytes: number(POD_MEMORY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_container_belongs_to_the_sandbox_that_it_names() {
        let member = Role::of(&annotations(&[(KIND, "container"), (SANDBOX, "s1")]));
        assert_eq!(member.group("c1"), "s1");
        let sandbox = Role::of(&annotations(&[(KIND, "sandbox"), (SANDBOX, "s1")]));
        assert_eq!((&sandbox, sandbox.group("s1")), (&Role::Sandbox, "s1"));
        assert_eq!(Role::of(&annotations(&[])).group("c"), "c");
        assert_eq!(Role::of(&annotations(&[(KIND, "container")])), Role::Alone);
    }

    #[test]
    fn limits_of_a_pod_are_read_and_nought_is_none() {
        let sized = annotations(&[(POD_QUOTA, "150000"), (POD_PERIOD, "100000"), (POD_MEMORY, "1048576")]);
        let expected = Size {
            cpu_milli: Some(1500),
            memory_bytes: Some(1 << 20),
        };
        assert_eq!(size(&sized), expected);
        let none = annotations(&[(POD_QUOTA, "0"), (POD_PERIOD, "0"), (POD_MEMORY, "x")]);
        assert_eq!(size(&none), Size::default());
    }
}
