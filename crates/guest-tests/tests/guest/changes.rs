//! What a container changed: listed, made an image, taken out as a whole; while it runs and afterwards; above a flist and above layers.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use zmachine_testkit::{Need, TestHome, Tree, lacking, skip};

use crate::support::{Checks, exec_output, home, home_with_box, sh, zmachine};

const CHANGE: &str = "rm /etc/gone && mkdir /new && echo made >/new/file && ln /new/file /new/link && mv /etc/moved /etc/here && \
    rm -r /etc/opaque && mkdir /etc/opaque && chmod 700 /work && echo kept >/data/kept && touch /var/tmp && rm /var/tmp";

const PREPARE: [&str; 3] = ["etc/gone", "etc/opaque/old", "etc/moved/in/it"];

const CHANGES: [&str; 11] = [
    "C /etc",
    "D /etc/gone",
    "A /etc/here",
    "A /etc/here/in",
    "A /etc/here/in/it",
    "D /etc/moved",
    "C /etc/opaque",
    "D /etc/opaque/old",
    "A /new",
    "A /new/file",
    "A /new/link",
];

fn tree(home: &TestHome) -> Tree {
    PREPARE.iter().fold(Tree::busybox(home), |tree, file| {
        let folder = Path::new(file).parent().expect("a folder").display().to_string();
        let folders: Vec<String> = folder
            .split('/')
            .scan(String::new(), |path, part| {
                path.push_str(part);
                path.push('/');
                Some(path.trim_end_matches('/').to_owned())
            })
            .collect();
        let tree = folders
            .iter()
            .filter(|folder| *folder != "etc")
            .fold(tree, |tree, folder| tree.folder(folder, 0o755));
        tree.file(file, "old\n")
    })
}

fn run(home: &TestHome, name: &str, image: &str) {
    let words = [
        "run",
        "-d",
        "--name",
        name,
        "--network",
        "none",
        "-v",
        "/data",
        "-e",
        "A=one",
        image,
        "sleep",
        "10000",
    ];
    zmachine(home, &words).expect_success();
    exec_output(home, name, CHANGE);
}

fn diff(home: &TestHome, name: &str) -> Vec<String> {
    let listed = zmachine(home, &["diff", name]).expect_success().stdout();
    listed.lines().map(str::to_owned).collect()
}

fn expected() -> Vec<String> {
    let mut expected: Vec<String> = CHANGES.map(str::to_owned).to_vec();
    expected.push("C /work".to_owned());
    expected
}

#[test]
fn a_container_becomes_an_image_be_it_running_or_not() {
    let Some(home) = home() else { return };
    let image = tree(&home).pack(&home, "box");
    let mut checks = Checks::default();
    run(&home, "m", &image);
    checks.that("what it changed is listed, and nothing of the machine's own", || {
        assert_eq!(diff(&home, "m"), expected());
    });
    checks.that("the running machine becomes an image", || {
        let words = ["commit", "-q", "-c", "CMD [\"cat\", \"/new/file\"]", "m", "mine:1"];
        let made = zmachine(&home, &words).expect_success().stdout();
        assert!(made.starts_with("mine:1 ") && made.trim_end().len() == 7 + 64, "{made}");
        assert_eq!(exec_output(&home, "m", "cat /new/link"), "made", "it goes on");
    });
    zmachine(&home, &["stop", "-t", "1", "m"]).expect_success();
    checks.that(
        "the list is the same when it does not run, and nothing is left of what read it",
        || {
            let mut stopped = diff(&home, "m");
            // The volume is not mounted there.
            stopped.retain(|line| line != "A /data");
            assert_eq!(stopped, expected());
            let names = zmachine(&home, &["ps", "-a", "-q", "--no-trunc"])
                .expect_success()
                .stdout();
            assert_eq!(names.lines().count(), 1, "{names}");
        },
    );
    checks.that("the whole root comes out, without what is mounted in it", || {
        let file = home.file("root.tar").display().to_string();
        zmachine(&home, &["export", "-o", &file, "m"]).expect_success();
        let listed = home
            .command(Path::new("tar"), ["-tf", &file])
            .finish()
            .expect_success()
            .stdout();
        let has = |name: &str| listed.lines().any(|line| line.trim_end_matches('/') == name);
        assert!(
            has("bin/busybox") && has("new/link") && has("etc/here/in/it"),
            "{listed}"
        );
        assert!(!has("etc/gone") && !has("data/kept") && !has("proc/1"), "{listed}");
    });
    checks.that("the new image has all that, its variables and its command", || {
        let ran = zmachine(&home, &["run", "--rm", "--network", "none", "mine:1"]);
        assert_eq!(ran.expect_success().stdout(), "made\n");
        let script = "cat /etc/here/in/it; echo $A; stat -c '%a %h' /work /new/file; ls /etc/opaque /data | grep -c old; ls /etc/gone";
        let ran = zmachine(&home, &["run", "--rm", "--network", "none", "mine:1", "sh", "-c", script]);
        assert_eq!(ran.stdout(), "old\none\n700 2\n644 2\n0\n");
    });
    checks.that("VMs and names that are none are refused", || {
        let refused = zmachine(&home, &["diff", "nobody"]);
        refused.expect_code(3);
        let refused = zmachine(&home, &["commit", "-c", "RUN x", "m"]);
        assert!(
            refused.stderr().contains("RUN does not say how an image is run"),
            "{}",
            refused.stderr()
        );
    });
    zmachine(&home, &["rm", "m"]).expect_success();
}

