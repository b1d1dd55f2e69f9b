//! The real program against real servers: S3 (`s3s-fs`), nginx, Redis, Debian's registry, and a 0-db with namespaces.

mod registry;
mod zdb;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use zdb::{Namespace, Zdb};
use zmachine_testkit::{Server, debian_program};

/// In no output, no flist and no error.
const SECRETS: [&str; 2] = ["hunter2", "s3cret/+"];

/// `user:secret`, with the password hashed by bcrypt.
const REGISTRY_USERS: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A folder with a home, a tree to pack and whatever the servers keep.
struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Room {
        let room = Room(tempfile::tempdir().unwrap());
        fs::create_dir_all(room.path("tree/sub")).unwrap();
        fs::create_dir(room.path("home")).unwrap();
        let big: Vec<u8> = (0..400_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        fs::write(room.path("tree/big"), big).unwrap();
        for number in 0..40 {
            fs::write(room.path("tree/sub").join(number.to_string()), number.to_string()).unwrap();
        }
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.0)
            .env("ZMACHINE_HOME", self.path("home"))
            .stdin(Stdio::null());
        command
    }

    /// `zmachine args...` with its exit code and all it said, none of which is a secret.
    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        finish(self.command(env!("CARGO_BIN_EXE_zmachine")).args(args))
    }

    /// `zmachine args...`, which must exit with `code`.
    #[track_caller]
    fn expect(&self, code: i32, args: &[&str]) -> String {
        let (found, reported) = self.run(args);
        assert_eq!(found, Some(code), "{args:?}: {reported}");
        reported
    }

    /// Unpacks and holds the result against the tree.
    #[track_caller]
    fn unpacks(&self, args: &[&str]) {
        let words = [&["flist", "unpack"][..], args, &["out"]].concat();
        self.expect(0, &words);
        let same = self.command("diff").args(["-r", "tree", "out"]).status().unwrap();
        assert!(same.success(), "{args:?}: what was unpacked is not what was packed");
        fs::remove_dir_all(self.path("out")).unwrap();
    }

    fn credentials(&self, stores: &[(&str, &str, &str)]) {
        let entry = |(url, user, password): &(&str, &str, &str)| {
            format!("[[store]]\nurl = '{url}'\nuser = '{user}'\npassword = '{password}'\n")
        };
        let file = self.path("home/stores.toml");
        fs::write(&file, stores.iter().map(entry).collect::<String>()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn s3(&self) -> Server {
        let root = self.path("s3");
        fs::create_dir_all(root.join("blocks")).unwrap();
        Server::start(|port| {
            let mut command = self.command("s3s-fs");
            command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            command
                .args(["--access-key", "KEY", "--secret-key", "s3cret/+"])
                .arg(&root);
            command
        })
    }

    /// nginx over a directory, for those with the password `hunter2`.
    fn nginx(&self, directory: &Path) -> Server {
        let program = debian_program("nginx", "usr/sbin/nginx", Path::new(env!("CARGO_TARGET_TMPDIR")));
        let room = self.0.path().display();
        fs::write(self.path("users"), "reader:{PLAIN}hunter2\n").unwrap();
        Server::start(|port| {
            // In the foreground, as one process, so that its end is the server's.
            let config = format!(
                "daemon off; master_process off; pid {room}/nginx.pid; error_log {room}/nginx.log; events {{}}
                 http {{ access_log off; client_body_temp_path {room}/t1; proxy_temp_path {room}/t2;
                 fastcgi_temp_path {room}/t3; uwsgi_temp_path {room}/t4; scgi_temp_path {room}/t5;
                 server {{ listen 127.0.0.1:{port}; location /b/ {{ alias {}/; auth_basic x; auth_basic_user_file {room}/users; }} }} }}",
                directory.display()
            );
            fs::write(self.path("nginx.conf"), config).unwrap();
            let mut command = Command::new(&program);
            command.args(["-c", &format!("{room}/nginx.conf"), "-e", &format!("{room}/nginx.log")]);
            command
        })
    }
}

fn finish(command: &mut Command) -> (Option<i32>, String) {
    let done = command.output().unwrap();
    let reported = String::from_utf8_lossy(&[done.stderr, done.stdout].concat()).into_owned();
    for secret in SECRETS {
        assert!(!reported.contains(secret), "{command:?} told a secret: {reported}");
    }
    (done.status.code(), reported)
}

/// A Redis on a Unix socket.
struct Redis {
    child: Child,
    socket: PathBuf,
}

impl Redis {
    fn start(room: &Room) -> Redis {
        let socket = room.path("redis.sock");
        // The same program as the server's, from a package that starts no service.
        let mut command = room.command("redis-check-rdb");
        command
            .arg0("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket);
        let child = command.stdout(Stdio::null()).spawn().expect("redis: run scripts/setup");
        let redis = Redis { child, socket };
        let started = Instant::now();
        while UnixStream::connect(&redis.socket).is_err() {
            assert!(started.elapsed() < Duration::from_secs(30), "redis does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        redis
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_flist_lives_in_every_kind_of_store_and_outlives_most_of_them() {
    let room = Room::new();
    let (s3, zdb) = (room.s3(), Zdb::start([("blocks", Namespace::of("hunter2", true))]));
    let zdb_url = format!("zdb://{}/blocks", zdb.host());
    let s3_url = format!("s3://{}/blocks/of/a/team", s3.host());
    let dir_url = format!("dir://{}", room.path("dir").display());
    room.credentials(&[(&zdb_url, "", "hunter2"), (&s3_url, "KEY", "s3cret/+")]);

    // Half of the blocks in one store, half in another, all in a third.
    let stores = [
        "--store",
        &format!("00-7f={zdb_url}"),
        "--store",
        &format!("80-ff={s3_url}"),
        "--store",
        &dir_url,
    ];
    let pack = [&["flist", "pack", "tree", "-o", "x.fl"][..], &stores].concat();
    let reported = room.expect(0, &pack);
    assert!(reported.contains("44 of them new"), "{reported}");
    let reported = room.expect(0, &pack);
    assert!(reported.contains("0 of them new"), "{reported}");
    let flist = fs::read(room.path("x.fl")).unwrap();
    let has = |text: &str| flist.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has(&zdb_url) && has(&s3_url) && !SECRETS.into_iter().any(has));
    let inspection: Value = serde_json::from_str(&room.expect(0, &["flist", "inspect", "--json", "x.fl"])).unwrap();
    assert_eq!(inspection["routes"][0]["url"], zdb_url.as_str());
    assert!(zdb.len("blocks") > 5 && zdb.len("default") == 0);
    let verified: Value = {
        let (code, reported) = room.run(&["flist", "verify", "-o", "json", "x.fl"]);
        assert_eq!(code, Some(0), "{reported}");
        serde_json::from_str(&reported[reported.find('{').unwrap()..]).unwrap()
    };
    assert_eq!((&verified["good"], &verified["bad"]), (&88.into(), &0.into()));
    room.unpacks(&["x.fl"]);
    room.unpacks(&["x.fl", "--store", &s3_url, "--store", &zdb_url]);

    // A web server over the directory, which wants a password.
    let nginx = room.nginx(&room.path("dir"));
    let (open, login) = (
        format!("http://{}/b", nginx.host()),
        format!("http://reader:hunter2@{}/b/", nginx.host()),
    );
    let reported = room.expect(5, &["flist", "unpack", "x.fl", "out", "--store", &open]);
    assert!(
        reported.contains("status 401") && reported.contains("stores.toml"),
        "{reported}"
    );
    room.unpacks(&["x.fl", "--store", &login]);
    let reported = room.expect(1, &["flist", "pack", "tree", "-o", "no.fl", "--store", &login]);
    assert!(
        reported.contains("read-only") && !room.path("no.fl").exists(),
        "{reported}"
    );

    // To a Redis, and from there with everything else gone.
    let redis = Redis::start(&room);
    let redis_url = format!("zdb://{}", redis.socket.display());
    let reported = room.expect(0, &["flist", "push", "x.fl", "-o", "pushed.fl", "--store", &redis_url]);
    assert!(reported.contains("44 of them new"), "{reported}");
    drop((s3, nginx));
    room.unpacks(&["pushed.fl"]);

    // With the S3 server dead the others deliver, and that costs no time-out per block; `verify` names the dead one.
    let started = Instant::now();
    room.unpacks(&["x.fl"]);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let reported = room.expect(5, &["flist", "verify", "x.fl"]);
    assert!(
        reported.contains(&format!("caused by: {s3_url} is not available")),
        "{reported}"
    );

    // And one block of the directory damaged, one gone: both are named, the 0-db has them still.
    let mut blocks = low_blocks(&room.path("dir"));
    fs::write(blocks.pop().unwrap(), "something else").unwrap();
    let gone = blocks.pop().unwrap();
    fs::remove_file(&gone).unwrap();
    let reported = room.expect(5, &["flist", "verify", "x.fl", "--store", &dir_url]);
    assert!(
        reported.contains("2 copies of blocks") && reported.contains("has no block"),
        "{reported}"
    );
    assert!(
        reported.contains(gone.file_name().unwrap().to_str().unwrap()),
        "{reported}"
    );
    room.expect(0, &["flist", "unpack", "x.fl", "out"]);
}

/// Files of blocks whose ids begin with a low byte.
fn low_blocks(store: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(store).unwrap().flatten().filter(|shard| {
        let name = shard.file_name().into_string().unwrap();
        u8::from_str_radix(&name, 16).is_ok_and(|byte| byte < 0x80)
    });
    let files = shards.flat_map(|shard| fs::read_dir(shard.path()).unwrap().flatten());
    files.map(|file| file.path()).collect()
}

#[test]
fn namespaces_of_a_zdb_are_what_its_owner_made_them() {
    let room = Room::new();
    let zdb = Zdb::start([
        ("public", Namespace::of("hunter2", true)),
        ("private", Namespace::of("hunter2", false)),
    ]);
    let url = |rest: &str| format!("zdb://{}{rest}", zdb.host());
    let with = |password: &str, rest: &str| format!("zdb://:{password}@{}{rest}", zdb.host());
    let pack = |store: &str| room.run(&["flist", "pack", "tree", "-o", "x.fl", "--store", store]);
    for (store, notified) in [
        (url("/absent"), "Namespace not found"),
        (url("/private"), "Namespace protected and private"),
        (url("/public"), "Namespace is in read-only mode"),
        (with("wrong", "/private"), "Access denied"),
    ] {
        let (code, reported) = pack(&store);
        assert!(
            code == Some(1) && reported.contains(notified) && reported.contains("hint: "),
            "{store}: {reported}"
        );
    }
    // A slash alone, and the default's own name, are no namespace to be selected.
    for store in [url("/"), url("/default")] {
        assert_eq!(pack(&store).0, Some(0));
        room.unpacks(&["x.fl"]);
    }
    assert_eq!(zdb.len("default"), 44);
    assert_eq!(pack(&with("hunter2", "/private")).0, Some(0));
    assert_eq!(zdb.len("private"), 44);
    let reported = room.expect(5, &["flist", "verify", "x.fl"]);
    assert!(reported.contains("protected and private"), "{reported}");
    assert_eq!(pack(&with("hunter2", "/public")).0, Some(0));
    room.unpacks(&["x.fl"]);
}

#[test]
fn a_registry_is_logged_in_to_through_a_credential_helper() {
    let room = Room::new();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = debian_program("docker-registry", "usr/bin/docker-registry", cache);
    fs::write(room.path("users"), REGISTRY_USERS).unwrap();
    fs::write(
        room.path("registry.yml"),
        "version: 0.1\nstorage: {filesystem: {}}\nhttp: {}\n",
    )
    .unwrap();
    let registry = Server::start(|port| {
        let mut command = room.command(program.to_str().unwrap());
        command.args(["serve", "registry.yml"]).envs([
            ("REGISTRY_HTTP_ADDR", format!("127.0.0.1:{port}")),
            (
                "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY",
                room.path("registry").display().to_string(),
            ),
            ("REGISTRY_AUTH", "htpasswd".into()),
            ("REGISTRY_AUTH_HTPASSWD_REALM", "test".into()),
            ("REGISTRY_AUTH_HTPASSWD_PATH", room.path("users").display().to_string()),
        ]);
        command
    });
    let image = format!("docker://{}/team/empty:1", registry.host());
    for (program, args) in [
        ("umoci", &["init", "--layout", "oci"][..]),
        ("umoci", &["new", "--image", "oci:1"]),
        ("umoci", &["insert", "--image", "oci:1", "tree", "/tree"]),
        (
            "skopeo",
            &[
                "copy",
                "-q",
                "--dest-tls-verify=false",
                "--dest-creds",
                "user:secret",
                "oci:oci:1",
                &image,
            ],
        ),
    ] {
        let (code, reported) = finish(room.command(program).args(args));
        assert_eq!(code, Some(0), "{program} {args:?}: {reported}");
    }
    // A helper for this registry that fails to know it, and one for all that does.
    let helper = |name: &str, script: &str| {
        let file = room.path(&format!("bin/docker-credential-{name}"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    };
    helper("none", "echo credentials not found in native keychain; exit 1");
    helper(
        "all",
        r#"echo "$1 $(cat)" > asked; echo '{"ServerURL":"x","Username":"user","Secret":"secret"}'"#,
    );
    let import = |config: &str| {
        fs::create_dir_all(room.path("docker")).unwrap();
        fs::write(room.path("docker/config.json"), config).unwrap();
        let path = format!("{}:{}", room.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = room.command(env!("CARGO_BIN_EXE_zmachine"));
        command
            .env("PATH", path)
            .env("DOCKER_CONFIG", room.path("docker"))
            .env("HOME", room.path("home"));
        let store = format!("dir://{}", room.path("store").display());
        finish(command.args(["flist", "import", &image, "-o", "x.fl", "--store", &store]))
    };
    let host = registry.host();
    let (code, reported) = import("{}");
    assert!(code == Some(5) && reported.contains("status 401"), "{reported}");
    let (code, reported) = import(r#"{"credsStore":"missing"}"#);
    assert!(
        code == Some(5) && reported.contains("docker-credential-missing"),
        "{reported}"
    );
    let (code, reported) = import(&format!(
        r#"{{"auths":{{"{host}":{{}}}},"credHelpers":{{"{host}":"none"}},"credsStore":"all"}}"#
    ));
    assert_eq!(code, Some(0), "{reported}");
    assert_eq!(fs::read_to_string(room.path("asked")).unwrap(), format!("get {host}\n"));
    assert!(
        room.expect(0, &["flist", "ls", "-R", "x.fl"])
            .contains("/tree/sub/39\n")
    );
}
