//! Golden files: `tests/golden/reservation/NAME.json`, and beside each what it becomes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/reservation")
}

/// What a reservation becomes: its spec and effects, or the refusal.
fn reported(text: &str) -> String {
    let reservation = match Reservation::parse(text) {
        Ok(reservation) => reservation,
        Err(failure) => return refusal(&failure),
    };
    let mut reported = String::new();
    for explained in explain::explain(&reservation) {
        let _ = writeln!(
            reported,
            "{} | {} | {}",
            explained.field, explained.value, explained.effect
        );
    }
    for has_vfio in [false, true] {
        if let Err(failure) = reservation.check_offered(has_vfio) {
            let _ = write!(reported, "--- with VFIO {has_vfio}\n{}", refusal(&failure));
        }
    }
    let spec = serde_json::to_string_pretty(&reservation.spec("vm1")).unwrap();
    let _ = writeln!(reported, "--- spec\n{spec}");
    reported
}

fn refusal(failure: &Failure) -> String {
    let mut text = format!("{:?}: {}\n", failure.class, failure.message);
    for cause in &failure.causes {
        let _ = writeln!(text, "caused by: {cause}");
    }
    let _ = writeln!(text, "hint: {}", failure.hint.as_deref().unwrap_or("(none)"));
    text
}

#[test]
fn reservations_become_what_their_golden_files_say() {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    names.sort();
    assert!(names.len() >= 10, "the golden files are there");
    for path in names {
        let reported = reported(&std::fs::read_to_string(&path).unwrap());
        let golden = path.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &reported).unwrap();
        }
        assert_eq!(
            reported,
            std::fs::read_to_string(&golden).unwrap_or_default(),
            "{}",
            path.display()
        );
    }
}

/// A reservation in which everything is right, with one field replaced.
fn with(pointer: &str, value: Value) -> String {
    let text = std::fs::read_to_string(folder().join("container.json")).unwrap();
    let mut document: Value = serde_json::from_str(&text).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        parent => parent[key] = value,
    }
    document.to_string()
}

#[test]
fn each_field_refuses_what_its_rule_forbids_and_says_its_name() {
    use serde_json::json;
    let mib = |n: u64| json!(n << 20);
    for (pointer, value, field) in [
        ("/flist", json!(""), "flist"),
        ("/flist", json!("x.fl"), "flist"),
        ("/flist", json!("https://hub/x.zip"), "flist"),
        ("/flist", json!(3), "flist"),
        ("/network", json!(null), "network"),
        ("/network/public_ip", json!(true), "network.public_ip"),
        ("/network/planetary", json!("yes"), "network.planetary"),
        (
            "/network/mycelium",
            json!({"Network": "n"}),
            "network.mycelium.hex_seed",
        ),
        (
            "/network/mycelium",
            json!({"Network": "n", "hex_seed": "0102"}),
            "network.mycelium.hex_seed",
        ),
        (
            "/network/mycelium",
            json!({"Network": "n", "hex_seed": "+10203040506"}),
            "network.mycelium.hex_seed",
        ),
        (
            "/network/mycelium",
            json!({"hex_seed": "010203040506"}),
            "network.mycelium.Network",
        ),
        ("/network/interfaces", json!([]), "network.interfaces"),
        ("/network/interfaces", json!([{}, {}]), "network.interfaces"),
        (
            "/network/interfaces/0/network",
            json!("ygg"),
            "network.interfaces[0].network",
        ),
        (
            "/network/interfaces/0/network",
            json!("pub"),
            "network.interfaces[0].network",
        ),
        (
            "/network/interfaces/0/network",
            json!("mycelium"),
            "network.interfaces[0].network",
        ),
        (
            "/network/interfaces/0/ip",
            json!("10.1.1.1"),
            "network.interfaces[0].ip",
        ),
        ("/network/interfaces/0/ip", json!("fd00::2"), "network.interfaces[0].ip"),
        (
            "/network/interfaces/0/ip",
            json!("10.1.1.3/24"),
            "network.interfaces[0].ip",
        ),
        ("/network/interfaces/0/mac", json!("x"), "network.interfaces[0].mac"),
        ("/size", mib(499), "size"),
        ("/size", json!(-1), "size"),
        ("/size", json!(1.5), "size"),
        ("/compute_capacity/cpu", json!(0), "compute_capacity.cpu"),
        ("/compute_capacity/cpu", json!(256), "compute_capacity.cpu"),
        ("/compute_capacity/memory", mib(249), "compute_capacity.memory"),
        ("/compute_capacity/memory", json!("1G"), "compute_capacity.memory"),
        ("/compute_capacity/disk", json!(1), "compute_capacity.disk"),
        ("/mounts", json!({}), "mounts"),
        ("/mounts/0/mountpoint", json!("/"), "mounts[0].mountpoint"),
        ("/mounts/0/mountpoint", json!("//."), "mounts[0].mountpoint"),
        ("/mounts/0/mountpoint", json!("data"), "mounts[0].mountpoint"),
        ("/mounts/0/mountpoint", json!("/a/../.."), "mounts[0].mountpoint"),
        ("/mounts/0/mountpoint", json!("/a:ro"), "mounts[0].mountpoint"),
        ("/mounts/0/name", json!("a/b"), "mounts[0].name"),
        (
            "/mounts",
            json!([{"name": "a", "mountpoint": "/d"}, {"name": "b", "mountpoint": "/d/"}]),
            "mounts[1].mountpoint",
        ),
        ("/entrypoint", json!("sh -c 'x"), "entrypoint"),
        ("/env", json!({"": "x"}), "env"),
        ("/env", json!({"A=B": "x"}), "env"),
        ("/env", json!({"A": 1}), "env.A"),
        ("/corex", json!(1), "corex"),
        ("/gpu", json!(["0000:28:00.0/1002"]), "gpu[0]"),
        ("/gpu", json!(["28:00.0/1002/731f"]), "gpu[0]"),
        ("/zlogs", json!([]), "zlogs"),
    ] {
        let failure = Reservation::parse(&with(pointer, value.clone())).unwrap_err();
        assert_eq!(failure.class, Class::Usage, "{pointer} {value}");
        assert!(
            failure.message.starts_with(&format!("{field}:")),
            "{pointer} {value}: {}",
            failure.message
        );
        assert!(failure.hint.is_some(), "{pointer} {value}");
    }
}

#[test]
fn the_result_is_zero_os_s_object() {
    let deployed = Deployed {
        id: "0123456789ab".into(),
        ip: "10.1.1.3".into(),
        planetary_ip: String::new(),
        mycelium_ip: String::new(),
        console_url: String::new(),
    };
    assert_eq!(
        serde_json::to_string(&deployed).unwrap(),
        r#"{"id":"0123456789ab","ip":"10.1.1.3","planetary_ip":"","mycelium_ip":"","console_url":""}"#
    );
}
