//! The flags of `run` and `create`, and their conversion to a [`MachineSpec`].

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};
use zmachine_hypervisor::accel;
use zmachine_hypervisor::choice::Requested;
use zmachine_image::{ImageSource, PullPolicy, Reference};
use zmachine_network::{NetworkError, PublishRequest};
use zmachine_rootfs::Prefetch;
use zmachine_spec as spec;
use zmachine_spec::{
    Class, CpuSet, Cpus, Failure, JailChoice, MachineSpec, ModeChoice, NetworkRequest, Origin, RootfsChoice, Setting,
    User, VolumeRequest, bytes, user_data_text,
};

use super::file;
use super::guest::GuestArgs;
use super::health::HealthArgs;
use super::words::{self, ACCEL, HYPERVISOR, JAIL, MODE, PREFETCH, ROOTFS};

/// `run`
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Do not follow it; print its name
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Print the plan as JSON; start nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) machine: CreateArgs,
}

/// When a URL or a registry is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    Missing,
    Always,
    Never,
    Newer,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> PullPolicy {
        match pull {
            Pull::Missing => PullPolicy::Missing,
            Pull::Always => PullPolicy::Always,
            Pull::Never => PullPolicy::Never,
            Pull::Newer => PullPolicy::Newer,
        }
    }
}

