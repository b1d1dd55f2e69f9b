//! A machine that always obeys, and state that is never lost because it could not be read. One machine serves all checks.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Checks, exec_output, home_with_box, inspect, sh, zmachine};

/// What is refused is refused at once, however slow the host is.
const AT_ONCE: Duration = Duration::from_secs(10);

#[test]
fn a_machine_obeys_when_paused_and_nothing_is_lost_that_cannot_be_read() {
    let Some((home, image)) = home_with_box() else { return };
    let run = [
        "run",
        "-d",
        "--name",
        "o",
        "-p",
        "80",
        "-p",
        "127.0.0.1::81",
        "-v",
        "data:/data:size=16M",
    ];
    let words: Vec<&str> = run
        .into_iter()
        .chain([image.as_str(), "sh", "-c", "sleep 1000"])
        .collect();
    zmachine(&home, &words).expect_success();
    let mut checks = Checks::default();
    checks.that("ports that name none of the host are free ones, and are shown", || {
        let ports = zmachine(&home, &["port", "o"]).expect_success().stdout();
        let lines: Vec<&str> = ports.lines().collect();
        assert!(
            lines.len() == 2 && lines[0].starts_with("80/tcp -> 0.0.0.0:"),
            "{ports}"
        );
        assert!(lines[1].starts_with("81/tcp -> 127.0.0.1:"), "{ports}");
        let port = lines[0].rsplit(':').next().unwrap();
        assert!(zmachine(&home, &["ps"]).stdout().contains(&format!("{port}:80/tcp")));
        zmachine(&home, &["port", "o", "82"]).expect_code(3);
    });
    checks.that(
        "a paused machine refuses at once what its guest would have to do, and goes on",
        || {
            zmachine(&home, &["pause", "o"]).expect_success();
            let begun = Instant::now();
            for words in [
                &["kill", "-s", "HUP", "o"][..],
                &["exec", "o", "true"],
                &["cp", "o:/etc/hostname", "-"],
                &["volume", "grow", "data", "32M"],
            ] {
                let refused = zmachine(&home, words);
                assert!(
                    refused.code != 0 && refused.stderr().contains("paused"),
                    "{words:?}: {refused}"
                );
                assert!(refused.stderr().contains("zmachine resume"), "{words:?}: {refused}");
            }
            assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
            zmachine(&home, &["resume", "o"]).expect_success();
            assert_eq!(exec_output(&home, "o", "echo on"), "on");
            zmachine(&home, &["volume", "grow", "data", "32M"]).expect_success();
        },
    );
    checks.that("a terminal is needed where one is asked for", || {
        let refused = home.zmachine(["exec", "-it", "o", "sh"]).input(b"").finish();
        assert!(
            refused.expect_code(125).stderr().contains("not a terminal"),
            "{refused}"
        );
    });
    checks.that("archives go in and out", || {
        sh(
            &home,
            "o",
            "mkdir -p /t/deep; echo content > /t/deep/a; ln /t/deep/a /t/b",
        )
        .expect_success();
        let archive = zmachine(&home, &["cp", "o:/t", "-"]);
        let archive = archive.expect_success().stdout_bytes.clone();
        home.zmachine(["cp", "-", "o:/tmp"])
            .input(&archive)
            .finish()
            .expect_success();
        assert_eq!(
            exec_output(&home, "o", "cat /tmp/t/b; stat -c %h /tmp/t/deep/a"),
            "content\n2"
        );
        assert!(!home.file("-").exists());
        let version = zmachine(&home, &["cp", "o:/proc/version", "-"])
            .expect_success()
            .stdout();
        assert!(version.contains("Linux version"), "{version}");
    });
    checks.that("a volume whose machine cannot be read stays", || {
        let id = inspect(&home, "o")["id"].as_str().unwrap().to_owned();
        let spec = home.path().join("machines").join(&id).join("spec.json");
        let before = std::fs::read(&spec).unwrap();
        for damaged in ["", r#"{"version":9}"#] {
            std::fs::write(&spec, damaged).unwrap();
            let refused = zmachine(&home, &["volume", "rm", "data"]);
            assert!(refused.code != 0 && refused.stderr().contains(&id), "{refused}");
            let listed = zmachine(&home, &["ps", "-a"]);
            assert!(listed.code != 0 && listed.stderr().contains(&id), "{listed}");
        }
        let listed = zmachine(&home, &["volume", "ls"]);
        assert!(listed.code != 0 && listed.stdout().contains("data"), "{listed}");
        std::fs::write(&spec, before).unwrap();
        zmachine(&home, &["volume", "rm", "data"]).expect_code(4);
    });
    checks.that("a machine that lost its name is kept, told, and named again", || {
        std::fs::remove_file(home.path().join("machines/by-name/o")).unwrap();
        let listed = zmachine(&home, &["ps", "-o", "json"]);
        assert!(listed.expect_success().stderr().contains("doctor --repair"), "{listed}");
        let machines: Vec<Value> = serde_json::from_str(&listed.stdout()).unwrap();
        assert_eq!(machines[0]["name"], "o");
        zmachine(&home, &["exec", "o", "true"]).expect_code(125);
        assert!(
            zmachine(&home, &["doctor", "--repair"])
                .stderr()
                .contains("'o' has its name again")
        );
        assert_eq!(exec_output(&home, "o", "echo still"), "still");
    });
    zmachine(&home, &["rm", "-f", "-v", "o"]).expect_success();
}