#[test]
fn an_image_of_layers_gets_one_more() {
    let Some((home, _)) = home_with_box() else { return };
    if let Some(reason) = lacking(&[Need::Command("umoci")]) {
        return skip(&reason);
    }
    let umoci = |args: &[&str]| {
        let finished = home
            .command(Path::new("umoci"), args)
            .deadline(Duration::from_secs(120))
            .finish();
        finished.expect_success();
    };
    umoci(&["init", "--layout", "made"]);
    umoci(&["new", "--image", "made:box"]);
    umoci(&["insert", "--image", "made:box", "busybox-tree", "/"]);
    umoci(&[
        "config",
        "--image",
        "made:box",
        "--config.cmd=sh",
        "--config.label=tier=front",
    ]);
    let layout = format!("oci:{}:box", home.file("made").display());
    let mut checks = Checks::default();
    zmachine(
        &home,
        &[
            "run",
            "-d",
            "--name",
            "m",
            "--network",
            "none",
            &layout,
            "sleep",
            "10000",
        ],
    )
    .expect_success();
    // Two counters, one always the other's or one more; what lies between them in the layer takes its time.
    let count = "mkdir /count && cd /count && dd if=/dev/zero of=m bs=1M count=40 2>/dev/null && i=0 && \
        (while :; do i=$((i+1)); echo $i >a.new; mv a.new a; echo $i >z.new; mv z.new z; done) >/dev/null 2>&1 &";
    sh(&home, "m", &format!("echo more >/etc/more && rm /etc/group; {count}")).expect_success();
    let counted = || {
        let ready = "while ! test -s /count/z; do sleep 0.1; done; sleep 1; cat /count/z";
        exec_output(&home, "m", ready).parse::<u64>().expect("a number")
    };
    checks.that("it is one more layer with its place in the history", || {
        assert!(counted() > 0);
        zmachine(
            &home,
            &["commit", "-q", "-a", "me", "-m", "more of it", "m", "local/more"],
        )
        .expect_success();
        let inspected = zmachine(&home, &["image", "inspect", "local/more"])
            .expect_success()
            .stdout();
        let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
        let layers = inspected[0]["RootFS"]["Layers"].as_array().map(Vec::len);
        assert_eq!(layers, Some(2), "{inspected}");
        let history = zmachine(&home, &["history", "local/more"]).expect_success().stdout();
        assert!(
            history.contains("zmachine commit") && history.contains("more of it"),
            "{history}"
        );
        let before = counted();
        assert!(before < counted(), "the processes do not go on");
    });
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
    checks.that("saved, removed and loaded it is what it was", || {
        let file = home.file("more.tar").display().to_string();
        zmachine(&home, &["save", "-o", &file, "local/more"]).expect_success();
        zmachine(&home, &["image", "rm", "local/more"]).expect_success();
        zmachine(&home, &["load", "-i", &file]).expect_success();
        let script = "cat /etc/more; a=$(cat /count/a) z=$(cat /count/z); echo $((a - z)); ls /etc/group";
        let ran = zmachine(
            &home,
            &["run", "--rm", "--network", "none", "local/more", "sh", "-c", script],
        );
        let text = ran.stdout();
        assert!(
            ["more\n0\n", "more\n1\n"].contains(&text.as_str()),
            "not of one instant: {text}"
        );
        ran.expect_code(1);
    });
}
