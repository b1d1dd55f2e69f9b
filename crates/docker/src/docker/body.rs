//! Bodies of requests, as far as they matter here. Clients spell "not said" as null, as an empty text or list, or not at all.

use std::collections::BTreeMap;

use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::http::{Refusal, whole};

/// What is null is the default.
fn unset<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Words of a command: a list, or one text.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        List(Vec<String>),
        One(String),
    }
    Ok(Option::<Words>::deserialize(deserializer)?.map(|words| match words {
        Words::List(words) => words,
        Words::One(word) => vec![word],
    }))
}

type Map<T> = BTreeMap<String, T>;

macro_rules! body {
    ($(#[$meta:meta])* $name:ident { $($(#[$field:meta])* $member:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        #[allow(missing_docs)]
        pub struct $name {
            $($(#[$field])* #[serde(deserialize_with = "unset")] pub $member: $kind,)*
        }
    };
}

/// The words of a command, where there are any.
#[derive(Debug, Clone, Default)]
pub struct Command(pub Option<Vec<String>>);

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Command, D::Error> {
        words(deserializer).map(Command)
    }
}

body! {
    /// What a container is to be.
    Create {
        hostname: String,
        domainname: String,
        user: String,
        tty: bool,
        open_stdin: bool,
        stdin_once: bool,
        env: Vec<String>,
        cmd: Command,
        entrypoint: Command,
        image: String,
        labels: Map<String>,
        working_dir: String,
        exposed_ports: Map<Value>,
        volumes: Map<Value>,
        healthcheck: Option<Healthcheck>,
        stop_signal: String,
        stop_timeout: Option<i64>,
        host_config: HostConfig,
        networking_config: NetworkingConfig,
    }
}

body! {
    /// A health check; times in nanoseconds.
    Healthcheck {
        test: Vec<String>,
        interval: i64,
        timeout: i64,
        start_period: i64,
        start_interval: i64,
        retries: i64,
    }
}

body! {
    /// What a container is to have of its host.
    HostConfig {
        binds: Vec<String>,
        mounts: Vec<Mount>,
        port_bindings: Map<Option<Vec<PortBinding>>>,
        publish_all_ports: bool,
        network_mode: String,
        restart_policy: RestartPolicy,
        auto_remove: bool,
        memory: i64,
        nano_cpus: i64,
        cpu_quota: i64,
        cpu_period: i64,
        cpuset_cpus: String,
        tmpfs: Map<String>,
        dns: Vec<String>,
        dns_search: Vec<String>,
        dns_options: Vec<String>,
        extra_hosts: Vec<String>,
        group_add: Vec<String>,
        readonly_rootfs: bool,
        init: Option<bool>,
        shm_size: i64,
        ulimits: Vec<Ulimit>,
        sysctls: Map<String>,
        log_config: LogConfig,
        volumes_from: Vec<String>,
        links: Vec<String>,
        cap_add: Vec<String>,
        cap_drop: Vec<String>,
        security_opt: Vec<String>,
        privileged: bool,
        pid_mode: String,
        ipc_mode: String,
        #[serde(rename = "UTSMode")]
        uts_mode: String,
        devices: Vec<Value>,
        device_requests: Vec<Value>,
        storage_opt: Map<String>,
    }
}

body! {
    /// A mount.
    Mount {
        r#type: String,
        source: String,
        target: String,
        read_only: bool,
        bind_options: BindOptions,
        volume_options: VolumeOptions,
        tmpfs_options: TmpfsOptions,
    }
}

body! {
    /// More of a directory of the host.
    BindOptions {
        create_mountpoint: bool,
    }
}

body! {
    /// More of a volume.
    VolumeOptions {
        no_copy: bool,
        labels: Map<String>,
    }
}

body! {
    /// More of a file system in memory.
    TmpfsOptions {
        size_bytes: i64,
        mode: u32,
    }
}

body! {
    /// A port of the host.
    PortBinding {
        host_ip: String,
        host_port: String,
    }
}

body! {
    /// When it is started again.
    RestartPolicy {
        name: String,
        maximum_retry_count: i64,
    }
}

body! {
    /// A resource limit.
    Ulimit {
        name: String,
        soft: i64,
        hard: i64,
    }
}

body! {
    /// Where the log goes.
    LogConfig {
        r#type: String,
        config: Map<String>,
    }
}

body! {
    /// The networks of a new container.
    NetworkingConfig {
        endpoints_config: Map<Option<Endpoint>>,
    }
}

body! {
    /// A container in a network.
    Endpoint {
        aliases: Vec<String>,
        links: Vec<String>,
        #[serde(rename = "IPAMConfig")]
        ipam_config: EndpointAddresses,
    }
}

body! {
    /// Its addresses.
    EndpointAddresses {
        #[serde(rename = "IPv4Address")]
        ipv4_address: String,
        #[serde(rename = "IPv6Address")]
        ipv6_address: String,
    }
}

body! {
    /// A command in a container.
    Exec {
        cmd: Command,
        tty: bool,
        attach_stdin: bool,
        attach_stdout: bool,
        attach_stderr: bool,
        env: Vec<String>,
        user: String,
        working_dir: String,
        privileged: bool,
        console_size: Vec<u16>,
    }
}

body! {
    /// Its start.
    ExecStart {
        detach: bool,
        tty: bool,
        console_size: Vec<u16>,
    }
}

body! {
    /// A network.
    NetworkCreate {
        name: String,
        driver: String,
        internal: bool,
        #[serde(rename = "EnableIPv6")]
        enable_ipv6: Option<bool>,
        #[serde(rename = "IPAM")]
        ipam: Ipam,
        labels: Map<String>,
        options: Map<String>,
    }
}

body! {
    /// Its addresses.
    Ipam {
        config: Vec<IpamPool>,
    }
}

body! {
    /// Some of them.
    IpamPool {
        subnet: String,
        gateway: String,
        #[serde(rename = "IPRange")]
        ip_range: String,
    }
}

body! {
    /// A container that joins a network.
    NetworkConnect {
        container: String,
        endpoint_config: Endpoint,
    }
}

body! {
    /// A container that leaves one.
    NetworkDisconnect {
        container: String,
        force: bool,
    }
}

body! {
    /// A volume.
    VolumeCreate {
        name: String,
        driver: String,
        driver_opts: Map<String>,
        labels: Map<String>,
    }
}

/// Reads a body in JSON; one that is not there is that of a client which has nothing to say.
///
/// # Errors
/// 400 for what is no such body, and those of [`whole`].
pub async fn read<T: DeserializeOwned + Default>(body: Incoming) -> Result<T, Refusal> {
    Ok(read_both(body).await?.0)
}

/// [`read`], and the document as it came.
///
/// # Errors
/// As [`read`].
pub async fn read_both<T: DeserializeOwned + Default>(body: Incoming) -> Result<(T, Value), Refusal> {
    let bytes = whole(body).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok((T::default(), Value::Null));
    }
    let wrong = |error: serde_json::Error| Refusal::bad(format!("invalid JSON: {error}"));
    let document: Value = serde_json::from_slice(&bytes).map_err(wrong)?;
    if document.is_null() {
        return Ok((T::default(), document));
    }
    Ok((serde_json::from_slice(&bytes).map_err(wrong)?, document))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_in_many_ways() {
        for text in [
            "{}",
            r#"{"Env":null,"Cmd":null,"HostConfig":null,"Labels":null,"Healthcheck":null}"#,
            r#"{"Env":[],"Cmd":[],"HostConfig":{"Binds":null,"PortBindings":{},"Tmpfs":null,"RestartPolicy":null}}"#,
        ] {
            let create: Create = serde_json::from_str(text).unwrap();
            assert!(create.env.is_empty() && create.host_config.binds.is_empty(), "{text}");
            assert!(create.cmd.0.unwrap_or_default().is_empty(), "{text}");
        }
    }

    #[test]
    fn a_command_may_be_one_text() {
        let create: Create = serde_json::from_str(r#"{"Cmd":"date","Entrypoint":["sh","-c"]}"#).unwrap();
        assert_eq!(create.cmd.0.unwrap(), ["date"]);
        assert_eq!(create.entrypoint.0.unwrap(), ["sh", "-c"]);
        assert!(serde_json::from_str::<Create>(r#"{"Cmd":[1]}"#).is_err());
    }

    #[test]
    fn ports_without_bindings_are_read() {
        let text = r#"{"HostConfig":{"PortBindings":{"80/tcp":null,"81/tcp":[{"HostIp":"","HostPort":"8081"}]}}}"#;
        let create: Create = serde_json::from_str(text).unwrap();
        assert!(create.host_config.port_bindings["80/tcp"].is_none());
        assert_eq!(
            create.host_config.port_bindings["81/tcp"].as_ref().unwrap()[0].host_port,
            "8081"
        );
    }
}
