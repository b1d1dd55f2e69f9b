//! Faults provoked on purpose: each has its error, or is found and mended; and nothing is left of it.

use super::*;

/// What a start in a broken world says, and that nothing is left of it once the world is whole again.
fn refused(what: &str, part: &str, break_it: impl FnOnce(&Space, &Network, &Attachment), mend: impl FnOnce(&Network)) {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let before = traces();
            let (network, attachment) = plan(&networks, "m1", &["8080:80"]).await;
            break_it(space, &network, &attachment);
            let error = make(&networks, &attachment.resources()).await.expect_err(what);
            let mut reported = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                reported += &format!(": {inner}");
                cause = inner.source();
            }
            assert!(reported.contains(part), "{what}: {reported}");
            assert!(error.hint().is_some(), "{what} has no hint: {reported}");
            mend(&network);
            undo(&networks, &attachment.resources()).await.unwrap();
            assert_eq!((traces(), leftovers(home.path())), (before, vec![]), "{what}");
        })
    });
}

/// Puts a file that cannot be used in the place of another one, in this process's mount namespace alone.
fn hide(path: &str) {
    output("mount", &["--bind", "/dev/null", path]);
}

#[test]
fn without_nft_no_machine_starts() {
    refused(
        "no nft",
        "cannot run nft",
        |_, _, _| hide("/usr/sbin/nft"),
        |_| drop(output("umount", &["/usr/sbin/nft"])),
    );
}

#[test]
fn without_dnsmasq_no_machine_starts() {
    refused(
        "no dnsmasq",
        "cannot run dnsmasq",
        |_, _, _| hide("/usr/sbin/dnsmasq"),
        |_| (),
    );
}

#[test]
fn without_the_tun_device_no_machine_starts() {
    refused("no tun", "cannot make tap", |_, _, _| hide("/dev/net/tun"), |_| ());
}

#[test]
fn where_sysctls_can_not_be_set_no_machine_starts() {
    refused(
        "read-only /proc/sys",
        "cannot set sysctl",
        |_, _, _| {
            output("mount", &["--bind", "/proc/sys", "/proc/sys"]);
            output("mount", &["-o", "remount,bind,ro", "/proc/sys"]);
        },
        |_| drop(output("umount", &["/proc/sys"])),
    );
}

#[test]
fn a_link_in_the_place_of_the_bridge_is_told_of_and_left_alone() {
    refused(
        "another link",
        "is there and is no bridge",
        |space, network, _| {
            drop(ip(
                space.host_ns(),
                &format!("link add {} type veth peer name other0", network.bridge()),
            ))
        },
        |_| drop(output("ip", &["link", "del", "other0"])),
    );
}

#[test]
fn a_name_server_on_all_addresses_is_told_of() {
    let mut holder = None;
    refused(
        "port 53",
        "in use",
        |_, _, _| holder = Some(std::net::UdpSocket::bind("0.0.0.0:53").unwrap()),
        |_| (),
    );
}

#[test]
fn a_route_that_came_since_the_network_was_made_is_told_of() {
    refused(
        "subnet",
        "overlaps the host's route",
        |space, network, _| {
            drop(ip(
                space.host_ns(),
                &format!("route add {} via 198.51.100.2", network.ipv4()),
            ))
        },
        |network| drop(output("ip", &["route", "del", &network.ipv4().to_string()])),
    );
}

#[test]
fn a_port_that_was_taken_since_the_machine_was_made_is_told_of() {
    let mut holder = None;
    refused(
        "port 8080",
        "8080/tcp",
        |_, _, _| holder = Some(std::net::TcpListener::bind("0.0.0.0:8080").unwrap()),
        |_| (),
    );
}

#[test]
fn files_that_are_not_ours_are_named() {
    let home = tempfile::tempdir().unwrap();
    let networks = networks(home.path());
    run(networks.default_network()).unwrap();
    let folder = home.path().join("networks/default");
    let attachment = folder.join("attachments/m1");
    std::fs::write(&attachment, "{\"version\":1,").unwrap();
    let reported = networks.endpoints("default").unwrap_err().to_string();
    assert!(reported.contains(attachment.to_str().unwrap()), "{reported}");
    std::fs::write(
        &attachment,
        "{\"version\":9,\"boot_id\":\"\",\"ipv4\":\"10.0.0.1\",\"ipv6\":null,\"ports\":[]}",
    )
    .unwrap();
    assert!(
        networks
            .endpoints("default")
            .unwrap_err()
            .to_string()
            .contains("has version 9")
    );

    let record = folder.join("network.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("\"version\": 1", "\"version\": 7")).unwrap();
    assert!(
        networks
            .get("default")
            .unwrap_err()
            .to_string()
            .contains("has version 7")
    );
    std::fs::write(&record, &text[..20]).unwrap();
    let reported = networks.list().unwrap_err().to_string();
    assert!(reported.contains(record.to_str().unwrap()), "{reported}");
}

