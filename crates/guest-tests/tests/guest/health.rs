//! The health check of an image, as docker's tools write it, made in a real guest: it fails, succeeds and fails again.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use zmachine_testkit::TestHome;

use crate::support::{exec_output, home, inspect, until, zmachine};

/// An archive as `docker save` writes it, of an image whose check tells where it runs and looks for a file.
const IMAGE: &str = r#"set -e
mkdir -p root/bin root/data root/etc
cp "$(command -v busybox)" root/bin/busybox
for name in sh sleep id pwd test; do ln -s busybox root/bin/$name; done
echo 'web:x:33:33::/:/bin/sh' >root/etc/passwd
chown 33:33 root/data
tar -C root -cf layer.tar .
sum=$(sha256sum layer.tar | cut -d' ' -f1)
cat >config.json <<END
{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:$sum"]},
 "config":{"Cmd":["sleep","1000"],"Env":["PATH=/bin","WORD=hello"],"User":"web","WorkingDir":"/data",
  "Healthcheck":{"Test":["CMD-SHELL","echo \"\$(id -un) in \$(pwd): \$WORD\"; test -e ok"],"Interval":500000000,"Retries":2}}}
END
echo '[{"Config":"config.json","RepoTags":["checked:1"],"Layers":["layer.tar"]}]' >manifest.json
tar -cf image.tar config.json manifest.json layer.tar
"#;

fn health(home: &TestHome) -> Value {
    inspect(home, "c")["state"]["health"].clone()
}

#[test]
fn the_check_of_an_image_runs_in_the_guest_and_everybody_sees_what_it_says() {
    let Some(home) = home() else { return };
    home.command(Path::new("sh"), ["-c", IMAGE]).finish().expect_success();
    let file = |name: &str| home.file(name).display().to_string();
    zmachine(&home, &["load", "-i", &file("image.tar")]).expect_success();
    // It outlives an archive of ours.
    zmachine(&home, &["save", "-o", &file("again.tar"), "checked:1"]).expect_success();
    zmachine(&home, &["rmi", "checked:1"]).expect_success();
    zmachine(&home, &["load", "-i", &file("again.tar")]).expect_success();
    let image = zmachine(&home, &["image", "inspect", "checked:1"]);
    let image: Value = serde_json::from_str(&image.expect_success().stdout()).expect("JSON");
    assert_eq!(image[0]["Config"]["Healthcheck"]["Retries"], 2, "{image}");
    let planned = |flags: &[&str]| {
        let words = [&["run", "--dry-run", "--network", "none"], flags, &["checked:1"]].concat();
        let plan = zmachine(&home, &words);
        let plan: Value = serde_json::from_str(&plan.expect_success().stdout()).expect("JSON");
        plan["health"].clone()
    };
    assert_eq!(planned(&["--no-healthcheck"]), Value::Null);
    let own = planned(&["--health-cmd", "true", "--health-timeout", "2s"]);
    assert_eq!(own["command"], json!(["/bin/sh", "-c", "true"]));
    assert_eq!(
        (&own["interval_ms"], &own["timeout_ms"], &own["retries"]),
        (&json!(500), &json!(2000), &json!(2))
    );

    zmachine(&home, &["run", "-d", "--name", "c", "--network", "none", "checked:1"]).expect_success();
    let ps = |words: &[&str]| zmachine(&home, &[&["ps"], words].concat()).expect_success().stdout();
    let wait = |condition: &str| {
        let words = ["wait", "--condition", condition, "c"];
        home.zmachine(words)
            .deadline(Duration::from_secs(60))
            .finish()
            .expect_success();
    };
    wait("unhealthy");
    assert!(ps(&[]).contains("(unhealthy)"), "{}", ps(&[]));
    exec_output(&home, "c", "echo >ok");
    wait("healthy");
    assert!(ps(&[]).contains("(healthy)"), "{}", ps(&[]));
    assert_eq!(ps(&["-q", "--filter", "health=healthy"]), "c\n");
    assert_eq!(ps(&["-q", "--filter", "health=none"]), "");
    let found = health(&home);
    assert_eq!(
        (&found["status"], &found["failing_streak"]),
        (&json!("healthy"), &json!(0))
    );
    let last = found["log"].as_array().and_then(|log| log.last()).expect("a check");
    assert_eq!(
        (&last["exit_code"], &last["output"]),
        (&json!(0), &json!("web in /data: hello\n"))
    );
    let format = "{{.State.Health.Status}} {{range .State.Health.Log}}{{.ExitCode}}{{end}}";
    let shown = zmachine(&home, &["inspect", "-f", format, "c"])
        .expect_success()
        .stdout();
    assert!(shown.starts_with("healthy ") && shown.ends_with("0\n"), "{shown}");

    // Nothing is checked while it is paused.
    zmachine(&home, &["pause", "c"]).expect_success();
    let before = health(&home);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(health(&home), before);
    zmachine(&home, &["resume", "c"]).expect_success();

    exec_output(&home, "c", "busybox rm ok");
    wait("unhealthy");
    assert_eq!(inspect(&home, "c")["state"]["phase"], "running");
    let events = zmachine(&home, &["events"]).expect_success().stdout();
    let turns: Vec<&str> = events
        .lines()
        .filter_map(|line| line.split_once(" health_status: ").map(|(_, status)| status))
        .collect();
    assert_eq!(turns, ["unhealthy", "healthy", "unhealthy"], "{events}");

    zmachine(&home, &["stop", "-t", "1", "c"]).expect_success();
    assert_eq!(ps(&["-aq", "--filter", "health=unhealthy"]), "c\n");
    let refused = zmachine(&home, &["wait", "--condition", "healthy", "c"]);
    assert!(refused.expect_code(4).stderr().contains("is not running"), "{refused}");
    // Nobody waits for a machine that is removed.
    let mut waiting = home.zmachine(["wait", "--condition", "removed", "c"]).start();
    std::thread::sleep(Duration::from_millis(500));
    assert!(waiting.try_wait().expect("a child").is_none());
    zmachine(&home, &["rm", "c"]).expect_success();
    until("the end of the wait", Duration::from_secs(10), || {
        waiting.try_wait().expect("a child")
    });
    home.assert_host_clean();
}
