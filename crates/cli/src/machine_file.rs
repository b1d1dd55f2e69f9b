//! A spec as the machine file (see [`crate::args::file`]) that asks for it: `inspect --spec`.

use std::fmt::Write as _;

use toml::{Table, Value};
use zmachine_spec::health::time_text;
use zmachine_spec::shown::without_credentials;
use zmachine_spec::{
    Class, Failure, GuestSettings, HealthRequest, HealthTest, LogLimits, MachineSpec, Origin, VolumeRequest, redact,
};

use crate::args::words::{self, ACCEL, HYPERVISOR, JAIL, MODE, PREFETCH, ROOTFS};

/// The file, with what differs from the defaults, in the order of the spec. Without `show_secrets` a variable whose name says that
/// it is one has its name alone, and stores have no credentials.
///
/// # Errors
/// When an entrypoint has a NUL byte, which no command line can hold.
pub(crate) fn text(spec: &MachineSpec, show_secrets: bool) -> Result<String, Failure> {
    // Every field by name: a new one does not compile until it has its key.
    let MachineSpec {
        version: _,
        name,
        flist,
        pinned,
        cpus,
        cpu_limit_milli,
        cpuset,
        memory_bytes,
        size_bytes,
        env,
        entrypoint,
        command,
        workdir,
        user,
        hostname,
        networks,
        publish,
        publish_all,
        dns,
        terminal,
        stdin,
        auto_remove,
        read_only,
        init,
        // A machine for one moment has no file.
        idle: _,
        kernel,
        accel,
        hypervisor,
        stop_signal,
        stop_timeout_s,
        stores,
        labels,
        mode,
        volumes,
        ssh_keys,
        user_data,
        reinstall,
        legacy_cmdline,
        secrets,
        jail,
        guest,
        rootfs,
        prefetch,
        restart,
        log_limits,
        log_to,
        network_aliases,
        health,
        // Such a machine is its shim's, and nobody's to make again.
        pod: _,
        // Docker's API alone makes such.
        sockets: _,
        snapshots,
        warm,
        warm_ready,
        cold,
        pool,
        // It is nobody's.
        standby: _,
        idle_timeout_ms,
    } = spec;
    let default = MachineSpec::new(name, flist);
    // The same image, whatever the name leads to by then.
    let flist = pinned.as_ref().unwrap_or(flist);
    let mut file = File(String::new());
    file.text("name", Some(name));
    file.text(
        "flist",
        Some(if show_secrets {
            flist.clone()
        } else {
            without_credentials(flist)
        }),
    );
    file.list("command", command);
    match cpu_limit_milli {
        Some(_) => file.text("cpus", Some(spec.all_cpus().to_string())),
        None => file.number("cpus", (*cpus != default.cpus).then_some(u64::from(*cpus))),
    }
    file.text(
        "cpuset-cpus",
        Some(cpuset).filter(|set| !set.is_all()).map(ToString::to_string),
    );
    file.text(
        "memory",
        (*memory_bytes != default.memory_bytes).then(|| size(*memory_bytes)),
    );
    file.text("size", (*size_bytes != default.size_bytes).then(|| size(*size_bytes)));
    // A name alone takes the value from the environment of whoever runs the file.
    file.list(
        "env",
        env.iter()
            .map(|(name, value)| match show_secrets || !redact::is_secret(name) {
                true => format!("{name}={value}"),
                false => name.clone(),
            }),
    );
    file.text("entrypoint", entrypoint.as_deref().map(joined).transpose()?);
    file.text("workdir", workdir.as_ref());
    file.text("user", user.as_ref().map(ToString::to_string));
    file.text("hostname", hostname.as_ref());
    match networks.as_slice() {
        [] => file.list("network", ["none"]),
        networks if *networks != default.networks => file.list("network", texts(networks)),
        _ => {}
    }
    file.list("network-alias", network_aliases);
    file.list("publish", texts(publish));
    file.flag("publish-all", *publish_all);
    file.list("dns", texts(dns));
    file.flag("tty", *terminal);
    file.flag("interactive", *stdin);
    file.flag("rm", *auto_remove);
    file.flag("read-only", *read_only);
    file.flag("init", *init);
    file.text("kernel", kernel.as_ref());
    file.word("accel", ACCEL, accel, &default.accel);
    file.word("hypervisor", HYPERVISOR, hypervisor, &default.hypervisor);
    file.text("stop-signal", stop_signal.map(|signal| signal.to_string()));
    file.number("stop-timeout", *stop_timeout_s);
    let store = |url: &String| match show_secrets {
        true => url.clone(),
        false => without_credentials(url),
    };
    file.list("store", stores.iter().map(store));
    file.list("label", labels.iter().map(|(name, value)| format!("{name}={value}")));
    file.word("mode", MODE, mode, &default.mode);
    file.values("volume", volumes.iter().map(volume).collect());
    file.list("ssh-key", ssh_keys);
    file.text("user-data", user_data.as_ref());
    file.flag("reinstall", *reinstall);
    file.flag("legacy-cmdline", *legacy_cmdline);
    file.flag("snapshots", *snapshots);
    let warm = [(*warm_ready, "ready"), (*warm, "start"), (*cold, "off")];
    file.text("warm", warm.into_iter().find(|(is, _)| *is).map(|(_, when)| when));
    file.number("pool", (*pool != 0).then_some(u64::from(*pool)));
    file.text(
        "idle-timeout",
        idle_timeout_ms.map(zmachine_spec::health::time_text).as_ref(),
    );
    file.word("rootfs", ROOTFS, rootfs, &default.rootfs);
    file.word("prefetch", PREFETCH, prefetch, &default.prefetch);
    file.text(
        "restart",
        Some(restart)
            .filter(|restart| **restart != default.restart)
            .map(ToString::to_string),
    );
    file.list("log-opt", log_options(log_limits));
    file.text("log-to", log_to.as_ref().map(ToString::to_string));
    let secret = |(name, path): &(String, std::path::PathBuf)| format!("{name}={}", path.display());
    file.list("secret", secrets.iter().map(secret));
    file.word("jail", JAIL, jail, &default.jail);
    let GuestSettings {
        tmpfs,
        hosts,
        dns_search,
        shm_bytes,
        sysctls,
        ulimits,
        groups,
        cap_drop,
        cap_add,
        no_new_privileges,
    } = guest;
    file.list("tmpfs", texts(tmpfs));
    file.list("add-host", texts(hosts));
    file.list("dns-search", dns_search);
    file.text("shm-size", shm_bytes.map(size));
    file.list("sysctl", sysctls.iter().map(|(name, value)| format!("{name}={value}")));
    file.list("ulimit", texts(ulimits));
    file.list("group-add", groups);
    file.list("cap-drop", texts(cap_drop));
    file.list("cap-add", texts(cap_add));
    file.list("security-opt", no_new_privileges.then_some("no-new-privileges"));
    let HealthRequest {
        test,
        interval_ms,
        timeout_ms,
        start_period_ms,
        start_interval_ms,
        retries,
    } = health;
    file.flag("no-healthcheck", *test == Some(HealthTest::Off));
    let command = test.as_ref().filter(|test| **test != HealthTest::Off);
    file.text("health-cmd", command.map(ToString::to_string));
    file.text("health-interval", interval_ms.map(time_text));
    file.text("health-timeout", timeout_ms.map(time_text));
    file.text("health-start-period", start_period_ms.map(time_text));
    file.text("health-start-interval", start_interval_ms.map(time_text));
    file.number("health-retries", retries.map(u64::from));
    Ok(file.0)
}

