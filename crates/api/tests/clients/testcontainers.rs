//! Testcontainers for Python, with its reaper on: a container that has the server's own socket.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use zmachine_testkit::{Need, Tree, command_path, lacking, skip};

use crate::support::{Served, until};

const SCRIPT: &str = r#"
import os, docker
from testcontainers.redis import RedisContainer
box = RedisContainer("redis:7").start()
client = box.get_client()
client.set("key", "value")
assert client.get("key") == b"value"
code, out = box.exec(["busybox", "sh", "-c", "echo inside"])
assert (code, out) == (0, b"inside\n"), (code, out)
names = [c.name for c in docker.from_env().containers.list()]
assert any(name.startswith("testcontainers-ryuk-") for name in names), names
print("left", box.get_wrapped_container().id, flush=True)
# As a program that crashes: nobody stops the container.
os._exit(0)
"#;

/// A folder with programs of this host, and what they are linked to.
fn with_libraries(tree: &Tree, program: &Path, name: &str) {
    let to = tree.root().join("bin").join(name);
    fs::create_dir_all(tree.root().join("bin")).expect("a folder");
    fs::copy(program, to).expect("a program");
    let listed = Command::new("ldd").arg(program).output().expect("ldd");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = tree.root().join(&library[1..]);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::copy(library, to).expect("a library");
    }
}

#[test]
fn testcontainers_starts_redis_and_its_reaper_removes_what_is_left() {
    let needs = [
        Need::Command("python3"),
        Need::Command("redis-check-rdb"),
        Need::Command("ldd"),
    ];
    if let Some(reason) = lacking(&needs) {
        return skip(&reason);
    }
    let Some(served) = Served::new() else { return };
    let Some(python) = served.python("testcontainers[redis]") else {
        return;
    };
    let redis = Tree::empty(&served.home, "redis-tree").with_busybox();
    // The same program as the server's, from a package that starts no service.
    with_libraries(&redis, &command_path("redis-check-rdb").expect("redis"), "redis-server");
    let config = json!({
        "Env": ["PATH=/bin"], "Cmd": ["redis-server", "--save", "", "--bind", "0.0.0.0", "--protected-mode", "no"],
        "ExposedPorts": {"6379/tcp": {}},
    });
    let archive = served.archive("redis:7", redis.root(), &config);
    served.output(&["load", "-i", &archive]);
    let reaper = Tree::empty(&served.home, "reaper-tree")
        .folder("bin", 0o755)
        .folder("tmp", 0o1777);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reaper.rs");
    let made = Command::new("rustc")
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"])
        .arg(reaper.root().join("bin/reaper"))
        .arg(source)
        .output()
        .expect("rustc");
    assert!(made.status.success(), "{made:?}");
    let config = json!({"Cmd": ["/bin/reaper"], "ExposedPorts": {"8080/tcp": {}}});
    let archive = served.archive("testcontainers/ryuk:stand-in", reaper.root(), &config);
    served.output(&["load", "-i", &archive]);

    let run = served
        .with(&python, &["-c", SCRIPT])
        .env("RYUK_CONTAINER_IMAGE", "testcontainers/ryuk:stand-in")
        .finish();
    run.expect_success();
    let left = run.stdout().trim().rsplit_once("left ").expect("its id").1.to_owned();
    until("the reaper's work", || {
        (served.docker(&["inspect", &left]).code == 1).then_some(())
    });
    until("the reaper's end", || {
        served.output(&["ps", "-aq"]).is_empty().then_some(())
    });
}
