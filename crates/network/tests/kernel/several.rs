//! Several networks: apart from each other, internal ones, their making and removal.

use super::*;

async fn create(
    networks: &Networks,
    name: &str,
    change: impl FnOnce(&mut NetworkSpec),
) -> Result<Network, NetworkError> {
    let mut spec = NetworkSpec {
        name: name.to_owned(),
        ..NetworkSpec::default()
    };
    change(&mut spec);
    networks.create(&spec).await
}

#[test]
fn machines_of_two_networks_do_not_reach_each_other_and_those_of_one_do() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let (a, b) = (
                create(&networks, "a", |_| ()).await.unwrap(),
                create(&networks, "b", |_| ()).await.unwrap(),
            );
            let none = Membership::default();
            let (one, two) = (
                plan_in(&networks, &a, "m1", &[], &none).await,
                plan_in(&networks, &b, "m2", &["8080:80"], &none).await,
            );
            let _made = (
                make(&networks, &one.resources()).await.unwrap(),
                make(&networks, &two.resources()).await.unwrap(),
            );
            space.guest(&a, &one);
            space.neighbour(&b, &two);
            serve_tcp(space.neighbour_ns(), 80);
            serve_tcp(space.outside_ns(), 80);

            let from = Some(space.guest_ns());
            for address in [two.ipv4().unwrap().to_string(), two.ipv6().unwrap().to_string()] {
                assert!(answers_tcp(None, &address, 80).is_some(), "the host reaches {address}");
                assert!(
                    answers_tcp(from, &address, 80).is_none(),
                    "another network reaches {address}"
                );
            }
            assert!(answers_tcp(from, "198.51.100.2", 80).is_some(), "the world is reached");
            assert!(
                answers_tcp(from, "198.51.100.1", 8080).is_some(),
                "and what is published"
            );
            assert!(answers_tcp(from, "2001:db8:1::1", 8080).is_some(), "by ipv6 too");
        })
    });
}

#[test]
fn nothing_goes_out_of_an_internal_network_or_in_but_its_machines_reach_each_other() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let before = traces();
            let inner = create(&networks, "inner", |spec| spec.internal = true).await.unwrap();
            let none = Membership::default();
            let (one, two) = (
                plan_in(&networks, &inner, "m1", &[], &none).await,
                plan_in(&networks, &inner, "m2", &[], &none).await,
            );
            let made = (
                make(&networks, &one.resources()).await.unwrap(),
                make(&networks, &two.resources()).await.unwrap(),
            );
            space.guest(&inner, &one);
            space.neighbour(&inner, &two);
            serve_tcp(space.neighbour_ns(), 80);
            serve_tcp(space.outside_ns(), 80);
            serve_tcp(space.host_ns(), 81);

            let from = Some(space.guest_ns());
            assert!(answers_tcp(from, &two.ipv4().unwrap().to_string(), 80).is_some());
            assert!(answers_tcp(from, &two.ipv6().unwrap().to_string(), 80).is_some());
            for (what, address, port) in [
                ("the world", "198.51.100.2", 80),
                ("the world by ipv6", "2001:db8:1::2", 80),
                ("a service of the host", &inner.gateway4().to_string(), 81),
                ("another address of the host", "198.51.100.1", 81),
            ] {
                assert!(answers_tcp(from, address, port).is_none(), "{what}");
            }
            ip(
                space.outside_ns(),
                &format!("route add {} via 198.51.100.1", inner.ipv4()),
            );
            assert!(answers_tcp(Some(space.outside_ns()), &two.ipv4().unwrap().to_string(), 80).is_none());
            drop(made);
            for attachment in [&one, &two] {
                let _ = Command::new("ip").args(["link", "del", &attachment.tap]).output();
                undo(&networks, &attachment.resources()).await.unwrap();
            }
            assert_eq!(traces(), before);
        })
    });
}

