//! Several networks: guests in two of them, with a real "internet" behind their host.

use std::process::Command;
use std::time::Duration;

use zmachine_testkit::{NetworkNamespace, TestHome, Tree};

use crate::support::{Checks, exec_output, home, inspect, sh, until, zmachine};

/// A namespace behind the host: 198.51.100.2 and 2001:db8:1::2, the host's way out.
pub(crate) struct Internet(pub(crate) NetworkNamespace);

impl Internet {
    pub(crate) fn behind(home: &TestHome) -> Internet {
        let host = home.network().expect("a namespace of its own").path();
        let host = host.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = format!("{host}-net");
        let made = Internet(NetworkNamespace::new(&name));
        for words in [
            format!("-n {host} link add up0 type veth peer name eth0 netns {name}"),
            format!("-n {host} link set up0 up"),
            format!("-n {name} link set eth0 up"),
            format!("-n {host} address add 198.51.100.1/24 dev up0"),
            format!("-n {name} address add 198.51.100.2/24 dev eth0"),
            format!("-n {host} -6 address add 2001:db8:1::1/64 dev up0 nodad"),
            format!("-n {name} -6 address add 2001:db8:1::2/64 dev eth0 nodad"),
            format!("-n {host} route add default via 198.51.100.2"),
            format!("-n {host} -6 route add default via 2001:db8:1::2"),
        ] {
            let done = Command::new("ip").args(words.split(' ')).status().expect("ip");
            assert!(done.success(), "ip {words}");
        }
        made
    }

    /// What a shell script prints there.
    pub(crate) fn exec_output(&self, script: &str) -> String {
        let run = self.0.command("busybox".as_ref(), ["sh", "-c", script]).finish();
        run.expect_success().stdout()
    }
}

/// Asks for an address as a system does that was told nothing, and prints what it is told.
const DHCP: &str = "printf '#!/bin/sh\\nenv\\n' > /tmp/told; chmod +x /tmp/told; udhcpc -i eth0 -n -q -f -t 10 -O mtu -s /tmp/told 2>/dev/null";

/// Forgets what it was given, and listens to router advertisements.
const LISTEN: &str = "echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra; echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; \
                      ip link set eth0 down; ip -6 addr flush dev eth0; ip link set eth0 up";

/// Prints the first address of each name as musl's resolver finds it, or its error.
const RESOLVE: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        struct addrinfo wanted = {.ai_socktype = SOCK_STREAM}, *found;
        char address[128] = "";
        int error = getaddrinfo(argv[i], "80", &wanted, &found);
        if (!error) {
            getnameinfo(found->ai_addr, found->ai_addrlen, address, sizeof address, NULL, 0, NI_NUMERICHOST);
            freeaddrinfo(found);
        }
        printf("%s: %s\n", argv[i], error ? gai_strerror(error) : address);
    }
    return 0;
}
"#;

/// A static program of [`RESOLVE`], linked with musl.
fn musl_resolver(home: &TestHome) -> Vec<u8> {
    let (source, program) = (home.file("resolve.c"), home.file("resolve"));
    std::fs::write(&source, RESOLVE).expect("a source file");
    let built = Command::new("musl-gcc")
        .args(["-static", "-o"])
        .args([&program, &source])
        .status();
    assert!(built.expect("musl-gcc: run scripts/setup").success());
    std::fs::read(program).expect("a program")
}