/// `create`, and what `run` has in common with it
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Read a TOML file in which every long flag may be a key; flags given here override it
    #[arg(short, long, value_name = "FILE.toml")]
    file: Option<PathBuf>,
    /// Remove it when it has stopped
    #[arg(long)]
    pub(crate) rm: bool,
    /// Its name; two words when not given
    #[arg(long)]
    name: Option<String>,
    /// CPUs; a part of one, as in 1.5, limits their time on this host
    #[arg(long, value_name = "N", default_value = "1")]
    cpus: String,
    /// CPUs of this host that it runs on: 0-3,6
    #[arg(long, value_name = "CPUS")]
    cpuset_cpus: Option<String>,
    /// Guest memory
    #[arg(short, long, value_name = "SIZE", default_value = "512M")]
    memory: String,
    /// Size of its writable root, at least 500M, or 2G for large machines; of the disk of a VM without any volume, as large as its
    /// image when not given
    #[arg(long, visible_alias = "disk-size", value_name = "SIZE")]
    size: Option<String>,
    /// Set or pass on an environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file, one NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// A file of this host for the container's /run/secrets, or for a path in it; it is in its memory alone, and read at each start
    #[arg(long, value_name = "[NAME|/PATH=]FILE")]
    secret: Vec<String>,
    /// Program in place of the image's; split as a shell does; "" for none
    #[arg(long, value_name = "STRING")]
    entrypoint: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Host name; its name when not given
    #[arg(long)]
    hostname: Option<String>,
    /// Attach a volume: NAME:/PATH, or /PATH for one of its own; options size=10G, fs=ext4|btrfs|xfs|none, ro, nocopy.
    /// Or share a directory of this host: ./DIR:/PATH or /DIR:/PATH; option ro. A file in its place is copied in at each start
    #[arg(short = 'v', long, value_name = "NAME|DIR:/PATH[:OPTION,...]")]
    volume: Vec<String>,
    /// Network to join ('zmachine network ls'), with ip=ADDRESS and alias=NAME there; 'none' for none
    #[arg(
        long,
        visible_alias = "net",
        value_name = "NAME[:OPTION,...]",
        default_value = "default"
    )]
    network: Vec<String>,
    /// A name under which other machines find it in its networks, beside its own
    #[arg(long, value_name = "NAME")]
    network_alias: Vec<String>,
    /// Publish a port of the machine on this host; on a free one when HOST is left out or 0
    #[arg(short, long, value_name = "[[IP:][HOST]:]GUEST[/tcp|udp]")]
    publish: Vec<String>,
    /// Publish every port that the image exposes, on free ports of this host
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Name servers in place of those of its networks
    #[arg(long, value_name = "IP")]
    dns: Vec<IpAddr>,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give its entrypoint a terminal
    #[arg(short, long)]
    tty: bool,
    /// Its root cannot be written
    #[arg(long)]
    read_only: bool,
    /// Put a small init in front of its entrypoint, which passes signals on and reaps orphans
    #[arg(long)]
    init: bool,
    /// Signal that asks its entrypoint to stop; the image's, or SIGTERM, when not given
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL; 10 when not given, 90 for a VM's power button
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u64>,
    /// Hardware acceleration
    #[arg(long, value_name = "auto|kvm|tcg", default_value = "auto", value_parser = words::parser(ACCEL))]
    accel: accel::Requested,
    /// What runs it; 'auto' takes Cloud Hypervisor where that can, and ZMACHINE_HYPERVISOR is asked first
    #[arg(long, value_name = "auto|qemu|cloud-hypervisor", value_parser = words::parser(HYPERVISOR))]
    hypervisor: Option<Requested>,
    /// Guest kernel ('zmachine kernel ls')
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// When an image of a registry, or a flist at a URL, is asked for again; 'newer' takes what is here when there is no answer
    #[arg(long, value_enum, default_value = "missing")]
    pub(crate) pull: Pull,
    /// Refuse to start without a guest kernel, instead of installing the default one
    #[arg(long)]
    pub(crate) no_install: bool,
    /// Block stores in place of those in the flist
    #[arg(long, value_name = "URL")]
    store: Vec<String>,
    /// What happens when it ends by itself: no, on-failure or on-failure:N, always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    restart: String,
    /// Send its log there as well: tcp://HOST:PORT, unix:///PATH, file:///PATH, ws://HOST:PORT/PATH,
    /// syslog://HOST:PORT, or syslog
    #[arg(long, value_name = "URL")]
    log_to: Option<String>,
    /// How much of its log is kept: max-size=64M, max-files=16, rotate-after=1d, max-age=30d
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
    /// What the image is taken for, whatever it holds
    #[arg(long, value_name = "auto|container|vm", default_value = "auto", value_parser = words::parser(MODE))]
    mode: ModeChoice,
    /// Public keys for root, one a line
    #[arg(long, value_name = "FILE")]
    ssh_key: Vec<PathBuf>,
    /// User data for the cloud-init of a VM, merged with what zmachine tells it
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// Install the VM's image over whatever its volume holds
    #[arg(long)]
    reinstall: bool,
    /// What a container's image comes by: a disk whose blocks are fetched when read, or an unpacked tree over virtio-fs
    #[arg(long, value_name = "auto|block|virtiofs", default_value = "auto", value_parser = words::parser(ROOTFS))]
    rootfs: RootfsChoice,
    /// What of a container's image is fetched before it is read: nothing, what earlier starts of it read, or, when it waits
    /// for nothing, everything
    #[arg(long, value_name = "none|hints|all", default_value = "hints", value_parser = words::parser(PREFETCH))]
    prefetch: Prefetch,
    /// Build it so that it can be saved and forked while it runs
    #[arg(long)]
    snapshots: bool,
    /// Save it and end its hypervisor when nobody has had to do with it for so long, as 10m; who comes brings it back
    #[arg(long, value_name = "TIME")]
    idle_timeout: Option<String>,
    /// Begin from the guest of an earlier machine like it instead of booting one, where there is one; make one otherwise: when it is set up,
    /// or when its entrypoint is ready by its health check or READY=1, which runs on from there
    #[arg(long, value_name = "start|ready|off", num_args = 0..=1, require_equals = true, default_missing_value = "start", value_parser = warm())]
    warm: Option<String>,
    /// Keep so many guests like it waiting, for ten minutes each: the next machines like it begin as soon as one is told who it is. Implies
    /// --warm
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=16))]
    pool: Option<u16>,
    /// Tell a container's own kernel of network and environment on its command line, as Zero-OS did
    #[arg(long)]
    legacy_cmdline: bool,
    /// Lock its processes on this host in as far as the host can, or not at all, for debugging
    #[arg(long, value_name = "auto|off", default_value = "auto", value_parser = words::parser(JAIL))]
    jail: JailChoice,
    /// A word of your own about it
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    /// The image: a name (nginx, ghcr.io/org/app:1.2), here or in a registry; a path (image.fl, image.tar, disk.qcow2); the URL of a
    /// flist; docker://NAME, oci:DIR, oci-archive:FILE or docker-archive:FILE
    #[arg(required_unless_present = "file", value_name = "IMAGE")]
    flist: Option<String>,
    /// Command and arguments in place of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl CreateArgs {
    /// The spec these flags ask for. `free_name` makes a name when none is given; `environment` is what `-e NAME` copies.
    pub(crate) fn spec(
        &self,
        cwd: &Path,
        free_name: impl FnOnce() -> String,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<MachineSpec, Failure> {
        let name = self.name.clone().unwrap_or_else(free_name);
        // A machine file without one was refused before.
        let flist = self.flist.as_deref().unwrap_or_default();
        let mut spec = MachineSpec::new(name, absolute(flist, cwd));
        spec.auto_remove = self.rm;
        let cpus: Cpus = self.cpus.parse()?;
        (spec.cpus, spec.cpu_limit_milli) = (cpus.count, cpus.limit_milli);
        spec.cpuset = self.cpuset_cpus.as_deref().map_or(Ok(CpuSet::default()), str::parse)?;
        spec.memory_bytes = size("--memory", &self.memory)?;
        spec.size_bytes = self.size.as_deref().map_or(Ok(0), |text| size("--size", text))?;
        let preferred = environment("ZMACHINE_HYPERVISOR");
        spec.env = variables(&self.env_file, &self.env, &environment)?;
        spec.entrypoint = self.entrypoint.as_deref().map(split).transpose()?;
        spec.command = texts(&self.command)?;
        spec.workdir = self.workdir.clone();
        spec.user = self.user.as_deref().map(User::parse);
        spec.hostname = self.hostname.clone();
        let volume = |text: &String| volume(text, cwd);
        spec.volumes = self.volume.iter().map(volume).collect::<Result<_, Failure>>()?;
        spec.networks = NetworkRequest::parse_all(&self.network)?;
        let alias = |alias: &String| {
            spec::check_alias(alias).map_err(|what| {
                Failure::new(Class::Usage, what)
                    .hint("use letters, digits, '-', '_' and '.', at most 63 characters")
                    .about(Setting::NetworkAliases)
            })
        };
        spec.network_aliases = self.network_alias.iter().map(alias).collect::<Result<_, _>>()?;
        spec.publish = self
            .publish
            .iter()
            .map(|text| publish(text))
            .collect::<Result<_, _>>()?;
        spec.publish_all = self.publish_all;
        spec.dns = self.dns.clone();
        spec.terminal = self.tty;
        spec.stdin = self.interactive;
        spec.read_only = self.read_only;
        spec.init = self.init;
        spec.kernel = self.kernel.clone();
        spec.accel = self.accel;
        spec.hypervisor = hypervisor(self.hypervisor, preferred)?;
        let signal = |text: &String| text.parse().map_err(|e: Failure| e.about(Setting::StopSignal));
        spec.stop_signal = self.stop_signal.as_ref().map(signal).transpose()?;
        spec.stop_timeout_s = self.stop_timeout;
        spec.stores = self.store.clone();
        spec.labels = zmachine_spec::labels(&self.label);
        let restart = self.restart.parse();
        spec.restart = restart.map_err(|e: Failure| e.about(Setting::Restart))?;
        let log_to = |url: &String| url.parse().map_err(|e: Failure| e.about(Setting::LogTo));
        spec.log_to = self.log_to.as_ref().map(log_to).transpose()?;
        for option in &self.log_opt {
            let set = spec.log_limits.set(option);
            set.map_err(|failure| failure.about(Setting::LogLimits))?;
        }
        spec.mode = self.mode;
        spec.ssh_keys = ssh_keys(&self.ssh_key)?;
        spec.user_data = self
            .user_data
            .as_deref()
            .map(|file| user_data("--user-data", file))
            .transpose()?;
        spec.reinstall = self.reinstall;
        spec.rootfs = self.rootfs;
        spec.prefetch = self.prefetch;
        spec.legacy_cmdline = self.legacy_cmdline;
        spec.snapshots = self.snapshots;
        spec.pool = self.pool.unwrap_or_default();
        let warm = self.warm.clone().or_else(|| environment("ZMACHINE_WARM"));
        spec.cold = matches!(self.warm.as_deref(), Some("off" | "false"));
        spec.warm_ready = warm.as_deref() == Some("ready");
        spec.warm = spec.warm_ready || self.pool.is_some() || matches!(warm.as_deref(), Some("start" | "true" | "1"));
        let idle_timeout = self.idle_timeout.as_deref().map(zmachine_spec::health::parse_time);
        spec.idle_timeout_ms = idle_timeout.transpose()?.flatten();
        let secret = |text: &String| zmachine_spec::secret::parse(text, cwd);
        spec.secrets = self.secret.iter().map(secret).collect::<Result<_, Failure>>()?;
        spec.jail = self.jail;
        spec.health = self.health.request()?;
        self.guest.apply(&mut spec, cwd)?;
        separate_files(&mut spec)?;
        Ok(spec)
    }
}

