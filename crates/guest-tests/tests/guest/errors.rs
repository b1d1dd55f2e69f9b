//! Mistakes: each has its exit code, says what to do, and leaves nothing behind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use zmachine_testkit::{TestHome, Tree};

use crate::support::{Checks, home, zmachine};

/// What must be as before a command that failed: machines, addresses, sockets. Images and blocks are a cache.
fn things(home: &TestHome) -> BTreeSet<PathBuf> {
    let kept = |path: &PathBuf| {
        let text = path.to_string_lossy();
        let is_lock = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().ends_with(".lock"));
        !is_lock && (text.contains("/machines/") || text.contains("/run/") || text.contains("/leases/"))
    };
    let mut all = BTreeSet::new();
    collect(&home.path(), &mut all);
    all.into_iter()
        .filter(kept)
        // The folder of all names, and what was found out of this host.
        .filter(|path| !path.ends_with("machines/by-name") && !path.ends_with("run/counter.json"))
        .collect()
}

fn collect(folder: &Path, into: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        into.insert(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), into);
        }
    }
}

/// `run` and `create` with `flags`: 125 and `code`, an error that has `word`, a hint, and nothing left.
fn refused(home: &TestHome, flags: &[&str], code: i32, word: &str) {
    let before = things(home);
    for (command, code) in [("create", code), ("run", 125)] {
        let words: Vec<&str> = [command].iter().chain(flags).copied().collect();
        let run = zmachine(home, &words);
        run.expect_code(code);
        let text = run.stderr();
        assert!(
            text.starts_with("error: ") && text.contains(word),
            "no {word:?} in\n{run}"
        );
        assert!(text.lines().any(|line| line.starts_with("hint: ")), "no hint in\n{run}");
        assert!(
            !text.contains("Error {") && !text.contains("panicked") && !text.contains("Os {"),
            "{run}"
        );
        assert_eq!(run.stdout(), "", "{run}");
        assert_eq!(things(home), before, "{run}");
    }
}

#[test]
fn what_can_be_refused_is_refused_before_anything_is_made() {
    let Some(home) = home() else { return };
    let image = Tree::busybox(&home).pack(&home, "box");
    let image = image.as_str();
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(home.file(name), bytes).expect("a file");
        home.file(name).display().to_string()
    };
    let flist = std::fs::read(image).expect("the flist");
    let truncated = file("truncated.fl", &flist[..flist.len() / 2]);
    let empty = file("empty.fl", b"");
    let garbage = file("garbage.fl", &[b'x'; 5000]);
    let folder = home.file("store").display().to_string();
    let missing = home.file("missing.fl").display().to_string();
    zmachine(&home, &["create", "--name", "taken", image]).expect_success();
    let mut checks = Checks::default();
    checks.that("a missing file", || refused(&home, &[&missing], 3, "missing.fl"));
    checks.that("a missing name", || {
        refused(&home, &["--pull", "never", "no-such-image"], 3, "no-such-image")
    });
    checks.that("a registry that is not there", || {
        refused(&home, &["registry.invalid/no-such-image"], 5, "registry.invalid")
    });
    checks.that("a folder", || refused(&home, &[&folder], 5, &folder));
    checks.that("a truncated flist", || refused(&home, &[&truncated], 5, "truncated.fl"));
    checks.that("an empty flist", || refused(&home, &[&empty], 5, "empty.fl"));
    checks.that("garbage", || refused(&home, &[&garbage], 5, "garbage.fl"));
    checks.that("a taken name", || {
        refused(&home, &["--name", "taken", image], 4, "taken")
    });
    checks.that("a name that is none", || {
        refused(&home, &["--name", "../x", image], 2, "../x")
    });
    checks.that("a network named twice", || {
        let twice = ["--network", "default", "--network", "default", image];
        refused(&home, &twice, 2, "'default' is named twice")
    });
    checks.that("too little memory", || {
        refused(&home, &["--memory", "1", image], 2, "memory")
    });
    checks.that("too much memory", || {
        refused(&home, &["--memory", "9999T", image], 6, "memory")
    });
    checks.that("a size that is none", || {
        refused(&home, &["--memory", "1X", image], 2, "1X")
    });
    checks.that("too many CPUs", || {
        refused(&home, &["--cpus", "9999", image], 6, "9999")
    });
    checks.that("no CPU", || refused(&home, &["--cpus", "0", image], 2, "CPU"));
    checks.that("an unknown kernel", || {
        refused(&home, &["--kernel", "nope", image], 3, "nope")
    });
    checks.that("an unknown network", || {
        refused(&home, &["--network", "nope", image], 3, "nope")
    });
    checks.that("a port that is none", || {
        refused(&home, &["-p", "web", image], 2, "web")
    });
    checks.that("a store that is none", || {
        refused(&home, &["--store", "gopher://x", image], 2, "gopher")
    });
    checks.that("a signal that is none", || {
        refused(&home, &["--stop-signal", "FOO", image], 2, "FOO")
    });
    checks.that("a relative directory", || {
        refused(&home, &["-w", "here", image], 2, "here")
    });
    checks.that("no kernel installed", || without_a_kernel(&home, image));
    checks.that("an unknown machine", || {
        for command in [
            "start", "stop", "kill", "rm", "inspect", "logs", "wait", "attach", "restart",
        ] {
            let run = zmachine(&home, &[command, "nobody"]);
            assert!(run.expect_code(3).stderr().contains("hint: "), "{run}");
        }
        zmachine(&home, &["exec", "nobody", "true"]).expect_code(125);
    });
    checks.that("a machine that does not run", || {
        for words in [&["kill", "taken"][..], &["attach", "taken"], &["pause", "taken"]] {
            zmachine(&home, words).expect_code(4);
        }
        zmachine(&home, &["exec", "taken", "true"]).expect_code(125);
        zmachine(&home, &["stop", "taken"]).expect_success();
    });
    zmachine(&home, &["rm", "taken"]).expect_success();
}

fn without_a_kernel(home: &TestHome, image: &str) {
    let kernels = home.path().join("kernels");
    let away = home.file("kernels-away");
    std::fs::rename(&kernels, &away).expect("the link to the kernels");
    refused(home, &["--no-install", image], 3, "kernel");
    let _ = std::fs::remove_dir_all(&kernels);
    std::fs::rename(&away, &kernels).expect("the link to the kernels");
}

#[test]
fn what_only_the_guest_knows_fails_with_dockers_codes_and_the_machine_is_gone() {
    let Some(home) = home() else { return };
    let image = Tree::busybox(&home)
        .file("bin/plain", "no program\n")
        .pack(&home, "box");
    let before = things(&home);
    let cases: [(&[&str], &[&str], i32, &str); 3] = [
        (&[], &["no-such-command"], 127, "no-such-command"),
        (&[], &["/bin/plain"], 126, "/bin/plain"),
        (&["-u", "nobody99"], &["true"], 125, "nobody99"),
    ];
    for (flags, command, code, word) in cases {
        let words = ["run", "--network", "none"]
            .iter()
            .chain(flags)
            .copied()
            .chain([image.as_str()]);
        // A template would stay, and rightly.
        let run = home.zmachine(words.chain(command.iter().copied()));
        let run = run.env("ZMACHINE_WARM", "0").finish();
        run.expect_code(code);
        assert!(
            run.stderr().starts_with("error: ") && run.stderr().contains(word),
            "{run}"
        );
        assert!(run.stderr().contains("\nhint: "), "{run}");
        assert_eq!(things(&home), before, "{run}");
    }
    home.assert_host_clean();
}