struct File(String);

impl File {
    fn line(&mut self, key: &str, value: Value) {
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, text: Option<impl Into<String>>) {
        if let Some(text) = text {
            self.line(key, Value::String(text.into()));
        }
    }

    fn number(&mut self, key: &str, number: Option<u64>) {
        match number.map(i64::try_from) {
            Some(Ok(number)) => self.line(key, Value::Integer(number)),
            // Beyond what TOML's integers hold.
            Some(Err(_)) => self.text(key, number.map(|n| n.to_string())),
            None => {}
        }
    }

    fn flag(&mut self, key: &str, is_set: bool) {
        if is_set {
            self.line(key, Value::Boolean(true));
        }
    }

    fn list(&mut self, key: &str, texts: impl IntoIterator<Item = impl Into<String>>) {
        self.values(key, texts.into_iter().map(|text| Value::String(text.into())).collect());
    }

    fn word<T: PartialEq>(&mut self, key: &str, words: words::Words<T>, value: &T, default: &T) {
        let word = words::word(words, value).filter(|_| value != default);
        self.text(key, word);
    }

    fn values(&mut self, key: &str, values: Vec<Value>) {
        if !values.is_empty() {
            self.line(key, Value::Array(values));
        }
    }
}

/// In the largest unit that says it exactly.
fn size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let exact = units
        .iter()
        .find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1u64 << shift));
    exact.map_or_else(
        || bytes.to_string(),
        |(shift, unit)| format!("{}{unit}", bytes >> shift),
    )
}

fn joined(words: &[String]) -> Result<String, Failure> {
    shlex::try_join(words.iter().map(String::as_str)).map_err(|_| {
        Failure::new(
            Class::Failed,
            "the entrypoint holds a NUL byte, which no command line can hold",
        )
    })
}

fn texts(values: &[impl ToString]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// A volume as a flag has it, or, where no flag could, as a table.
fn volume(request: &VolumeRequest) -> Value {
    if request.has_text() {
        return Value::String(request.to_string());
    }
    let VolumeRequest {
        origin,
        target,
        size_bytes,
        fs,
        read_only,
        no_copy,
    } = request;
    let mut table = Table::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            table.insert(key.to_owned(), value);
        }
    };
    match origin {
        Origin::Named(name) => put("name", Some(name.clone().into())),
        Origin::Anonymous => {}
        Origin::Directory(path) => put("directory", Some(path.to_string_lossy().into_owned().into())),
    }
    put("target", Some(target.clone().into()));
    put("size", size_bytes.map(|bytes| size(bytes).into()));
    put("fs", fs.map(|fs| fs.to_string().into()));
    put("read-only", read_only.then_some(true.into()));
    put("nocopy", no_copy.then_some(true.into()));
    Value::Table(table)
}

fn log_options(limits: &LogLimits) -> Vec<String> {
    if *limits == LogLimits::default() {
        return Vec::new();
    }
    let LogLimits {
        file_bytes,
        files,
        file_age_s,
        keep_s,
    } = limits;
    vec![
        format!("max-size={}", size(*file_bytes)),
        format!("max-files={files}"),
        format!("rotate-after={file_age_s}s"),
        format!("max-age={keep_s}s"),
    ]
}

#[cfg(test)]
mod tests;
