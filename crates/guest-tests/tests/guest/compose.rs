//! A project of a compose file, from the first `up` to a `down` that leaves nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use zmachine_testkit::{Finished, TestHome};

use crate::support::{Checks, exec_output, home_with_box, inspect, sh, until, zmachine};

const FILE: &str = r#"
name: shop
services:
  web:
    image: ./box.fl
    command: httpd -f -p 80 -h /www
    scale: 2
    environment: {WORD: "${WORD:-first}", EMPTY: }
    configs: [{source: page, target: /www/index.html}]
    volumes: ["./motd:/etc/motd:ro", "/kept"]
    networks: {default: {aliases: [www]}}
    depends_on: {db: {condition: service_healthy}, once: {condition: service_completed_successfully}}
  db:
    image: ./box.fl
    command: [sh, -c, "echo started >> /data/starts; cat /run/secrets/token; sleep 0.5; touch /tmp/ok; exec sleep 1000"]
    secrets: [token]
    volumes: ["data:/data"]
    healthcheck: {test: "test -e /tmp/ok", interval: 500ms, start_interval: 200ms}
    stop_grace_period: 1s
  once:
    image: ./box.fl
    command: [sh, -c, "echo done; exit 0"]
  spare:
    image: ./box.fl
    command: sleep 1000
    profiles: [extra]
configs: {page: {content: "a page for $${WORD}\n"}}
secrets: {token: {environment: TOKEN}}
volumes: {data: {x-zmachine: {size: 64M}}}
"#;

/// `zmachine compose args...` in the home's folder, where the file is.
fn compose(home: &TestHome, args: &[&str]) -> Finished {
    let args = [&["compose"], args].concat();
    home.zmachine(args)
        .env("TOKEN", "t0ken")
        .deadline(Duration::from_secs(240))
        .finish()
}

/// Ids by name.
fn ids(home: &TestHome) -> BTreeMap<String, String> {
    let listed = zmachine(home, &["ps", "-a", "-o", "json"]);
    let all: Vec<Value> = serde_json::from_str(&listed.expect_success().stdout()).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.iter()
        .map(|machine| (text(&machine["name"]), text(&machine["id"])))
        .collect()
}

