//! The crate against a real kernel, as root: each test runs again inside a network namespace of its own ("the host"), with
//! a second one that acts as a guest on the bridge and a third that is the world outside. Traffic stays in those.

mod faults;
mod firewalls;
mod names;
mod passt;
mod pods;
mod policy;
mod several;
mod space;
mod spoofing;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use futures::future::join_all;
use space::{Space, answers_tcp, answers_udp, in_own_space, ip, output, serve_tcp, serve_udp, sysctl};
use zmachine_network::{
    AddressRequest, Attachment, AttachmentRequest, Endpoint, Ipv6Choice, Made, Membership, Network, NetworkError,
    NetworkSpec, Networks, Policy, Publish, Resource, render,
};

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

fn networks(home: &Path) -> Networks {
    // dnsmasq reads its files as somebody else.
    let _ = std::fs::set_permissions(home, std::os::unix::fs::PermissionsExt::from_mode(0o777));
    Networks::open(home).expect("a home").with_host_dir(&home.join("host"))
}

async fn plan(networks: &Networks, machine: &str, ports: &[&str]) -> (Network, Attachment) {
    let network = networks.default_network().await.expect("a network");
    let attachment = plan_in(networks, &network, machine, ports, &Membership::default()).await;
    (network, attachment)
}

async fn plan_in(
    networks: &Networks,
    network: &Network,
    machine: &str,
    ports: &[&str],
    membership: &Membership,
) -> Attachment {
    let lease = networks
        .lease(network, machine, AddressRequest::default())
        .await
        .expect("an address");
    let publish: Vec<Publish> = ports.iter().map(|p| p.parse().expect("a port")).collect();
    let request = AttachmentRequest {
        machine,
        lease,
        index: 0,
        is_default: true,
        publish: &publish,
        membership,
        nameservers: &[],
        search: &[],
    };
    Attachment::plan(network, request).expect("a plan")
}

async fn make(networks: &Networks, resources: &[Resource]) -> Result<Vec<Made>, NetworkError> {
    let mut made = Vec::new();
    for resource in resources {
        made.push(resource.make(networks).await?);
    }
    Ok(made)
}

async fn undo(networks: &Networks, resources: &[Resource]) -> Result<(), NetworkError> {
    for resource in resources.iter().rev() {
        resource.undo(networks).await?;
    }
    Ok(())
}

/// Everything of ours, and every sysctl we may touch, in the current namespace.
fn traces() -> String {
    let links = output("ip", &["-o", "link"]);
    let ours: Vec<&str> = links
        .lines()
        .filter(|l| {
            l.split(": ")
                .nth(1)
                .is_some_and(|name| name.starts_with("zm") || name.starts_with("zt"))
        })
        .collect();
    let keys = [
        "net/ipv4/ip_forward",
        "net/ipv4/conf/all/accept_redirects",
        "net/ipv4/conf/up0/forwarding",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/up0/forwarding",
        "net/ipv6/conf/up0/accept_ra",
    ];
    let values: Vec<String> = keys.iter().map(|k| format!("{k}={}", sysctl(k))).collect();
    format!(
        "{ours:?} {:?} {values:?} {:?}",
        output("nft", &["list", "ruleset"]),
        servers()
    )
}

/// The processes of dnsmasq in this network namespace.
fn servers() -> Vec<u32> {
    let here = std::fs::read_link("/proc/self/ns/net").unwrap();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_server = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // A process that has ended and was not collected yet has no namespace any more.
        name.trim() == "dnsmasq" && std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns == here)
    };
    pids.filter(is_server).collect()
}

fn leftovers(home: &Path) -> Vec<PathBuf> {
    let dirs = ["networks/default/leases", "networks/default/attachments", "host"];
    let entries = dirs
        .iter()
        .flat_map(|d| std::fs::read_dir(home.join(d)).into_iter().flatten().flatten());
    entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_none_or(|e| e != "lock"))
        .collect()
}

