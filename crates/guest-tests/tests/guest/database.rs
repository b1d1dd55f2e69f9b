//! A real database under load, saved again and again: whatever goes on from there has every commit that was acknowledged before.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use zmachine_testkit::{Need, TestHome, Tree, debian_program, lacking, skip};

use crate::support::{Checks, exec_output, home, sh, until, zmachine};

/// How often it is saved.
const SNAPSHOTS: usize = 20;

/// A database that begins under emulation.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes the database, if there is none, starts it and commits one row after the other; the number of each is on standard output when its
/// commit was acknowledged. The server is PID 1, as in docker's image: with another number, what it left behind when it was cut off may name a
/// process that is there now, and it does not start.
const RUN: &str = r#"#!/bin/sh
export PATH=/usr/lib/postgresql/15/bin:/bin PGDATA=/data/pg LC_ALL=C
[ -e $PGDATA/PG_VERSION ] || initdb -E UTF8 --no-locale -A trust >/data/initdb.log 2>&1 || { cat /data/initdb.log >&2; exit 1; }
echo jit=off >$PGDATA/postgresql.auto.conf
sql() { psql -q -At -h /tmp postgres "$@"; }
commit() {
    until pg_isready -q -h /tmp; do sleep 0.2; done
    sql -c 'create table if not exists t (n int primary key, filler text)'
    i=$(sql -c 'select coalesce(max(n), 0) from t')
    while true; do i=$((i+1)); echo "insert into t values ($i, repeat('x', 500)) returning n;"; done | sql
}
commit &
exec postgres -k /tmp >>/data/server.log 2>&1
"#;

/// The database's user.
const POSTGRES: u32 = 100;

/// Gives forks SSH host keys of their own.
const NEW_KEYS: &str = include_str!("../../../../examples/thaw.d/ssh-host-keys");

/// All that Debian's PostgreSQL needs, unpacked over a tree with busybox.
fn image(home: &TestHome) -> String {
    let packages = home.cache().join("postgresql-15");
    let script = format!(
        "set -e; mkdir -p {0}/partial; touch {0}/status; apt-get -q -y --no-install-recommends --download-only \
         -o Debug::NoLocking=1 -o Dir::State::status={0}/status -o Dir::Cache::archives={0} install postgresql-15",
        packages.display()
    );
    if !packages.join("complete").exists() {
        // Not in the home's network, which leads nowhere.
        let got = Command::new("sh").args(["-c", &script]).output().expect("sh");
        assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
        fs::write(packages.join("complete"), "").expect("a mark");
    }
    let tree = Tree::busybox(home);
    for entry in fs::read_dir(&packages).expect("packages").flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let words = ["-x".as_ref(), path.as_os_str(), tree.root().as_os_str()];
            home.command(Path::new("dpkg-deb"), words).finish().expect_success();
        }
    }
    let keygen = debian_program("openssh-client", "usr/bin/ssh-keygen", &home.cache());
    let users = "root:x:0:0:root:/root:/bin/sh\npostgres:x:100:100:postgres:/data:/bin/sh\n";
    let tree = tree
        .file("etc/passwd", users)
        .file("etc/group", "root:x:0:\npostgres:x:100:\n")
        .program("run-database", RUN)
        .folder("data", 0o755)
        .folder("etc/ssh", 0o755)
        .folder("etc/zmachine", 0o755)
        .folder("etc/zmachine/thaw.d", 0o755)
        .program("etc/zmachine/thaw.d/ssh-host-keys", NEW_KEYS)
        .program("usr/bin/ssh-keygen", fs::read(keygen).expect("a program"));
    // A fresh volume is its user's, as the folder is that it takes the place of.
    std::os::unix::fs::chown(tree.root().join("data"), Some(POSTGRES), Some(POSTGRES)).expect("chown");
    tree.pack(home, "postgresql")
}

/// The last row whose commit was acknowledged.
fn acknowledged(home: &TestHome, machine: &str) -> u64 {
    let output = zmachine(home, &["logs", "--tail", "5", machine]).stdout();
    output
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .max()
        .unwrap_or(0)
}

fn sql(home: &TestHome, machine: &str, query: &str) -> String {
    let psql = format!("/usr/lib/postgresql/15/bin/psql -At -h /tmp postgres -c \"{query}\"");
    exec_output(home, machine, &psql)
}

