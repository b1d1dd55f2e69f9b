//! `zmachine --host URL`: the command line on machines of another host, by a socket and by TLS with a token.

use std::fs;
use std::path::Path;

use zmachine_testkit::{Finished, Need, certificate, lacking, skip};

use crate::support::{Served, until};

/// The commands on the host that is served.
struct Remote<'a> {
    served: &'a Served,
    options: Vec<String>,
}

impl Remote<'_> {
    fn run(&self, args: &[&str]) -> Finished {
        self.with_input(args, b"")
    }

    fn with_input(&self, args: &[&str], input: &[u8]) -> Finished {
        let words = self.options.iter().map(String::as_str).chain(args.iter().copied());
        let command = self.served.home.zmachine(words);
        command
            .env("XDG_CONFIG_HOME", self.served.home.file("config"))
            .input(input)
            .finish()
    }

    #[track_caller]
    fn output(&self, args: &[&str]) -> String {
        let run = self.run(args);
        run.expect_success();
        run.stdout().trim_end().to_owned()
    }
}

#[test]
fn the_command_line_drives_another_host() {
    if let Some(reason) = lacking(&[Need::Command("openssl")]) {
        return skip(&reason);
    }
    let Some(served) = Served::new() else { return };
    let remote = Remote {
        served: &served,
        options: vec!["--host".to_owned(), format!("unix://{}", served.native.display())],
    };
    assert!(remote.output(&["images"]).contains("bb"));

    let piped = remote.with_input(
        &["run", "-i", "--rm", "bb", "sh", "-c", "cat; echo err >&2; exit 7"],
        b"through the network\n",
    );
    assert_eq!(
        (piped.code, piped.stdout(), piped.stderr()),
        (7, "through the network\n".into(), "err\n".into()),
        "{piped}"
    );
    assert_eq!(remote.run(&["run", "--rm", "bb", "no-such-program"]).code, 127);
    let missing = remote.run(&["run", "--rm", "./no-such-image.fl"]);
    assert!(
        missing.code == 125 && missing.stderr().starts_with("error: "),
        "{missing}"
    );
    assert_eq!(remote.output(&["ps", "-aq"]), "");

    // The words before the command are the host's, those behind IMAGE the guest's.
    let plain = "echo begun; exec sleep 1000";
    assert_eq!(
        remote.output(&[
            "run",
            "-d",
            "--name",
            "far",
            "--snapshots",
            "-l",
            "a=b",
            "-e",
            "A=b c",
            "bb",
            "sh",
            "-c",
            plain
        ]),
        "far"
    );
    assert_eq!(remote.output(&["ps", "-q", "-l", "a=b"]), "far");
    assert!(remote.output(&["ps"]).contains("running"));
    until("its first line", || {
        (remote.output(&["logs", "far"]) == "begun").then_some(())
    });
    assert_eq!(remote.output(&["exec", "far", "sh", "-c", "echo $A"]), "b c");
    let piped = remote.with_input(&["exec", "-i", "far", "sh", "-c", "cat; exit 3"], b"words");
    assert_eq!((piped.code, piped.stdout()), (3, "words".into()), "{piped}");
    assert!(remote.output(&["inspect", "far"]).contains("\"name\": \"far\""));
    assert!(remote.output(&["stats", "--no-stream", "far"]).contains("MiB"));
    files(&remote);
    snapshots(&remote);
    assert!(remote.output(&["top", "far"]).contains("sleep 1000"));
    let own = served.home.zmachine(["ps", "-q"]).finish();
    assert_eq!(own.stdout().trim(), "far", "{own}");
    assert_eq!(remote.output(&["stop", "-t", "1", "far"]), "far");
    assert!(remote.output(&["events"]).contains("far"));
    assert!(remote.output(&["why", "far"]).contains("start 1"));

    let none = remote.run(&["inspect", "none"]);
    assert!(
        none.code == 3 && none.stderr().contains("error: ") && none.stderr().contains("hint: "),
        "{none}"
    );
    let here = remote.run(&["serve"]);
    assert!(
        here.code == 2 && here.stderr().contains("for this host alone"),
        "{here}"
    );
    let unknown = remote.run(&["firmware", "show"]);
    assert!(unknown.code == 2, "{unknown}");
    images(&remote);

    assert_eq!(remote.output(&["volume", "create", "--size", "64M", "data"]), "data");
    assert_eq!(remote.output(&["volume", "ls", "-q"]), "data");
    assert!(remote.output(&["volume", "grow", "data", "128M"]).contains("128.0 MiB"));
    assert_eq!(remote.output(&["volume", "snapshot", "create", "data"]), "data@snap0");
    assert_eq!(remote.output(&["volume", "snapshot", "ls", "-q"]), "data@snap0");
    assert_eq!(remote.output(&["volume", "restore", "data@snap0"]), "data");
    assert_eq!(remote.output(&["volume", "clone", "data@snap0", "data2"]), "data2");
    assert_eq!(remote.output(&["volume", "snapshot", "rm", "data@snap0"]), "data@snap0");
    assert!(remote.output(&["volume", "prune", "-af"]).starts_with("data"));
    assert_eq!(remote.output(&["network", "create", "side"]), "side");
    remote.output(&["network", "connect", "--alias", "it", "side", "far"]);
    assert!(remote.output(&["inspect", "far"]).contains("\"it\""));
    remote.output(&["network", "disconnect", "side", "far"]);
    assert_eq!(remote.output(&["network", "prune", "-f"]), "side");
    assert!(remote.output(&["system", "df"]).contains("machines"));
    assert!(remote.output(&["network", "ls"]).contains("default"));
    assert!(remote.output(&["kernel", "ls"]).contains("yes"));
    by_tls(&served);
    compose(&remote);
    assert_eq!(remote.output(&["system", "prune", "-f"]).lines().next(), Some("far"));
}

