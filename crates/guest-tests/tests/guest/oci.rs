//! A container image made of Debian's packages by `umoci`, copied by `skopeo`, imported and run as what it says it is; with
//! its blocks in a server that goes away.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use zmachine_testkit::{Need, TestHome, lacking, skip};

use crate::rootless::User;
use crate::support::{Registry, exec_output, home, inspect, sh, until, until_logged, zmachine};

/// `cap_net_raw+ep` in the format of the kernel (version 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const ENTRYPOINT: &str = "#!/bin/sh
echo \"$(id -un) in $(pwd): $GREETING, $*\"
getcap /usr/bin/tac
exec tail -f /dev/null
";

/// An OCI layout `oci:web` in the home's folder.
fn debian_image(home: &TestHome) {
    let tool = |program: &str, args: &[&str]| {
        home.command(Path::new(program), args)
            .deadline(Duration::from_secs(300))
            .finish()
            .expect_success();
    };
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/debian-tree");
    let packages = home.cache().join("oci-tree");
    // Not in the home's network, which has no way out to a mirror.
    let made = Command::new(scripts)
        .arg(&packages)
        .args(["coreutils", "dash", "libcap2-bin", "base-passwd"])
        .output();
    let made = made.expect("debian-tree");
    assert!(
        made.status.success(),
        "debian-tree: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    tool("umoci", &["init", "--layout", "made"]);
    tool("umoci", &["new", "--image", "made:web"]);
    tool("umoci", &["unpack", "--image", "made:web", "bundle"]);
    let root = home.file("bundle/rootfs");
    tool(
        "cp",
        &["-a", &format!("{}/.", packages.display()), &root.display().to_string()],
    );
    fs::create_dir_all(root.join("srv/www")).expect("a folder");
    fs::write(root.join("entry"), ENTRYPOINT).expect("the entrypoint");
    tool("chmod", &["755", &root.join("entry").display().to_string()]);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(root.join("usr/bin/tac"), "security.capability", &CAPABILITY, flags).expect("setxattr");
    tool("umoci", &["repack", "--image", "made:web", "bundle"]);
    let config = [
        "--config.entrypoint=/entry",
        "--config.cmd=from",
        "--config.cmd=the image",
        "--config.env=GREETING=hello",
        "--config.user=www-data",
        "--config.workingdir=/srv/www",
        "--config.exposedports=8080/tcp",
        "--config.volume=/var/lib/web",
        "--config.label=tier=front",
        "--config.label=owner=us",
    ];
    tool("umoci", &[&["config", "--image", "made:web"][..], &config].concat());
    // As a registry would have it: layers compressed anew.
    tool(
        "skopeo",
        &[
            "copy",
            "-q",
            "--dest-compress-format",
            "zstd",
            "oci:made:web",
            "oci:oci:web",
        ],
    );
}

/// A server of the 0-db protocol on a Unix socket.
struct Redis(Child);

impl Redis {
    fn start(home: &TestHome) -> (Redis, String) {
        let socket = home.file("redis.sock");
        // The same program as the server's, from a package that starts no service.
        let mut command = Command::new("redis-check-rdb");
        command
            .arg0("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket);
        let redis = Redis(command.stdout(Stdio::null()).spawn().expect("redis: run scripts/setup"));
        until("the server's socket", Duration::from_secs(30), || {
            socket.exists().then_some(())
        });
        (redis, format!("zdb://{}", socket.display()))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_of_debian_packages_runs_as_it_says_and_outlives_its_store() {
    let Some(home) = home() else { return };
    let commands = ["umoci", "skopeo", "redis-check-rdb", "apt-get", "dpkg-deb"].map(Need::Command);
    if let Some(reason) = lacking(&commands) {
        return skip(&reason);
    }
    debian_image(&home);
    let (redis, store) = Redis::start(&home);
    let image = home.file("web.fl").display().to_string();
    let imported = ["flist", "import", "oci:oci:web", "-o", &image, "--store", &store];
    home.zmachine(imported)
        .deadline(Duration::from_secs(300))
        .finish()
        .expect_success();

    let plan = zmachine(&home, &["run", "--dry-run", "-P", "--label", "tier=back", &image]);
    let plan: Value = serde_json::from_str(&plan.expect_success().stdout()).expect("JSON");
    assert_eq!(plan["labels"], json!({"tier": "back", "owner": "us"}));
    assert_eq!(plan["exposed_ports"], json!(["8080/tcp"]));
    assert_eq!(plan["volumes"], Value::Null, "its data directory is part of the root");
    let sealed = zmachine(&home, &["run", "--dry-run", "--read-only", "--network", "none", &image]);
    let sealed: Value = serde_json::from_str(&sealed.expect_success().stdout()).expect("JSON");
    assert_eq!(sealed["volumes"].as_array().map(Vec::len), Some(1), "{sealed}");
    assert_eq!(sealed["boot"]["mounts"][0]["target"], "/var/lib/web");
    assert!(
        plan["attachments"].to_string().contains("8080"),
        "{}",
        plan["attachments"]
    );

    zmachine(&home, &["run", "-d", "--name", "w", "--network", "none", &image]).expect_success();
    let reported = "www-data in /srv/www: hello, from the image\n/usr/bin/tac cap_net_raw=ep\n";
    until_logged(&home, "w", reported);
    zmachine(&home, &["exec", "-u", "0", "w", "touch", "/var/lib/web/data"]).expect_success();

    // What the machine has read is its own from here on, whatever becomes of the store and however small the cache is to be.
    let sums = "sha256sum /usr/bin/tac /usr/bin/sort";
    let before = exec_output(&home, "w", sums);
    drop(redis);
    let limited = zmachine(&home, &["image", "cache", "--limit", "1K"]);
    assert!(
        limited.expect_success().stderr().contains("over its limit"),
        "{limited}"
    );
    let forget = "echo 3 > /proc/sys/vm/drop_caches";
    zmachine(&home, &["exec", "-u", "0", "w", "sh", "-c", forget]).expect_success();
    assert_eq!(exec_output(&home, "w", sums), before);
    let unread = sh(&home, "w", "cat /usr/bin/shuf | wc -c");
    assert!(unread.stderr().contains("Input/output error"), "{unread}");
    zmachine(&home, &["rm", "-f", "w"]).expect_success();
    let freed = zmachine(&home, &["image", "cache", "--limit", "1K"]);
    assert!(freed.expect_success().stderr().contains("blocks removed"), "{freed}");
}

#[test]
fn an_image_runs_by_its_name_in_a_registry_and_again_when_that_is_gone() {
    let Some(home) = home() else { return };
    let commands = ["umoci", "skopeo", "bash", "apt-get", "dpkg-deb"].map(Need::Command);
    if let Some(reason) = lacking(&commands) {
        return skip(&reason);
    }
    debian_image(&home);
    let registry = Registry::start(&home);
    let name = format!("{}/team/web:1", Registry::HOST);
    let copied = [
        "copy",
        "-q",
        "--dest-tls-verify=false",
        "oci:oci:web",
        &format!("docker://{name}"),
    ];
    home.command(Path::new("skopeo"), copied)
        .deadline(Duration::from_secs(120))
        .finish()
        .expect_success();

    // With a table of contents in its layer it starts before that is here, and the rest comes meanwhile.
    let lazy = format!("{}/team/lazy:1", Registry::HOST);
    let chunked = [
        "copy",
        "-q",
        "--dest-tls-verify=false",
        "--dest-compress-format",
        "zstd:chunked",
    ];
    let ends = ["oci:made:web".to_owned(), format!("docker://{lazy}")];
    home.command(
        Path::new("skopeo"),
        chunked.iter().copied().chain(ends.iter().map(String::as_str)),
    )
    .deadline(Duration::from_secs(120))
    .finish()
    .expect_success();
    zmachine(&home, &["run", "-d", "--name", "l", "--network", "none", &lazy]).expect_success();
    until_logged(
        &home,
        "l",
        "www-data in /srv/www: hello, from the image\n/usr/bin/tac cap_net_raw=ep\n",
    );
    let digest = inspect(&home, "l")["plan"]["image"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let begun = home.path().join("images").join(&digest);
    assert!(begun.join("lazy.json").is_file(), "{digest} came as a whole");
    until("the rest of the image", Duration::from_secs(120), || {
        begun.join("lazy.blocks").is_file().then_some(())
    });
    // The machine keeps it, which concerns nobody who lists images.
    until("the whole image in its place", Duration::from_secs(10), || {
        let listed = zmachine(&home, &["image", "ls", "--format", "json"]).stdout();
        (listed.contains("team/lazy") && !listed.contains(&digest)).then_some(())
    });

    let missing = zmachine(
        &home,
        &[
            "run",
            "--rm",
            "--network",
            "none",
            &format!("{}/team/no", Registry::HOST),
        ],
    );
    missing.expect_code(125);
    assert!(
        missing.stderr().contains("there is no image") && missing.stderr().contains("404"),
        "{missing}"
    );

    zmachine(&home, &["run", "-d", "--name", "w", "--network", "none", &name]).expect_success();
    until_logged(
        &home,
        "w",
        "www-data in /srv/www: hello, from the image\n/usr/bin/tac cap_net_raw=ep\n",
    );
    let listed = zmachine(&home, &["ps"]);
    assert!(listed.stdout().contains(&name), "{listed}");
    let inspected = zmachine(&home, &["inspect", "w"]).expect_success().stdout();
    let pinned = format!("{}/team/web@sha256:", Registry::HOST);
    assert!(inspected.contains(&pinned), "{inspected}");
    let kept = zmachine(&home, &["rmi", &name]);
    assert!(
        kept.expect_success().stderr().contains("as long as w uses it"),
        "{kept}"
    );
    zmachine(&home, &["rm", "-f", "w"]).expect_success();

    // An ordinary user has images of its own.
    let user = User::beside(&home);
    let echoed = [
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "echo",
        &name,
        "as a user",
    ];
    for _ in 0..2 {
        assert_eq!(user.zmachine(&echoed).expect_success().stdout(), "as a user\n");
    }
    drop(user);

    zmachine(&home, &["pull", &name]).expect_success();
    let limited = zmachine(&home, &["image", "cache", "--limit", "1K"]);
    assert!(
        limited.expect_success().stderr().contains("no store has it"),
        "{limited}"
    );
    drop(registry);
    // All of it is here, whatever of it was read before.
    let sums = "cat /usr/bin/* | sha256sum | cut -c1-64";
    let sum = exec_output(&home, "l", sums);
    zmachine(&home, &["stop", "-t", "1", "l"]).expect_success();
    zmachine(&home, &["start", "l"]).expect_success();
    assert_eq!(exec_output(&home, "l", sums), sum);
    zmachine(&home, &["rm", "-f", "l"]).expect_success();
    zmachine(&home, &["rmi", &lazy]).expect_success();
    zmachine(&home, &["image", "prune"]).expect_success();
    let again = [
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "echo",
        &name,
        "once more",
    ];
    assert_eq!(zmachine(&home, &again).expect_success().stdout(), "once more\n");
    let newer = [&["run", "--pull", "newer"][..], &again[1..]].concat();
    assert_eq!(zmachine(&home, &newer).expect_success().stdout(), "once more\n");
    zmachine(&home, &["rmi", &name]).expect_success();
    let usage: Value =
        serde_json::from_str(&zmachine(&home, &["image", "cache", "-o", "json"]).stdout()).expect("JSON");
    assert_eq!(usage["blocks"], 0, "{usage}");

    // A layout needs no registry and no name.
    let layout = [
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "id",
        "oci:oci:web",
        "-un",
    ];
    assert_eq!(zmachine(&home, &layout).expect_success().stdout(), "www-data\n");
}
