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
    let said = run("ulimit -n 64");
    assert!(
        said.contains("may open 64 files") && said.contains("ulimit -n"),
        "{said}"
    );
    // A soft limit that may be raised is.
    let said = run("ulimit -S -n 64");
    assert!(said.contains("/nonexistent/app.fl does not exist"), "{said}");
}
