//! Limits of the process that starts machines: what is too low is said at once, not by whichever process meets it first.

use std::process::Command;

#[test]
fn too_few_open_files_are_told_before_anything_is_made() {
    let home = tempfile::tempdir().unwrap();
    let run = |limit: &str| {
        let output = Command::new("sh")
            .args([
                "-c",
                &format!("{limit}; exec \"$@\""),
                "sh",
                env!("CARGO_BIN_EXE_zmachine"),
            ])
            .args(["create", "--name", "m", "/nonexistent/app.fl"])
            .env("ZMACHINE_HOME", home.path())
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let reported = run("ulimit -n 64");
    assert!(
        reported.contains("may open 64 files") && reported.contains("ulimit -n"),
        "{reported}"
    );
    // A soft limit that may be raised is.
    let reported = run("ulimit -S -n 64");
    assert!(reported.contains("/nonexistent/app.fl does not exist"), "{reported}");
}
