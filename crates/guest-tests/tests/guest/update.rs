//! Machines that are something else after they were made: renamed, limited, of another policy; running and stopped.

use serde_json::{Value, json};
use zmachine_testkit::TestHome;

use crate::support::{Checks, exec_output, home_with_box, inspect, zmachine};

/// Where the hypervisor of a machine may run.
fn hypervisor_cpus(home: &TestHome, machine: &str) -> String {
    cpus_of(&inspect(home, machine)["state"]["hypervisor"]["pid"].to_string())
}

/// Where a process may run, as `0-3,6`.
fn cpus_of(process: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:"));
    line.and_then(|line| line.split_whitespace().last())
        .unwrap_or_default()
        .to_owned()
}

fn refused(home: &TestHome, words: &[&str], part: &str) {
    let refused = zmachine(home, words);
    assert!(
        refused.code != 0 && refused.stderr().contains(part),
        "{words:?}: {}",
        refused.stderr()
    );
}

#[test]
fn machines_are_renamed_and_updated_whether_they_run_or_not() {
    let Some((home, image)) = home_with_box() else { return };
    let all = cpus_of("self");
    let last = all.rsplit([',', '-']).next().expect("a CPU");
    let mut checks = Checks::default();
    let run = |name: &str, flags: &[&str]| {
        let words = [
            &["run", "-d", "--name", name],
            flags,
            &[image.as_str(), "sleep", "1000"],
        ]
        .concat();
        zmachine(&home, &words).expect_success();
    };
    run(
        "web",
        &["--cpus", "0.5", "--cpuset-cpus", last, "-l", "a=1", "-l", "b=2"],
    );
    run("other", &[]);
    checks.that(
        "a part of a CPU is one, and its processes run where they are told",
        || {
            assert_eq!(exec_output(&home, "web", "nproc"), "1");
            assert_eq!(hypervisor_cpus(&home, "web"), last);
            let listed = zmachine(&home, &["ps", "-o", "json", "--filter", "name=web"]);
            let listed: Value = serde_json::from_str(&listed.expect_success().stdout()).expect("JSON");
            assert_eq!((&listed[0]["cpus"], &listed[0]["cpu_limit"]), (&json!(1), &json!(0.5)));
        },
    );
    checks.that(
        "a running machine has its new name in its network, and keeps its host name",
        || {
            assert_eq!(
                exec_output(&home, "other", "nslookup web >/dev/null && echo found"),
                "found"
            );
            zmachine(&home, &["rename", "web", "front"]).expect_success();
            assert_eq!(exec_output(&home, "front", "hostname"), "web");
            assert_eq!(
                exec_output(&home, "other", "nslookup front >/dev/null && echo found"),
                "found"
            );
            assert_eq!(
                exec_output(&home, "other", "nslookup web >/dev/null 2>&1 || echo gone"),
                "gone"
            );
            refused(&home, &["inspect", "web"], "no machine is called 'web'");
            refused(&home, &["rename", "front", "other"], "exists already");
            refused(&home, &["rename", "front", "a b"], "cannot be a machine's name");
            let events = zmachine(&home, &["events"]).expect_success().stdout();
            assert!(events.contains(" front renamed: it was 'web'"), "{events}");
        },
    );
    checks.that(
        "a running machine is changed in what it can be, and the rest is refused",
        || {
            let changed = [
                "update",
                "--restart",
                "on-failure:2",
                "-l",
                "c=3",
                "--label-rm",
                "a",
                "--cpus",
                "0.25",
            ];
            zmachine(&home, &[&changed[..], &["--cpuset-cpus", "", "front"]].concat()).expect_success();
            let found = inspect(&home, "front");
            assert_eq!(found["spec"]["labels"], json!({"b": "2", "c": "3"}));
            assert_eq!(found["spec"]["restart"], json!({"on_failure": {"most": 2}}));
            assert_eq!(found["spec"]["cpu_limit_milli"], 250);
            assert_eq!(hypervisor_cpus(&home, "front"), hypervisor_cpus(&home, "other"));
            refused(&home, &["update", "--memory", "300M", "front"], "zmachine stop front");
            refused(&home, &["update", "--cpus", "2", "front"], "until it is stopped");
            refused(&home, &["update", "--cpuset-cpus", "1000", "front"], "no CPU 1000");
            refused(&home, &["update", "front"], "nothing is to be changed");
        },
    );
    checks.that(
        "a stopped machine starts with other memory and CPUs, under another name",
        || {
            zmachine(&home, &["stop", "-t", "1", "front"]).expect_success();
            zmachine(&home, &["update", "--memory", "300M", "--cpus", "1", "front"]).expect_success();
            zmachine(&home, &["rename", "front", "back"]).expect_success();
            zmachine(&home, &["start", "back"]).expect_success();
            let kib: u64 = exec_output(&home, "back", "sed -n 's/MemTotal: *//p' /proc/meminfo | cut -d' ' -f1")
                .parse()
                .expect("a number");
            assert!((200 << 10..300 << 10).contains(&kib), "{kib}");
            assert_eq!(exec_output(&home, "back", "hostname"), "web");
            let spec = zmachine(&home, &["inspect", "--spec", "back"])
                .expect_success()
                .stdout();
            for line in ["name = \"back\"", "hostname = \"web\"", "memory = \"300M\""] {
                assert!(spec.lines().any(|found| found == line), "{spec}");
            }
            assert!(!spec.contains("cpus"), "{spec}");
        },
    );
    zmachine(&home, &["rm", "-f", "back", "other"]).expect_success();
    home.assert_host_clean();
}
