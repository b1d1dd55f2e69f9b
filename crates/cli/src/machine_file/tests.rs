//! Files and flags say the same, for every flag there is.

use std::ffi::OsString;
use std::path::Path;

use clap::CommandFactory;
use zmachine_spec::{Class, Failure, MachineSpec, Origin, VolumeRequest};

use super::text;
use crate::args::{self, Cli, Command, Refused};

/// A value for every flag of `run`, none of them the default; and whether the spec remembers it.
const SAMPLES: &[(&str, &str, bool)] = &[
    ("detach", "true", false),
    ("pull", "\"always\"", false),
    ("no-install", "true", false),
    ("rm", "true", true),
    ("name", "\"web\"", true),
    ("cpus", "1.5", true),
    ("cpuset-cpus", "\"0-1,3\"", true),
    ("memory", "\"1G\"", true),
    ("size", "3000000000", true),
    ("env", "{ A = \"b=c d\", B = 3 }", true),
    // Becomes variables, so it is not written again.
    ("env-file", "\"variables\"", false),
    ("entrypoint", "\"sh -c 'exit 3'\"", true),
    ("workdir", "\"/srv\"", true),
    ("user", "\"me:us\"", true),
    ("hostname", "\"host\"", true),
    ("network", "[\"default\", \"inner\"]", true),
    ("network-alias", "[\"db\"]", true),
    ("publish", "[\"8080:80\", \"53:53/udp\"]", true),
    ("publish-all", "true", true),
    ("dns", "[\"9.9.9.9\"]", true),
    ("interactive", "true", true),
    ("tty", "true", true),
    ("read-only", "true", true),
    ("init", "true", true),
    ("stop-signal", "\"SIGINT\"", true),
    ("stop-timeout", "7", true),
    ("accel", "\"tcg\"", true),
    ("hypervisor", "\"qemu\"", true),
    ("kernel", "\"own\"", true),
    ("store", "[\"dir:///srv/store\"]", true),
    ("restart", "\"on-failure:3\"", true),
    ("log-to", "\"tcp://logs:99\"", true),
    ("log-opt", "{ max-size = \"2M\", max-files = 3 }", true),
    ("label", "[\"tier=front\", \"bare\"]", true),
    ("volume", "[\"data:/srv:size=1G\"]", true),
    ("mode", "\"vm\"", true),
    ("ssh-key", "[\"ssh-ed25519 AAAA me\"]", true),
    ("user-data", "\"#cloud-config\\n\"", true),
    ("reinstall", "true", true),
    ("legacy-cmdline", "true", true),
    ("snapshots", "true", true),
    ("warm", "\"ready\"", true),
    ("pool", "2", true),
    ("idle-timeout", "\"90s\"", true),
    ("rootfs", "\"virtiofs\"", true),
    ("secret", "[\"db=/etc/pw\"]", true),
    ("jail", "\"off\"", true),
    ("prefetch", "\"all\"", true),
    ("tmpfs", "[\"/scratch:size=1048576\"]", true),
    // Becomes a volume or a file system in memory.
    ("mount", "[\"type=tmpfs,target=/more\"]", false),
    ("add-host", "[\"db:10.0.0.5\"]", true),
    // They become part of the network, and of the host name.
    ("ip", "\"10.9.9.9\"", false),
    ("ip6", "\"fd00::9\"", false),
    ("domainname", "\"example.org\"", false),
    ("dns-search", "[\"example.org\"]", true),
    ("shm-size", "\"64M\"", true),
    ("sysctl", "[\"kernel.msgmax=9\"]", true),
    ("ulimit", "[\"nofile=9:10\"]", true),
    ("group-add", "[\"wheel\"]", true),
    ("cap-drop", "[\"NET_RAW\"]", true),
    ("cap-add", "[\"CHOWN\"]", true),
    ("security-opt", "[\"no-new-privileges\"]", true),
    ("health-cmd", "\"curl -f localhost\"", true),
    ("health-interval", "\"1m30s\"", true),
    ("health-timeout", "\"500ms\"", true),
    ("health-start-period", "\"10s\"", true),
    ("health-start-interval", "\"1s\"", true),
    ("health-retries", "5", true),
    // In the place of the check.
    ("no-healthcheck", "false", false),
    // Of one run, or nothing to a machine.
    ("cidfile", "\"id\"", false),
    ("pidfile", "\"pid\"", false),
    ("privileged", "true", false),
    ("oom-kill-disable", "true", false),
    ("sig-proxy", "\"true\"", false),
    ("disable-content-trust", "\"true\"", false),
    ("memory-reservation", "\"1G\"", false),
    ("memory-swap", "\"1G\"", false),
    ("memory-swappiness", "\"1\"", false),
    ("kernel-memory", "\"1G\"", false),
    ("cpu-shares", "\"9\"", false),
    ("pids-limit", "\"9\"", false),
    ("oom-score-adj", "\"9\"", false),
    ("blkio-weight", "\"9\"", false),
    ("cgroup-parent", "\"x\"", false),
    ("cgroupns", "\"private\"", false),
    ("userns", "\"host\"", false),
    ("ipc", "\"private\"", false),
    ("pid", "\"host\"", false),
    ("uts", "\"host\"", false),
    ("isolation", "\"x\"", false),
    ("runtime", "\"runc\"", false),
    ("log-driver", "\"json-file\"", false),
    ("platform", "\"linux/amd64\"", false),
    ("detach-keys", "\"ctrl-a\"", false),
    ("expose", "[\"80\"]", false),
    ("annotation", "[\"a=b\"]", false),
    ("volume-driver", "\"local\"", false),
];