#[test]
fn a_project_comes_up_in_order_stays_as_it_is_and_leaves_nothing() {
    let Some((home, _)) = home_with_box() else { return };
    fs::write(home.file("compose.yaml"), FILE).expect("a file");
    fs::write(home.file("motd"), "welcome\n").expect("a file");
    let up = compose(&home, &["up", "-d", "--wait"]);
    up.expect_success();
    let first = ids(&home);
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    assert_eq!(names, ["shop-db-1", "shop-once-1", "shop-web-1", "shop-web-2"], "{up}");
    let mut checks = Checks::default();
    checks.that("labels are docker's", || {
        let labels = inspect(&home, "shop-web-2")["spec"]["labels"].clone();
        let label = |key: &str| {
            labels[format!("com.docker.compose.{key}")]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        assert_eq!((label("project").as_str(), label("service").as_str()), ("shop", "web"));
        assert_eq!(
            (label("container-number").as_str(), label("oneoff").as_str()),
            ("2", "False")
        );
        assert_eq!(label("config-hash").len(), 64);
        assert_eq!(
            label("depends_on"),
            "db:service_healthy:false,once:service_completed_successfully:false"
        );
    });
    checks.that("what was needed was there before", || {
        let at = |name: &str, key: &str| {
            inspect(&home, name)["state"][key]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let web = at("shop-web-1", "started_at");
        assert!(at("shop-once-1", "finished_at") < web && at("shop-db-1", "ready_at") < web);
    });
    checks.that(
        "services find each other by their names, each of their machines",
        || {
            // They run, which is all that is waited for; whether they listen already is theirs.
            for name in ["web", "www"] {
                let page = format!("wget -q -O - http://{name}/");
                until("a page", Duration::from_secs(20), || {
                    let got = sh(&home, "shop-db-1", &page);
                    (got.code == 0).then(|| assert_eq!(got.stdout().trim_end(), "a page for ${WORD}"))
                });
            }
            let found = exec_output(
                &home,
                "shop-db-1",
                "nslookup web | grep -A1 Name | grep -c Address || true; nslookup web",
            );
            for name in ["shop-web-1", "shop-web-2"] {
                let address = inspect(&home, name)["state"]["addresses"][0]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                assert!(!address.is_empty() && found.contains(&address), "{address}: {found}");
            }
        },
    );
    checks.that("files of the host are copies in the guest", || {
        assert_eq!(exec_output(&home, "shop-web-1", "cat /etc/motd"), "welcome");
        exec_output(&home, "shop-web-1", "echo changed > /etc/motd");
        assert_eq!(fs::read_to_string(home.file("motd")).expect("a file"), "welcome\n");
        assert_eq!(
            exec_output(&home, "shop-web-1", "ls -A /dev | grep -c files || true"),
            "0"
        );
    });
    checks.that("logs have the names of their machines", || {
        let logs = compose(&home, &["logs", "db", "once"]).stdout();
        assert!(
            logs.contains("db-1   | t0ken") && logs.contains("once-1 | done"),
            "{logs}"
        );
    });
    checks.that("exec and ps know services", || {
        let said = compose(&home, &["exec", "--index", "2", "web", "hostname"]);
        assert_eq!(said.expect_success().stdout().trim(), "shop-web-2");
        compose(&home, &["exec", "db", "sh", "-c", "exit 7"]).expect_code(7);
        let listed = compose(&home, &["ps", "--format", "{{.Service}} {{.State}}"]).stdout();
        assert_eq!(listed, "db running\nweb running\nweb running\n");
    });
    checks.that("a command in a machine of its own", || {
        let run = compose(
            &home,
            &[
                "run",
                "--rm",
                "-T",
                "-e",
                "MORE=x",
                "web",
                "sh",
                "-c",
                "echo $WORD $MORE; wget -q -O - http://web/; exit 4",
            ],
        );
        assert_eq!(run.expect_code(4).stdout(), "first x\na page for ${WORD}\n");
        assert_eq!(ids(&home).len(), 4);
    });
    checks.that("a second up changes nothing", || {
        let again = compose(&home, &["up", "-d"]);
        assert_eq!(again.expect_success().stdout(), "");
        assert_eq!(ids(&home), first);
    });
    checks.that(
        "only what has changed is made anew, with what is on its volumes",
        || {
            exec_output(&home, "shop-web-1", "echo before > /kept/word");
            let broken = FILE.replacen("./box.fl", "./no-such.fl", 1);
            fs::write(home.file("broken.yaml"), broken).expect("a file");
            compose(&home, &["-f", "broken.yaml", "up", "-d"]).expect_code(3);
            assert_eq!(ids(&home), first, "without its new image, the old machine stays");
            let words = ["compose", "up", "-d", "--scale", "web=1"];
            let changed = home.zmachine(words).env("TOKEN", "t0ken").env("WORD", "second");
            changed.deadline(Duration::from_secs(240)).finish().expect_success();
            let now = ids(&home);
            assert_eq!(now["shop-db-1"], first["shop-db-1"]);
            assert_ne!(now["shop-web-1"], first["shop-web-1"]);
            assert!(!now.contains_key("shop-web-2"), "{now:?}");
            assert_eq!(
                exec_output(&home, "shop-web-1", "echo $WORD; cat /kept/word"),
                "second\nbefore"
            );
            let again = home.zmachine([
                "compose",
                "up",
                "-d",
                "--force-recreate",
                "--no-deps",
                "--scale",
                "web=1",
                "web",
            ]);
            let again = again.env("TOKEN", "t0ken").env("WORD", "second");
            again.deadline(Duration::from_secs(240)).finish().expect_success();
            assert_eq!(exec_output(&home, "shop-web-1", "cat /kept/word"), "before");
        },
    );
    checks.that("a failure names the service and leaves what runs", || {
        let broken = FILE
            .replace("httpd -f", "no-such-program -f")
            .replace("exit 0", "exit 3");
        fs::write(home.file("broken.yaml"), broken).expect("a file");
        let failed = compose(&home, &["-f", "broken.yaml", "up", "-d"]);
        failed.expect_code(1);
        let said = failed.stderr();
        assert!(
            said.contains("service 'web'") && said.contains("shop-once-1") && said.contains("status 3"),
            "{said}"
        );
        assert_eq!(ids(&home)["shop-db-1"], first["shop-db-1"]);
    });
    checks.that("volumes outlive down, and go with -v", || {
        compose(&home, &["down"]).expect_success();
        assert!(ids(&home).is_empty());
        home.assert_host_clean();
        compose(&home, &["up", "-d", "db"]).expect_success();
        until("the second start", Duration::from_secs(30), || {
            (exec_output(&home, "shop-db-1", "cat /data/starts") == "started\nstarted").then_some(())
        });
        // Without the files, the name is enough.
        fs::rename(home.file("compose.yaml"), home.file("away.yaml")).expect("a move");
        assert!(compose(&home, &["ls"]).stdout().contains("shop"));
        compose(&home, &["-p", "shop", "stop", "-t", "1"]).expect_success();
        fs::rename(home.file("away.yaml"), home.file("compose.yaml")).expect("a move");
        compose(&home, &["down", "-v"]).expect_success();
        home.assert_host_clean();
        let networks = zmachine(&home, &["network", "ls", "-q"]).stdout();
        assert!(!networks.contains("shop"), "{networks}");
        assert_eq!(zmachine(&home, &["volume", "ls", "-q"]).stdout(), "");
        assert!(!home.path().join("compose/shop").exists());
    });
}

#[test]
fn up_shows_logs_until_it_is_interrupted_or_a_machine_ends() {
    let Some((home, _)) = home_with_box() else { return };
    let file = "services:\n  a: {image: ./box.fl, network_mode: none, command: [sh, -c, 'echo one; exec sleep 1000'], stop_grace_period: 1s}\n  \
                b: {image: ./box.fl, network_mode: none, command: [sh, -c, 'echo two; sleep ${TIME}; exit 5'], stop_grace_period: 1s}\n";
    fs::write(home.file("compose.yaml"), file).expect("a file");
    let up = |time: &str, more: &[&str]| {
        let args = [&["compose", "-p", "logs", "up"], more].concat();
        home.zmachine(args).env("TIME", time).deadline(Duration::from_secs(120))
    };
    let ended = up("0", &["--exit-code-from", "b"]).finish();
    let output = ended.expect_code(5).stdout();
    assert!(output.contains("b-1 | two\n"), "{ended}");
    assert!(ended.stderr().contains("b-1  exited with code 5"), "{ended}");

    let mut child = up("1000", &[]).start();
    let mut seen = String::new();
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut buffer = [0; 4096];
    while !(seen.contains("a-1 | one\n") && seen.contains("b-1 | two\n")) {
        let n = stdout.read(&mut buffer).expect("its output");
        assert!(n > 0, "it ended early: {seen}");
        seen += &String::from_utf8_lossy(&buffer[..n]);
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    let status = child.wait().expect("its end");
    assert_eq!(status.code(), Some(130));
    let listed = zmachine(&home, &["ps", "-q"]);
    assert_eq!(listed.stdout(), "", "they have stopped");
    home.zmachine(["compose", "-p", "logs", "down"])
        .env("TIME", "1")
        .finish()
        .expect_success();
    home.assert_host_clean();
}
