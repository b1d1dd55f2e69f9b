//! The keys, by what they are in.

use super::Here::{Nothing, Refused, Works};
use super::Kind::{Any, Each, Integer, Keys, Named, Number, Own, Size, Text, Truth};
use super::{Here, Key, Kind};

const fn key(name: &'static str, kind: Kind, here: Here) -> Key {
    Key { name, kind, here }
}

const PLAIN: Here = Works("");
const OWN_KERNEL: Here = Nothing("a machine has a kernel of its own");
const SWARM: Here = Nothing("it is for clusters");
const NO_SWAP: Here = Nothing("a guest does not swap to this host");
const CPU_SHARE: Here = Nothing("a machine has as many CPUs as cpus says");
const DEVICES: Here = Refused("devices of this host are not passed to machines", "leave it out");

/// At the top of a file.
pub const TOP: &[Key] = &[
    key("name", Text, PLAIN),
    key("version", Any, Nothing("the newest form is always meant")),
    key("include", Own, PLAIN),
    key("services", Named(SERVICE), PLAIN),
    key("networks", Named(NETWORK), PLAIN),
    key("volumes", Named(VOLUME), PLAIN),
    key("secrets", Named(SECRET), PLAIN),
    key("configs", Named(CONFIG), PLAIN),
    key(
        "models",
        Any,
        Refused("there are no models here", "run the model server as a service"),
    ),
];

