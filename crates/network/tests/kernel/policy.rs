//! Egress rules and rates with real traffic.

use std::time::{Duration, Instant};

use super::space::{receive_tcp, send_tcp};
use super::*;

fn limited(allow: &[&str], rate: Option<&str>) -> Membership {
    Membership {
        policy: Policy {
            allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
            rate: rate.map(|text| text.parse().unwrap()),
        },
        ..Membership::default()
    }
}

#[test]
fn a_machine_reaches_what_it_is_allowed_and_nothing_else() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let network = networks.default_network().await.unwrap();
            let other = plan_in(&networks, &network, "m2", &["8080:80"], &Membership::default()).await;
            let (four, six) = (other.ipv4().unwrap().to_string(), other.ipv6().unwrap().to_string());
            let policy = limited(
                &[
                    "198.51.100.2:80",
                    "198.51.100.2:90/udp",
                    "[2001:db8:1::/64]:80",
                    &format!("{four}:81"),
                    &format!("[{six}]:81"),
                    &format!("{four}:91/udp"),
                ],
                None,
            );
            let one = plan_in(&networks, &network, "m1", &["7070:70", "7071:71/udp"], &policy).await;
            let _made = (
                make(&networks, &one.resources()).await.unwrap(),
                make(&networks, &other.resources()).await.unwrap(),
            );
            space.guest(&network, &one);
            space.neighbour(&network, &other);
            let gateway = network.gateway4().to_string();
            for namespace in [space.outside_ns(), space.neighbour_ns(), space.host_ns()] {
                for port in [80, 81] {
                    serve_tcp(namespace, port);
                }
                for port in [90, 91] {
                    serve_udp(namespace, port);
                }
            }
            serve_tcp(space.guest_ns(), 70);
            serve_udp(space.guest_ns(), 71);

            let from = Some(space.guest_ns());
            for (address, port) in [("198.51.100.2", 80), ("2001:db8:1::2", 80), (&four, 81), (&six, 81)] {
                assert!(answers_tcp(from, address, port).is_some(), "{address} {port}");
            }
            for (address, port) in [
                ("198.51.100.2", 81),
                ("2001:db8:1::2", 81),
                (&four, 80),
                (&six, 80),
                (&gateway, 80),
                // What another machine publishes is that machine, however it is called.
                ("198.51.100.1", 8080),
            ] {
                assert!(answers_tcp(from, address, port).is_none(), "{address} {port}");
            }
            assert!(answers_udp(from, "198.51.100.2", 90).is_some());
            assert!(answers_udp(from, "198.51.100.2", 91).is_none());
            assert!(answers_udp(from, &four, 91).is_some());
            assert!(answers_udp(from, &four, 90).is_none());

            // It is reached as before: from outside, from the host, and from its neighbour.
            let own = one.ipv4().unwrap().to_string();
            for (namespace, address, tcp, udp) in [
                (Some(space.outside_ns()), "198.51.100.1", 7070, 7071),
                (None, own.as_str(), 70, 71),
                (Some(space.neighbour_ns()), own.as_str(), 70, 71),
            ] {
                assert!(answers_tcp(namespace, address, tcp).is_some(), "{namespace:?}");
                assert!(answers_udp(namespace, address, udp).is_some(), "{namespace:?}");
            }
            // The network's name service answers.
            assert!(space::resolve(from, &gateway, "m2.default", "A").is_some());
            // Nobody else is limited.
            assert!(answers_tcp(Some(space.neighbour_ns()), "198.51.100.2", 81).is_some());
        })
    });
}

/// Megabits per second of one connection, when it has settled: an idle machine may send a second's worth at once.
fn settled_rate(from: &str, to_namespace: &str, to: &str, port: u16) -> f64 {
    let received = receive_tcp(to_namespace, port);
    let sender = send_tcp(from, to, port, Duration::from_secs(8));
    std::thread::sleep(Duration::from_secs(2));
    let (start, before) = (Instant::now(), received.load(std::sync::atomic::Ordering::Relaxed));
    std::thread::sleep(Duration::from_secs(5));
    let (took, after) = (start.elapsed(), received.load(std::sync::atomic::Ordering::Relaxed));
    sender.join().unwrap();
    (after - before) as f64 * 8.0 / took.as_secs_f64() / 1e6
}

#[test]
fn a_rate_holds_within_15_percent_in_both_directions() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let network = networks.default_network().await.unwrap();
            let one = plan_in(&networks, &network, "m1", &[], &limited(&[], Some("20mbit"))).await;
            let other = plan_in(&networks, &network, "m2", &[], &Membership::default()).await;
            let _made = (
                make(&networks, &one.resources()).await.unwrap(),
                make(&networks, &other.resources()).await.unwrap(),
            );
            space.guest(&network, &one);
            space.neighbour(&network, &other);
            let (own, others) = (one.ipv4().unwrap().to_string(), other.ipv4().unwrap().to_string());
            let (guest, neighbour) = (space.guest_ns(), space.neighbour_ns());
            for (what, from, to_namespace, to, port) in [
                ("to the world", guest, space.outside_ns(), "198.51.100.2", 5001),
                ("to its neighbour", guest, neighbour, others.as_str(), 5002),
                ("from its neighbour", neighbour, guest, own.as_str(), 5003),
                ("from the host", space.host_ns(), guest, own.as_str(), 5004),
            ] {
                let rate = settled_rate(from, to_namespace, to, port);
                println!("{what}: {rate:.1} of 20 Mbit/s");
                assert!((17.0..=23.0).contains(&rate), "{what}: {rate:.1} Mbit/s");
            }
        })
    });
}
