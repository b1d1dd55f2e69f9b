//! Words of other tools that are none of ours, and what to say instead.

/// Commands of docker, podman, incus and virsh, and what does the same here.
pub const COMMANDS: [(&str, &str); 15] = [
    (
        "attach-device",
        "'zmachine network connect' adds interfaces; other devices need a new machine",
    ),
    (
        "build",
        "'zmachine flist pack' makes an image of a directory; images of Dockerfiles are imported: 'zmachine flist import'",
    ),
    (
        "container",
        "the commands for machines have no prefix: 'zmachine ps', 'zmachine rm'",
    ),
    (
        "destroy",
        "'zmachine kill' ends a machine at once, 'zmachine rm' removes it",
    ),
    ("dominfo", "'zmachine inspect' shows everything about a machine"),
    (
        "import",
        "'zmachine flist import' makes a flist of a container image, 'zmachine image pull NAME=FILE' names it",
    ),
    ("launch", "'zmachine run' creates and starts a machine"),
    ("list", "'zmachine ps' lists machines"),
    (
        "prune",
        "'zmachine system prune' removes what nobody needs, 'zmachine image prune' images and blocks alone",
    ),
    ("reboot", "'zmachine restart' stops a machine and starts it again"),
    ("search", "there is no search in registries"),
    ("shell", "'zmachine exec -it NAME sh' runs a shell in a machine"),
    ("show", "'zmachine inspect' shows everything about a machine"),
    ("shutdown", "'zmachine stop' asks a machine to stop"),
    ("suspend", "'zmachine pause' halts the virtual CPUs"),
];

/// Flags of docker and podman, and what does the same here.
pub const FLAGS: [(&str, &str); 30] = [
    ("--device", "devices of this host cannot be passed to machines"),
    ("--format", "use --output json, and jq for single fields"),
    ("--filter", "use --output json, and jq to choose"),
    ("--gpus", "devices of this host cannot be passed to machines"),
    ("--link", "machines of one network find each other by their names"),
    ("--mac-address", "a machine's addresses follow from its id"),
    ("--no-trunc", "use --output json"),
    ("--volumes-from", "name the volumes with -v"),
    (
        "--attach",
        "'zmachine run' without -d follows standard output and error; -i passes standard input on",
    ),
    ("--blkio-weight-device", "limits of a guest's disks cannot be set"),
    ("--cpu-period", "use --cpus"),
    ("--cpu-quota", "use --cpus"),
    ("--cpu-rt-period", "use --cpus"),
    ("--cpu-rt-runtime", "use --cpus"),
    ("--cpuset-mems", "the memory of this host cannot be chosen"),
    (
        "--device-cgroup-rule",
        "devices of this host cannot be passed to machines",
    ),
    ("--device-read-bps", "limits of a guest's disks cannot be set"),
    ("--device-read-iops", "limits of a guest's disks cannot be set"),
    ("--device-write-bps", "limits of a guest's disks cannot be set"),
    ("--device-write-iops", "limits of a guest's disks cannot be set"),
    ("--dns-option", "options of /etc/resolv.conf cannot be set"),
    ("--label-file", "name each with --label, or in a machine file"),
    (
        "--link-local-ip",
        "addresses are those of its networks: --ip and --ip6 choose one",
    ),
    ("--quiet", "leave it out: progress is shown on terminals alone"),
    ("--storage-opt", "use --size for the size of its root"),
    ("--use-api-socket", "there is no API socket to pass"),
    ("--cpu-count", "it is for Windows alone: leave it out"),
    ("--cpu-percent", "it is for Windows alone: leave it out"),
    ("--io-maxbandwidth", "it is for Windows alone: leave it out"),
    ("--io-maxiops", "it is for Windows alone: leave it out"),
];