/// A folder with `machine.toml` of `content` and what the samples refer to.
fn folder(content: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("variables"), "FROM_FILE=1\n").unwrap();
    std::fs::write(folder.path().join("machine.toml"), content).unwrap();
    folder
}

/// The spec of `run -f machine.toml WORDS...`.
fn run(folder: &Path, words: &[&str]) -> Result<MachineSpec, Failure> {
    let file = folder.join("machine.toml");
    let words = ["zmachine", "run", "-f", file.to_str().unwrap()]
        .into_iter()
        .chain(words.iter().copied());
    let cli = match args::parse(words.map(OsString::from).collect()) {
        Ok(cli) => cli,
        Err(Refused::File(failure)) => return Err(failure),
        Err(Refused::Words(error)) => panic!("{error}"),
    };
    let Command::Run(run) = cli.command else {
        panic!("not run")
    };
    run.machine
        .spec(Path::new("/elsewhere"), || "calm-otter-01".into(), |_| None)
}

fn samples() -> String {
    let line = |(key, value, _): &(&str, &str, bool)| format!("{key} = {value}\n");
    SAMPLES.iter().map(line).collect()
}

#[test]
fn every_flag_of_run_has_its_key_and_survives_the_round_trip() {
    let mut command = Cli::command();
    command.build();
    let run_command = command.find_subcommand("run").unwrap();
    let flags: Vec<&str> = run_command.get_arguments().filter_map(|arg| arg.get_long()).collect();
    for flag in flags.iter().filter(|flag| !["file", "help", "dry-run"].contains(flag)) {
        assert!(
            SAMPLES.iter().any(|(key, ..)| key == flag),
            "--{flag} has no sample here: add one, and its key to machine_file::text"
        );
    }
    assert!(SAMPLES.iter().all(|(key, ..)| flags.contains(key)));

    let asked = folder(&format!("flist = \"x.fl\"\ncommand = [\"ls\", \"-l\"]\n{}", samples()));
    let spec = run(asked.path(), &[]).unwrap();
    assert_eq!(spec.flist, asked.path().join("x.fl").to_str().unwrap());
    assert_eq!(spec.command, ["ls", "-l"]);
    let printed = text(&spec, true).unwrap();
    for (key, ..) in SAMPLES.iter().filter(|(.., is_kept)| *is_kept) {
        assert!(
            printed.lines().any(|line| line.starts_with(&format!("{key} = "))),
            "{key} is not in\n{printed}"
        );
    }
    assert_eq!(run(folder(&printed).path(), &[]).unwrap(), spec, "{printed}");
}

#[test]
fn each_sample_alone_changes_what_is_asked_for() {
    let plain = run(folder("flist = \"/x.fl\"\n").path(), &[]).unwrap();
    for (key, value, is_kept) in SAMPLES {
        let spec = run(folder(&format!("flist = \"/x.fl\"\n{key} = {value}\n")).path(), &[]).unwrap();
        assert!(!is_kept || spec != plain, "{key}");
    }
}

#[test]
fn a_machine_of_defaults_prints_nothing_but_its_name_and_image() {
    let spec = MachineSpec::new("web", "/x.fl");
    assert_eq!(text(&spec, true).unwrap(), "name = \"web\"\nflist = \"/x.fl\"\n");
}

#[test]
fn odd_words_survive() {
    let mut spec = MachineSpec::new("web", "/x.fl");
    spec.entrypoint = Some(vec!["a b".into(), "it's \"so\"".into(), "\\".into()]);
    spec.command = vec!["--name".into(), "--".into(), "ü\n\t".into()];
    spec.env = vec![("A".into(), "\"quoted\"\n$x".into()), ("A".into(), "again".into())];
    spec.networks = Vec::new();
    spec.volumes = [
        VolumeRequest::new(Origin::Directory("/srv/a:b".into()), "/c:d").unwrap(),
        VolumeRequest::new(Origin::Anonymous, "/e:f").unwrap(),
        VolumeRequest {
            size_bytes: Some(5 << 20),
            read_only: true,
            no_copy: true,
            ..VolumeRequest::new(Origin::Named("data".into()), "/g:h").unwrap()
        },
    ]
    .into();
    spec.labels.insert("-x".into(), "'''".into());
    let printed = text(&spec, true).unwrap();
    assert_eq!(run(folder(&printed).path(), &[]).unwrap(), spec, "{printed}");
}