/// Files among what is to be shared: only directories can be, so these are copied, as secrets are.
fn separate_files(spec: &mut MachineSpec) -> Result<(), Failure> {
    let is_file = |request: &VolumeRequest| match &request.origin {
        Origin::Directory(path) => path.is_file(),
        Origin::Named(_) | Origin::Anonymous => false,
    };
    let (files, volumes) = std::mem::take(&mut spec.volumes).into_iter().partition(is_file);
    spec.volumes = volumes;
    let files: Vec<VolumeRequest> = files;
    for file in files {
        if let Origin::Directory(path) = file.origin {
            spec.secrets.push((spec::secret::path(&file.target)?, path));
        }
    }
    Ok(())
}

/// What the flag asks for, else what the environment prefers.
fn hypervisor(flag: Option<Requested>, preferred: Option<String>) -> Result<Requested, Failure> {
    match (flag, preferred.as_deref()) {
        (Some(requested), _) => Ok(requested),
        (None, None | Some("")) => Ok(Requested::Auto),
        (None, Some(word)) => words::value(HYPERVISOR, word).ok_or_else(|| {
            Failure::new(Class::Usage, format!("ZMACHINE_HYPERVISOR: '{word}' is no hypervisor"))
                .hint("set it to auto, qemu or cloud-hypervisor")
        }),
    }
}

