//! What the network tells its machines: addresses, routes and names, by DHCP, router advertisements and DNS.

use std::time::{Duration, Instant};

use space::{Answer, resolve};

use super::*;

fn known_as(names: &[&str]) -> Membership {
    Membership {
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        ..Membership::default()
    }
}

fn answer(code: u8, records: &[&str]) -> Option<Answer> {
    Some((code, records.iter().map(|r| (*r).to_owned()).collect()))
}

/// Waits until `question` has the answer; what it last had is in the panic.
fn becomes(wanted: Option<Answer>, question: impl Fn() -> Option<Answer>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = question();
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}, not {wanted:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_machine_that_knows_nothing_is_told_its_address_routes_names_and_mtu() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let network = networks.default_network().await.unwrap();
            let one = plan_in(&networks, &network, "m1", &[], &known_as(&["web"])).await;
            let _made = make(&networks, &one.resources()).await.unwrap();
            space.connect(space.guest_ns(), "eth0", &network, &one);

            let script = home.path().join("script");
            std::fs::write(&script, "#!/bin/sh\nenv >> \"$OUT\"\n").unwrap();
            std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let out = home.path().join("told");
            let client = format!(
                "OUT={} busybox udhcpc -i eth0 -n -q -f -t 10 -O mtu -s {}",
                out.display(),
                script.display()
            );
            space.in_guest("sh", &["-c", &client]);
            let reported = std::fs::read_to_string(&out).unwrap();
            let gateway = network.gateway4();
            for line in [
                format!("ip={}", one.ipv4().unwrap()),
                "mask=24".to_owned(),
                format!("router={gateway}"),
                format!("dns={gateway}"),
                "mtu=1400".to_owned(),
                "hostname=web".to_owned(),
                "domain=default".to_owned(),
            ] {
                assert!(reported.lines().any(|l| l == line), "{line} is not in {reported}");
            }

            // The kernel's own configuration, which is that of every small guest.
            let deadline = Instant::now() + Duration::from_secs(20);
            let own = one.ipv6().unwrap().to_string();
            while !ip(space.guest_ns(), "address show dev eth0").contains(&own) {
                assert!(Instant::now() < deadline, "no {own}");
                std::thread::sleep(Duration::from_millis(20));
            }
            // The address is tentative for a second, and the route may come with a later advertisement.
            serve_tcp(space.outside_ns(), 80);
            while answers_tcp(Some(space.guest_ns()), "2001:db8:1::2", 80).is_none() {
                assert!(Instant::now() < deadline, "no way out by IPv6");
            }
        })
    });
}

#[test]
fn machines_find_each_other_by_name_and_alias_and_by_address() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let network = networks.default_network().await.unwrap();
            let one = plan_in(&networks, &network, "m1", &[], &known_as(&["web"])).await;
            let two = plan_in(&networks, &network, "m2", &[], &known_as(&["my_db", "db"])).await;
            let _made = make(&networks, &one.resources()).await.unwrap();
            space.guest(&network, &one);
            let gateway = network.gateway4().to_string();
            let ask = |name: &str, kind: &str| resolve(Some(space.guest_ns()), &gateway, name, kind);
            assert_eq!(ask("db", "A"), answer(3, &[]), "not attached yet");

            let made = make(&networks, &two.resources()).await.unwrap();
            let (ip4, ip6) = (two.ipv4().unwrap().to_string(), two.ipv6().unwrap().to_string());
            for name in ["db", "my_db", "db.default", "DB"] {
                becomes(answer(0, &[&ip4]), || ask(name, "A"));
                assert_eq!(ask(name, "AAAA"), answer(0, &[&ip6]), "{name}");
            }
            let [a, b, c, d] = two.ipv4().unwrap().octets();
            let reverse = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
            assert_eq!(ask(&reverse, "PTR"), answer(0, &["my_db.default"]));
            assert_eq!(ask("nobody", "A"), answer(3, &[]), "it is nobody else's to know");
            let by_ipv6 = network.gateway6().unwrap().to_string();
            assert_eq!(resolve(Some(space.guest_ns()), &by_ipv6, "db", "A"), answer(0, &[&ip4]));

            drop(made);
            undo(&networks, &two.resources()).await.unwrap();
            becomes(answer(3, &[]), || ask("db", "A"));
        })
    });
}