#[test]
fn a_directory_may_have_a_colon_in_a_file_and_in_its_folder() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("a:b");
    std::fs::create_dir(&folder).unwrap();
    let file = "flist = \"/x.fl\"\nvolume = [\"./x:/x:ro\", { directory = \"c:d\", target = \"/y\" }]\n";
    std::fs::write(folder.join("machine.toml"), file).unwrap();
    let spec = run(&folder, &[]).unwrap();
    let origins: Vec<&Origin> = spec.volumes.iter().map(|volume| &volume.origin).collect();
    let directory = |name: &str| Origin::Directory(folder.join(name));
    assert_eq!(origins, [&directory("./x"), &directory("c:d")]);
    assert!(spec.volumes[0].read_only);
}

#[test]
fn a_file_says_yes_or_no_to_warm_starts() {
    for (value, words, expected) in [
        ("true", &[][..], (true, false, false)),
        ("false", &[], (false, false, true)),
        ("\"ready\"", &[], (true, true, false)),
        ("true", &["--warm=off"], (false, false, true)),
        ("false", &["--warm"], (true, false, false)),
    ] {
        let file = folder(&format!("flist = \"/x.fl\"\nwarm = {value}\n"));
        let spec = run(file.path(), words).unwrap();
        assert_eq!((spec.warm, spec.warm_ready, spec.cold), expected, "{value} {words:?}");
    }
}

#[test]
fn flags_override_the_file_and_pairs_are_merged() {
    let file = folder(
        "flist = \"x.fl\"\ncommand = [\"a\"]\nmemory = \"1G\"\nnetwork = [\"inner\"]\nrm = true\nenv = { A = \"1\", B = \"2\" }\n",
    );
    let spec = run(
        file.path(),
        &[
            "--memory",
            "2G",
            "-e",
            "A=9",
            "--network",
            "none",
            "/y.fl",
            "b",
            "--cpus",
        ],
    )
    .unwrap();
    assert_eq!((spec.memory_bytes, spec.flist.as_str()), (2 << 30, "/y.fl"));
    assert_eq!(spec.command, ["b", "--cpus"]);
    assert!(spec.networks.is_empty() && spec.auto_remove);
    let last = |name| spec.env.iter().rfind(|(n, _)| n == name).unwrap().1.as_str();
    assert_eq!((last("A"), last("B")), ("9", "2"));
    assert_eq!(run(file.path(), &["/y.fl"]).unwrap().command, ["a"]);
}

#[test]
fn what_is_wrong_in_a_file_is_named() {
    for (content, wanted, hint) in [
        ("colour = 1", "colour: there is no such key", "image, command"),
        (
            "stop_timeout = 1",
            "stop_timeout: there is no such key",
            "'stop-timeout'",
        ),
        ("volumes_ = 1", "there is no such key", ""),
        ("dry-run = true", "there is no such key", ""),
        ("file = \"x\"", "there is no such key", ""),
        ("memory = [1]", "memory: it has one value", ""),
        ("rm = \"yes\"", "rm: it is either true or false", ""),
        ("dns = { a = 1 }", "dns: a table cannot", ""),
        ("volume = [\"data:d\"]", "volume: the volume 'data:d'", "NAME:/path"),
        (
            "volume = [{ target = 1 }]",
            "volume: target must be a text",
            "keys of a volume",
        ),
        ("command = \"ls\"", "command: it must be a list", "[\"sh\""),
        ("flist = 3", "flist: it must be a text", ""),
        ("cpus = 1\ncpus = 2", "line 2", "TOML"),
    ] {
        let content = match content.starts_with("flist") {
            true => content.to_owned(),
            false => format!("{content}\nflist = \"x.fl\""),
        };
        let failure = run(folder(&content).path(), &[]).unwrap_err();
        assert_eq!(failure.class, Class::Usage, "{content}");
        assert!(failure.message.contains(wanted), "{content}: {}", failure.message);
        assert!(failure.hint.unwrap_or_default().contains(hint), "{content}");
    }
    assert!(
        run(folder("memory = \"1G\"").path(), &[])
            .unwrap_err()
            .message
            .contains("flist")
    );
    let absent = tempfile::tempdir().unwrap();
    assert_eq!(run(absent.path(), &[]).unwrap_err().class, Class::NotFound);
}

#[test]
fn secrets_are_left_to_the_environment_of_who_runs_the_file() {
    let mut spec = MachineSpec::new("web", "/x.fl");
    spec.env = vec![("API_TOKEN".into(), "sesame".into()), ("A".into(), "b".into())];
    spec.stores = vec!["s3://me:hunter2@objects:9000/blocks".into()];
    let printed = text(&spec, false).unwrap();
    assert!(!printed.contains("sesame") && !printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("API_TOKEN") && printed.contains("A=b"), "{printed}");
    assert!(text(&spec, true).unwrap().contains("API_TOKEN=sesame"));
}