/// The words of `--warm`; a machine file may say yes or no.
fn warm() -> PossibleValuesParser {
    let word = PossibleValue::new;
    PossibleValuesParser::new([word("start").alias("true"), word("ready"), word("off").alias("false")])
}

/// A volume, as a flag has it or as a machine file passes it on.
fn volume(text: &str, cwd: &Path) -> Result<VolumeRequest, Failure> {
    match text.strip_prefix(file::TYPED) {
        Some(json) => serde_json::from_str(json).map_err(|e| Failure::from_error(Class::Usage, &e)),
        None => VolumeRequest::parse(text, cwd),
    }
}

fn publish(text: &str) -> Result<PublishRequest, Failure> {
    let parsed = PublishRequest::parse(text).map_err(NetworkError::from);
    parsed.map_err(|e| Failure::from(e).about(Setting::Publish))
}

/// A path as it must be kept: the machine may be started from another folder.
pub(super) fn absolute(flist: &str, cwd: &Path) -> String {
    match Reference::parse(flist, cwd) {
        Ok(Reference::Path(path)) if !flist.contains("://") => path.to_string_lossy().into_owned(),
        Ok(Reference::Image(image)) if !matches!(image, ImageSource::Registry { .. }) => image.to_string(),
        _ => flist.to_owned(),
    }
}

