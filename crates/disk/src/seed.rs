//! The seed: a small FAT disk labelled `cidata` that tells a guest's cloud-init who it is (data source NoCloud).
//!
//! ```text
//! meta-data        instance-id, local-hostname
//! network-config   version 2, one entry per interface, found by its MAC
//! user-data        #cloud-config with the keys of root and mounts; with the user's own in one message, when there is one
//! zosrc            export K='v' ..., init='<first word>', set -- '<arg>' ...: the environment and the entrypoint for a shell
//! ```
//! Everything but `zosrc` is JSON, which is YAML too. The same seed gives the same bytes. Sources: cloud-init's NoCloud and
//! networking version 2 documentation; `zosrc` is Zero-OS's.

mod user_data;

use std::io::{Cursor, Write};
use std::net::IpAddr;

use serde_json::{Map, Value, json};

pub use user_data::text as user_data_text;

/// Smallest seed in bytes.
const SIZE: usize = 2 << 20;

/// What a guest is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seed {
    /// Another one makes cloud-init begin from the start.
    pub instance_id: String,
    /// Host name.
    pub hostname: String,
    /// Network interfaces, in the guest's order.
    pub interfaces: Vec<SeedInterface>,
    /// What is mounted at each boot.
    pub mounts: Vec<SeedMount>,
    /// Public keys for root.
    pub ssh_keys: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Entrypoint and arguments; empty for none.
    pub command: Vec<String>,
    /// The user's own user data, as [`user_data_text`] gives it.
    pub user_data: Option<String>,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedInterface {
    /// Its name, as `eth0`.
    pub name: String,
    /// Its MAC, as `02:00:00:00:00:01`.
    pub mac: String,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Addresses in CIDR form.
    pub addresses: Vec<String>,
    /// Destination in CIDR form, gateway.
    pub routes: Vec<(String, IpAddr)>,
    /// Name servers.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
}

/// Something to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedMount {
    /// A device, or the tag of a shared directory.
    pub source: String,
    /// As `mount -t` names its file system.
    pub fstype: String,
    /// Where it is mounted; made when missing.
    pub target: String,
    /// It can only be read.
    pub read_only: bool,
}

/// The bytes of the disk.
///
/// # Errors
/// When the file system cannot be made, which is no fault of the seed.
pub fn image(seed: &Seed) -> std::io::Result<Vec<u8>> {
    let files = [
        ("meta-data", meta_data(seed)),
        ("network-config", network_config(seed)),
        ("user-data", user_data(seed)),
        ("zosrc", zosrc(seed)),
    ];
    let content: usize = files.iter().map(|(_, text)| text.len()).sum();
    // Room for the tables and for the unused end of each cluster.
    let size = SIZE.max((content * 2 + (1 << 20)).next_multiple_of(1 << 20));
    let mut disk = Cursor::new(vec![0; size]);
    let options = fatfs::FormatVolumeOptions::new()
        .volume_label(*b"cidata     ")
        .volume_id(0x5a4d_5eed);
    fatfs::format_volume(&mut disk, options)?;
    {
        let fs = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new())?;
        for (name, text) in &files {
            let mut file = fs.root_dir().create_file(name)?;
            file.truncate()?;
            file.write_all(text.as_bytes())?;
        }
        fs.unmount()?;
    }
    Ok(disk.into_inner())
}

fn meta_data(seed: &Seed) -> String {
    pretty(&json!({"instance-id": seed.instance_id, "local-hostname": seed.hostname}))
}

fn network_config(seed: &Seed) -> String {
    let ethernets: Map<String, Value> = seed.interfaces.iter().map(ethernet).collect();
    pretty(&json!({"version": 2, "ethernets": ethernets}))
}

fn ethernet(interface: &SeedInterface) -> (String, Value) {
    let route = |(to, via): &(String, IpAddr)| json!({"to": to, "via": via});
    // Default routes by their older keys, which are right in all versions: cloud-init 22.4 (Debian 12) makes `::/64` of the
    // destination `::/0`, and has ifupdown set routes by `route`, which is not there without the package net-tools.
    let (defaults, others): (Vec<_>, Vec<_>) = interface.routes.iter().partition(|(to, _)| to.ends_with("/0"));
    let gateway = |is_ipv6: bool| {
        defaults
            .iter()
            .find(|(_, via)| via.is_ipv6() == is_ipv6)
            .map(|(_, via)| via)
    };
    let mut value = json!({
        "match": {"macaddress": interface.mac},
        "set-name": interface.name,
        "dhcp4": false,
        "dhcp6": false,
        "addresses": interface.addresses,
        "routes": others.into_iter().map(route).collect::<Vec<_>>(),
        "nameservers": {"addresses": interface.nameservers, "search": interface.search},
    });
    for (key, is_ipv6) in [("gateway4", false), ("gateway6", true)] {
        if let Some(via) = gateway(is_ipv6) {
            value[key] = json!(via);
        }
    }
    if let Some(mtu) = interface.mtu {
        value["mtu"] = json!(mtu);
    }
    (interface.name.clone(), value)
}

/// Ours alone, the user's alone, or both.
fn user_data(seed: &Seed) -> String {
    let mut config = json!({});
    if !seed.ssh_keys.is_empty() {
        config = json!({
            "disable_root": false,
            "users": ["default", {"name": "root", "ssh_authorized_keys": seed.ssh_keys}],
        });
    }
    if !seed.mounts.is_empty() {
        // Not as `mounts`, which knows nothing but block devices and network file systems.
        config["bootcmd"] = seed.mounts.iter().map(mount_command).collect();
    }
    let ours = format!("#cloud-config\n{}", pretty(&config));
    match seed.user_data.as_ref().filter(|text| !text.trim().is_empty()) {
        None => ours,
        Some(theirs) if config.as_object().is_some_and(Map::is_empty) => theirs.clone(),
        Some(theirs) => user_data::merged(theirs, &ours),
    }
}

