//! What containers use, in the messages of control groups: in version 1 where the host has that, as runc's shim does.

use std::path::Path;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use zmachine_agent_protocol::ContainerStats;

/// Says that the host's control groups are of version 2.
const V2: &str = "/sys/fs/cgroup/cgroup.controllers";

/// No limit, as the kernel shows it in version 1.
const UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

/// The message for this host.
pub(crate) fn message(stats: &ContainerStats) -> Any {
    match Path::new(V2).exists() {
        true => packed(&version2(stats)),
        false => packed(&version1(stats)),
    }
}

/// The sum of what several containers use.
pub(crate) fn sum(all: &[ContainerStats]) -> ContainerStats {
    all.iter().fold(ContainerStats::default(), |sum, one| ContainerStats {
        cpu_us: sum.cpu_us + one.cpu_us,
        cpu_user_us: sum.cpu_user_us + one.cpu_user_us,
        cpu_system_us: sum.cpu_system_us + one.cpu_system_us,
        cpu_periods: sum.cpu_periods + one.cpu_periods,
        cpu_throttled_periods: sum.cpu_throttled_periods + one.cpu_throttled_periods,
        cpu_throttled_us: sum.cpu_throttled_us + one.cpu_throttled_us,
        memory_bytes: sum.memory_bytes + one.memory_bytes,
        memory_limit_bytes: None,
        memory_anon_bytes: sum.memory_anon_bytes + one.memory_anon_bytes,
        memory_file_bytes: sum.memory_file_bytes + one.memory_file_bytes,
        memory_inactive_file_bytes: sum.memory_inactive_file_bytes + one.memory_inactive_file_bytes,
        memory_kernel_bytes: sum.memory_kernel_bytes + one.memory_kernel_bytes,
        page_faults: sum.page_faults + one.page_faults,
        major_page_faults: sum.major_page_faults + one.major_page_faults,
        oom_kills: sum.oom_kills + one.oom_kills,
        pids: sum.pids + one.pids,
        pids_limit: None,
    })
}

fn packed<T: MessageFull>(message: &T) -> Any {
    Any {
        type_url: T::descriptor().full_name().to_owned(),
        value: message.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}

fn version1(stats: &ContainerStats) -> v1::Metrics {
    let nanoseconds = |micros: u64| micros.saturating_mul(1000);
    let limit = stats.memory_limit_bytes.unwrap_or(UNLIMITED);
    let usage = v1::CPUUsage {
        total: nanoseconds(stats.cpu_us),
        kernel: nanoseconds(stats.cpu_system_us),
        user: nanoseconds(stats.cpu_user_us),
        ..Default::default()
    };
    let throttling = v1::Throttle {
        periods: stats.cpu_periods,
        throttled_periods: stats.cpu_throttled_periods,
        throttled_time: nanoseconds(stats.cpu_throttled_us),
        ..Default::default()
    };
    let cpu = v1::CPUStat {
        usage: MessageField::some(usage),
        throttling: MessageField::some(throttling),
        ..Default::default()
    };
    let entry = |usage, limit| {
        MessageField::some(v1::MemoryEntry {
            usage,
            limit,
            ..Default::default()
        })
    };
    let memory = v1::MemoryStat {
        cache: stats.memory_file_bytes,
        rss: stats.memory_anon_bytes,
        total_cache: stats.memory_file_bytes,
        total_rss: stats.memory_anon_bytes,
        inactive_file: stats.memory_inactive_file_bytes,
        total_inactive_file: stats.memory_inactive_file_bytes,
        pg_fault: stats.page_faults,
        pg_maj_fault: stats.major_page_faults,
        total_pg_fault: stats.page_faults,
        total_pg_maj_fault: stats.major_page_faults,
        hierarchical_memory_limit: limit,
        usage: entry(stats.memory_bytes, limit),
        kernel: entry(stats.memory_kernel_bytes, UNLIMITED),
        ..Default::default()
    };
    v1::Metrics {
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory),
        pids: MessageField::some(v1::PidsStat {
            current: stats.pids,
            limit: stats.pids_limit.unwrap_or_default(),
            ..Default::default()
        }),
        memory_oom_control: MessageField::some(v1::MemoryOomControl {
            oom_kill: stats.oom_kills,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn version2(stats: &ContainerStats) -> v2::Metrics {
    let cpu = v2::CPUStat {
        usage_usec: stats.cpu_us,
        user_usec: stats.cpu_user_us,
        system_usec: stats.cpu_system_us,
        nr_periods: stats.cpu_periods,
        nr_throttled: stats.cpu_throttled_periods,
        throttled_usec: stats.cpu_throttled_us,
        ..Default::default()
    };
    let memory = v2::MemoryStat {
        anon: stats.memory_anon_bytes,
        file: stats.memory_file_bytes,
        inactive_file: stats.memory_inactive_file_bytes,
        pgfault: stats.page_faults,
        pgmajfault: stats.major_page_faults,
        usage: stats.memory_bytes,
        usage_limit: stats.memory_limit_bytes.unwrap_or(u64::MAX),
        ..Default::default()
    };
    v2::Metrics {
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory),
        pids: MessageField::some(v2::PidsStat {
            current: stats.pids,
            limit: stats.pids_limit.unwrap_or_default(),
            ..Default::default()
        }),
        memory_events: MessageField::some(v2::MemoryEvents {
            oom_kill: stats.oom_kills,
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::Message;

    #[test]
    fn both_versions_are_known_by_the_names_that_kubelets_expect() {
        let stats = ContainerStats {
            cpu_us: 7,
            memory_bytes: 4096,
            memory_inactive_file_bytes: 1024,
            ..ContainerStats::default()
        };
        let first = packed(&version1(&stats));
        assert_eq!(first.type_url, "io.containerd.cgroups.v1.Metrics");
        let read = v1::Metrics::parse_from_bytes(&first.value).unwrap();
        assert_eq!((read.cpu.usage.total, read.memory.usage.usage), (7000, 4096));
        let second = packed(&version2(&stats));
        assert_eq!(second.type_url, "io.containerd.cgroups.v2.Metrics");
        let read = v2::Metrics::parse_from_bytes(&second.value).unwrap();
        assert_eq!((read.cpu.usage_usec, read.memory.inactive_file), (7, 1024));
    }

    #[test]
    fn a_pod_uses_what_its_containers_use() {
        let one = ContainerStats {
            cpu_us: 3,
            memory_limit_bytes: Some(1),
            pids: 2,
            ..ContainerStats::default()
        };
        let all = sum(&[one.clone(), one]);
        assert_eq!((all.cpu_us, all.pids, all.memory_limit_bytes), (6, 4, None));
    }
}