/// Files in both directions, and what became of the machine by them.
fn files(remote: &Remote<'_>) {
    let home = &remote.served.home;
    let path = |name: &str| home.file(name).display().to_string();
    fs::create_dir_all(home.file("tree/inner")).expect("a folder");
    fs::write(home.file("tree/inner/a"), "one\n").expect("a file");
    remote.output(&["cp", &path("tree"), "far:/srv"]);
    assert_eq!(remote.output(&["exec", "far", "cat", "/srv/inner/a"]), "one");
    remote.output(&["cp", "far:/srv/inner", &path("back")]);
    assert_eq!(fs::read_to_string(home.file("back/a")).expect("the copy"), "one\n");
    let archive = remote.run(&["cp", "far:/srv/inner/a", "-"]);
    archive.expect_success();
    let mut archive = tar::Archive::new(archive.stdout_bytes.as_slice());
    let mut members = archive.entries().expect("an archive");
    let first = members.next().expect("a member").expect("a member");
    assert_eq!(first.path().expect("its path").display().to_string(), "a");
    for (words, why) in [
        (["cp", "far:/no/such", "x"], "is not there"),
        (["cp", "/no/such", "far:/x"], "cannot copy /no/such"),
        (["cp", &path("back/a"), "far:/no/such/x"], "is no directory"),
        (["cp", &path("back/a"), "none:/x"], "no machine is called 'none'"),
    ] {
        let refused = remote.run(&words);
        assert!(refused.code == 3 && refused.stderr().contains(why), "{refused}");
    }
    assert!(
        remote
            .output(&["diff", "far"])
            .lines()
            .any(|line| line == "A /srv/inner/a")
    );
    let id = remote.output(&["exec", "-d", "far", "sh", "-c", "echo kept > /kept"]);
    assert!(!id.is_empty());
    until("what a detached command wrote", || {
        (remote.run(&["exec", "far", "cat", "/kept"]).stdout() == "kept\n").then_some(())
    });
}

/// The machine saved as it runs, and another one that goes on from there.
fn snapshots(remote: &Remote<'_>) {
    assert_eq!(remote.output(&["snapshot", "create", "far@one"]), "far@one");
    assert_eq!(remote.output(&["snapshot", "ls", "-q"]), "far@one");
    assert_eq!(remote.output(&["fork", "far@one", "--name", "twin"]), "twin");
    assert_eq!(remote.output(&["exec", "twin", "cat", "/kept"]), "kept");
    assert_eq!(remote.output(&["rm", "-f", "twin"]), "twin");
    let archive = remote.served.home.file("far.tar").display().to_string();
    remote.output(&["snapshot", "export", "far@one", "-o", &archive]);
    assert_eq!(
        remote.output(&["snapshot", "import", &archive, "--name", "far@two"]),
        "far@two"
    );
    assert_eq!(
        remote.output(&["snapshot", "create", "--disk-only", "far@disks"]),
        "far@disks"
    );
    let inspected = remote.output(&["snapshot", "inspect", "far@disks"]);
    let inspected: serde_json::Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected[0]["kind"], "disks");
    assert_eq!(remote.output(&["exec", "far", "cat", "/kept"]), "kept");
    assert_eq!(
        remote.output(&["snapshot", "rm", "far@one", "far@two", "far@disks"]),
        "far@one\nfar@two\nfar@disks"
    );
}

/// An image made of the machine, and to another place and back.
fn images(remote: &Remote<'_>) {
    let path = remote.served.home.file("made.tar").display().to_string();
    let made = remote.run(&["commit", "far", "made:1"]);
    // A flist has no layers on which one could be laid; that is told, as it is without --host.
    assert!(made.code != 0 || made.stdout().starts_with("made:1 "), "{made}");
    let archive = remote
        .served
        .archive("other:1", &remote.served.home.file("tree"), &serde_json::json!({}));
    assert!(remote.output(&["load", "-i", &archive]).starts_with("other:1 "));
    remote.output(&["tag", "other:1", "again:2"]);
    assert!(remote.output(&["history", "again:2"]).contains("by hand"));
    remote.output(&["save", "-o", &path, "again:2"]);
    assert_eq!(remote.output(&["rmi", "again:2", "other:1"]), "again:2\nother:1");
    assert!(remote.output(&["load", "-i", &path]).starts_with("again:2 "));
    assert_eq!(remote.output(&["rmi", "again:2"]), "again:2");
    assert!(remote.output(&["image", "prune"]).contains("reclaimed"));
    let none = remote.run(&["save", "bb"]);
    assert!(none.code != 0 && none.stderr().contains("bb"), "{none}");
}

