//! A flist that the original tool made years before this project, with its store.

use std::path::Path;

use crate::support::{home, zmachine};

#[test]
fn a_recorded_flist_runs_with_a_command_and_with_its_own() {
    let Some(home) = home() else { return };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flist/tests/fixtures/v2");
    let fixtures = fixtures.canonicalize().expect("the recorded files");
    let image = fixtures.join("busybox.fl").display().to_string();
    // Its own route leads to a folder of the machine it was recorded on.
    let store = format!("dir://{}", fixtures.join("store").display());

    let run = zmachine(
        &home,
        &[
            "run",
            "--rm",
            "--store",
            &store,
            &image,
            "/bin/sh",
            "-c",
            "echo $((6*7)); exit 3",
        ],
    );
    run.expect_code(3);
    assert_eq!((run.stdout().as_str(), run.stderr().as_str()), ("42\n", ""));

    // `.startup.toml`: program, arguments, directory and environment.
    let run = zmachine(&home, &["run", "--rm", "--store", &store, "--network", "none", &image]);
    assert_eq!(run.expect_success().stdout(), "hi from /work\nhello from a flist\n");
    assert_eq!(run.stderr(), "");
    assert_eq!(zmachine(&home, &["ps", "-a", "-q"]).stdout(), "");
}