/// In a service.
pub const SERVICE: &[Key] = &[
    key("annotations", Own, Nothing("labels keep words of yours")),
    key("attach", Truth, Works("of `up`: false leaves its log out")),
    key("blkio_config", Any, OWN_KERNEL),
    key(
        "build",
        Keys(BUILD),
        Works("images are not built: `image` names one that is there, and without it the service is refused"),
    ),
    key("cap_add", Own, PLAIN),
    key("cap_drop", Own, PLAIN),
    key("cgroup", Text, OWN_KERNEL),
    key("cgroup_parent", Text, OWN_KERNEL),
    key("command", Own, Works("a text is split as a shell does")),
    key(
        "configs",
        Each(GRANT),
        Works("copied into the guest's memory at each start"),
    ),
    key("container_name", Text, Works("the machine's name")),
    key("cpu_count", Integer, CPU_SHARE),
    key("cpu_percent", Number, CPU_SHARE),
    key("cpu_period", Text, CPU_SHARE),
    key("cpu_quota", Text, CPU_SHARE),
    key("cpu_rt_period", Text, CPU_SHARE),
    key("cpu_rt_runtime", Text, CPU_SHARE),
    key(
        "cpu_shares",
        Text,
        Nothing("machines share this host's CPUs by how many they have"),
    ),
    key("cpus", Number, PLAIN),
    key("cpuset", Text, PLAIN),
    key("credential_spec", Any, Refused("it is for Windows", "leave it out")),
    key("depends_on", Named(DEPENDENCY), PLAIN),
    key("deploy", Keys(DEPLOY), PLAIN),
    key("develop", Any, Nothing("images are not built here")),
    key("device_cgroup_rules", Any, OWN_KERNEL),
    key("devices", Any, DEVICES),
    key("dns", Own, PLAIN),
    key(
        "dns_opt",
        Own,
        Nothing("a machine's resolver has the options of its image"),
    ),
    key("dns_search", Own, PLAIN),
    key("domainname", Text, PLAIN),
    key("entrypoint", Own, Works("a text is split as a shell does")),
    key("env_file", Each(ENV_FILE), PLAIN),
    key("environment", Own, PLAIN),
    key(
        "expose",
        Own,
        Works("every port of a machine can be reached in its networks anyway"),
    ),
    key("extends", Keys(EXTENDS), PLAIN),
    key(
        "external_links",
        Own,
        Refused(
            "there are no links",
            "join the network of the other machine, where its name is known",
        ),
    ),
    key("extra_hosts", Own, PLAIN),
    key("gpus", Any, DEVICES),
    key("group_add", Own, PLAIN),
    key("healthcheck", Keys(HEALTHCHECK), PLAIN),
    key("hostname", Text, PLAIN),
    key(
        "image",
        Text,
        Works("what `run` takes: also files, relative ones beside the compose file"),
    ),
    key("init", Truth, PLAIN),
    key("ipc", Text, OWN_KERNEL),
    key("isolation", Text, Nothing("a machine is always a virtual machine")),
    key("label_file", Own, PLAIN),
    key("labels", Own, PLAIN),
    key(
        "links",
        Own,
        Works("as depends_on; an alias becomes a name of that service"),
    ),
    key(
        "logging",
        Keys(LOGGING),
        Works("drivers json-file, local, none and syslog; options max-size and max-file"),
    ),
    key(
        "mac_address",
        Text,
        Nothing("addresses of machines follow from their names"),
    ),
    key("mem_limit", Size, Works("memory of the machine")),
    key(
        "mem_reservation",
        Size,
        Nothing("what a guest does not use is not taken from this host"),
    ),
    key("mem_swappiness", Text, NO_SWAP),
    key("memswap_limit", Text, NO_SWAP),
    key(
        "models",
        Any,
        Refused("there are no models here", "run the model server as a service"),
    ),
    key("network_mode", Text, Works("none, bridge; others are refused")),
    key("networks", Named(ATTACHMENT), PLAIN),
    key(
        "oom_kill_disable",
        Truth,
        Nothing("the guest's own kernel decides when memory is short"),
    ),
    key("oom_score_adj", Text, OWN_KERNEL),
    key("pid", Text, OWN_KERNEL),
    key("pids_limit", Text, Nothing("processes of a guest are its own kernel's")),
    key("platform", Text, Works("linux/amd64; others are refused")),
    key("ports", Each(PORT), PLAIN),
    key(
        "post_start",
        Any,
        Refused(
            "hooks are not run",
            "put the command into the entrypoint, or into a service of its own",
        ),
    ),
    key(
        "pre_start",
        Any,
        Refused(
            "hooks are not run",
            "use a service of its own, and depends_on with service_completed_successfully",
        ),
    ),
    key(
        "pre_stop",
        Any,
        Refused(
            "hooks are not run",
            "have the program do it when it gets its stop signal",
        ),
    ),
    key(
        "privileged",
        Truth,
        Nothing("a machine has a kernel of its own, and its root may do everything there"),
    ),
    key("profiles", Own, PLAIN),
    key(
        "provider",
        Any,
        Refused("other programs are not called", "leave it out"),
    ),
    key(
        "pull_policy",
        Text,
        Works("always, never, missing, if_not_present; build is as missing"),
    ),
    key("pull_refresh_after", Text, Nothing("'compose pull' asks again")),
    key("read_only", Truth, PLAIN),
    key("restart", Text, PLAIN),
    key("runtime", Text, Nothing("a machine is always a virtual machine")),
    key("scale", Integer, PLAIN),
    key(
        "secrets",
        Each(GRANT),
        Works("copied into the guest's memory at each start"),
    ),
    key("security_opt", Own, PLAIN),
    key("shm_size", Size, PLAIN),
    key("stdin_open", Truth, PLAIN),
    key("stop_grace_period", Text, Works("in whole seconds")),
    key("stop_signal", Text, PLAIN),
    key(
        "storage_opt",
        Any,
        Nothing("x-zmachine: size is that of a machine's root"),
    ),
    key("sysctls", Own, PLAIN),
    key("tmpfs", Own, PLAIN),
    key("tty", Truth, PLAIN),
    key("ulimits", Own, PLAIN),
    key(
        "use_api_socket",
        Truth,
        Refused("there is no such socket", "leave it out"),
    ),
    key("user", Text, PLAIN),
    key("userns_mode", Text, OWN_KERNEL),
    key("uts", Text, OWN_KERNEL),
    key(
        "volumes",
        Each(MOUNT),
        Works("a file is copied into the guest's memory at each start"),
    ),
    key(
        "volumes_from",
        Own,
        Refused(
            "machines do not share volumes by their names",
            "name the volumes in both services, or share a directory",
        ),
    ),
    key("working_dir", Text, PLAIN),
];

