//! The choice of a hypervisor, and the suite on the other one.

use std::process::Command;

use serde_json::Value;
use zmachine_hypervisor::Accel;
use zmachine_hypervisor::accel::{self, AccelFacts, Requested};
use zmachine_hypervisor::choice::{self, Found};
use zmachine_testkit::skip;

use crate::support::{Checks, home_with_box, zmachine};

/// Why Cloud Hypervisor cannot run machines on this host; `None` when it can.
fn obstacle() -> Option<String> {
    let accel = accel::choose(Requested::Auto, &AccelFacts::gather()).expect("auto always has an answer");
    if accel.accel != Accel::Kvm {
        return Some(format!("needs kvm: {}", accel.why));
    }
    let found = Found::gather();
    choice::choose(choice::Requested::CloudHypervisor, &accel, &found, None)
        .err()
        .map(|e| e.to_string())
}

#[test]
fn the_choice_of_a_hypervisor_is_told_and_never_silently_another() {
    let Some((home, image)) = home_with_box() else { return };
    let mut checks = Checks::default();
    checks.that("a dry run says which and why", || {
        let run = zmachine(&home, &["run", "--dry-run", "--hypervisor", "qemu", &image]);
        let plan: Value = serde_json::from_str(&run.expect_success().stdout()).expect("JSON");
        assert_eq!(plan["hypervisor"]["driver"], "qemu");
        assert_eq!(plan["hypervisor"]["why"], "asked for");
        let run = zmachine(&home, &["run", "--dry-run", &image]);
        let plan: Value = serde_json::from_str(&run.expect_success().stdout()).expect("JSON");
        let wanted = if obstacle().is_none() {
            "cloud-hypervisor"
        } else {
            "qemu"
        };
        assert_eq!(plan["hypervisor"]["driver"], wanted);
        let why = plan["hypervisor"]["why"].as_str().expect("a reason");
        assert!(why.contains("Cloud Hypervisor"), "{why}");
    });
    checks.that("the doctor says it too", || {
        let run = zmachine(&home, &["doctor", "-o", "json"]).stdout();
        let all: Value = serde_json::from_str(&run).expect("JSON");
        let all = all.as_array().expect("checks");
        let check = all
            .iter()
            .find(|c| c["requirement"] == "Cloud Hypervisor")
            .expect("one");
        assert_eq!(check["met"], obstacle().is_none());
    });
    if obstacle().is_some() {
        checks.that("where it cannot be, asking for it is exit 6 with a hint", || {
            let run = zmachine(
                &home,
                &["create", "--name", "c", "--hypervisor", "cloud-hypervisor", &image],
            );
            let output = run.expect_code(6).stderr();
            assert!(output.contains("Cloud Hypervisor cannot run this machine"), "{output}");
            assert!(
                output.contains("use qemu") && output.contains("(--hypervisor)"),
                "{output}"
            );
            zmachine(&home, &["inspect", "c"]).expect_code(3);
        });
    }
    checks.that("a firmware is pinned by its hash, and what is none is refused", || {
        let file = home.path().join("CLOUDHV.fd");
        std::fs::write(&file, b"\x7fELF").expect("a file");
        let path = file.to_str().expect("UTF-8");
        zmachine(&home, &["firmware", "show"]).expect_code(3);
        zmachine(&home, &["firmware", "set", path, "--sha256", "00"]).expect_code(5);
        zmachine(&home, &["firmware", "set", path]).expect_success();
        let shown = zmachine(&home, &["firmware", "show"]).stdout();
        assert!(shown.trim_end().ends_with(path) && shown.len() > 64, "{shown}");
        std::fs::write(&file, [0; 4]).expect("a file");
        zmachine(&home, &["firmware", "set", path]).expect_code(2);
    });
}

/// Every test of the life of machines, once more on the other hypervisor: the same tests, with another parameter.
#[test]
fn the_same_suite_passes_on_cloud_hypervisor() {
    const PARAMETER: &str = "ZMACHINE_HYPERVISOR";
    if std::env::var_os(PARAMETER).is_some() {
        return; // this run has its parameter already
    }
    if let Some(reason) = obstacle() {
        return skip(&reason);
    }
    let program = std::env::current_exe().expect("this program");
    let suite = [
        "life::",
        "lifecycle::",
        "network::",
        "root::",
        "streams::",
        "volumes::",
        "crashes::",
    ];
    let status = Command::new(program)
        .args(suite)
        .env(PARAMETER, "cloud-hypervisor")
        .status();
    assert!(status.expect("the suite").success());
}