#[test]
fn a_machine_in_two_networks_finds_the_machines_of_both_and_nobody_else_does() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            // Of one family, as resolvers that ask for both have it hardest there.
            let make_network = async |name: &str| {
                let spec = NetworkSpec {
                    name: name.to_owned(),
                    ipv6: Ipv6Choice::Without,
                    ..NetworkSpec::default()
                };
                networks.create(&spec).await.unwrap()
            };
            let (front, back) = (make_network("front").await, make_network("back").await);
            let also = |name: &str, other: &str| Membership {
                also_in: vec![other.to_owned()],
                ..known_as(&[name])
            };
            let web = plan_in(&networks, &front, "web", &[], &known_as(&["web"])).await;
            let db = plan_in(&networks, &back, "db", &[], &known_as(&["db"])).await;
            let both = [
                plan_in(&networks, &front, "app", &[], &also("app", "back")).await,
                plan_in(&networks, &back, "app", &[], &also("app", "front")).await,
            ];
            let mut made = Vec::new();
            for attachment in [&web, &db, &both[0], &both[1]] {
                made.extend(make(&networks, &attachment.resources()).await.unwrap());
            }
            space.guest(&front, &both[0]);
            space.connect(space.guest_ns(), "eth1", &back, &both[1]);
            ip(
                space.guest_ns(),
                &format!("address add {} dev eth1", both[1].addresses[0]),
            );
            space.neighbour(&front, &web);

            // As a resolver does: the next server is asked when one refuses.
            let servers = [front.gateway4().to_string(), back.gateway4().to_string()];
            let ask = |name: &str, kind: &str| {
                let answers = servers.iter().map(|s| resolve(Some(space.guest_ns()), s, name, kind));
                answers.into_iter().flatten().find(|(code, _)| *code != 5)
            };
            let app = |name: &str| ask(name, "A");
            becomes(answer(0, &[&web.ipv4().unwrap().to_string()]), || app("web"));
            for name in ["db", "db.back"] {
                becomes(answer(0, &[&db.ipv4().unwrap().to_string()]), || app(name));
            }
            for name in ["web", "app", "db", "db.back", "web.front"] {
                assert_eq!(
                    ask(name, "AAAA"),
                    answer(0, &[]),
                    "{name} is there, without such an address"
                );
            }
            assert_eq!(app("x.web"), None, "what is below a name is not the network's to know");
            assert_eq!(app("nobody"), None, "refused by both, which ends the search");
            let web = |server: &String| resolve(Some(space.neighbour_ns()), server, "db", "A");
            assert!(web(&servers[0]).is_some_and(|(code, records)| code == 5 && records.is_empty()));
            assert_eq!(web(&servers[1]), None, "the other network's server is out of reach");
        })
    });
}

