//! The kernel command line of a VM whose kernel lies beside its disk: the network and the environment, as Zero-OS puts
//! them there and existing images read them. A pure function.
//!
//! ```text
//! rw console=ttyS0 reboot=k panic=1 root=/dev/vda net_eth0=CIDR;CIDR net_r4=DEST,GW;DEST,GW net_r6=... net_dns=IP;IP K=V ...
//! ```
//! Source: Zero-OS (`pkg/vm`, the `net_*` parameters) and the kernel's `lib/cmdline.c` (`next_arg`: a value may stand in
//! double quotes; there is no escape, so a double quote in it cannot be written).

use std::net::IpAddr;

use ipnet::IpNet;
use zmachine_hypervisor::Accel;
use zmachine_network::Attachment;

use super::error::PlanError;

/// Bytes that a kernel on x86 takes, with the final NUL (`COMMAND_LINE_SIZE`).
const LIMIT: usize = 2048;

/// Interfaces that have a `net_eth<X>`.
const INTERFACES: usize = 6;

/// Names that decide how the kernel boots or that we set ourselves. An end in `*` stands for any rest.
const PROTECTED: [&str; 11] = [
    "init",
    "root",
    "rootfstype",
    "console",
    "net_*",
    "mnt_*",
    "vd*",
    "panic",
    "reboot",
    "rw",
    "--",
];

/// Where the root file system is, as the kernel is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RootDevice {
    /// The first disk.
    FirstDisk,
    /// A tree over virtio-fs.
    Shared {
        /// The kernel mounts it writable.
        writable: bool,
    },
}

impl RootDevice {
    fn words(self) -> &'static str {
        match self {
            RootDevice::FirstDisk => "root=/dev/vda",
            RootDevice::Shared { .. } => "root=vroot rootfstype=virtiofs",
        }
    }

    fn access(self) -> &'static str {
        match self {
            RootDevice::Shared { writable: false } => "ro",
            RootDevice::FirstDisk | RootDevice::Shared { writable: true } => "rw",
        }
    }
}

/// The whole command line. `env`: later entries of the same name have been merged already.
///
/// # Errors
/// A protected name, a name or value that cannot be written, too many interfaces, or over [`LIMIT`].
pub(super) fn command_line(
    accel: Accel,
    root: RootDevice,
    attachments: &[Attachment],
    nameservers: &[IpAddr],
    env: &[(String, String)],
) -> Result<String, PlanError> {
    let mut words = vec![
        root.access().to_owned(),
        "console=ttyS0 reboot=k panic=1".to_owned(),
        root.words().to_owned(),
    ];
    if accel == Accel::Tcg {
        // Under load the kernel's check of the emulated timer fails and it panics.
        words.push("no_timer_check".to_owned());
    }
    words.extend(network(attachments, nameservers)?);
    for (key, value) in env {
        words.push(variable(key, value)?);
    }
    let line = words.join(" ");
    if line.len() >= LIMIT {
        return Err(PlanError::CommandLineTooLong { bytes: line.len() });
    }
    Ok(line)
}

/// A command line of ours with other networks in it.
///
/// # Errors
/// As [`command_line`].
pub(super) fn with_network(
    line: &str,
    attachments: &[Attachment],
    nameservers: &[IpAddr],
) -> Result<String, PlanError> {
    // None of these words has a space in it. In a quoted variable such a word would be one of its own only after a space.
    let mut words: Vec<String> = line
        .split(' ')
        .filter(|word| !word.starts_with("net_"))
        .map(str::to_owned)
        .collect();
    words.extend(network(attachments, nameservers)?);
    let line = words.join(" ");
    match line.len() >= LIMIT {
        true => Err(PlanError::CommandLineTooLong { bytes: line.len() }),
        false => Ok(line),
    }
}

fn network(attachments: &[Attachment], nameservers: &[IpAddr]) -> Result<Vec<String>, PlanError> {
    if attachments.len() > INTERFACES {
        return Err(PlanError::TooManyInterfaces {
            wanted: attachments.len(),
        });
    }
    let mut words = Vec::new();
    for attachment in attachments {
        let addresses = joined(attachment.addresses.iter().map(IpNet::to_string));
        words.push(format!("net_{}={addresses}", attachment.interface));
    }
    for (name, is_v4) in [("net_r4", true), ("net_r6", false)] {
        let routes = attachments.iter().flat_map(|a| &a.routes);
        let fitting = routes.filter(|r| matches!(r.destination, IpNet::V4(_)) == is_v4);
        let text = joined(fitting.map(|r| format!("{},{}", destination(&r.destination), r.gateway)));
        if !text.is_empty() {
            words.push(format!("{name}={text}"));
        }
    }
    if !nameservers.is_empty() {
        words.push(format!("net_dns={}", joined(nameservers.iter().map(IpAddr::to_string))));
    }
    Ok(words)
}

fn destination(net: &IpNet) -> String {
    match net.prefix_len() {
        0 => "default".to_owned(),
        _ => net.to_string(),
    }
}

fn joined(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join(";")
}

/// `K=V` or `K="V V"`.
fn variable(key: &str, value: &str) -> Result<String, PlanError> {
    if PROTECTED.iter().any(|pattern| fits(key, pattern)) {
        return Err(PlanError::ProtectedKey { key: key.to_owned() });
    }
    let is_word = |text: &str| !text.contains(|c: char| c.is_ascii_whitespace() || c.is_ascii_control() || c == '"');
    if !is_word(key) {
        return Err(PlanError::EnvName { key: key.to_owned() });
    }
    // Its separators are commas and line ends, so that nothing is lost by taking the ones that can be written.
    let value = match key {
        "SSH_KEY" => &value
            .split('\n')
            .map(str::trim)
            .filter(|k| !k.is_empty())
            .collect::<Vec<_>>()
            .join(","),
        _ => value,
    };
    if value.contains(['"', '\n', '\r', '\0']) {
        return Err(PlanError::EnvNotOnCommandLine { key: key.to_owned() });
    }
    Ok(match is_word(value) {
        true => format!("{key}={value}"),
        false => format!("{key}=\"{value}\""),
    })
}