#[test]
fn an_attached_machine_has_a_bridge_with_addresses_a_tap_and_the_rules_as_rendered() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let before = traces();
            let (network, attachment) = plan(&networks, "m1", &["8080:80"]).await;
            let mut made = make(&networks, &attachment.resources()).await.unwrap();

            let bridge = output("ip", &["address", "show", network.bridge()]);
            for address in [
                format!("inet {}/24", network.gateway4()),
                format!("inet6 {}/64", network.gateway6().unwrap()),
            ] {
                assert!(bridge.contains(&address), "{address} is not in {bridge}");
            }
            assert!(
                bridge.contains("mtu 1400"),
                "the MTU of the default route's link: {bridge}"
            );
            let tap = output("ip", &["-d", "link", "show", &attachment.tap]);
            assert!(
                tap.contains(&format!("master {}", network.bridge())) && tap.contains("vnet_hdr on persist off"),
                "{tap}"
            );
            assert!(tap.contains(",UP") && tap.contains("mtu 1400"), "{tap}");
            assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
            rules_in_the_kernel_are_as_rendered(&network, &attachment);

            made.clear();
            assert!(
                !output("ip", &["link"]).contains(&attachment.tap),
                "a tap goes with its descriptor"
            );
            undo(&networks, &attachment.resources()).await.unwrap();
            assert_eq!((traces(), leftovers(home.path())), (before, vec![]));
        })
    });
}

fn rules_in_the_kernel_are_as_rendered(network: &Network, attachment: &Attachment) {
    let endpoint = Endpoint {
        machine: attachment.machine.clone(),
        ipv4: attachment.ipv4().unwrap(),
        ipv6: attachment.ipv6(),
        membership: attachment.membership.clone(),
        ports: attachment.publish.clone(),
    };
    let wanted = render(network, &[endpoint]);
    let plain = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|l| l.replace("meta l4proto ", "").trim().to_owned());
        lines.filter(|l| !l.is_empty()).collect()
    };
    let list = |family| output("nft", &["list", "table", family, network.bridge()]);
    // The first four lines of the script replace the tables. The rest is listed word for word.
    let (listed, wanted) = (plain(&(list("inet") + &list("bridge"))), &plain(&wanted)[4..]);
    for (listed, wanted) in listed.iter().zip(wanted) {
        assert_eq!(listed, wanted);
    }
    assert_eq!(listed.len(), wanted.len());
}

#[test]
fn a_published_port_leads_to_the_guest_from_outside_and_from_the_host() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let (network, attachment) = plan(&networks, "m1", &["8080:80", "5353:53/udp", "7000-7002:9000-9002"]).await;
            let _made = make(&networks, &attachment.resources()).await.unwrap();
            space.guest(&network, &attachment);
            serve_tcp(space.guest_ns(), 80);
            serve_udp(space.guest_ns(), 53);
            serve_tcp(space.guest_ns(), 9001);

            for host in ["198.51.100.1", "2001:db8:1::1"] {
                assert!(
                    answers_tcp(Some(space.outside_ns()), host, 8080).is_some(),
                    "from outside to {host}"
                );
                assert!(
                    answers_udp(Some(space.outside_ns()), host, 5353).is_some(),
                    "udp from outside to {host}"
                );
                assert!(answers_tcp(None, host, 8080).is_some(), "from the host to {host}");
            }
            assert!(
                answers_tcp(None, "127.0.0.1", 8080).is_some(),
                "from the host to 127.0.0.1"
            );
            assert!(
                answers_udp(None, "127.0.0.1", 5353).is_some(),
                "udp from the host to 127.0.0.1"
            );
            assert!(
                answers_tcp(None, "127.0.0.1", 7001).is_some(),
                "the second port of a range"
            );
            assert!(
                answers_tcp(None, "127.0.0.1", 7002).is_none(),
                "nobody serves the third"
            );
            assert!(answers_tcp(None, "::1", 8080).is_none());
            assert!(
                std::net::TcpListener::bind("0.0.0.0:8080").is_err(),
                "the host port is held"
            );
        })
    });
}

