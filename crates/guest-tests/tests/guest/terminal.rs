//! Terminals: what a user at a keyboard sees.

use std::time::Duration;

use crate::support::{home_with_box, until, zmachine};

#[test]
fn a_shell_on_a_terminal_behaves_as_at_home() {
    let Some((home, image)) = home_with_box() else { return };
    zmachine(&home, &["run", "-d", "--name", "tty", &image, "sleep", "1000"]).expect_success();
    let mut terminal = home
        .zmachine(["exec", "-it", "-e", "PS1=ready> ", "tty", "sh"])
        .on_terminal();
    terminal.expect("ready> ");
    terminal.type_in("stty size; tty\r");
    terminal.expect("\n24 80\r\n/dev/pts/0\r\n");
    terminal.expect("ready> ");
    terminal.resize(33, 99);
    // The new size travels on its own way, beside the keys.
    terminal.type_in("while ! stty size | grep '33 99'; do sleep 0.1; done\r");
    terminal.expect("\n33 99\r\n");
    terminal.expect("ready> ");
    terminal.type_in("echo begun; sleep 500; echo code $?\r");
    terminal.expect("\nbegun\r\n");
    terminal.type_in("\x03");
    terminal.expect("ready> ");
    terminal.type_in("exit 7\r");
    let (code, shown) = terminal.finish();
    assert_eq!(code, 7, "{shown}");
    assert!(!shown.contains("code 0"), "ctrl-c did not interrupt:\n{shown}");

    a_dropped_terminal_hangs_up(&home);
    zmachine(&home, &["rm", "-f", "tty"]).expect_success();
}

/// Closing the window ends what ran in it, as sshd and a local terminal do.
fn a_dropped_terminal_hangs_up(home: &zmachine_testkit::TestHome) {
    let mut terminal = home
        .zmachine(["exec", "-it", "tty", "sh", "-c", "echo up; sleep 444"])
        .on_terminal();
    terminal.expect("up");
    drop(terminal);
    until(
        "the program of a closed terminal is gone",
        Duration::from_secs(20),
        || {
            let gone = zmachine(
                home,
                &[
                    "exec",
                    "tty",
                    "sh",
                    "-c",
                    "! pgrep -f 'sleep 44[4]' && ! ps | grep -q 'sleep 44[4]'",
                ],
            );
            (gone.code == 0).then_some(())
        },
    );
}

#[test]
fn an_entrypoint_on_a_terminal_can_be_used_left_and_found_again() {
    let Some((home, image)) = home_with_box() else { return };
    let run = [
        "run",
        "-it",
        "--rm",
        "--name",
        "it",
        "--network",
        "none",
        "-e",
        "PS1=ready> ",
        &image,
        "sh",
    ];
    let mut terminal = home.zmachine(run).env("TERM", "xterm").on_terminal();
    terminal.expect("booting it");
    terminal.expect("ready> ");
    terminal.type_in("test -t 0 && test -t 1 && stty size\r");
    terminal.expect("\n24 80\r\n");
    terminal.type_in("\x10\x11");
    let (code, shown) = terminal.finish();
    assert_eq!(code, 0, "ctrl-p ctrl-q leave");
    let of_guest = shown.split_once("ready> ").map(|(_, rest)| rest);
    assert!(of_guest.is_some_and(|rest| !rest.contains("booting")), "{shown}");

    let mut terminal = home.zmachine(["attach", "it"]).on_terminal();
    terminal.type_in("echo here $((1+1)) again\r");
    terminal.expect("here 2 again");
    terminal.type_in("exit 5\r");
    let (code, shown) = terminal.finish();
    assert_eq!(code, 5, "{shown}");
    // The monitor ends, and with --rm removes the machine, right after it told us.
    until("the machine is gone", Duration::from_secs(30), || {
        zmachine(&home, &["ps", "-a", "-q"]).stdout().is_empty().then_some(())
    });
}

#[test]
fn a_signal_that_nobody_sent_is_told_and_there_is_nothing_to_see_without_a_terminal() {
    let Some((home, image)) = home_with_box() else { return };
    let run = |script: &str| {
        let words = ["run", "--rm", "--network", "none", &image, "sh", "-c", script];
        zmachine(&home, &words)
    };
    let broken = run("sh -c 'kill -SEGV $$'; exit $?");
    assert!(broken.expect_code(139).stderr().contains("SIGSEGV"), "{broken}");
    let fine = run("exit 3");
    assert_eq!(fine.expect_code(3).stderr(), "");
    home.assert_host_clean();
}
