//! What docker's flags for the inside of a container come to in its guest.

use crate::support::{Checks, exec_output, home_with_box, zmachine};

const FLAGS: &[&str] = &[
    "--tmpfs",
    "/scratch:size=1M,mode=700",
    "--mount",
    "type=tmpfs,target=/more,tmpfs-size=2M",
    "--shm-size",
    "8M",
    "--add-host",
    "db:10.9.9.9",
    "--domainname",
    "example.org",
    "--sysctl",
    "kernel.msgmax=12345",
    "--ulimit",
    "nofile=99:100",
    "--group-add",
    "77",
    "--group-add",
    "10",
    "--cap-drop",
    "NET_RAW",
    "--cap-drop",
    "mknod",
    "--security-opt",
    "no-new-privileges",
];

#[test]
fn a_container_has_what_the_flags_ask_for_and_its_execs_too() {
    let Some((home, image)) = home_with_box() else { return };
    let ids = home.file("ids");
    let (cid, pid) = (
        format!("--cidfile={}", ids.display()),
        format!("--pidfile={}", home.file("pid").display()),
    );
    let command = [&image, "sleep", "1000"];
    let words = [
        &[
            "run",
            "-d",
            "--name",
            "s",
            "--network",
            "none",
            "--pids-limit",
            "9",
            &cid,
            &pid,
        ],
        FLAGS,
        &command,
    ]
    .concat();
    let started = zmachine(&home, &words);
    started.expect_success();
    assert!(
        started.stderr().contains("--pids-limit changes nothing"),
        "{}",
        started.stderr()
    );
    let mut checks = Checks::default();
    checks.that("file systems in memory have their sizes, modes and options", || {
        let mounts = exec_output(&home, "s", "cat /proc/mounts");
        let line = |target: &str| {
            mounts
                .lines()
                .find(|line| line.contains(&format!(" {target} ")))
                .expect(target)
                .to_owned()
        };
        assert!(
            line("/scratch").contains("noexec") && line("/scratch").contains("size=1024k,mode=700"),
            "{mounts}"
        );
        assert!(
            line("/more").contains("size=2048k") && line("/dev/shm").contains("size=8192k"),
            "{mounts}"
        );
    });
    checks.that("names, kernel settings and groups", || {
        assert!(exec_output(&home, "s", "cat /etc/hosts").contains("10.9.9.9\tdb"));
        assert_eq!(
            exec_output(&home, "s", "hostname; cat /proc/sys/kernel/msgmax"),
            "s.example.org\n12345"
        );
        let groups = exec_output(&home, "s", "grep ^Groups: /proc/1/status");
        assert!(groups.contains("77") && groups.contains("10"), "{groups}");
    });
    checks.that(
        "limits and capabilities hold for the entrypoint and for what is executed beside it",
        || {
            for process in ["1", "self"] {
                let limits = exec_output(&home, "s", &format!("grep 'open files' /proc/{process}/limits"));
                assert!(
                    limits.split_whitespace().any(|word| word == "99") && limits.contains("100"),
                    "{limits}"
                );
                let status = exec_output(
                    &home,
                    "s",
                    &format!("grep -E '^(CapEff|CapBnd|NoNewPrivs):' /proc/{process}/status"),
                );
                let sets: Vec<u64> = status
                    .lines()
                    .filter(|line| line.starts_with("Cap"))
                    .map(|line| u64::from_str_radix(line.split_whitespace().nth(1).expect("a set"), 16).expect("hex"))
                    .collect();
                assert!(
                    sets.iter().all(|set| set & (1 << 13 | 1 << 27) == 0 && set & 1 == 1),
                    "{status}"
                );
                assert!(status.contains("NoNewPrivs:\t1"), "{status}");
            }
            let whole = zmachine(
                &home,
                &["exec", "--privileged", "s", "grep", "NoNewPrivs", "/proc/self/status"],
            );
            assert_eq!(whole.expect_success().stdout(), "NoNewPrivs:\t0\n");
        },
    );
    checks.that("inspect's templates know docker's fields", || {
        let format = "{{.State.Status}} {{.State.Running}} {{.State.ExitCode}} {{.RestartCount}} {{.HostConfig.RestartPolicy.Name}} \
                      {{json .Config.Cmd}} {{.NetworkSettings.IPAddress}}|{{len .Mounts}}|{{.State.Pid}}";
        let inspected = zmachine(&home, &["inspect", "-f", format, "s"]).expect_success().stdout();
        let (known, pid) = inspected.trim().rsplit_once('|').expect("three parts");
        assert_eq!(known, r#"running true 0 0 no ["sleep","1000"] |0"#);
        let hypervisor = zmachine(&home, &["inspect", "-f", "{{.State.Hypervisor.Pid}}", "s"]);
        assert_eq!(pid, hypervisor.expect_success().stdout().trim());
    });
    checks.that("the files have its id and its monitor", || {
        let inspected = zmachine(&home, &["inspect", "-f", "{{.ID}} {{.State.Monitor.Pid}}", "s"])
            .expect_success()
            .stdout();
        let read = |name: &str| {
            std::fs::read_to_string(home.file(name))
                .expect("the file")
                .trim()
                .to_owned()
        };
        assert_eq!(inspected.trim(), format!("{} {}", read("ids"), read("pid")));
        let again = zmachine(&home, &["create", &cid, &image]);
        assert!(
            again.expect_code(1).stderr().contains("--cidfile"),
            "{}",
            again.stderr()
        );
    });
    checks.that("top lists its processes, as the container numbers them", || {
        let top = zmachine(&home, &["top", "s", "-o", "json"]).expect_success().stdout();
        let processes: serde_json::Value = serde_json::from_str(&top).expect("JSON");
        let first = &processes[0];
        assert_eq!(
            (first["pid"].as_u64(), first["command"].as_str()),
            (Some(1), Some("sleep 1000")),
            "{top}"
        );
    });
    checks.that("listings have docker's words, filters and templates", || {
        let format = "{{.Names}}|{{.Command}}|{{.Label \"none\"}}|{{.State}}";
        let ps = |words: &[&str]| zmachine(&home, &[&["ps"], words].concat()).expect_success().stdout();
        assert_eq!(ps(&["--format", format]), "s|sleep 1000||running\n");
        assert!(
            ps(&[]).contains("Up ") && ps(&[]).contains("\"sleep 1000\""),
            "{}",
            ps(&[])
        );
        assert_eq!(ps(&["-q", "--filter", "name=s", "--filter", "status=running"]), "s\n");
        assert_eq!(ps(&["-q", "--filter", "label=none"]), "");
        assert_eq!(
            zmachine(&home, &["stop", "-a", "-t", "0"]).expect_success().stdout(),
            "s\n"
        );
        assert!(ps(&["-a"]).contains("Exited (137) "), "{}", ps(&["-a"]));
        assert_eq!(
            zmachine(&home, &["system", "prune", "-f"])
                .expect_success()
                .stdout()
                .lines()
                .next(),
            Some("s")
        );
    });
    home.assert_host_clean();
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let Some((home, image)) = home_with_box() else { return };
    for (flags, part) in [
        (&["--platform", "linux/arm64"][..], "x86-64"),
        (&["--log-driver", "fluentd"], "--log-to"),
        (&["--mount", "type=bind,target=/x"], "needs a source"),
        (&["--security-opt", "seccomp=profile.json"], "no such profile"),
        (&["--network", "none", "--add-host", "me:host-gateway"], "--add-host"),
        (&["--ip", "10.1.1.1", "--network", "none"], "is of no network"),
        (&["--ulimit", "files=5"], "limits are"),
        (&["--gpus", "all"], "devices of this host"),
    ] {
        let refused = zmachine(&home, &[&["create"], flags, &[image.as_str()]].concat());
        assert!(
            refused.code != 0 && refused.stderr().contains(part),
            "{flags:?}: {}",
            refused.stderr()
        );
    }
    let half = zmachine(&home, &["create", "--name", "half", "--cpus", "0.5", &image]);
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let holds = ["cpu", "memory"]
        .iter()
        .all(|wanted| controllers.split_whitespace().any(|name| name == *wanted));
    let told = half.expect_success().stderr().contains("is not limited to 0.5 CPUs");
    assert_eq!(told, !holds, "{}", half.stderr());
    zmachine(&home, &["rm", "half"]).expect_success();
    zmachine(&home, &["network", "create", "left"]).expect_success();
    assert_eq!(
        zmachine(&home, &["network", "prune", "-f"]).expect_success().stdout(),
        "left\n"
    );
    let words = [
        "run",
        "-d",
        "--network",
        "none",
        "--pidfile",
        "/nonexistent/pid",
        &image,
        "sleep",
        "9",
    ];
    let refused = zmachine(&home, &words);
    assert!(refused.expect_code(125).stderr().contains("--pidfile"), "{refused}");
    assert_eq!(zmachine(&home, &["ps", "-aq"]).expect_success().stdout(), "");
    home.assert_host_clean();
}