#[test]
fn a_network_is_made_as_asked_for_and_each_mistake_is_named() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let made = create(&networks, "db", |spec| {
                spec.ipv4 = Some("10.77.0.0/24".parse().unwrap());
                spec.ipv6 = Ipv6Choice::Subnet("fd77::/64".parse().unwrap());
                spec.mtu = Some(9000);
            });
            let made = made.await.unwrap();
            assert_eq!(
                (made.mtu(), made.gateway6().unwrap().to_string()),
                (9000, "fd77::1".to_owned())
            );
            let plain = create(&networks, "plain", |spec| spec.ipv6 = Ipv6Choice::Without)
                .await
                .unwrap();
            assert_eq!(plain.ipv6(), None);

            let refused = async |name: &str, change: fn(&mut NetworkSpec)| {
                create(&networks, name, change).await.unwrap_err().to_string()
            };
            for (reported, part) in [
                (refused("db", |_| ()).await, "exists already"),
                (refused("../db", |_| ()).await, "cannot be a name"),
                (
                    refused("x", |s| s.ipv4 = Some("10.77.0.128/25".parse().unwrap())).await,
                    "overlaps network \"db\"",
                ),
                (
                    refused("x", |s| s.ipv4 = Some("198.51.100.0/25".parse().unwrap())).await,
                    "the host's route to 198.51.100.0/24",
                ),
                (
                    refused("x", |s| s.ipv4 = Some("10.78.0.0/30".parse().unwrap())).await,
                    "between /8 and /29",
                ),
                (
                    refused("x", |s| s.ipv6 = Ipv6Choice::Subnet("fd77::/64".parse().unwrap())).await,
                    "overlaps network \"db\"",
                ),
                (
                    refused("x", |s| s.ipv6 = Ipv6Choice::Subnet("2001:db8:1::/64".parse().unwrap())).await,
                    "the host's route to 2001:db8:1::/64",
                ),
                (
                    refused("x", |s| s.ipv6 = Ipv6Choice::Subnet("fd78::/48".parse().unwrap())).await,
                    "a /64 of unicast",
                ),
                (refused("x", |s| s.mtu = Some(1000)).await, "1280 to 65535"),
                (
                    refused("x", |s| (s.internal, s.dns) = (true, vec!["9.9.9.9".parse().unwrap()])).await,
                    "is to be internal",
                ),
            ] {
                assert!(reported.contains(part), "{reported}");
            }
            assert_eq!(networks.list().unwrap().len(), 2, "nothing is left of what was refused");
        })
    });
}

#[test]
fn addresses_asked_for_are_given_once_and_a_network_in_use_stays() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let network = create(&networks, "db", |spec| {
                spec.ipv4 = Some("10.77.0.0/24".parse().unwrap())
            })
            .await
            .unwrap();
            let ipv6 = std::net::Ipv6Addr::from(u128::from(network.ipv6().unwrap().network()) + 3);
            let want = AddressRequest {
                ipv4: Some("10.77.0.3".parse().unwrap()),
                ipv6: Some(ipv6),
            };
            let lease = networks.lease(&network, "m1", want).await.unwrap();
            assert_eq!((Some(lease.ipv4), lease.ipv6), (want.ipv4, want.ipv6));
            assert_eq!(
                networks.lease(&network, "m1", AddressRequest::default()).await.unwrap(),
                lease,
                "it keeps them"
            );

            let other = AddressRequest {
                ipv4: None,
                ipv6: Some(ipv6),
            };
            let taken = networks.lease(&network, "m2", other).await.unwrap_err().to_string();
            assert!(taken.contains("belongs to machine m1"), "{taken}");
            assert_eq!(
                networks.leases("db").unwrap().len(),
                2,
                "the other one has neither address then"
            );

            let refused = networks.remove("db").await.unwrap_err();
            assert!(refused.to_string().contains("in use by m1"), "{refused}");
            networks.release("db", "m1").unwrap();
            networks.remove("db").await.unwrap();
            assert!(matches!(networks.get("db"), Err(NetworkError::NoSuchNetwork { .. })));
            let late = networks.lease(&network, "m1", want).await.unwrap_err();
            assert!(
                matches!(late, NetworkError::NoSuchNetwork { .. } | NetworkError::File(_)),
                "{late}"
            );
            assert_eq!(std::fs::read_dir(home.path().join("networks")).unwrap().count(), 0);
        })
    });
}

#[test]
fn a_hundred_networks_of_which_each_has_a_machine_come_and_go() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let before = traces();
            let mut all = Vec::new();
            for i in 0..count_of_networks() {
                let network = create(&networks, &format!("n{i}"), |_| ()).await.unwrap();
                let machine = format!("m{i}");
                let attachment = plan_in(&networks, &network, &machine, &[], &Membership::default()).await;
                let made = make(&networks, &attachment.resources()).await.unwrap();
                all.push((attachment, made));
            }
            let mut subnets: Vec<_> = networks.list().unwrap().iter().map(Network::ipv4).collect();
            subnets.sort();
            subnets.dedup();
            assert_eq!((subnets.len(), servers().len()), (all.len(), all.len()));
            for (attachment, made) in all {
                drop(made);
                undo(&networks, &attachment.resources()).await.unwrap();
            }
            assert_eq!(traces(), before);
        })
    });
}

/// A tenth of a hundred where time is short; `ZMACHINE_TEST_NETWORKS` says otherwise.
fn count_of_networks() -> usize {
    let asked = std::env::var("ZMACHINE_TEST_NETWORKS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(10)
}
