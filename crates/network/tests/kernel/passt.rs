//! passt on hosts whose way out is no plain default route, which is all that it finds by itself.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use zmachine_network::HostDns;
use zmachine_network::user::{Passt, PasstArgs, UserRequest, way_out};
use zmachine_sys::process::{ChildSetup, prepare_child};
use zmachine_testkit::Lack;

use super::*;

/// How the host reaches the outside: what it is called, the commands that make it so, and the link.
const WAYS: [(&str, &[&str], &str); 4] = [
    ("a plain default route", &["route add default via 198.51.100.2"], "up0"),
    (
        "several gateways",
        &["route add default nexthop via 198.51.100.2 dev up0 nexthop via 198.51.101.2 dev up1"],
        "up",
    ),
    (
        "a table of its own",
        &[
            "route add default via 198.51.100.2 table 100",
            "rule add pref 100 lookup 100",
        ],
        "up0",
    ),
    (
        "two halves through a tunnel without an Ethernet address",
        &[
            "tuntap add tun0 mode tun",
            "link set tun0 up",
            "address add 198.51.102.1/24 dev tun0",
            "route add 0.0.0.0/1 dev tun0",
            "route add 128.0.0.0/1 dev tun0",
        ],
        "tun0",
    ),
];

#[test]
fn passt_finds_the_way_out_however_the_host_has_it() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            // passt gives up root, and reports there.
            std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
            let networks = networks(home.path());
            let host = space.host_ns();
            ip(host, "-6 route del default");
            ip(host, "link add up1 type veth peer name end1");
            ip(host, "link set up1 up");
            ip(host, "link set end1 up");
            ip(host, "address add 198.51.101.1/24 dev up1");
            for (what, commands, link) in WAYS {
                let _ = Command::new("ip").args(["route", "del", "default"]).output();
                let _ = Command::new("ip").args(["rule", "del", "pref", "100"]).output();
                commands.iter().for_each(|command| drop(ip(host, command)));
                let interface = way_out().await.unwrap();
                assert!(
                    interface.as_ref().is_some_and(|name| name.starts_with(link)),
                    "{what}: {interface:?}"
                );
                starts(&networks, home.path(), interface.as_deref(), what);
            }
        })
    });
}

/// That passt says it is ready, with what a machine would have.
fn starts(networks: &Networks, dir: &Path, interface: Option<&str>, what: &str) {
    let request = UserRequest {
        machine: "m1",
        index: 0,
        is_default: true,
        publish: &[],
        dns: &HostDns::default(),
    };
    let Ok(attachment) = networks.user_attachment(request) else {
        return zmachine_testkit::skip(Lack::provided("needs passt"));
    };
    assert_eq!(attachment.routes.len(), 1, "{what}: IPv4, and nothing of IPv6");
    let passt = Passt::find().unwrap();
    let ready_file = dir.join("ready");
    let _ = std::fs::remove_file(&ready_file);
    let (_guest, end) = UnixStream::pair().unwrap();
    let args = PasstArgs {
        fd: end.as_raw_fd(),
        ready_file: &ready_file,
        interface,
    };
    let mut command = Command::new(passt.program());
    command.args(passt.arguments(&attachment, args));
    command.stderr(std::process::Stdio::piped());
    let setup = ChildSetup {
        keep: vec![end.as_raw_fd()],
        ..ChildSetup::default()
    };
    prepare_child(&mut command, setup);
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !std::fs::metadata(&ready_file).is_ok_and(|file| file.len() > 0) {
        if child.try_wait().unwrap().is_some() || Instant::now() > deadline {
            let _ = child.kill();
            let reported = child.wait_with_output().unwrap();
            panic!("{what}: {}", String::from_utf8_lossy(&reported.stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