#[test]
fn guests_in_two_networks_find_each_other_and_the_world_and_nobody_else() {
    let Some(home) = home() else { return };
    let internet = Internet::behind(&home);
    let image = Tree::busybox(&home)
        .file("www/index.html", "a page\n")
        .program("bin/resolve", musl_resolver(&home))
        .pack(&home, "box");
    let wait = ["sleep", "1000"];
    zmachine(&home, &["network", "create", "front"]).expect_success();
    zmachine(
        &home,
        &["network", "create", "back", "--internal", "--subnet", "10.77.1.0/24"],
    )
    .expect_success();
    let front = [
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "front",
        "--network",
        "back:ip=10.77.1.3,alias=shop",
    ];
    let front = [&front[..], &["--network-alias", "www", "-p", "8080:80", &image]].concat();
    zmachine(
        &home,
        &[&front[..], &["httpd", "-f", "-p", "80", "-h", "/www"]].concat(),
    )
    .expect_success();
    zmachine(
        &home,
        &[
            &["run", "-d", "--snapshots", "--name", "db", "--network", "back", &image][..],
            &wait,
        ]
        .concat(),
    )
    .expect_success();

    let mut checks = Checks::default();
    checks.that(
        "the machine in both has the address it asked for, and one way out",
        || {
            let plan = inspect(&home, "web")["plan"].clone();
            assert_eq!(plan["attachments"][1]["addresses"][0], "10.77.1.3/24");
            assert_eq!(
                exec_output(
                    &home,
                    "web",
                    "ip route | grep -c ^default; ip -6 route | grep -c ^default"
                ),
                "1\n1"
            );
            assert_eq!(exec_output(&home, "db", "ip route | grep -c ^default || true"), "0");
        },
    );
    checks.that("names in both directions", || {
        exec_output(&home, "web", "ping -c 1 -W 10 db");
        for name in ["web", "www", "shop", "shop.back"] {
            exec_output(&home, "db", &format!("ping -c 1 -W 10 {name}"));
        }
        let reverse = exec_output(&home, "db", "nslookup 10.77.1.3");
        assert!(reverse.contains("web.back"), "{reverse}");
    });
    checks.that("own names by musl, which takes a refusal for no answer at all", || {
        let output = exec_output(&home, "db", "resolve web shop.back");
        assert!(output.lines().all(|line| line.ends_with(": 10.77.1.3")), "{output}");
        let output = exec_output(&home, "web", "resolve db web");
        assert!(
            !output.contains("Try again") && output.contains("db: 10.77.1."),
            "{output}"
        );
    });
    checks.that("the world is reached from the one and not from the other", || {
        for address in ["198.51.100.2", "2001:db8:1::2"] {
            exec_output(&home, "web", &format!("ping -c 1 -W 10 {address}"));
            assert_ne!(
                sh(&home, "db", &format!("ping -c 1 -W 1 {address}")).code,
                0,
                "{address}"
            );
        }
    });
    checks.that("the world reaches the published port alone", || {
        let page = internet.exec_output("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 10 198.51.100.1 8080");
        assert!(page.ends_with("a page\n"), "{page}");
        assert_eq!(
            internet
                .exec_output("ip route add 10.77.1.0/24 via 198.51.100.1; nc -w 2 10.77.1.3 80 < /dev/null; echo $?"),
            "1\n"
        );
    });
    checks.that("a guest that knows nothing is told the same by the network", || {
        by_itself(&home)
    });
    checks.that("dnsmasq is started again by the monitors", || {
        let servers = || {
            let found = home.command("pgrep".as_ref(), ["-n", "dnsmasq"]).finish().stdout();
            found.trim().to_owned()
        };
        let before = servers();
        home.command("kill".as_ref(), ["-9", &before]).finish().expect_success();
        until("another dnsmasq", Duration::from_secs(30), || {
            zmachine(&home, &["doctor"])
                .stdout()
                .contains("as their machines need them")
                .then_some(())
        });
        exec_output(&home, "db", "ping -c 1 -W 10 web");
    });
    checks.that("a running machine joins a network, and leaves it", || {
        joins_and_leaves(&home)
    });
    checks.that("a network in use is not removed", || {
        let run = zmachine(&home, &["network", "rm", "back"]);
        let output = run.expect_code(4).stderr();
        assert!(output.contains("db") && output.contains("web"), "{output}");
    });
    zmachine(&home, &["rm", "-f", "web"]).expect_success();
    checks.that(
        "where nobody else is to be asked, other names do not exist for musl",
        || {
            let output = exec_output(&home, "db", "resolve nobody nobody.example db");
            let lines: Vec<_> = output.lines().collect();
            assert_eq!(lines[0], "nobody: Name does not resolve", "{output}");
            assert_eq!(lines[1], "nobody.example: Name does not resolve", "{output}");
            assert!(lines[2].starts_with("db: 10.77.1."), "{output}");
        },
    );
    zmachine(&home, &["rm", "-f", "db"]).expect_success();
    checks.that("nothing of it stays", || {
        zmachine(&home, &["network", "rm", "front", "back"]).expect_success();
        drop(internet);
        home.assert_host_clean();
    });
}

/// A machine of the internal network gets a way out, and a name there; and all of it goes again.
fn joins_and_leaves(home: &TestHome) {
    let change = |words: &[&str]| zmachine(home, &[&["network"][..], words].concat());
    change(&["connect", "--alias", "base", "front", "db"]).expect_success();
    assert_eq!(change(&["connect", "front", "db"]).code, 4);
    for address in ["198.51.100.2", "2001:db8:1::2"] {
        exec_output(home, "db", &format!("ping -c 1 -W 10 {address}"));
    }
    exec_output(home, "web", "ping -c 1 -W 10 base");
    let plan = inspect(home, "db")["plan"].clone();
    assert_eq!(plan["attachments"].as_array().map(Vec::len), Some(2));
    change(&["disconnect", "front", "db"]).expect_success();
    assert_ne!(sh(home, "db", "ping -c 1 -W 1 198.51.100.2").code, 0);
    assert_eq!(exec_output(home, "db", "ls /sys/class/net | grep -c eth"), "1");
    exec_output(home, "db", "ping -c 1 -W 10 web");
    // What a copy of it would be made with is not what its memory knows.
    let saved = zmachine(home, &["snapshot", "create", "db"]).expect_code(4).stderr();
    assert!(
        saved.contains("'db' has joined or left a network since it was started"),
        "{saved}"
    );
    let ports = change(&["disconnect", "front", "web"]);
    assert!(ports.expect_code(4).stderr().contains("published ports"), "{ports}");
}

/// DHCP and router advertisements, as they come to an operating system.
fn by_itself(home: &TestHome) {
    let plan = inspect(home, "db")["plan"]["attachments"][0].clone();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let address = text(&plan["addresses"][0]);
    let output = exec_output(home, "db", DHCP);
    for line in [
        format!("ip={}", address.split('/').next().unwrap_or_default()),
        "mask=24".to_owned(),
        format!("dns={}", text(&plan["gateway4"])),
        format!("mtu={}", plan["mtu"]),
        "hostname=db".to_owned(),
    ] {
        assert!(output.lines().any(|l| l == line), "{line} is not in {output}");
    }
    assert!(
        !output.contains("router="),
        "an internal network has no way out: {output}"
    );
    exec_output(home, "db", LISTEN);
    let own = text(&plan["addresses"][1]);
    until("an address by router advertisement", Duration::from_secs(60), || {
        exec_output(home, "db", "ip -6 addr show dev eth0")
            .contains(&own)
            .then_some(())
    });
    exec_output(home, "db", &format!("ping -c 1 -W 10 {}", text(&plan["gateway6"])));
}