/// Whether the value of a flag that names a file is the file's content itself, as a machine file may have it.
pub(super) fn is_content(value: &str) -> bool {
    value.contains('\n')
        || value.starts_with('#')
        || ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| value.starts_with(kind))
}

pub(crate) fn size(flag: &str, text: &str) -> Result<u64, Failure> {
    bytes::parse(text).map_err(|e| {
        Failure::from_error(Class::Usage, &e)
            .context(format!("{flag} {text}"))
            .hint(e.hint())
    })
}

fn split(text: &str) -> Result<Vec<String>, Failure> {
    shlex::split(text).ok_or_else(|| {
        Failure::new(Class::Usage, format!("--entrypoint {text}: a quote is not closed"))
            .hint("quote it as for a shell")
    })
}

/// Words of a command. The guest gets them as UTF-8.
pub(crate) fn texts(words: &[OsString]) -> Result<Vec<String>, Failure> {
    let text = |word: &OsString| {
        word.clone().into_string().map_err(|word| {
            Failure::new(Class::Usage, format!("the argument {word:?} is not UTF-8"))
                .hint("pass it through a file or standard input")
        })
    };
    words.iter().map(text).collect()
}

/// `NAME=VALUE`, or `NAME` with the value of this environment (left out when it has none).
fn variable(text: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Option<(String, String)>, Failure> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, environment(text)),
    };
    if name.is_empty() {
        return Err(Failure::new(Class::Usage, format!("-e {text}: the name is missing")).hint("use -e NAME=VALUE"));
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

/// The variables of files and flags, in that order.
pub(crate) fn variables(
    files: &[PathBuf],
    flags: &[String],
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut all = Vec::new();
    for file in files {
        let text = read("--env-file", file)?;
        let lines = text
            .lines()
            .map(str::trim_start)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            all.extend(variable(line, &environment)?);
        }
    }
    for flag in flags {
        all.extend(variable(flag, &environment)?);
    }
    Ok(all)
}

fn read(flag: &str, file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|e| unreadable(flag, file, &e))
}

fn unreadable(flag: &str, file: &Path, error: &std::io::Error) -> Failure {
    Failure::from_error(Class::NotFound, error)
        .context(format!("cannot read {flag} {}", file.display()))
        .hint("give the path of a file on this host that can be read")
}

/// What a flag that names a file stands for: the file's content, or, in a machine file, the content itself.
fn content(flag: &str, file: &Path) -> Result<String, Failure> {
    match file.to_str() {
        Some(text) if is_content(text) => Ok(text.to_owned()),
        _ => read(flag, file),
    }
}

/// The same for user data, which need not be text: it may be compressed.
fn user_data(flag: &str, file: &Path) -> Result<String, Failure> {
    match file.to_str() {
        Some(text) if is_content(text) => Ok(text.to_owned()),
        _ => std::fs::read(file)
            .map(user_data_text)
            .map_err(|e| unreadable(flag, file, &e)),
    }
}

