//! Machines that begin as one that stood by.

use std::fs;
use std::time::Duration;

use crate::support::{Checks, exec_output, home_with_box, inspect, until, zmachine};

#[test]
fn a_machine_begins_as_one_that_stands_by() {
    let Some((home, image)) = home_with_box() else { return };
    let mut checks = Checks::default();
    let standing_by = || -> Vec<String> {
        let all = zmachine(&home, &["ps", "-a", "-q"]).stdout();
        let names = all.lines().filter(|name| name.starts_with("standby-"));
        let is_ready = |name: &&str| {
            let id = inspect(&home, name)["id"].as_str().expect("its id").to_owned();
            home.path().join("run").join(id).join("standby").exists()
        };
        names.filter(is_ready).map(str::to_owned).collect()
    };
    let wait = || {
        until("one stands by", Duration::from_secs(60), || {
            let all = standing_by();
            (!all.is_empty()).then_some(all)
        })
    };
    let mut id = String::new();
    checks.that("the first one has one made for the next", || {
        let words = ["run", "--rm", "--pool", "1", &image, "echo", "first"];
        assert_eq!(zmachine(&home, &words).expect_success().stdout(), "first\n");
        let all = wait();
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(zmachine(&home, &["ps", "-q"]).stdout(), "", "it is nobody's");
        id = inspect(&home, &all[0])["id"].as_str().expect("its id").to_owned();
    });
    checks.that("the next one is that, with all that is its own", || {
        let secret = home.file("s");
        fs::write(&secret, "hidden").expect("a secret");
        let from = format!("s={}", secret.display());
        let words = [
            "run",
            "-d",
            "--pool",
            "1",
            "--name",
            "web",
            "-e",
            "A=b",
            "--hostname",
            "own",
            "-w",
            "/tmp",
            "-u",
            "1:1",
            "-p",
            "18086:80",
            "--secret",
            &from,
            &image,
            "sh",
            "-c",
            "echo $A; pwd; id -u; hostname; exec sleep 1000",
        ];
        zmachine(&home, &words).expect_success();
        let all = inspect(&home, "web");
        assert_eq!(all["id"].as_str(), Some(&*id));
        let logged = until("it has begun", Duration::from_secs(20), || {
            let log = zmachine(&home, &["logs", "web"]).stdout();
            log.contains("own").then_some(log)
        });
        assert_eq!(logged, "b\n/tmp\n1\nown\n");
        let noted = zmachine(&home, &["logs", "--source", "monitor", "web"]).stdout();
        assert!(
            noted.contains("began from the template") && !noted.contains("not rehearsed"),
            "{noted}"
        );
        assert_eq!(exec_output(&home, "web", "cat /run/secrets/s"), "hidden");
        let own = exec_output(&home, "web", "ip -4 -o addr show eth0 | sed 's/.*inet //; s,/.*,,'");
        assert!(exec_output(&home, "web", "nslookup web").contains(&own));
        zmachine(
            &home,
            &["exec", "-d", "-u", "0", "web", "sh", "-c", "echo here | nc -l -p 80"],
        )
        .expect_success();
        let why = zmachine(&home, &["why", "web"]).expect_success().stdout();
        assert!(why.contains("start 1 of 1") && !why.contains("hypervisor  "), "{why}");
        let page = until("its port answers", Duration::from_secs(20), || {
            let run = home
                .command("busybox".as_ref(), ["sh", "-c", "nc -w 5 127.0.0.1 18086 </dev/null"])
                .finish();
            (!run.stdout().is_empty()).then(|| run.stdout())
        });
        assert_eq!(page, "here\n");
    });
    checks.that(
        "another one is made in its place, and one that does not fit is not taken",
        || {
            let other = wait();
            let words = ["run", "--rm", "--pool", "1", "--memory", "256M", &image, "hostname"];
            zmachine(&home, &words).expect_success();
            assert!(standing_by().contains(&other[0]));
        },
    );
    checks.that(
        "a machine that was taken restarts as any other, and one that nobody took leaves nothing",
        || {
            exec_output(&home, "web", "touch /tmp/kept");
            zmachine(&home, &["restart", "-t", "1", "web"]).expect_success();
            exec_output(&home, "web", "ls /tmp/kept");
            zmachine(&home, &["rm", "-f", "web"]).expect_success();
            for name in until("all stand by", Duration::from_secs(60), || {
                let all = standing_by();
                (all.len() == 2).then_some(all)
            }) {
                let pid = inspect(&home, &name)["state"]["monitor"]["pid"]
                    .as_u64()
                    .expect("its monitor");
                let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("its monitor");
            }
            until("they are gone", Duration::from_secs(20), || {
                zmachine(&home, &["ps", "-a", "-q"]).stdout().is_empty().then_some(())
            });
        },
    );
    home.assert_host_clean();
}