fn mount_command(mount: &SeedMount) -> Value {
    let options = if mount.read_only { "-o ro " } else { "" };
    let (source, target) = (quoted(&mount.source), quoted(&mount.target));
    let fstype = &mount.fstype;
    let command =
        format!("mountpoint -q {target} || {{ mkdir -p {target} && mount -t {fstype} {options}{source} {target}; }}");
    json!(["sh", "-c", command])
}

fn zosrc(seed: &Seed) -> String {
    let mut text = String::new();
    let is_name = |key: &str| {
        !key.is_empty()
            && !key.starts_with(|c: char| c.is_ascii_digit())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    for (key, value) in seed.env.iter().filter(|(key, _)| is_name(key)) {
        text.push_str(&format!("export {key}={}\n", quoted(value)));
    }
    if let Some((init, arguments)) = seed.command.split_first() {
        let arguments: String = arguments.iter().map(|word| format!(" {}", quoted(word))).collect();
        text.push_str(&format!("init={}\nset --{arguments}\n", quoted(init)));
    }
    text
}

/// A word for a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn pretty(value: &Value) -> String {
    // A value of ours always has a text.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Command;

    use super::*;

    fn seed() -> Seed {
        Seed {
            instance_id: "0123456789ab".into(),
            hostname: "box".into(),
            interfaces: vec![SeedInterface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: Some(1400),
                addresses: vec!["10.1.1.3/24".into(), "fd00::3/64".into()],
                routes: vec![
                    ("0.0.0.0/0".into(), "10.1.1.1".parse().unwrap()),
                    ("::/0".into(), "fd00::1".parse().unwrap()),
                ],
                nameservers: vec!["9.9.9.9".parse().unwrap()],
                search: vec![],
            }],
            mounts: vec![],
            ssh_keys: vec!["ssh-ed25519 AAAA me".into()],
            env: vec![("A".into(), "it's b".into()), ("not a name".into(), "x".into())],
            command: vec!["/sbin/init".into(), "two words".into()],
            user_data: None,
        }
    }

    fn files(seed: &Seed) -> Vec<(String, String)> {
        let fs = fatfs::FileSystem::new(Cursor::new(image(seed).unwrap()), fatfs::FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label(), "cidata");
        let read = |entry: fatfs::DirEntry<'_, _>| {
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).unwrap();
            (entry.file_name(), text)
        };
        fs.root_dir().iter().map(|e| read(e.unwrap())).collect()
    }

    fn file(seed: &Seed, name: &str) -> String {
        files(seed).into_iter().find(|(n, _)| n == name).unwrap().1
    }

    #[test]
    fn a_shared_directory_is_mounted_at_each_boot() {
        let seed = Seed {
            mounts: vec![SeedMount {
                source: "share0".into(),
                fstype: "virtiofs".into(),
                target: "/it's".into(),
                read_only: true,
            }],
            ..seed()
        };
        let text = file(&seed, "user-data");
        let config: Value = serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap();
        let command = config["bootcmd"][0][2].as_str().unwrap();
        assert!(
            command.ends_with(r"mkdir -p '/it'\''s' && mount -t virtiofs -o ro 'share0' '/it'\''s'; }"),
            "{command}"
        );
        assert!(config["users"].is_array());
    }

    #[test]
    fn the_disk_has_its_four_files_and_the_same_bytes_every_time() {
        let names: Vec<String> = files(&seed()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["meta-data", "network-config", "user-data", "zosrc"]);
        assert!(image(&seed()).unwrap() == image(&seed()).unwrap());
        assert_eq!(image(&seed()).unwrap().len(), SIZE);
        let big = Seed {
            user_data: Some("#!/bin/sh\n".to_owned() + &"x".repeat(5 << 20)),
            ..seed()
        };
        assert!(file(&big, "user-data").len() > 5 << 20);
    }

    #[test]
    fn the_network_is_told_by_mac() {
        let config: Value = serde_json::from_str(&file(&seed(), "network-config")).unwrap();
        let eth0 = &config["ethernets"]["eth0"];
        assert_eq!(
            (&config["version"], &eth0["match"]["macaddress"]),
            (&json!(2), &json!("02:00:00:00:00:01"))
        );
        assert_eq!(eth0["addresses"], json!(["10.1.1.3/24", "fd00::3/64"]));
        assert_eq!(eth0["routes"], json!([]));
        assert_eq!(
            (&eth0["gateway4"], &eth0["gateway6"]),
            (&json!("10.1.1.1"), &json!("fd00::1"))
        );
        assert_eq!((&eth0["mtu"], &eth0["dhcp4"]), (&json!(1400), &json!(false)));
    }

    #[test]
    fn whoever_has_something_to_say_is_in_the_user_data() {
        let both = Seed {
            user_data: Some("#!/bin/sh\n".into()),
            ..seed()
        };
        assert!(file(&both, "user-data").starts_with("Content-Type: multipart/mixed;"));
        let bare = Seed {
            ssh_keys: vec![],
            ..both.clone()
        };
        assert_eq!(file(&bare, "user-data"), "#!/bin/sh\n");
        assert!(file(&seed(), "user-data").starts_with("#cloud-config\n"));
    }

    #[test]
    fn a_shell_reads_the_environment_and_the_command_back() {
        let text = file(&seed(), "zosrc") + "printf '%s|' \"$A\" \"$init\" \"$@\"";
        let reported = Command::new("/bin/sh").arg("-c").arg(text).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&reported.stdout),
            "it's b|/sbin/init|two words|"
        );
    }
}