/// A project of files here whose machines are there.
fn compose(remote: &Remote<'_>) {
    let folder = remote.served.home.file("project");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("key"), "hidden").expect("a file");
    let text = "name: far\nservices:\n  web:\n    image: bb\n    command: sh -c 'cat /run/secrets/key; exec sleep 1000'\n    \
                secrets: [key]\n    volumes: ['data:/data']\nsecrets: {key: {file: ./key}}\nvolumes: {data: {}}\n";
    let file = folder.join("compose.yaml");
    fs::write(&file, text).expect("a file");
    let file = file.display().to_string();
    let with = |words: &[&str]| remote.run(&[&["compose", "-f", file.as_str()], words].concat());
    let up = with(&["up", "-d"]);
    assert!(
        up.code == 0 && up.stderr().contains("Machine far-web-1  started"),
        "{up}"
    );
    assert!(with(&["up", "-d"]).stderr().contains("Machine far-web-1  running"));
    assert!(with(&["ps"]).stdout().contains("web"));
    until("its secret", || {
        with(&["logs", "web"]).stdout().contains("hidden").then_some(())
    });
    assert_eq!(with(&["exec", "-T", "web", "echo", "in it"]).stdout(), "in it\n");
    assert!(remote.output(&["compose", "ls"]).contains("running(1)"));
    let down = with(&["down", "-v", "-t", "1"]);
    assert!(
        down.code == 0 && down.stderr().contains("Volume far_data  removed"),
        "{down}"
    );
    fs::write(&file, text.replace("'data:/data'", "'./tree:/data'")).expect("a file");
    let refused = with(&["up", "-d"]);
    assert!(
        refused.code == 6 && refused.stderr().contains("project/tree of this host"),
        "{refused}"
    );
}

/// The same by TLS: with a token, a certificate, and a name for all of it.
fn by_tls(served: &Served) {
    let folder = served.home.file("tls");
    fs::create_dir_all(&folder).expect("a folder");
    certificate(&folder);
    let path = |name: &str| folder.join(name).display().to_string();
    let (docker, api) = (path("docker.sock"), path("api.sock"));
    let (certificate, key) = (path("cert.pem"), path("key.pem"));
    let args = [
        "serve",
        "--docker",
        &docker,
        "--socket",
        &api,
        "--listen",
        "127.0.0.1:8443",
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
    ];
    let mut server = served
        .home
        .command(Path::new(env!("CARGO_BIN_EXE_zmachine-api")), args)
        .start();
    let here = Remote {
        served,
        options: Vec::new(),
    };
    for (name, role) in [("eyes", "viewer"), ("hands", "operator")] {
        fs::write(path(name), here.output(&["token", "create", name, "--role", role])).expect("a file");
        let of = ["--token-file", &path(name), "--ca-file", &certificate];
        let create = ["context", "create", name, "--host", "https://localhost:8443"];
        here.output(&[create.as_slice(), of.as_slice()].concat());
    }
    until("the port", || {
        (here.run(&["--context", "eyes", "version"]).code == 0 && here.run(&["--context", "eyes", "ps"]).code == 0)
            .then_some(())
    });
    let refused = here.run(&["--context", "eyes", "start", "far"]);
    assert!(
        refused.code == 2 && refused.stderr().contains("needs the role operator"),
        "{refused}"
    );
    here.output(&["context", "use", "hands"]);
    assert_eq!(here.output(&["start", "far"]), "far");
    assert_eq!(here.output(&["exec", "far", "echo", "by TLS"]), "by TLS");
    let refused = here.run(&["rm", "-f", "far"]);
    assert!(refused.stderr().contains("needs the role admin"), "{refused}");
    assert_eq!(here.output(&["stop", "-t", "1", "far"]), "far");
    // Without the certificate there is nobody to talk to, and with another token nobody who listens.
    let unsafe_ = here.run(&["--host", "https://localhost:8443", "ps"]);
    assert!(
        unsafe_.code == 5 && unsafe_.stderr().contains("no safe connection"),
        "{unsafe_}"
    );
    fs::write(path("hands"), "zmt_hands_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").expect("a file");
    assert!(here.run(&["ps"]).stderr().contains("not valid"));
    here.output(&["context", "use", "local"]);
    assert_eq!(here.output(&["ps", "-aq"]), "far");
    server.kill().expect("kill");
    server.wait().expect("wait");
}