/// The kernel takes `-` and `_` in names for the same.
fn fits(key: &str, pattern: &str) -> bool {
    if pattern == "--" {
        return key == pattern;
    }
    let key = key.replace('-', "_");
    match pattern.strip_suffix('*') {
        Some(start) => key.starts_with(start),
        None => key == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zmachine_spec::Failure;

    fn line(env: &[(&str, &str)]) -> Result<String, PlanError> {
        let env: Vec<_> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        command_line(Accel::Kvm, RootDevice::FirstDisk, &[], &[], &env)
    }

    fn attachment(index: usize) -> Attachment {
        let mut value = serde_json::json!({
            "network": "n", "machine": "0123456789ab", "interface": format!("eth{index}"), "mac": "02:00:00:00:00:01",
            "mtu": 1500, "tap": "t", "addresses": ["10.1.1.3/24", "fd39:775a:4846:1::3/64"], "gateway4": "10.1.1.1",
            "gateway6": null, "routes": [], "nameservers": [], "search": [], "publish": []
        });
        if index == 0 {
            value["routes"] = serde_json::json!([
                {"destination": "0.0.0.0/0", "gateway": "10.1.1.1"},
                {"destination": "10.1.0.0/16", "gateway": "10.1.1.1"},
                {"destination": "::/0", "gateway": "fd39:775a:4846:1::1"}
            ]);
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_network_is_told_as_zero_os_tells_it() {
        let dns = ["8.8.8.8".parse().unwrap(), "1.1.1.1".parse().unwrap()];
        let line = command_line(Accel::Tcg, RootDevice::FirstDisk, &[attachment(0)], &dns, &[]).unwrap();
        assert_eq!(
            line,
            "rw console=ttyS0 reboot=k panic=1 root=/dev/vda no_timer_check \
             net_eth0=10.1.1.3/24;fd39:775a:4846:1::3/64 net_r4=default,10.1.1.1;10.1.0.0/16,10.1.1.1 \
             net_r6=default,fd39:775a:4846:1::1 net_dns=8.8.8.8;1.1.1.1"
        );
    }

    #[test]
    fn other_networks_take_the_place_of_those_that_were_told() {
        let env = [("A".to_owned(), "b c".to_owned())];
        let [one, two] = [0, 1].map(attachment);
        let line = command_line(Accel::Kvm, RootDevice::FirstDisk, std::slice::from_ref(&one), &[], &env).unwrap();
        let both = with_network(&line, &[one, two], &[]).unwrap();
        assert!(
            both.contains("A=\"b c\"") && both.contains(" net_eth0=") && both.contains(" net_eth1="),
            "{both}"
        );
        assert!(!with_network(&both, &[], &[]).unwrap().contains("net_"));
    }

    #[test]
    fn without_a_network_there_is_no_word_about_it() {
        assert_eq!(line(&[]).unwrap(), "rw console=ttyS0 reboot=k panic=1 root=/dev/vda");
    }

    #[test]
    fn the_environment_is_quoted_as_the_kernel_reads_it() {
        let line = line(&[("A", "b"), ("T", "two words"), ("E", ""), ("Q", "it's"), ("U", "ü")]).unwrap();
        assert!(line.ends_with(r#" A=b T="two words" E= Q=it's U=ü"#), "{line}");
    }

    #[test]
    fn a_name_that_decides_how_the_kernel_boots_is_refused_by_name() {
        let keys = [
            "init",
            "root",
            "rootfstype",
            "console",
            "net_eth0",
            "net-r4",
            "mnt_a",
            "vda",
            "panic",
            "reboot",
            "rw",
            "--",
        ];
        for key in keys {
            let error = line(&[(key, "x")]).unwrap_err();
            assert_eq!(error, PlanError::ProtectedKey { key: key.into() });
            assert!(Failure::from(error).message.contains(key));
        }
        for key in ["INIT", "rooted", "network", "initrd_x"] {
            line(&[(key, "x")]).unwrap();
        }
    }

    #[test]
    fn what_the_kernel_can_not_be_told_is_refused_by_name() {
        for value in ["a\"b", "a\nb", "a\rb"] {
            assert!(matches!(line(&[("K", value)]), Err(PlanError::EnvNotOnCommandLine { key }) if key == "K"));
        }
        for key in ["a b", "a\"b", "a\tb"] {
            assert!(matches!(line(&[(key, "v")]), Err(PlanError::EnvName { .. })), "{key:?}");
        }
    }

    #[test]
    fn a_line_is_refused_from_the_first_byte_that_the_kernel_would_cut() {
        let bare = line(&[]).unwrap().len();
        let filled = |bytes: usize| line(&[("K", &"x".repeat(bytes - bare - " K=".len()))]);
        assert_eq!(filled(2047).unwrap().len(), 2047);
        assert!(matches!(
            filled(2048),
            Err(PlanError::CommandLineTooLong { bytes: 2048 })
        ));
    }

    #[test]
    fn a_seventh_interface_has_no_parameter() {
        let seven: Vec<_> = (0..7).map(attachment).collect();
        let made = |n: usize| command_line(Accel::Kvm, RootDevice::FirstDisk, &seven[..n], &[], &[]);
        assert!(made(6).unwrap().contains("net_eth5="));
        assert!(matches!(made(7), Err(PlanError::TooManyInterfaces { wanted: 7 })));
    }
}