const BUILD: &[Key] = &[
    key("additional_contexts", Any, PLAIN),
    key("args", Any, PLAIN),
    key("cache_from", Any, PLAIN),
    key("cache_to", Any, PLAIN),
    key("context", Text, PLAIN),
    key("dockerfile", Text, PLAIN),
    key("dockerfile_inline", Text, PLAIN),
    key("entitlements", Any, PLAIN),
    key("extra_hosts", Any, PLAIN),
    key("isolation", Any, PLAIN),
    key("labels", Any, PLAIN),
    key("network", Any, PLAIN),
    key("no_cache", Any, PLAIN),
    key("no_cache_filter", Any, PLAIN),
    key("platforms", Any, PLAIN),
    key("privileged", Any, PLAIN),
    key("provenance", Any, PLAIN),
    key("pull", Any, PLAIN),
    key("sbom", Any, PLAIN),
    key("secrets", Any, PLAIN),
    key("shm_size", Any, PLAIN),
    key("ssh", Any, PLAIN),
    key("tags", Any, PLAIN),
    key("target", Any, PLAIN),
    key("ulimits", Any, PLAIN),
];

/// In `depends_on`.
pub const DEPENDENCY: &[Key] = &[
    key(
        "condition",
        Text,
        Works("service_started, service_healthy, service_completed_successfully"),
    ),
    key("required", Truth, PLAIN),
    key("restart", Truth, Works("it is made anew with what it depends on")),
];

/// In `deploy`.
pub const DEPLOY: &[Key] = &[
    key("endpoint_mode", Text, SWARM),
    key("labels", Own, SWARM),
    key("mode", Text, SWARM),
    key("placement", Any, SWARM),
    key("replicas", Integer, PLAIN),
    key("resources", Keys(RESOURCES), PLAIN),
    key("restart_policy", Keys(RESTART_POLICY), PLAIN),
    key("rollback_config", Any, SWARM),
    key("update_config", Any, SWARM),
];

const RESOURCES: &[Key] = &[
    key("limits", Keys(LIMITS), PLAIN),
    key("reservations", Keys(RESERVATIONS), PLAIN),
];

const LIMITS: &[Key] = &[
    key("cpus", Number, PLAIN),
    key("memory", Size, PLAIN),
    key("pids", Text, Nothing("processes of a guest are its own kernel's")),
];

const RESERVATIONS: &[Key] = &[
    key(
        "cpus",
        Any,
        Nothing("what a guest does not use is not taken from this host"),
    ),
    key("devices", Any, DEVICES),
    key("generic_resources", Any, SWARM),
    key(
        "memory",
        Size,
        Nothing("what a guest does not use is not taken from this host"),
    ),
];

const RESTART_POLICY: &[Key] = &[
    key("condition", Text, PLAIN),
    key("delay", Text, Nothing("the pause between restarts grows by itself")),
    key("max_attempts", Integer, PLAIN),
    key("window", Text, Nothing("a run of ten minutes counts as a success")),
];

const ENV_FILE: &[Key] = &[
    key("path", Text, PLAIN),
    key("required", Truth, PLAIN),
    key("format", Text, Works("raw: nothing is replaced in it")),
];

const EXTENDS: &[Key] = &[key("file", Text, PLAIN), key("service", Text, PLAIN)];

/// In `healthcheck`.
pub const HEALTHCHECK: &[Key] = &[
    key("disable", Truth, PLAIN),
    key("interval", Text, PLAIN),
    key("retries", Integer, PLAIN),
    key("start_interval", Text, PLAIN),
    key("start_period", Text, PLAIN),
    key("test", Own, PLAIN),
    key("timeout", Text, PLAIN),
];

const LOGGING: &[Key] = &[key("driver", Text, PLAIN), key("options", Own, PLAIN)];

/// In `networks` of a service.
pub const ATTACHMENT: &[Key] = &[
    key("aliases", Own, PLAIN),
    key("driver_opts", Any, Nothing("networks are bridges of this host")),
    key(
        "gw_priority",
        Number,
        Nothing("the first network that leads outside is the way out"),
    ),
    key("interface_name", Text, Nothing("interfaces are eth0, eth1 and so on")),
    key("ipv4_address", Text, PLAIN),
    key("ipv6_address", Text, PLAIN),
    key("link_local_ips", Own, Nothing("a guest's kernel makes its own")),
    key(
        "mac_address",
        Text,
        Nothing("addresses of machines follow from their names"),
    ),
    key("priority", Number, Works("the highest first")),
];

