//! Machines of an ordinary user, connected by passt.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use zmachine_testkit::{Finished, Need, TestHome, Tree, lacking, skip};

use crate::networks::Internet;
use crate::support::{Checks, home, until};

/// Nobody's number.
const USER: u32 = 61_234;

/// What is asked of a web server, as printf writes it, and the page it has.
const GET: &str = "GET / HTTP/1.0\\r\\n\\r\\n";
const PAGE: &str = "a page\n";

/// A user with folders of its own, beside a home whose network it is in.
pub(crate) struct User<'a> {
    home: &'a TestHome,
    folder: PathBuf,
}

impl User<'_> {
    pub(crate) fn beside(home: &TestHome) -> User<'_> {
        let folder = home.file("user");
        let kernels = folder.join("data/zmachine/kernels");
        for dir in [folder.join("bin"), folder.join("run"), kernels.join("test")] {
            std::fs::create_dir_all(dir).expect("a folder");
        }
        let kernel = home.path().join("kernels/default").canonicalize().expect("a kernel");
        for part in ["vmlinux", "kernel.json", "modules"] {
            run("cp", &["-r", path(&kernel.join(part)), path(&kernels.join("test"))]);
        }
        symlink("test", kernels.join("default")).expect("a link");
        let programs = home.zmachine_path().parent().expect("a folder");
        for program in ["zmachine", "zmachine-agent"] {
            std::fs::copy(programs.join(program), folder.join("bin").join(program)).expect("a copy");
        }
        run("chown", &["-R", &format!("{USER}:{USER}"), path(&folder)]);
        User { home, folder }
    }

    /// `zmachine args...` as this user.
    pub(crate) fn zmachine(&self, args: &[&str]) -> Finished {
        let (reuid, regid) = (format!("--reuid={USER}"), format!("--regid={USER}"));
        let program = self.folder.join("bin/zmachine");
        let words = [&reuid, &regid, "--clear-groups", "--inh-caps=-all", path(&program)];
        let words: Vec<&str> = words.into_iter().chain(args.iter().copied()).collect();
        let command = self.home.command("setpriv".as_ref(), words);
        let command = command.env("ZMACHINE_HOME", "").env("HOME", &self.folder);
        let command = command.env("XDG_DATA_HOME", self.folder.join("data"));
        command
            .env("XDG_RUNTIME_DIR", self.folder.join("run"))
            .folder(&self.folder)
            .finish()
    }

    /// Ids of its processes that run `program`; the dead that nobody has asked about yet are not among them.
    fn processes(&self, program: &str) -> Vec<String> {
        let found = Command::new("pgrep")
            .args(["-r", "R,S,D", "-u", &USER.to_string(), "-f", program])
            .output();
        let text = String::from_utf8(found.expect("pgrep").stdout).expect("numbers");
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        for name in self.zmachine(&["ps", "-a", "-q"]).stdout().lines() {
            self.zmachine(&["rm", "-f", name]);
        }
    }
}

/// A program of the test that ends with it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).status().expect(program);
    assert!(done.success(), "{program} {args:?}");
}

/// What a web server answers to somebody in the host's network.
fn page(home: &TestHome, address: &str, port: u16) -> String {
    let get = format!("printf '{GET}' | nc -w 20 {address} {port} || true");
    home.command("busybox".as_ref(), ["sh", "-c", &get]).finish().stdout()
}

