//! What becomes of a pod when one of its processes, or containerd, is killed: at every stage of its life it is reported as it is, and
//! nothing of it stays.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::node::Node;
use super::{EXITED, Pod, SOON, container_state, ended, exec, output};
use crate::support::until;

/// What a pod is doing when something is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// Its machine boots.
    Booting,
    /// It has no container yet.
    Empty,
    /// Its container is not started yet.
    Created,
    /// Its container runs.
    Running,
    /// The same, and so does a command in it.
    Executing,
}

/// Words of the command lines of the processes of a pod; the last one is what only a monitor is started with.
const SHIM: &[&str] = &["-listener-fd", "serve"];
const HYPERVISOR: &[&str] = &["qemu-system"];
const SHARE: &[&str] = &["virtiofsd"];
const MONITOR: &[&str] = &["--ends-with-client"];

const KILLS: [(&[&str], Stage); 9] = [
    (SHIM, Stage::Booting),
    (HYPERVISOR, Stage::Booting),
    (SHARE, Stage::Empty),
    (SHIM, Stage::Created),
    (MONITOR, Stage::Created),
    (SHIM, Stage::Running),
    (SHARE, Stage::Running),
    (MONITOR, Stage::Running),
    (HYPERVISOR, Stage::Executing),
];

fn kill(pids: &[i32]) {
    for pid in pids {
        let pid = rustix::process::Pid::from_raw(*pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Kills the processes with these words as soon as there is one.
#[track_caller]
fn kill_first(node: &Node, words: &[&str]) {
    let pids = until("the process to be killed", SOON, || {
        Some(node.processes(words)).filter(|pids| !pids.is_empty())
    });
    kill(&pids);
}

/// A sandbox that nobody waits for.
fn sandbox(name: &str) -> Value {
    let config = json!({
        "metadata": {"name": name, "uid": name, "namespace": "default"},
        "linux": {"security_context": {"namespace_options": {"pid": 1}}},
    });
    json!({"config": config, "runtime_handler": "zmachine"})
}

/// What a kubelet does about pods that it does not want.
fn remove_all(node: &Node) {
    let listed = node.cri("ListPodSandbox", &json!({}));
    for item in listed["items"].as_array().into_iter().flatten() {
        node.cri("StopPodSandbox", &json!({"pod_sandbox_id": item["id"]}));
        node.cri("RemovePodSandbox", &json!({"pod_sandbox_id": item["id"]}));
    }
}

#[test]
fn whatever_is_killed_at_whatever_stage_the_pod_is_reported_and_nothing_stays() {
    let Some(node) = Node::start() else { return };
    let node = &node;
    for (victim, stage) in KILLS {
        println!("{victim:?}: {stage:?}");
        if stage == Stage::Booting {
            let ran = std::thread::scope(|scope| {
                let running = scope.spawn(|| node.try_cri("RunPodSandbox", &sandbox("boots")));
                kill_first(node, victim);
                running.join().unwrap()
            });
            assert_ne!(ran.code, 0, "{victim:?}: {ran}");
            remove_all(node);
            node.assert_no_pods();
            continue;
        }
        let pod = Pod::run(node, "k", Value::Null);
        let container = match stage {
            Stage::Booting | Stage::Empty => None,
            Stage::Created => Some(pod.create("c", "sleep 1000", Value::Null)),
            Stage::Running | Stage::Executing => Some(pod.start("c", "sleep 1000", Value::Null)),
        };
        std::thread::scope(|scope| {
            let executing = container.as_ref().filter(|_| stage == Stage::Executing).map(|id| {
                let request =
                    json!({"container_id": id, "cmd": ["sh", "-c", "touch /began; sleep 1000"], "timeout": 120});
                let executing = scope.spawn(move || node.try_cri("ExecSync", &request));
                until("the command runs", SOON, || {
                    (exec(node, id, "test -e /began").0 == 0).then_some(())
                });
                executing
            });
            kill_first(node, victim);
            if let Some(executing) = executing {
                let ran = executing.join().unwrap();
                let answer: Value = serde_json::from_str(&ran.stdout()).unwrap_or_default();
                let is_failure = ran.code != 0 || answer["exit_code"].as_i64() != Some(0);
                assert!(is_failure, "{victim:?}: {ran}");
            }
        });
        match (stage, &container) {
            (Stage::Created, Some(id)) => {
                let started = node.try_cri("StartContainer", &json!({"container_id": id}));
                assert_ne!(started.code, 0, "{victim:?}: {started}");
            }
            (_, Some(id)) => {
                let code = ended(node, id);
                assert!(code == 137 || code == 255, "{victim:?}: {code}");
            }
            (_, None) => {}
        }
        until("the pod is not ready", SOON, || {
            (pod.status()["state"] == 1).then_some(())
        });
        pod.stop_and_remove();
        node.assert_no_pods();
    }
    a_guest_that_hangs_is_ended_all_the_same(node);
    what_dies_slowly_is_gone_all_the_same(node);
}

/// Processes of which even SIGKILL makes an end only when this is dropped: frozen by a control group of version 1.
struct Frozen {
    folder: PathBuf,
}

impl Frozen {
    /// `None`, with the reason printed, where this host has no such groups.
    fn new(pids: &[i32]) -> Option<Frozen> {
        let folder = PathBuf::from(format!("/sys/fs/cgroup/freezer/zmachine-test-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&folder) {
            zmachine_testkit::skip(&format!("needs to freeze processes: {}: {error}", folder.display()));
            return None;
        }
        let frozen = Frozen { folder };
        for pid in pids {
            fs::write(frozen.folder.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        fs::write(frozen.folder.join("freezer.state"), "FROZEN").unwrap();
        Some(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.folder.join("freezer.state"), "THAWED");
        until("the frozen processes end", SOON, || fs::remove_dir(&self.folder).ok());
    }
}

/// A hypervisor that does not die within the five seconds that containerd gives whoever cleans up after a killed shim.
fn what_dies_slowly_is_gone_all_the_same(node: &Node) {
    let pod = Pod::run(node, "s", Value::Null);
    let hypervisor = node.processes(HYPERVISOR);
    let Some(frozen) = Frozen::new(&hypervisor) else {
        return pod.stop_and_remove();
    };
    kill(&node.processes(SHIM));
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(node.processes(HYPERVISOR), hypervisor);
    drop(frozen);
    pod.stop_and_remove();
    node.assert_no_pods();
}

/// A hypervisor that stands still: its guest answers nobody, and ends nothing.
fn a_guest_that_hangs_is_ended_all_the_same(node: &Node) {
    let pod = Pod::run(node, "h", Value::Null);
    pod.start("c", "sleep 1000", Value::Null);
    for pid in node.processes(HYPERVISOR) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    }
    let begun = Instant::now();
    pod.stop_and_remove();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    node.assert_no_pods();
}

#[test]
fn containerd_is_killed_under_pods_and_finds_them_again() {
    let Some(mut node) = Node::start() else { return };
    let (pod_id, config, id) = {
        let pod = Pod::run(&node, "r", Value::Null);
        let script = "i=0; while true; do i=$((i + 1)); echo line $i; sleep 0.3; done";
        let id = pod.start("c", script, Value::Null);
        until("output", SOON, || pod.log("c").contains("line 2").then_some(()));
        (pod.id.clone(), pod.config.clone(), id)
    };
    // Another pod boots meanwhile.
    let first = node.processes(HYPERVISOR);
    let ran = std::thread::scope(|scope| {
        let running = scope.spawn(|| node.try_cri("RunPodSandbox", &sandbox("boots")));
        until("the other machine", SOON, || {
            let all = node.processes(HYPERVISOR);
            all.iter().any(|pid| !first.contains(pid)).then_some(())
        });
        node.kill_containerd();
        running.join().unwrap()
    });
    assert_ne!(ran.code, 0, "{ran}");
    node.restart_containerd();
    let node = &node;
    let pod = Pod {
        node,
        id: pod_id,
        config,
    };
    assert_eq!(pod.status()["state"].as_i64().unwrap_or(0), 0);
    assert_eq!(output(node, &id, "echo here"), "here");
    let lines = pod.log("c").lines().count();
    until("more output", SOON, || {
        (pod.log("c").lines().count() > lines + 3).then_some(())
    });
    let log = pod.log("c");
    let numbers = log
        .lines()
        .filter_map(|line| line.strip_prefix("line ")?.parse::<usize>().ok());
    let numbers: Vec<usize> = numbers.collect();
    let is_whole = numbers.windows(2).all(|pair| pair[1] <= pair[0] + 1);
    assert!(is_whole, "lines are lost: {numbers:?}");
    node.cri("StopContainer", &json!({"container_id": id, "timeout": 1}));
    assert_eq!(container_state(node, &id), (EXITED, 137));
    // The one that booted is of no use to anybody, and goes with what the kubelet does not know.
    remove_all(node);
    until("nothing is left", Duration::from_secs(60), || {
        node.pods().is_empty().then_some(())
    });
    node.assert_no_pods();
}