#[test]
fn what_a_network_does_not_know_is_asked_where_it_was_told_to_and_nowhere_from_an_internal_one() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            // A name server in the world, which knows one name.
            let _world = World::serving(space, home.path());
            for internal in [false, true] {
                let spec = NetworkSpec {
                    name: format!("net-{internal}"),
                    dns: ["198.51.100.2".parse().unwrap()]
                        .into_iter()
                        .filter(|_| !internal)
                        .collect(),
                    internal,
                    ipv6: Ipv6Choice::Without,
                    ..NetworkSpec::default()
                };
                let network = networks.create(&spec).await.unwrap();
                let names = known_as(&["a", "near.example", "example"]);
                let one = plan_in(&networks, &network, &format!("m-{internal}"), &[], &names).await;
                let made = make(&networks, &one.resources()).await.unwrap();
                space.connect(space.guest_ns(), "eth0", &network, &one);
                ip(space.guest_ns(), &format!("address add {} dev eth0", one.addresses[0]));
                let gateway = network.gateway4().to_string();
                let ask = |name: &str, kind: &str| resolve(Some(space.guest_ns()), &gateway, name, kind);
                match internal {
                    false => becomes(answer(0, &["203.0.113.9"]), || ask("far.example", "A")),
                    true => becomes(answer(3, &[]), || ask("far.example", "A")),
                }
                let own = one.ipv4().unwrap().to_string();
                for name in ["a", "near.example", "example"] {
                    assert_eq!(ask(name, "A"), answer(0, &[&own]), "{name}");
                    assert_eq!(ask(name, "AAAA"), answer(0, &[]), "{name} is nobody else's");
                }
                drop(made);
                let _ = Command::new("ip").args(["link", "del", &one.tap]).output();
                undo(&networks, &one.resources()).await.unwrap();
            }
        })
    });
}

/// A name server outside.
struct World(std::process::Child);

impl World {
    fn serving(space: &Space, dir: &Path) -> World {
        let hosts = dir.join("world");
        std::fs::write(&hosts, "203.0.113.9 far.example\n2001:db8::9 near.example example a\n").unwrap();
        let mut server = Command::new("ip");
        server.args([
            "netns",
            "exec",
            space.outside_ns(),
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
        ]);
        server.args(["--no-hosts", "--no-resolv", "--user=root", "--pid-file"]);
        server.arg(format!("--addn-hosts={}", hosts.display()));
        World(server.spawn().unwrap())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_server_has_no_more_than_it_needs_and_is_started_again_by_whoever_watches() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let before = traces();
            let network = networks.default_network().await.unwrap();
            let one = plan_in(&networks, &network, "m1", &[], &known_as(&["web"])).await;
            let made = make(&networks, &one.resources()).await.unwrap();
            space.guest(&network, &one);
            let [first] = servers()[..] else { panic!("one server") };
            let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap();
            let field = |name: &str| {
                status
                    .lines()
                    .find_map(|l| l.strip_prefix(name))
                    .unwrap()
                    .trim()
                    .to_owned()
            };
            assert!(!field("Uid:").split_whitespace().any(|id| id == "0"), "{status}");
            // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW (linux/capability.h), for addresses that come and for DHCP.
            let may = u64::from_str_radix(&field("CapEff:"), 16).unwrap();
            assert_eq!(may & !(1 << 10 | 1 << 12 | 1 << 13), 0, "{status}");

            let notes = std::sync::Mutex::new(Vec::new());
            let watch = networks.keep_served("default", |note| notes.lock().unwrap().push(note));
            let kill = async {
                // Two machines watch; it is started once.
                let id = zmachine_sys::process::ProcessId::of(first).unwrap();
                id.signal(9).unwrap();
                let deadline = Instant::now() + Duration::from_secs(20);
                while servers().is_empty() || servers() == [first] {
                    assert!(Instant::now() < deadline);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                tokio::time::sleep(Duration::from_millis(600)).await;
            };
            let second = networks.keep_served("default", |_| ());
            tokio::select! {
                () = async { tokio::join!(watch, second); } => panic!("they watch for as long as a machine is there"),
                () = kill => {}
            }
            assert_eq!(servers().len(), 1);
            let gateway = network.gateway4().to_string();
            let ip4 = one.ipv4().unwrap().to_string();
            becomes(answer(0, &[&ip4]), || {
                resolve(Some(space.guest_ns()), &gateway, "web", "A")
            });

            drop(made);
            let _ = Command::new("ip").args(["link", "del", &one.tap]).output();
            undo(&networks, &one.resources()).await.unwrap();
            networks.keep_served("default", |_| ()).await; // ends at once: nobody is attached
            assert_eq!(traces(), before);
        })
    });
}
