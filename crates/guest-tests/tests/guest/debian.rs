//! A whole Debian as a VM: its own kernel, its own cloud-init, our agent as a service of its systemd.

use std::time::{Duration, Instant};

use zmachine_testkit::{TestHome, VmImage};

use crate::support::{Checks, home, inspect, phase, zmachine};

/// systemd and cloud-init are many programs to emulate.
const BOOT: Duration = Duration::from_secs(420);

const USER_DATA: &str = "#cloud-config
locale: false
ssh_genkeytypes: [ed25519]
write_files:
  - path: /etc/from-user-data
    content: applied
runcmd:
  - [sh, -c, \"echo CLOUD-INIT IS DONE > /dev/console\"]
";

fn file(home: &TestHome, name: &str, content: &str) -> String {
    let path = home.file(name);
    std::fs::write(&path, content).expect("a file");
    path.display().to_string()
}

/// What a command in the guest prints.
#[track_caller]
fn exec_output(home: &TestHome, script: &str) -> String {
    let exec_output = zmachine(home, &["exec", "deb", "sh", "-c", script]);
    exec_output.expect_success().stdout().trim_end().to_owned()
}

fn wait_for_agent(home: &TestHome) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while zmachine(home, &["exec", "deb", "true"]).code != 0 {
        assert!(Instant::now() < deadline, "the agent does not come back");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn wait_for_cloud_init(home: &TestHome) {
    let deadline = Instant::now() + BOOT;
    loop {
        let console = zmachine(home, &["logs", "--source", "console", "deb"]).stdout();
        if console.contains("CLOUD-INIT IS DONE") {
            return;
        }
        let tail: Vec<&str> = console.lines().rev().take(30).collect();
        assert!(
            phase(home, "deb") == "running" && Instant::now() < deadline,
            "cloud-init is not done; the console, last line first:\n{}",
            tail.join("\n")
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
#[ignore = "downloads and boots a whole Debian, which takes minutes: make test-debian"]
fn debian_gets_its_seed_from_cloud_init_and_its_agent_from_our_package() {
    let Some(home) = home() else { return };
    let image = VmImage::debian(&home, "debian").pack(&home, "debian");
    let user_data = file(&home, "user-data", USER_DATA);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEYTxlKbPKHIqgPspUOwMMkw6POd522sj8Gel99mSeGB me@example";
    let key_file = file(&home, "key.pub", &format!("{key}\n"));
    let flags = [
        &[
            "run",
            "-d",
            "--snapshots",
            "--name",
            "deb",
            "-m",
            "1G",
            "-v",
            "boot:/:size=2G",
        ][..],
        &[
            "--hostname",
            "cloudy",
            "--ssh-key",
            &key_file,
            "--user-data",
            &user_data,
        ],
        &["--dns", "192.0.2.53", "-e", "A=b", &image],
    ];
    zmachine(&home, &flags.concat()).expect_success();
    wait_for_cloud_init(&home);
    let mut checks = Checks::default();
    checks.that("hostname, key and user data", || {
        assert_eq!(exec_output(&home, "hostname"), "cloudy");
        assert!(exec_output(&home, "cat /root/.ssh/authorized_keys").contains(key));
        assert_eq!(exec_output(&home, "cat /etc/from-user-data"), "applied");
        assert!(
            exec_output(&home, "cat /proc/cmdline")
                .split(' ')
                .any(|word| word == "A=b")
        );
    });
    checks.that("addresses, routes and resolvers are what inspect says", || {
        let nic = inspect(&home, "deb")["plan"]["attachments"][0].clone();
        let found = exec_output(
            &home,
            "ip -o addr show dev eth0; ip route; ip -6 route; cat /run/systemd/resolve/resolv.conf",
        );
        assert!(found.contains("nameserver 192.0.2.53"), "{found}");
        let text = |key: &str| nic[key].as_str().unwrap_or_default().to_owned();
        let addresses = nic["addresses"].as_array().expect("addresses");
        assert_eq!(addresses.len(), 2, "{nic}");
        for address in addresses {
            assert!(found.contains(address.as_str().unwrap_or("?")), "{address} in {found}");
        }
        for key in ["gateway4", "gateway6"] {
            // Where a router has advertised itself by then, the kernel shows one route by either of its addresses.
            let ways = ["default via", "nexthop via"].map(|way| format!("{way} {}", text(key)));
            assert!(
                ways.iter().any(|way| found.contains(way.as_str())),
                "{key} {nic} in {found}"
            );
        }
    });
    checks.that("exec has the exit status, and cp copies", || {
        assert_eq!(zmachine(&home, &["exec", "deb", "sh", "-c", "exit 7"]).code, 7);
        zmachine(&home, &["cp", &user_data, "deb:/root/copy"]).expect_success();
        assert_eq!(exec_output(&home, "cat /root/copy"), USER_DATA.trim_end());
    });
    checks.that("its root grows with its volume while it runs", || {
        zmachine(&home, &["volume", "grow", "boot", "3G"]).expect_success();
        let kib: u64 = exec_output(&home, "df -k --output=size / | tail -n 1")
            .trim()
            .parse()
            .expect("a number");
        assert!(kib > 2700 << 10, "{kib} KiB");
    });
    checks.that("an agent that is restarted is found again", || {
        zmachine(
            &home,
            &["exec", "deb", "systemctl", "--no-block", "restart", "zmachine-agent"],
        );
        wait_for_agent(&home);
        assert_eq!(phase(&home, "deb"), "running");
    });
    checks.that(
        "it goes on with its memory, its agent comes back, and tells it the time",
        || {
            exec_output(&home, "echo then | tee /dev/shm/mark >/root/mark");
            let boots = exec_output(&home, "cat /proc/sys/kernel/random/boot_id");
            zmachine(&home, &["snapshot", "create", "deb@then"]).expect_success();
            exec_output(&home, "echo later | tee /dev/shm/mark >/root/mark");
            zmachine(&home, &["kill", "deb"]).expect_success();
            std::thread::sleep(Duration::from_secs(20));
            zmachine(&home, &["start", "--from", "deb@then"]).expect_success();
            wait_for_agent(&home);
            assert_eq!(exec_output(&home, "cat /dev/shm/mark /root/mark"), "then\nthen");
            assert_eq!(exec_output(&home, "cat /proc/sys/kernel/random/boot_id"), boots);
            let now = || {
                std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .expect("time")
            };
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let guest: u64 = exec_output(&home, "date +%s").parse().expect("seconds");
                let behind = now().as_secs().saturating_sub(guest);
                if behind < 5 {
                    break;
                }
                assert!(Instant::now() < deadline, "its clock is {behind} s behind");
            }
            zmachine(&home, &["snapshot", "rm", "deb@then"]).expect_success();
        },
    );
    checks.that("the power button ends it in order", || {
        zmachine(&home, &["stop", "deb"]).expect_success();
        assert_eq!(phase(&home, "deb"), "stopped");
        assert_eq!(inspect(&home, "deb")["state"]["exit"], "powered_off");
    });
    zmachine(&home, &["rm", "deb"]).expect_success();
    zmachine(&home, &["volume", "rm", "boot"]).expect_success();
}

/// What the guest told of its network when it last changed.
fn network(home: &TestHome, name: &str) -> String {
    let console = zmachine(home, &["logs", "--source", "console", name]).stdout();
    let console = console.replace('\r', "");
    let exec_output = console
        .rsplit_once("NET .\n")
        .map_or("", |(exec_output, _)| exec_output);
    let exec_output = exec_output
        .rsplit_once("NET .\n")
        .map_or(exec_output, |(_, exec_output)| exec_output);
    exec_output
        .lines()
        .filter_map(|line| Some(line.split_once("NET ")?.1))
        .fold(String::new(), |all, line| all + line + "\n")
}

#[track_caller]
fn wait_for_network(home: &TestHome, name: &str, limit: Duration, wanted: &[String]) {
    let deadline = Instant::now() + limit;
    loop {
        let found = network(home, name);
        let lacking: Vec<&String> = wanted.iter().filter(|w| !found.contains(w.as_str())).collect();
        if lacking.is_empty() {
            return;
        }
        assert!(
            phase(home, name) == "running" && Instant::now() < deadline,
            "{lacking:?} not in\n{found}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Address `n` of interface `nic`, without its prefix length.
fn address(nic: &serde_json::Value, n: usize) -> String {
    let cidr = nic["addresses"][n].as_str().unwrap_or_default();
    cidr.split('/').next().unwrap_or_default().to_owned()
}

/// No seed, no agent, nothing on the kernel's command line that it would look at: DHCPv4, router advertisements and DHCPv6.
#[test]
#[ignore = "downloads and boots a whole Debian twice, which takes minutes: make test-debian"]
fn debian_without_cloud_init_gets_its_network_from_the_network() {
    let Some(home) = home() else { return };
    let mut checks = Checks::default();
    for kind in ["networkd", "ifupdown"] {
        let image = VmImage::debian_plain(&home, kind, kind).pack(&home, kind);
        let volume = format!("{kind}:/:size=1G");
        zmachine(
            &home,
            &["run", "-d", "--name", kind, "-m", "512M", "-v", &volume, &image],
        )
        .expect_success();
        let nic = inspect(&home, kind)["plan"]["attachments"][0].clone();
        let gateway = |family: &str| nic[family].as_str().unwrap_or_default().to_owned();
        checks.that(kind, || {
            let mut wanted = vec![
                format!(" {}", nic["addresses"][0].as_str().unwrap_or_default()),
                // networkd takes the advertised prefix; ifupdown's `dhcp` switches that off, and asks by DHCPv6.
                format!(" {}/64", address(&nic, 1)),
                format!("default via {} dev e", gateway("gateway4")),
                "default via fe80::".to_owned(),
                format!("nameserver {}", gateway("gateway6")),
            ];
            // ISC's client keeps the servers of the family that it asked last.
            if kind == "networkd" {
                wanted.push(format!("nameserver {}", gateway("gateway4")));
            }
            wait_for_network(&home, kind, BOOT, &wanted);
        });
        if kind == "networkd" {
            checks.that("an interface that comes while it runs, and goes", || {
                zmachine(&home, &["network", "create", "second"]).expect_success();
                zmachine(&home, &["network", "connect", "second", kind]).expect_success();
                let nic = inspect(&home, kind)["plan"]["attachments"][1].clone();
                let wanted = [
                    format!(" {}", nic["addresses"][0].as_str().unwrap_or_default()),
                    format!(" {}/64", address(&nic, 1)),
                ];
                wait_for_network(&home, kind, Duration::from_secs(90), &wanted);
                zmachine(&home, &["network", "disconnect", "second", kind]).expect_success();
                let deadline = Instant::now() + Duration::from_secs(90);
                while network(&home, kind).contains(&address(&nic, 0)) {
                    assert!(Instant::now() < deadline, "{}", network(&home, kind));
                    std::thread::sleep(Duration::from_millis(500));
                }
                zmachine(&home, &["network", "rm", "second"]).expect_success();
            });
        }
        checks.that("the power button", || {
            zmachine(&home, &["stop", "-t", "120", kind]).expect_success();
            assert_eq!(inspect(&home, kind)["state"]["exit"], "powered_off");
        });
        zmachine(&home, &["rm", "-f", kind]).expect_success();
        zmachine(&home, &["volume", "rm", kind]).expect_success();
    }
    home.assert_host_clean();
}