#[test]
fn a_published_port_leads_to_the_guest_from_its_neighbour_and_from_itself() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let (network, attachment) = plan(&networks, "m1", &["8080:80", "5353:53/udp"]).await;
            let (_, neighbour) = plan(&networks, "m2", &[]).await;
            let _made = make(&networks, &attachment.resources()).await.unwrap();
            let _made = make(&networks, &neighbour.resources()).await.unwrap();
            space.guest(&network, &attachment);
            space.neighbour(&network, &neighbour);
            serve_tcp(space.guest_ns(), 80);
            serve_udp(space.guest_ns(), 53);

            let gateways = [network.gateway4().to_string(), network.gateway6().unwrap().to_string()];
            let hosts = ["198.51.100.1", "2001:db8:1::1", &gateways[0], &gateways[1]];
            for filtered in ["1", "0"] {
                // Where other software has bridged frames filtered, they take another way through the kernel.
                space.filter_bridged(filtered);
                for (who, from) in [("neighbour", space.neighbour_ns()), ("itself", space.guest_ns())] {
                    for host in hosts {
                        let way = format!("{who} to {host}, bridge-nf-call {filtered}");
                        assert!(answers_tcp(Some(from), host, 8080).is_some(), "{way}");
                        // On a busy host one datagram may come too late.
                        let asks = &mut std::iter::repeat_with(|| answers_udp(Some(from), host, 5353)).take(3);
                        assert!(asks.any(|answer| answer.is_some()), "udp, {way}");
                    }
                }
            }
        })
    });
}

#[test]
fn a_guest_reaches_the_world_as_the_host_and_the_world_does_not_reach_the_guest() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let (network, attachment) = plan(&networks, "m1", &[]).await;
            let _made = make(&networks, &attachment.resources()).await.unwrap();
            space.guest(&network, &attachment);
            serve_tcp(space.outside_ns(), 80);
            serve_tcp(space.guest_ns(), 80);

            let seen = |host| answers_tcp(Some(space.guest_ns()), host, 80).expect(host).ip();
            assert_eq!(seen("198.51.100.2"), "198.51.100.1".parse::<IpAddr>().unwrap());
            assert_eq!(seen("2001:db8:1::2"), "2001:db8:1::1".parse::<IpAddr>().unwrap());
            let guest = attachment.ipv4().unwrap().to_string();
            assert!(answers_tcp(None, &guest, 80).is_some(), "the host reaches it");
            ip(
                space.outside_ns(),
                &format!("route add {} via 198.51.100.1", network.ipv4()),
            );
            assert!(
                answers_tcp(Some(space.outside_ns()), &guest, 80).is_none(),
                "the world does not"
            );
        })
    });
}

#[test]
fn a_guest_does_not_reach_the_hosts_loopback() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let (network, attachment) = plan(&networks, "m1", &[]).await;
            let _made = make(&networks, &attachment.resources()).await.unwrap();
            space.guest(&network, &attachment);
            let listener = std::net::TcpListener::bind("127.0.0.1:6000").unwrap();
            serve_tcp(space.host_ns(), 6001);

            // As a hostile guest does: 127.0.0.1 routed to the host.
            ip(space.guest_ns(), "address del 127.0.0.1/8 dev lo");
            ip(
                space.guest_ns(),
                &format!(
                    "route add 127.0.0.0/8 via {} dev eth0 src {}",
                    network.gateway4(),
                    attachment.ipv4().unwrap()
                ),
            );
            space.in_guest("sysctl", &["-qw", "net.ipv4.conf.all.route_localnet=1"]);
            assert!(
                answers_tcp(Some(space.guest_ns()), &network.gateway4().to_string(), 6001).is_some(),
                "the gateway answers"
            );
            assert!(answers_tcp(Some(space.guest_ns()), "127.0.0.1", 6000).is_none());
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err(), "nothing arrived");

            // The same packet arrives when the guard is gone: the rule is what holds it.
            output("nft", &["flush", "chain", "inet", network.bridge(), "guard"]);
            let _ = answers_tcp(Some(space.guest_ns()), "127.0.0.1", 6000);
            assert!(listener.accept().is_ok(), "without the guard it does arrive");
        })
    });
}

