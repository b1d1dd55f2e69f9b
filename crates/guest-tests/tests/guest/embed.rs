//! The engine in a program that is not `zmachine`, and processes that outlive the program that started them.

use crate::support::{home_with_box, zmachine};

#[test]
fn another_program_has_machines_and_finds_its_commands_again_after_its_own_restart() {
    let Some((home, image)) = home_with_box() else { return };
    let run = home.path().join("run").display().to_string();
    let program = zmachine_testkit::artifacts().zmachine.display().to_string();
    let data = home.path().display().to_string();
    let embed = home.command(
        env!("CARGO_BIN_EXE_embed").as_ref(),
        [data.as_str(), &run, &program, &image],
    );
    let ran = embed.finish();
    assert_eq!(
        ran.expect_success().stdout(),
        "1\n2\n3\n-- a new life\n4\n5\n6\nhello world\n\
         count: Some(Code(3))\ngreet: Some(Code(0))\n"
    );

    // By the command line: one that is left alone, and one that cannot start.
    zmachine(
        &home,
        &["run", "-d", "--name", "d", "--network", "none", &image, "sleep", "1000"],
    )
    .expect_success();
    let started = zmachine(
        &home,
        &["exec", "-d", "d", "sh", "-c", "yes | head -c 300000; echo done > /done"],
    );
    assert_eq!(started.expect_success().stdout().trim().len(), 12);
    let wait = "while ! [ -e /done ]; do sleep 0.2; done; cat /done";
    assert_eq!(
        zmachine(&home, &["exec", "d", "sh", "-c", wait])
            .expect_success()
            .stdout(),
        "done\n"
    );
    let missing = zmachine(&home, &["exec", "-d", "d", "no-such-program"]);
    assert!(missing.expect_code(127).stderr().contains("no-such-program"));
    zmachine(&home, &["rm", "-f", "d"]).expect_success();
    home.assert_host_clean();
}
