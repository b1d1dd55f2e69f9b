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

    let ran = remote.run(&["run", "--rm", "bb", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (ran.code, ran.stdout(), ran.stderr()),
        (7, "out\n".into(), "err\n".into()),
        "{ran}"
    );
    let piped = remote.with_input(
        &["run", "-i", "--rm", "bb", "sh", "-c", "cat; echo end"],
        b"through the network\n",
    );
    assert_eq!(
        (piped.code, piped.stdout()),
        (0, "through the network\nend\n".into()),
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
            "run", "-d", "--name", "far", "-l", "a=b", "-e", "A=b c", "bb", "sh", "-c", plain
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
    assert!(remote.output(&["stats", "far"]).contains("MiB"));
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
    let unknown = remote.run(&["system", "df"]);
    assert!(unknown.code == 2, "{unknown}");

    assert_eq!(remote.output(&["volume", "create", "--size", "64M", "data"]), "data");
    assert_eq!(remote.output(&["volume", "ls", "-q"]), "data");
    assert_eq!(remote.output(&["volume", "rm", "data"]), "data");
    assert!(remote.output(&["network", "ls"]).contains("default"));
    assert!(remote.output(&["kernel", "ls"]).contains("yes"));
    by_tls(&served);
    assert_eq!(remote.output(&["rm", "far"]), "far");
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