#[test]
fn a_port_in_use_is_refused_before_anything_starts_naming_its_owner() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let (_, first) = plan(&networks, "m1", &["8080:80"]).await;
            let _made = make(&networks, &first.resources()).await.unwrap();
            let _server = std::net::TcpListener::bind("127.0.0.1:9090").unwrap();

            let refused = |port: &str| {
                networks
                    .check_publish("m2", &[port.parse().unwrap()])
                    .map_err(|e| e.to_string())
            };
            let reported = refused("127.0.0.1:8080:1").unwrap_err();
            assert!(
                reported.contains("8080/tcp") && reported.contains("machine m1"),
                "{reported}"
            );
            let reported = refused("9090:1").unwrap_err();
            assert!(
                reported.contains("9090/tcp") && reported.contains(&format!("process {}", std::process::id())),
                "{reported}"
            );
            assert!(
                refused("192.0.2.99:1:1")
                    .unwrap_err()
                    .contains("not an address of this host")
            );
            assert_eq!(refused("8080:80/udp"), Ok(()));
        })
    });
}

#[test]
fn twenty_machines_that_come_and_go_at_once_leave_nothing() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let before = traces();
            let one = |i: usize| {
                let networks = networks(home.path());
                async move {
                    let machine = format!("m{i}");
                    let (_, attachment) = plan(&networks, &machine, &[&format!("{}:80", 8000 + i)]).await;
                    let made = make(&networks, &attachment.resources()).await.expect(&machine);
                    drop(made);
                    undo(&networks, &attachment.resources()).await.expect(&machine);
                    attachment.ipv4().unwrap()
                }
            };
            let mut addresses = join_all((0..20).map(one)).await;
            addresses.sort();
            addresses.dedup();
            assert!(!addresses.is_empty());
            assert_eq!((traces(), leftovers(home.path())), (before, vec![]));
        })
    });
}

#[test]
fn two_homes_share_a_host_and_the_last_one_puts_forwarding_back() {
    in_own_space(|_| {
        run(async {
            let shared = tempfile::tempdir().unwrap();
            let before = traces();
            let homes = ["a", "b"].map(|h| {
                Networks::open(&shared.path().join(h))
                    .unwrap()
                    .with_host_dir(shared.path())
            });
            let (first, a) = plan(&homes[0], "m1", &[]).await;
            let _tap = make(&homes[0], &a.resources()).await.unwrap();
            let (second, b) = plan(&homes[1], "m1", &[]).await;
            let _tap = make(&homes[1], &b.resources()).await.unwrap();
            assert!(first.ipv4() != second.ipv4() && first.bridge() != second.bridge() && a.tap != b.tap);

            undo(&homes[0], &a.resources()).await.unwrap();
            assert_eq!(sysctl("net/ipv4/ip_forward"), "1", "the other home still needs it");
            undo(&homes[1], &b.resources()).await.unwrap();
            assert_eq!(traces(), before);
        })
    });
}

#[test]
fn what_somebody_else_removed_is_made_again_or_undone() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let before = traces();
            let (network, attachment) = plan(&networks, "m1", &["8080:80"]).await;
            drop(make(&networks, &attachment.resources()).await.unwrap());
            output("ip", &["link", "del", network.bridge()]);
            output("nft", &["delete", "table", "inet", network.bridge()]);

            drop(make(&networks, &attachment.resources()).await.unwrap());
            assert!(output("nft", &["list", "ruleset"]).contains("dport 8080"));
            output("ip", &["link", "del", network.bridge()]);
            undo(&networks, &attachment.resources()).await.unwrap();
            undo(&networks, &attachment.resources()).await.unwrap();
            assert_eq!((traces(), leftovers(home.path())), (before, vec![]));
        })
    });
}