#[test]
fn an_ordinary_user_has_machines_with_a_network_and_they_do_not_have_the_hosts_loopback() {
    let Some(home) = home() else { return };
    if let Some(reason) = lacking(&["passt", "setpriv", "pgrep"].map(Need::Command)) {
        return skip(&reason);
    }
    let internet = Internet::behind(&home);
    let user = User::beside(&home);
    let tree = Tree::busybox(&home).file("www/index.html", PAGE);
    let www = tree.root().join("www");
    let httpd = |port| ["httpd", "-f", "-p", port, "-h", path(&www)];
    let _servers = [
        Server(internet.0.command("busybox".as_ref(), httpd("80")).start()),
        Server(home.command("busybox".as_ref(), httpd("127.0.0.1:7777")).start()),
    ];
    run("chown", &["-R", &format!("{USER}:{USER}"), path(tree.root())]);
    let image = path(&user.folder.join("box.fl")).to_owned();
    let store = format!("dir://{}", path(&user.folder.join("store")));
    user.zmachine(&["flist", "pack", path(tree.root()), "-o", &image, "--store", &store])
        .expect_success();
    let serve = "httpd -p 80 -h /www; echo serving; sleep 1000";
    user.zmachine(&[
        "run", "-d", "--name", "web", "-p", "18080:80", &image, "sh", "-c", serve,
    ])
    .expect_success();
    until("the server in the guest", Duration::from_secs(60), || {
        user.zmachine(&["logs", "web"])
            .stdout()
            .contains("serving")
            .then_some(())
    });
    let in_guest = |script: &str| user.zmachine(&["exec", "web", "sh", "-c", script]).stdout();
    let mut checks = Checks::default();
    checks.that(
        "a guest that never spoke is reached from loopback, from the host and from outside",
        || {
            assert!(page(&home, "127.0.0.1", 18080).ends_with(PAGE));
            assert!(page(&home, "198.51.100.1", 18080).ends_with(PAGE));
            let outside = internet.exec_output(&format!("printf '{GET}' | nc -w 20 198.51.100.1 18080"));
            assert!(outside.ends_with(PAGE), "{outside}");
        },
    );
    checks.that("it reaches the world", || {
        // The passt of Debian 12 was seen not to pass on the end of a connection, once in three runs.
        let got = in_guest(&format!("printf '{GET}' | timeout 20 nc 198.51.100.2 80"));
        assert!(got.ends_with(PAGE), "{got}");
    });
    checks.that("and not the host's loopback, whatever it sends", || {
        // The test's own eyes: somebody on the host reaches it.
        assert!(page(&home, "127.0.0.1", 7777).ends_with(PAGE));
        let got = in_guest(&format!(
            "ip addr flush dev lo; echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; \
             ip route add 127.0.0.1 via 10.0.2.2 src 10.0.2.15; ip route get 127.0.0.1; \
             for address in 127.0.0.1 10.0.2.2; do printf '{GET}' | nc -w 5 $address 7777; done"
        ));
        assert!(got.contains("dev eth0") && !got.contains(PAGE), "{got}");
    });
    checks.that("passt has locked itself in", || {
        let [passt] = &user.processes("passt")[..] else {
            panic!("one passt")
        };
        let status = std::fs::read_to_string(format!("/proc/{passt}/status")).expect("its status");
        for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line} in {status}");
        }
        let seen = std::fs::read_dir(format!("/proc/{passt}/root")).expect("its root");
        assert_eq!(seen.count(), 0, "it sees no files");
        for space in ["user", "mnt", "ipc", "uts"] {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{space}")).expect("a namespace");
            assert_ne!(of(passt), of("self"), "{space}");
        }
    });
    checks.that("its traffic is counted", || {
        let stats = user.zmachine(&["stats", "--no-stream", "-o", "json", "web"]).stdout();
        let stats: serde_json::Value = serde_json::from_str(&stats).expect("JSON");
        let interface = &stats[0]["interfaces"][0];
        assert!(interface["received_packets"].as_u64() > Some(3), "{stats}");
        assert!(interface["sent_bytes"].as_u64() > Some(100), "{stats}");
    });
    checks.that("a port in use is an error before anything starts", || {
        let refused = user.zmachine(&["run", "-p", "18080:80", &image, "true"]);
        assert!(refused.expect_code(125).stderr().contains("18080/tcp"), "{refused}");
        assert_eq!(user.processes("qemu-system").len(), 1);
    });
    checks.that("what needs root says so", || {
        let refused = user.zmachine(&["run", "--network", "back", &image, "true"]);
        assert!(refused.stderr().contains("needs root") && refused.stderr().contains("hint:"));
    });
    checks.that("passt that is killed is started again", || {
        let before = user.processes("passt");
        assert_eq!(before.len(), 1);
        run("kill", &["-9", &before[0]]);
        until("another passt", Duration::from_secs(30), || {
            user.processes("passt").into_iter().find(|id| !before.contains(id))
        });
        until("the page", Duration::from_secs(60), || {
            page(&home, "127.0.0.1", 18080).ends_with(PAGE).then_some(())
        });
    });
    user.zmachine(&["stop", "-t", "1", "web"]).expect_success();
    let gone = || user.processes("").is_empty().then_some(());
    until("the end of all processes", Duration::from_secs(20), gone);
    checks.that("a machine whose monitor dies leaves nothing", || {
        user.zmachine(&["start", "web"]).expect_success();
        run("kill", &["-9", &user.processes("zmachine monitor")[0]]);
        until("the end of all processes", Duration::from_secs(20), || {
            user.processes("").is_empty().then_some(())
        });
        assert!(user.zmachine(&["ps", "-a"]).stdout().contains("Failed "));
        // But what was found out of this host.
        let left = std::fs::read_dir(user.folder.join("run/zmachine"))
            .into_iter()
            .flatten();
        let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|name| name == "counter.json"), "{left:?}");
    });
}
