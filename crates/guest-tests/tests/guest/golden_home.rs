//! A home of an earlier program (`golden-home`, whose specs have version 1): its machines are listed, shown, started and removed.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::support::{Checks, home_with_box, inspect, zmachine};

/// Machines that did not run when that home was copied: name and id.
const MACHINES: [(&str, &str); 4] = [
    ("job", "f189f8795ace"),
    ("every", "c94bd8c214c4"),
    ("vm", "4eabfc52d94b"),
    ("disk", "01bc9ca42d60"),
];

/// Their volumes, with the size of each in bytes.
const VOLUMES: [(&str, u64); 5] = [
    ("bare", 2 << 20),
    ("boot", 64 << 20),
    ("c94bd8c214c4-1", 16 << 20),
    ("uefi", 64 << 20),
    ("xfs", 10 << 30),
];

/// The image of its containers.
const IMAGE: &str = "facbf962f4137a2128af412154f7c8b2b5c9519b67be20bd159deadcac6ad346";

/// Copies the texts below `from`, each changed by `change`.
fn copy(from: &Path, to: &Path, change: &dyn Fn(&str) -> String) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy(&path, &target, change),
            false => std::fs::write(target, change(&std::fs::read_to_string(&path).unwrap())).unwrap(),
        }
    }
}

#[test]
fn machines_of_an_earlier_program_go_on() {
    let Some((home, image)) = home_with_box() else { return };
    // What a machine of this home has of image and kernel, which the copied ones get.
    zmachine(&home, &["create", "--name", "now", "--network", "none", &image]).expect_success();
    let plan = inspect(&home, "now")["plan"].clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (digest, kernel) = (text(&plan["image"]), text(&plan["kernel"]["name"]));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden-home");
    let of_here = |text: &str| {
        text.replace("/srv/zmachine/", &format!("{}/", home.path().display()))
            .replace(IMAGE, &digest)
            .replace("debian-6.12.117", &kernel)
    };
    let machines = home.path().join("machines");
    for (name, id) in MACHINES {
        copy(&golden.join("machines").join(id), &machines.join(id), &of_here);
        symlink(Path::new("..").join(id), machines.join("by-name").join(name)).unwrap();
    }
    for (name, bytes) in VOLUMES {
        let volume = home.path().join("volumes").join(name);
        copy(&golden.join("volumes").join(name), &volume, &of_here);
        std::fs::File::create(volume.join("data.img"))
            .unwrap()
            .set_len(bytes)
            .unwrap();
    }
    let spec = |id: &str| std::fs::read_to_string(machines.join(id).join("spec.json")).unwrap();

    let mut checks = Checks::default();
    checks.that("they are listed and shown", || {
        let listed = zmachine(&home, &["ps", "-a", "-o", "json"]);
        let listed: Vec<Value> = serde_json::from_str(&listed.expect_success().stdout()).unwrap();
        assert_eq!(listed.len(), MACHINES.len() + 1);
        for (name, id) in MACHINES {
            let shown = inspect(&home, name);
            assert_eq!(
                (&shown["id"], &shown["spec"]["version"]),
                (&Value::from(id), &Value::from(2))
            );
            assert!(spec(id).contains("\"version\": 1"), "looking changes nothing");
        }
        let file = zmachine(&home, &["inspect", "--spec", "vm"]).expect_success().stdout();
        assert!(file.contains("volume = [\"boot:/:size=67108864\""), "{file}");
        let volumes = zmachine(&home, &["volume", "ls"]).expect_success().stdout();
        assert!(volumes.contains("uefi"), "{volumes}");
        zmachine(&home, &["volume", "rm", "boot"]).expect_code(4);
    });
    checks.that("one that had ended starts again and ends as it did", || {
        zmachine(&home, &["start", "job"]).expect_success();
        assert_eq!(zmachine(&home, &["wait", "job"]).expect_success().stdout().trim(), "3");
        let log = zmachine(&home, &["logs", "job"]).expect_success().stdout();
        assert!(log.contains("done"), "{log}");
        let state = &inspect(&home, "job")["state"];
        assert_eq!(
            (&state["phase"], &state["starts"]),
            (&Value::from("stopped"), &Value::from(2))
        );
        assert!(
            zmachine(&home, &["why", "job"])
                .expect_success()
                .stdout()
                .contains("start 2 of 2")
        );
    });
    checks.that("they are removed with what they have", || {
        for (name, id) in MACHINES {
            zmachine(&home, &["rm", "-v", name]).expect_success();
            assert!(!machines.join(id).exists());
        }
        let volumes = zmachine(&home, &["volume", "ls", "-q"]).expect_success().stdout();
        assert_eq!(
            volumes.split_whitespace().collect::<Vec<_>>(),
            ["bare", "boot", "uefi", "xfs"]
        );
    });
    zmachine(&home, &["rm", "now"]).expect_success();
}