/// The keys in files, each on a line; comments and empty lines are left out.
fn ssh_keys(files: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let mut keys = Vec::new();
    for file in files {
        let text = content("--ssh-key", file)?;
        let before = keys.len();
        keys.extend(zmachine_spec::public_keys(&text));
        if keys.len() == before || keys.iter().any(|key| key.contains("PRIVATE KEY")) {
            let message = format!("--ssh-key {} holds no public key", file.display());
            return Err(Failure::new(Class::Usage, message).hint("name the file that ends in .pub"));
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn spec(words: &[&str]) -> Result<MachineSpec, Failure> {
        let cli = Cli::try_parse_from(["zmachine", "run"].iter().chain(words)).unwrap();
        let Command::Run(run) = cli.command else {
            panic!("not run")
        };
        run.machine.spec(
            Path::new("/here"),
            || "calm-otter-01".into(),
            |name| (name == "HAVE").then(|| "it".into()),
        )
    }

    #[test]
    fn flags_become_a_spec() {
        let spec = spec(&[
            "--name", "web", "-e", "A=b=c", "-e", "HAVE", "-e", "HAVENOT", "-m", "1G", "x.fl", "sh", "-c", "exit 3",
        ])
        .unwrap();
        assert_eq!(spec.flist, "/here/x.fl");
        assert_eq!(spec.env, [("A".into(), "b=c".into()), ("HAVE".into(), "it".into())]);
        assert_eq!(spec.command, ["sh", "-c", "exit 3"]);
        assert_eq!(spec.memory_bytes, 1 << 30);
    }

    #[test]
    fn flags_after_the_command_belong_to_it() {
        let spec = spec(&["x.fl", "ls", "--name", "-e"]).unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.command),
            ("calm-otter-01", vec!["ls".into(), "--name".into(), "-e".into()])
        );
    }

    #[test]
    fn an_entrypoint_is_split_as_a_shell_does() {
        assert_eq!(
            spec(&["--entrypoint", "a 'b c' \"d\"", "x.fl"])
                .unwrap()
                .entrypoint
                .unwrap(),
            ["a", "b c", "d"]
        );
        assert!(spec(&["--entrypoint", "a 'b", "x.fl"]).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for words in [
            &["-m", "1X", "x.fl"][..],
            &["-e", "=b", "x.fl"],
            &["--network", "none", "--network", "a", "x.fl"],
        ] {
            assert_eq!(spec(words).unwrap_err().class, Class::Usage, "{words:?}");
        }
    }

    #[test]
    fn keys_and_user_data_are_read_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, data) = (dir.path().join("id.pub"), dir.path().join("data"));
        std::fs::write(&keys, "# mine\nssh-ed25519 AAAA me\n\nssh-rsa BBBB you\n").unwrap();
        std::fs::write(&data, "#cloud-config\n").unwrap();
        let (keys, data) = (keys.to_str().unwrap(), data.to_str().unwrap());
        let words = [
            "--ssh-key",
            keys,
            "--user-data",
            data,
            "--mode",
            "vm",
            "--reinstall",
            "x.fl",
        ];
        let found = spec(&words).unwrap();
        assert_eq!(found.ssh_keys, ["ssh-ed25519 AAAA me", "ssh-rsa BBBB you"]);
        assert_eq!(
            (found.user_data.as_deref(), found.mode),
            (Some("#cloud-config\n"), ModeChoice::Vm)
        );
        assert!(found.reinstall);
        // "#!/bin/sh\n" through gzip.
        let packed =
            b"\x1f\x8b\x08\0\0\0\0\0\x02\xff\x53\x56\xd4\x4f\xca\xcc\xd3\x2f\xce\xe0\x02\0\x1d\x9d\xfb\x04\x0a\0\0\0";
        std::fs::write(data, packed).unwrap();
        assert_eq!(spec(&words).unwrap().user_data.as_deref(), Some("#!/bin/sh\n"));
        std::fs::write(keys, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        assert_eq!(spec(&["--ssh-key", keys, "x.fl"]).unwrap_err().class, Class::Usage);
        assert_eq!(
            spec(&["--user-data", "/nonexistent", "x.fl"]).unwrap_err().class,
            Class::NotFound
        );
    }

    #[test]
    fn a_file_among_the_volumes_is_copied_and_not_shared() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, "x").unwrap();
        let (file, folder) = (file.display(), dir.path().display());
        let found = spec(&[
            "-v",
            &format!("{file}:/etc/nginx.conf:ro"),
            "-v",
            &format!("{folder}:/srv"),
            "x.fl",
        ])
        .unwrap();
        assert_eq!(found.secrets, [("/etc/nginx.conf".to_owned(), file.to_string().into())]);
        assert_eq!(found.volumes.len(), 1);
        let failure = spec(&["-v", &format!("{file}:/proc/x"), "x.fl"]).unwrap_err();
        assert_eq!(failure.class, Class::Usage);
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