#[test]
fn a_network_without_a_free_address_says_so_and_a_wrong_address_too() {
    let home = tempfile::tempdir().unwrap();
    let networks = networks(home.path());
    let spec = NetworkSpec {
        name: "small".to_owned(),
        ipv4: Some("10.201.77.0/29".parse().unwrap()),
        ..NetworkSpec::default()
    };
    run(async {
        let network = networks.create(&spec).await.unwrap();
        for i in 0..5 {
            networks
                .lease(&network, &format!("m{i}"), AddressRequest::default())
                .await
                .unwrap();
        }
        let full = networks
            .lease(&network, "m5", AddressRequest::default())
            .await
            .unwrap_err();
        assert!(matches!(full, NetworkError::NoFreeAddress { .. }), "{full}");
        for wrong in ["10.201.77.1", "10.201.77.7", "10.0.0.1", "fd99::1"] {
            let address: IpAddr = wrong.parse().unwrap();
            let want = match address {
                IpAddr::V4(a) => AddressRequest {
                    ipv4: Some(a),
                    ipv6: None,
                },
                IpAddr::V6(a) => AddressRequest {
                    ipv4: None,
                    ipv6: Some(a),
                },
            };
            let reported = networks.lease(&network, "m6", want).await.unwrap_err().to_string();
            assert!(
                reported.contains(wrong) && reported.contains("10.201.77.0/29"),
                "{reported}"
            );
        }
        let other = AddressRequest {
            ipv4: Some("10.201.77.2".parse().unwrap()),
            ipv6: None,
        };
        let taken = networks.lease(&network, "m7", other).await.unwrap_err();
        assert!(matches!(taken, NetworkError::AddressTaken { .. }), "{taken}");
    });
}

#[test]
fn what_is_broken_behind_our_back_is_found_and_mended_by_the_next_start() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let before = traces();
            let (network, one) = plan(&networks, "m1", &[]).await;
            let (_, two) = plan(&networks, "m2", &["8080:80"]).await;
            let one_made = make(&networks, &one.resources()).await.unwrap();
            assert_eq!(networks.findings().await.unwrap(), Vec::<String>::new(), "all is well");
            space.guest(&network, &one);
            serve_tcp(space.outside_ns(), 80);
            let whole = output("nft", &["list", "ruleset"]);
            let (bridge, host) = (network.bridge(), space.host_ns());
            let gateway = format!("{}/24", network.gateway4());

            let faults: [(&str, &dyn Fn(), &str); 9] = [
                (
                    "the bridge is gone",
                    &|| drop(ip(host, &format!("link del {bridge}"))),
                    "is not there",
                ),
                (
                    "the bridge is down",
                    &|| drop(ip(host, &format!("link set {bridge} down"))),
                    "is down",
                ),
                (
                    "its address is gone",
                    &|| drop(ip(host, &format!("address del {gateway} dev {bridge}"))),
                    "has no address",
                ),
                (
                    "a table is gone",
                    &|| drop(output("nft", &["delete", "table", "inet", bridge])),
                    "rules",
                ),
                (
                    "the other table is gone",
                    &|| drop(output("nft", &["delete", "table", "bridge", bridge])),
                    "rules",
                ),
                (
                    "a chain is empty",
                    &|| drop(output("nft", &["flush", "chain", "inet", bridge, "guard"])),
                    "rules",
                ),
                ("dnsmasq is gone", &kill_server, "dnsmasq does not run"),
                (
                    "a tap is off the bridge",
                    &|| drop(ip(host, &format!("link set {} nomaster", one.tap))),
                    "is not on the bridge",
                ),
                (
                    "forwarding is off",
                    &|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap(),
                    "forward",
                ),
            ];
            for (what, break_it, part) in faults {
                break_it();
                let found = networks.findings().await.unwrap();
                assert!(
                    found.iter().any(|f| f.contains("default") && f.contains(part)),
                    "{what}: {found:?}"
                );
                let two_made = make(&networks, &two.resources()).await.expect(what);
                assert_eq!(
                    networks.findings().await.unwrap(),
                    Vec::<String>::new(),
                    "{what} is mended"
                );
                drop(two_made);
                undo(&networks, &two.resources()).await.unwrap();
                assert_eq!(output("nft", &["list", "ruleset"]), whole, "{what}");
                assert!(
                    answers_tcp(Some(space.guest_ns()), "198.51.100.2", 80).is_some(),
                    "the first one after: {what}"
                );
            }
            ip(host, &format!("link del {}", one.tap));
            let found = networks.findings().await.unwrap();
            assert!(
                found.iter().any(|f| f.contains("m1") && f.contains("has no tap")),
                "{found:?}"
            );
            drop(one_made);
            undo(&networks, &one.resources()).await.unwrap();
            assert_eq!((traces(), leftovers(home.path())), (before, vec![]));
        })
    });
}

fn kill_server() {
    let [pid] = servers()[..] else { panic!("one server") };
    let server = zmachine_sys::process::ProcessId::of(pid).unwrap();
    server.signal(9).unwrap();
    assert!(server.wait_gone(std::time::Duration::from_secs(10)));
}
