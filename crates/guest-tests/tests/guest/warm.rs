//! Starts from a guest whose entrypoint was ready.

use std::fs;
use std::process::Command;
use std::time::Duration;

use zmachine_testkit::Tree;

use crate::support::{Checks, exec_output, home, until, zmachine};

/// It has something to load, says that it is ready, and tells who it is.
const APP: &str = r#"
run=$(cat /proc/sys/kernel/random/uuid)
sleep 1
perl -e '($to = $ENV{NOTIFY_SOCKET}) =~ s/^@/\0/; socket(S, 1, 2, 0); connect(S, pack("S a*", 1, $to)) or die $!; syswrite S, "STATUS=up\nREADY=1"'
while :; do echo "$run $(hostname) $A"; sleep 1; done
"#;

/// A tree with perl, which every Debian has: the shell has no word for a socket.
fn tree_with_perl(tree: Tree) -> Tree {
    const PERL: &str = "/usr/bin/perl";
    let listed = Command::new("ldd").arg(PERL).output().expect("ldd");
    let listed = String::from_utf8(listed.stdout).expect("paths");
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    libraries.fold(tree.program(PERL, fs::read(PERL).expect("perl")), |tree, library| {
        tree.program(library, fs::read(library).expect("a library"))
    })
}

#[test]
fn a_machine_begins_where_the_entrypoint_of_an_earlier_one_was_ready() {
    let Some(home) = home() else { return };
    let mut checks = Checks::default();
    let image = tree_with_perl(Tree::busybox(&home))
        .script("/app", APP)
        .pack(&home, "app");
    let start = |name: &str| {
        let words = ["run", "-d", "--warm=ready", "--name", name, "-e", "A=b", &image, "/app"];
        zmachine(&home, &words).expect_success();
    };
    let said = |name: &str| {
        until("it says who it is", Duration::from_secs(30), || {
            let log = zmachine(&home, &["logs", name]).stdout();
            let words: Vec<String> = log.split_whitespace().map(str::to_owned).collect();
            (words.len() >= 3).then_some(words)
        })
    };
    let noted = |name: &str| zmachine(&home, &["logs", "--source", "monitor", name]).stdout();
    let templates = home.path().join("templates");
    let mut run = String::new();
    checks.that("the first one is saved when it says so, and goes on", || {
        start("one");
        let words = said("one");
        assert_eq!(words[1..3], ["one", "b"]);
        run.clone_from(&words[0]);
        until("there is a template", Duration::from_secs(30), || {
            let names = fs::read_dir(&templates).into_iter().flatten().flatten();
            let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.any(|name| !name.starts_with('.')).then_some(())
        });
        let lines = zmachine(&home, &["logs", "one"]).stdout().lines().count();
        until("it goes on", Duration::from_secs(30), || {
            (zmachine(&home, &["logs", "one"]).stdout().lines().count() > lines).then_some(())
        });
        assert!(!noted("one").contains("template"), "{}", noted("one"));
        assert_eq!(exec_output(&home, "one", "echo $NOTIFY_SOCKET"), "");
    });
    checks.that("the next one has the same run of it, and is another machine", || {
        start("two");
        let words = said("two");
        assert_eq!(words[..3], [run.as_str(), "two", "b"]);
        assert!(
            noted("two").contains("began from the template one@"),
            "{}",
            noted("two")
        );
        let address = |name: &str| exec_output(&home, name, "ip -4 -o addr show eth0 | sed 's/.*inet //; s,/.*,,'");
        assert_ne!(address("one"), address("two"));
        assert_eq!(exec_output(&home, "two", "hostname"), "two");
    });
    checks.that("its second start is one of its own", || {
        zmachine(&home, &["restart", "-t", "1", "two"]).expect_success();
        let other = until("it runs anew", Duration::from_secs(30), || {
            let log = zmachine(&home, &["logs", "two"]).stdout();
            let words = log.lines().last()?.split_whitespace().map(str::to_owned);
            words.into_iter().next().filter(|word| *word != run)
        });
        assert_eq!(other.len(), run.len());
    });
    checks.that("a guest in which somebody has done something is no template", || {
        let check = ["--health-cmd", "true", "--health-interval", "5s"];
        let words = [
            &["run", "-d", "--warm=ready", "--name", "three"][..],
            &check,
            &[&image, "sleep", "1000"],
        ];
        zmachine(&home, &words.concat()).expect_success();
        exec_output(&home, "three", "touch /tmp/found");
        until("it is healthy, and says why not", Duration::from_secs(60), || {
            noted("three").contains("no template is made: a client").then_some(())
        });
    });
    checks.that("a pool has no entrypoints to be ready", || {
        let words = ["run", "-d", "--warm=ready", "--pool", "1", &image, "/app"];
        let refused = zmachine(&home, &words).stderr();
        assert!(refused.contains("with no entrypoint"), "{refused}");
    });
    zmachine(&home, &["rm", "-f", "one", "two", "three"]).expect_success();
    home.assert_host_clean();
}
