//! Namespaces as network plugins leave them for pods, and the way of frames from there to a machine's tap and back.

use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use zmachine_network::pod::{FoundLink, open_taps, read};

use super::*;

/// Before each frame of a tap (`virtio_net_hdr`).
const HEADER: usize = 10;

/// How long a frame may take.
const SOON: Duration = Duration::from_secs(5);

fn namespace(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// As the plugins `bridge` (a veth with a subnet) and `ptp` (one whose neighbours are reached through a gateway alone) make them; and
/// links that nobody could use.
fn as_plugins_make_it(space: &Space) {
    let (host, pod) = (space.host_ns(), space.guest_ns());
    for (port, link) in [("v0", "eth0"), ("v1", "eth1"), ("v2", "down0"), ("v3", "bare0")] {
        ip(host, &format!("link add {port} type veth peer name {link} netns {pod}"));
        ip(host, &format!("link set {port} up"));
    }
    for link in ["eth0", "eth1", "bare0"] {
        ip(pod, &format!("link set {link} up"));
    }
    ip(pod, "link set eth0 mtu 1450 address 02:00:00:00:00:aa");
    ip(pod, "address add 10.9.0.7/24 dev eth0");
    ip(pod, "address add fd09::7/64 dev eth0 nodad");
    ip(pod, "route add default via 10.9.0.1 dev eth0");
    ip(pod, "address add 10.8.0.5/24 dev eth1");
    ip(pod, "route del 10.8.0.0/24 dev eth1");
    ip(pod, "route add 10.8.0.1 dev eth1 scope link");
    ip(pod, "route add 10.8.0.0/24 via 10.8.0.1 dev eth1");
    ip(pod, "address add 10.7.0.5/24 dev down0");
    ip(host, "address add 10.9.0.1/24 dev v0");
    ip(host, "address add 10.8.0.1/24 dev v1");
}

#[test]
fn a_guest_takes_over_every_link_that_a_plugin_left() {
    in_own_space(|space| {
        as_plugins_make_it(space);
        let (links, routes) = read(&namespace(space.guest_ns())).unwrap();
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        // What is down, or has no address, is nothing that a guest could use.
        assert_eq!(names, ["eth0", "eth1"]);
        let text = |link: &FoundLink| link.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!((links[0].mac.as_str(), links[0].mtu), ("02:00:00:00:00:aa", Some(1450)));
        assert_eq!(text(&links[0]), ["10.9.0.7/24", "fd09::7/64"]);
        // Its neighbours are not on the link: the guest must not look for them there.
        assert_eq!(text(&links[1]), ["10.8.0.5/32"]);
        let routes: Vec<String> = routes
            .iter()
            .map(|route| {
                let gateway = route
                    .gateway
                    .map(|gateway| format!(" via {gateway}"))
                    .unwrap_or_default();
                format!("{}{gateway} {}", route.destination, route.link)
            })
            .collect();
        // What is on a link comes before what is reached through it, and the way to everywhere last.
        let expected = [
            "10.8.0.1/32 eth1",
            "10.8.0.0/24 via 10.8.0.1 eth1",
            "0.0.0.0/0 via 10.9.0.1 eth0",
        ];
        assert_eq!(routes, expected);
    });
}

#[test]
fn frames_go_from_each_link_to_its_tap_and_back_and_to_no_other() {
    in_own_space(|space| {
        as_plugins_make_it(space);
        let pod = namespace(space.guest_ns());
        let links =
            [("eth0", "net0"), ("eth1", "net1")].map(|(link, interface)| (link.to_owned(), interface.to_owned()));
        let mut taps = run(open_taps(&pod, &links)).unwrap();
        let mut taps = ["net0", "net1"].map(|name| File::from(taps.remove(name).unwrap()));
        for (number, address) in [(0, "10.9.0.7"), (1, "10.8.0.5")] {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            // The kernel asks who has the address, and the guest is who would answer.
            socket.send_to(b"x", (address, 9)).unwrap();
            let request = frame(&mut taps[number], |frame| frame[12..14] == [0x08, 0x06]);
            let wanted: std::net::Ipv4Addr = address.parse().unwrap();
            assert_eq!(request[38..42], wanted.octets(), "asked for {address}");
            // It does: the kernel of the pod's namespace has no part in it.
            let mac = [2, 0, 0, 0, 0, number as u8];
            taps[number].write_all(&answer(&request, mac)).unwrap();
            let begun = Instant::now();
            let link = format!("v{number}");
            while !output("ip", &["neigh", "show", "dev", &link]).contains(&format!("02:00:00:00:00:0{number}")) {
                assert!(begun.elapsed() < SOON, "the answer does not arrive");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let mut rest = vec![0; 4096];
        while let Ok(length) = taps[0].read(&mut rest) {
            let is_of_other = rest[HEADER..length].windows(4).any(|part| part == [10, 8, 0, 5]);
            assert!(!is_of_other, "what is for one link came by the other");
        }
    });
}

/// The next frame of a tap that is wanted.
fn frame(tap: &mut File, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let begun = Instant::now();
    let mut buffer = vec![0; 4096];
    while begun.elapsed() < SOON {
        match tap.read(&mut buffer) {
            Ok(length) if length > HEADER + 14 && is_wanted(&buffer[HEADER..length]) => {
                return buffer[HEADER..length].to_vec();
            }
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    panic!("no such frame comes");
}

/// The answer to an ARP request.
fn answer(request: &[u8], mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(&request[6..12]);
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend(mac);
    frame.extend(&request[38..42]);
    frame.extend(&request[22..32]);
    frame.resize(HEADER + 60, 0);
    frame
}
