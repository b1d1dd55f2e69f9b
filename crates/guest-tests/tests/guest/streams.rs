//! Standard streams: every byte, in order, each on its side.

use zmachine_testkit::Tree;

use crate::support::{home, noise, zmachine};

const TEN_MEGABYTES: usize = 10_000_000;

#[test]
fn ten_megabytes_come_in_and_out_unchanged_and_errors_stay_apart() {
    let Some(home) = home() else { return };
    let (input, output) = (noise(1, TEN_MEGABYTES), noise(2, TEN_MEGABYTES));
    let tree = Tree::busybox(&home).file("in.bin", &input).file("out.bin", &output);
    let image = tree.pack(&home, "streams");
    // The end of our input ends `cmp`; without it this would hang.
    let script = "cmp - /in.bin && echo same >&2; cat /out.bin";
    let run = home
        .zmachine(["run", "-i", "--name", "streams", &image, "sh", "-c", script])
        .input(&input)
        .finish();
    run.expect_success();
    assert_eq!(run.stderr(), "same\n");
    assert!(
        run.stdout_bytes == output,
        "{} bytes of output differ",
        run.stdout_bytes.len()
    );

    let logs = zmachine(&home, &["logs", "streams"]);
    assert_eq!(logs.expect_success().stderr(), "same\n");
    assert!(
        logs.stdout_bytes == output,
        "{} bytes of logs differ",
        logs.stdout_bytes.len()
    );
    let errors = zmachine(&home, &["logs", "--source", "stderr", "streams"]);
    assert_eq!((errors.stdout().as_str(), errors.stderr().as_str()), ("", "same\n"));
    zmachine(&home, &["rm", "streams"]).expect_success();
}

#[test]
fn a_reader_that_leaves_ends_the_guest_as_in_any_pipeline() {
    let Some(home) = home() else { return };
    let image = Tree::busybox(&home).pack(&home, "box");
    let zmachine = zmachine_testkit::artifacts().zmachine.display().to_string();
    let script = format!("{zmachine} run --rm --network none {image} sh -c 'yes; echo $? >&2' | head -n 2");
    let run = home.command("/bin/sh".as_ref(), ["-c", &script]).finish();
    assert_eq!(run.expect_success().stdout(), "y\ny\n");
    home.assert_host_clean();
}