#[test]
fn reconciling_removes_what_crashed_machines_left_and_keeps_the_others() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let before = traces();
            let (_, dead) = plan(&networks, "dead", &["8080:80"]).await;
            let (_, live) = plan(&networks, "live", &["9090:80"]).await;
            let _made = (
                make(&networks, &dead.resources()).await.unwrap(),
                make(&networks, &live.resources()).await.unwrap(),
            );

            networks.reconcile(&|m| m == "live").await.unwrap();
            let (links, rules) = (output("ip", &["link"]), output("nft", &["list", "ruleset"]));
            assert!(!links.contains(&dead.tap) && links.contains(&live.tap), "{links}");
            assert!(!rules.contains("dport 8080") && rules.contains("dport 9090"), "{rules}");

            networks.reconcile(&|_| false).await.unwrap();
            assert_eq!(traces(), before);
            assert_eq!(networks.leases("default").unwrap().len(), 4, "leases outlive a crash");
        })
    });
}

#[test]
fn attachments_of_another_boot_count_for_nothing() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let (network, attachment) = plan(&networks, "m1", &["8080:80"]).await;
            drop(make(&networks, &attachment.resources()).await.unwrap());
            let file = home.path().join("networks/default/attachments/m1");
            let other = std::fs::read_to_string(&file)
                .unwrap()
                .replace(&zmachine_sys::host::boot_id(), "another-boot");
            std::fs::write(&file, other).unwrap();

            let (_, second) = plan(&networks, "m2", &["8080:80"]).await;
            drop(make(&networks, &second.resources()).await.unwrap());
            let rules = output("nft", &["list", "table", "inet", network.bridge()]);
            assert!(!rules.contains("\"m1\"") && rules.contains("\"m2\""), "{rules}");
            undo(&networks, &second.resources()).await.unwrap();
            undo(&networks, &attachment.resources()).await.unwrap();
            assert_eq!(leftovers(home.path()), Vec::<PathBuf>::new());
        })
    });
}

/// Set in a child that is to abort after so many steps: `<home> <make|undo> <steps>`.
const ABORT: &str = "ZMACHINE_TEST_ABORT";

#[test]
fn an_abort_after_any_single_step_is_cleaned_up_by_another_process() {
    if let Ok(order) = std::env::var(ABORT) {
        return run(aborting_child(&order));
    }
    in_own_space(|_| {
        let before = traces();
        let (mut made, mut undone) = (0, 0);
        while aborts("make", made, &before) {
            made += 1;
        }
        while aborts("undo", undone, &before) {
            undone += 1;
        }
        println!("{made} kill points of make, {undone} of undo");
        assert!(made >= 15 && undone >= 8, "{made} {undone}");
    });
}

/// Whether a child that makes (and undoes) everything got to step number `step` of `phase` and aborted there; the undo of
/// this process then leaves nothing.
fn aborts(phase: &str, step: usize, before: &str) -> bool {
    let home = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([
        "--exact",
        "an_abort_after_any_single_step_is_cleaned_up_by_another_process",
        "--nocapture",
    ]);
    let status = child
        .env(ABORT, format!("{} {phase} {step}", home.path().display()))
        .output()
        .unwrap()
        .status;
    run(async {
        let networks = networks(home.path());
        let (_, attachment) = plan(&networks, "m1", &["8080:80"]).await;
        undo(&networks, &attachment.resources()).await.unwrap();
        assert_eq!(
            (traces().as_str(), leftovers(home.path())),
            (before, vec![]),
            "after step {step} of {phase}"
        );
    });
    assert!(
        status.success() || status.code().is_none(),
        "{status}: neither done nor aborted"
    );
    !status.success()
}

