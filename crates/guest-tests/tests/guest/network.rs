//! Containers on the default network: with each other, with their host, and published.

use std::process::Command;

use zmachine_testkit::{Lack, TestHome, Tree, skip};

use crate::support::{Checks, exec_output, home, inspect, sh, until_logged, zmachine};

/// What is asked of a web server, as printf writes it (busybox's static wget crashes), and the page it has.
const GET: &str = "GET / HTTP/1.0\\r\\n\\r\\n";
const PAGE: &str = "hello from a container\n";

/// Answers every datagram with itself, for ever.
const UDP_ECHO: &str = r#"
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
int main(void) {
    int s = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 own = {.sin6_family = AF_INET6, .sin6_port = htons(5300)}, from;
    if (s < 0 || bind(s, (struct sockaddr *)&own, sizeof own)) { perror("udp-echo"); return 1; }
    for (;;) {
        char bytes[2048];
        socklen_t length = sizeof from;
        ssize_t n = recvfrom(s, bytes, sizeof bytes, 0, (struct sockaddr *)&from, &length);
        if (n >= 0) sendto(s, bytes, n, 0, (struct sockaddr *)&from, length);
    }
}
"#;

#[test]
fn containers_reach_each_other_their_gateway_and_are_reached_from_the_host() {
    let Some(home) = home() else { return };
    let tree = Tree::busybox(&home).file("www/index.html", PAGE);
    let has_udp = build_static(&home, "udp-echo", UDP_ECHO, &tree);
    let image = tree.pack(&home, "net");
    let serve = "(udp-echo &) 2>/dev/null; httpd -p 80 -h /www && echo serving; sleep 1000";
    let ports = ["-p", "18080:80", "-p", "15353:5300/udp"];
    let words = ["run", "-d", "--name", "a"]
        .into_iter()
        .chain(ports)
        .chain([image.as_str(), "sh", "-c", serve]);
    home.zmachine(words).finish().expect_success();
    zmachine(&home, &["run", "-d", "--name", "b", &image, "sleep", "1000"]).expect_success();
    until_logged(&home, "a", "serving");
    let mut checks = Checks::default();
    checks.that("containers reach each other", || each_other(&home));
    checks.that("the gateway answers", || gateway(&home));
    checks.that("a published TCP port", || {
        let page = |address: &str| {
            let get = format!("printf '{GET}' | nc -w 10 {address} 18080");
            let run = home.command("busybox".as_ref(), ["sh", "-c", &get]).finish();
            assert!(run.expect_success().stdout().ends_with(PAGE), "{run}");
        };
        page("127.0.0.1");
        page(&route(&home, "-4"));
    });
    checks.that("a published UDP port", || match has_udp {
        true => published_udp(&home),
        false => skip(Lack::provided(
            "needs a C compiler with a static libc, for a UDP server in the guest",
        )),
    });
    checks.that("a taken host port is refused", || {
        let run = zmachine(&home, &["run", "-p", "18080:80", &image, "true"]);
        assert!(run.expect_code(125).stderr().contains("18080"), "{run}");
    });
    zmachine(&home, &["rm", "-f", "a", "b"]).expect_success();
    checks.that("nothing of it stays on the host", || home.assert_host_clean());
}

fn each_other(home: &TestHome) {
    let addresses = inspect(home, "a")["state"]["addresses"].clone();
    let addresses: Vec<&str> = addresses
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str())
        .collect();
    assert_eq!(addresses.len(), 2, "one address of each family");
    for address in addresses {
        let page = sh(home, "b", &format!("printf '{GET}' | nc -w 10 {address} 80"));
        assert!(page.expect_success().stdout().ends_with(PAGE), "{page}");
    }
}

/// The guest's default gateway.
fn route(home: &TestHome, family: &str) -> String {
    exec_output(
        home,
        "b",
        &format!("ip {family} route | awk '/^default via/ {{print $3}}'"),
    )
}

fn gateway(home: &TestHome) {
    for family in ["-4", "-6"] {
        let gateway = route(home, family);
        assert!(!gateway.is_empty(), "no default route {family}");
        exec_output(home, "b", &format!("ping -c 1 -W 10 {gateway}"));
    }
}

fn published_udp(home: &TestHome) {
    // bash's own UDP. Read at once: what is left of a datagram after a read is lost.
    let script = "exec 3<>/dev/udp/127.0.0.1/15353; echo datagram >&3; timeout 10 dd bs=2048 count=1 status=none <&3";
    let run = home.command("bash".as_ref(), ["-c", script]).finish();
    assert_eq!(run.expect_success().stdout(), "datagram\n", "{run}");
}

/// Compiles `source` to `bin/<name>` of the tree; whether this host can.
fn build_static(home: &TestHome, name: &str, source: &str, tree: &Tree) -> bool {
    let file = home.file(&format!("{name}.c"));
    std::fs::write(&file, source).expect("a source file");
    let program = tree.root().join("bin").join(name);
    let built = Command::new("cc")
        .args(["-static", "-O1", "-o"])
        .arg(&program)
        .arg(&file)
        .output();
    built.is_ok_and(|output| output.status.success())
}