/// In `ports`.
pub const PORT: &[Key] = &[
    key("app_protocol", Text, Nothing("it is a remark")),
    key("host_ip", Text, PLAIN),
    key("mode", Text, Works("host and ingress are the same here")),
    key("name", Text, Nothing("it is a remark")),
    key("protocol", Text, PLAIN),
    key("published", Text, PLAIN),
    key("target", Own, PLAIN),
];

/// In `volumes` of a service.
pub const MOUNT: &[Key] = &[
    key("bind", Keys(MOUNT_BIND), PLAIN),
    key("consistency", Text, Nothing("it is for other systems")),
    key(
        "image",
        Any,
        Refused("images are not mounted", "use a service of its own"),
    ),
    key("read_only", Truth, PLAIN),
    key("source", Text, PLAIN),
    key("target", Text, PLAIN),
    key("tmpfs", Keys(MOUNT_TMPFS), PLAIN),
    key("type", Text, Works("bind, volume, tmpfs")),
    key("volume", Keys(MOUNT_VOLUME), PLAIN),
];

const MOUNT_BIND: &[Key] = &[
    key("create_host_path", Truth, PLAIN),
    key(
        "propagation",
        Text,
        Nothing("mounts of this host and of the guest are not related"),
    ),
    key("recursive", Text, Nothing("what is mounted below is shared as well")),
    key("selinux", Text, Nothing("directories are shared without relabelling")),
];

const MOUNT_TMPFS: &[Key] = &[key("mode", Own, PLAIN), key("size", Size, PLAIN)];

const MOUNT_VOLUME: &[Key] = &[
    key("labels", Own, Nothing("volumes have no labels")),
    key("nocopy", Truth, PLAIN),
    key(
        "subpath",
        Text,
        Refused("a volume is mounted whole", "use a volume of its own"),
    ),
];

const GRANT: &[Key] = &[
    key("gid", Text, Nothing("it belongs to root, and everybody may read it")),
    key("mode", Own, Nothing("it belongs to root, and everybody may read it")),
    key("source", Text, PLAIN),
    key("target", Text, PLAIN),
    key("uid", Text, Nothing("it belongs to root, and everybody may read it")),
];

/// In `networks` of a file.
pub const NETWORK: &[Key] = &[
    key("attachable", Truth, SWARM),
    key("driver", Text, Works("bridge; others are refused")),
    key("driver_opts", Own, Works("com.docker.network.driver.mtu")),
    key("enable_ipv4", Truth, Nothing("networks always have it")),
    key(
        "enable_ipv6",
        Truth,
        Works("false makes a network without; there is one otherwise"),
    ),
    key("external", Truth, PLAIN),
    key("internal", Truth, PLAIN),
    key("ipam", Own, Works("config: subnet")),
    key("labels", Own, Nothing("networks have no labels")),
    key("name", Text, PLAIN),
];

/// In `volumes` of a file.
pub const VOLUME: &[Key] = &[
    key("driver", Text, Works("local; others are refused")),
    key(
        "driver_opts",
        Own,
        Works("o: bind with a device: that directory; others are refused"),
    ),
    key("external", Truth, PLAIN),
    key("labels", Own, Nothing("volumes have no labels")),
    key("name", Text, PLAIN),
];

/// In `secrets` of a file.
pub const SECRET: &[Key] = &[
    key(
        "driver",
        Text,
        Refused("secrets are files of this host", "use file or environment"),
    ),
    key(
        "driver_opts",
        Any,
        Refused("secrets are files of this host", "use file or environment"),
    ),
    key("environment", Text, PLAIN),
    key(
        "external",
        Truth,
        Refused("there is no store of secrets", "use file or environment"),
    ),
    key("file", Text, PLAIN),
    key("labels", Own, Nothing("secrets have no labels")),
    key("name", Text, PLAIN),
    key("template_driver", Text, SWARM),
];

/// In `configs` of a file.
pub const CONFIG: &[Key] = &[
    key("content", Text, PLAIN),
    key("environment", Text, PLAIN),
    key(
        "external",
        Truth,
        Refused("there is no store of configs", "use file, content or environment"),
    ),
    key("file", Text, PLAIN),
    key("labels", Own, Nothing("configs have no labels")),
    key("name", Text, PLAIN),
    key("template_driver", Text, SWARM),
];