/// What a database that goes on has: all rows up to the last one, and that is not before `least`.
fn assert_whole(home: &TestHome, machine: &str, least: u64) {
    let ready = "/usr/lib/postgresql/15/bin/pg_isready -q -h /tmp";
    let deadline = Instant::now() + PATIENCE;
    while sh(home, machine, ready).code != 0 {
        let log = || sh(home, machine, "tail -n 20 /data/server.log").stdout();
        assert!(Instant::now() < deadline, "the database does not answer: {}", log());
        std::thread::sleep(Duration::from_millis(200));
    }
    // One statement, so that rows that come meanwhile are in both or in none.
    let found = sql(home, machine, "select count(*), max(n), count(filler) from t");
    let found: Vec<u64> = found.split('|').map(|n| n.parse().expect("a number")).collect();
    assert_eq!(found[0], found[1], "rows are missing: {found:?}");
    assert_eq!(found[0], found[2], "rows are empty: {found:?}");
    assert!(found[1] >= least, "{} rows, and {least} were acknowledged", found[1]);
    let log = exec_output(home, machine, "cat /data/server.log");
    for word in ["PANIC", "corrupt", "invalid page", "could not"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
}

#[test]
#[ignore = "minutes, and 60 MB of packages: make test-long"]
fn a_database_under_load_loses_no_commit() {
    if let Some(lack) = lacking(&[Need::Command("dpkg-deb"), Need::Command("apt-get")]) {
        return skip(lack);
    }
    let Some(home) = home() else { return };
    let image = image(&home);
    let mut checks = Checks::default();
    let words = [
        "run",
        "-d",
        "--name",
        "db",
        "--snapshots",
        "-v",
        "db:/data:size=1G",
        "-u",
        "100:100",
        "--memory",
        "512M",
        &image,
    ];
    zmachine(&home, &[&words[..], &["/run-database"]].concat()).expect_success();
    until("it commits", PATIENCE * 2, || {
        (acknowledged(&home, "db") > 20).then_some(())
    });
    let key = "cat /etc/ssh/ssh_host_ed25519_key.pub";
    let words = [
        "exec",
        "-u",
        "0:0",
        "db",
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-f",
    ];
    zmachine(&home, &[&words[..], &["/etc/ssh/ssh_host_ed25519_key"]].concat()).expect_success();
    let mut keys = BTreeSet::from([exec_output(&home, "db", key)]);
    let mut instants = BTreeSet::new();
    for number in 0..SNAPSHOTS {
        checks.that(&format!("snapshot {number}"), || {
            let before = acknowledged(&home, "db");
            let name = format!("db@s{number}");
            // With its memory it goes on; with its disks alone it recovers as after a power cut.
            let is_of_disks = number % 2 == 1;
            let mut create = vec!["snapshot", "create"];
            create.extend(is_of_disks.then_some("--disk-only"));
            create.push(&name);
            zmachine(&home, &create).expect_success();
            instants.insert(before);
            let fork = format!("f{number}");
            zmachine(&home, &["fork", &name, "--name", &fork]).expect_success();
            assert_whole(&home, &fork, before);
            if !is_of_disks {
                assert!(keys.insert(exec_output(&home, &fork, key)), "another one has its key");
                // It is cut off in its turn, and recovers.
                let committed = acknowledged(&home, &fork);
                assert!(committed == 0 || committed > before, "{committed} after {before}");
                zmachine(&home, &["kill", &fork]).expect_success();
                zmachine(&home, &["start", &fork]).expect_success();
                assert_whole(&home, &fork, before.max(committed));
            }
            let log = exec_output(
                &home,
                &fork,
                "grep -c 'database system is ready to accept' /data/server.log",
            );
            assert!(log.parse::<u32>().expect("a number") >= 1);
            zmachine(&home, &["rm", "-f", &fork]).expect_success();
            zmachine(&home, &["snapshot", "rm", &name]).expect_success();
        });
    }
    assert!(instants.len() > SNAPSHOTS / 2, "it stood still: {instants:?}");
    checks.that("the one that was saved has gone on all the time", || {
        let last = acknowledged(&home, "db");
        assert_whole(&home, "db", last);
    });
    zmachine(&home, &["rm", "-f", "db"]).expect_success();
    zmachine(&home, &["volume", "rm", "db"]).expect_success();
    home.assert_host_clean();
}