async fn aborting_child(order: &str) {
    let words: Vec<&str> = order.split(' ').collect();
    let [home, phase, step] = words[..] else {
        panic!("{order}")
    };
    let left = std::sync::atomic::AtomicUsize::new(step.parse().unwrap());
    let hook = move |_: &'static str| {
        if left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 0 {
            std::process::abort();
        }
    };
    let (plain, armed) = (
        networks(Path::new(home)),
        networks(Path::new(home)).with_step_hook(hook),
    );
    let (maker, undoer) = if phase == "make" {
        (&armed, &plain)
    } else {
        (&plain, &armed)
    };
    let (_, attachment) = plan(&plain, "m1", &["8080:80"]).await;
    let made = make(maker, &attachment.resources()).await.unwrap();
    undo(undoer, &attachment.resources()).await.unwrap();
    drop(made);
}

#[test]
fn leases_are_unique_among_threads_stable_and_given_back() {
    // Needs no root: routes may be read by anybody.
    let home = tempfile::tempdir().unwrap();
    let network = run(networks(home.path()).default_network()).unwrap();
    let take = |machine: String| {
        let networks = networks(home.path());
        run(networks.lease(&network, &machine, AddressRequest::default()))
            .unwrap()
            .ipv4
    };
    let mut addresses: Vec<_> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..16).map(|i| s.spawn(move || take(format!("m{}", i / 2)))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 8, "eight machines asked twice each: {addresses:?}");
    let networks = networks(home.path());
    let want = AddressRequest {
        ipv4: Some(addresses[0]),
        ipv6: None,
    };
    let taken = run(networks.lease(&network, "other", want)).unwrap_err();
    assert!(matches!(taken, NetworkError::AddressTaken { .. }), "{taken}");
    for i in 0..8 {
        networks.release("default", &format!("m{i}")).unwrap();
    }
    assert!(networks.leases("default").unwrap().is_empty());
}

#[test]
fn what_needs_root_says_so_to_others() {
    in_own_space(|space| {
        let home = tempfile::tempdir().unwrap();
        std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let reported = space.as_nobody(home.path(), "unprivileged_child");
        assert!(reported.contains("NeedsRoot"), "{reported}");
    });
}

#[test]
#[ignore = "the unprivileged half of the test above"]
fn unprivileged_child() {
    let home = std::env::var("ZMACHINE_TEST_HOME").map(PathBuf::from).unwrap();
    run(async {
        let networks = networks(&home);
        let (_, attachment) = plan(&networks, "m1", &[]).await;
        let error = make(&networks, &attachment.resources()).await.unwrap_err();
        println!("{:?} {error} {:?}", error.kind(), error.hint());
    });
}

#[test]
fn this_host_meets_the_requirements_that_the_other_tests_rely_on() {
    in_own_space(|_| {
        let unmet: Vec<_> = run(zmachine_network::requirements())
            .into_iter()
            .filter(|r| !r.met)
            .collect();
        assert!(unmet.is_empty(), "{unmet:?}");
        assert!(!output("ip", &["link"]).contains("zmtry"));
    });
}

#[test]
fn the_default_network_moves_out_of_the_way_while_nobody_has_an_address_in_it() {
    in_own_space(|space: &Space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let first = networks.default_network().await.unwrap();
            ip(space.host_ns(), &format!("route add {} via 198.51.100.2", first.ipv4()));
            let (second, attachment) = plan(&networks, "m1", &[]).await;
            assert_ne!(first.ipv4(), second.ipv4());

            ip(
                space.host_ns(),
                &format!("route add {} via 198.51.100.2", second.ipv4()),
            );
            assert_eq!(networks.default_network().await.unwrap().ipv4(), second.ipv4());
            let refused = make(&networks, &attachment.resources()).await.unwrap_err();
            assert!(matches!(refused, NetworkError::SubnetTaken { .. }), "{refused}");
            undo(&networks, &attachment.resources()).await.unwrap();
        })
    });
}
