//! Pods as a kubelet makes them, on a containerd of Debian's with the built shim: see `docs/kubernetes.md`.

mod kills;
mod node;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use zmachine_testkit::Finished;

use self::node::{APP, BOX, FLIST, IMAGE, LARGE, Node};
use crate::support::{Checks, until};

/// States of a container in the runtime interface.
const EXITED: i64 = 2;

/// How long a guest's container may take for what it does at once.
const SOON: Duration = Duration::from_secs(60);

/// A pod of the node.
struct Pod<'a> {
    node: &'a Node,
    id: String,
    config: Value,
}

impl<'a> Pod<'a> {
    fn run(node: &'a Node, name: &str, more: Value) -> Pod<'a> {
        let logs = node.home.file(&format!("logs-{name}"));
        fs::create_dir_all(&logs).unwrap();
        let mut config = json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "default"},
            "hostname": name, "log_directory": logs.display().to_string(),
            "linux": {"security_context": {"namespace_options": {"pid": 1}}},
        });
        merge(&mut config, more);
        let answer = node.cri(
            "RunPodSandbox",
            &json!({"config": config, "runtime_handler": "zmachine"}),
        );
        let id = answer["pod_sandbox_id"].as_str().unwrap_or_default().to_owned();
        Pod { node, id, config }
    }

    fn status(&self) -> Value {
        let answer = self.node.cri("PodSandboxStatus", &json!({"pod_sandbox_id": self.id}));
        answer["status"].clone()
    }

    fn ip(&self) -> String {
        self.status()["network"]["ip"].as_str().unwrap_or_default().to_owned()
    }

    /// Makes and starts a container that runs a shell script.
    fn start(&self, name: &str, script: &str, more: Value) -> String {
        let id = self.create(name, script, more);
        self.node.cri("StartContainer", &json!({"container_id": id}));
        id
    }

    fn create(&self, name: &str, script: &str, more: Value) -> String {
        let mut config = json!({
            "metadata": {"name": name}, "image": {"image": IMAGE}, "command": ["sh", "-c", script],
            "log_path": format!("{name}.log"),
            // As the kubelet says it of pods that do not share their processes.
            "linux": {"security_context": {"namespace_options": {"pid": 1}}},
        });
        merge(&mut config, more);
        let request = json!({"pod_sandbox_id": self.id, "config": config, "sandbox_config": self.config});
        let answer = self.node.cri("CreateContainer", &request);
        answer["container_id"].as_str().unwrap_or_default().to_owned()
    }

    /// Asks for a container that cannot be had.
    fn try_create(&self, name: &str, more: Value) -> Finished {
        let mut config = json!({"metadata": {"name": name}, "image": {"image": IMAGE}, "command": ["true"]});
        merge(&mut config, more);
        let request = json!({"pod_sandbox_id": self.id, "config": config, "sandbox_config": self.config});
        let answer = self.node.cri("CreateContainer", &request);
        let started = self
            .node
            .try_cri("StartContainer", &json!({"container_id": answer["container_id"]}));
        self.node
            .cri("RemoveContainer", &json!({"container_id": answer["container_id"]}));
        started
    }

    /// What a container has written, as the kubelet shows it.
    fn log(&self, name: &str) -> String {
        let folder = self.config["log_directory"].as_str().unwrap_or_default();
        let text = fs::read_to_string(format!("{folder}/{name}.log")).unwrap_or_default();
        let line = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned();
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    fn stop_and_remove(&self) {
        self.node.cri("StopPodSandbox", &json!({"pod_sandbox_id": self.id}));
        self.node.cri("RemovePodSandbox", &json!({"pod_sandbox_id": self.id}));
    }
}

/// A block device of this host whose blocks are a file's; it goes with this.
struct LoopDevice {
    path: String,
}

impl LoopDevice {
    /// One of 8 MiB with sectors of so many bytes; `None`, with the reason printed, where this host has none.
    fn new(file: &Path, sector_bytes: u32) -> Option<LoopDevice> {
        File::create(file).unwrap().set_len(8 << 20).unwrap();
        let sector = sector_bytes.to_string();
        let words = ["--find", "--show", "--sector-size", &sector];
        let made = Command::new("losetup").args(words).arg(file).output();
        match made {
            Ok(made) if made.status.success() => Some(LoopDevice {
                path: String::from_utf8_lossy(&made.stdout).trim().to_owned(),
            }),
            _ => {
                zmachine_testkit::skip("needs loop devices");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.path]).status();
    }
}

/// Puts `more` over `value`.
fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(object), Value::Object(more)) => {
            for (key, more) in more {
                merge(object.entry(key).or_insert(Value::Null), more);
            }
        }
        (_, Value::Null) => {}
        (value, more) => *value = more,
    }
}

fn merged(mut value: Value, more: Value) -> Value {
    merge(&mut value, more);
    value
}

fn container_state(node: &Node, id: &str) -> (i64, i64) {
    let status = node.cri("ContainerStatus", &json!({"container_id": id}))["status"].clone();
    (
        status["state"].as_i64().unwrap_or_default(),
        status["exit_code"].as_i64().unwrap_or_default(),
    )
}

/// The status of a container, once it has ended.
#[track_caller]
fn ended(node: &Node, id: &str) -> i64 {
    until("the container ends", SOON, || {
        let (state, code) = container_state(node, id);
        (state == EXITED).then_some(code)
    })
}

/// Status, output and errors of a command in a container.
fn exec(node: &Node, id: &str, script: &str) -> (i64, String, String) {
    let request = json!({"container_id": id, "cmd": ["sh", "-c", script], "timeout": 120});
    let answer = node.cri("ExecSync", &request);
    let text = |name: &str| answer[name].as_str().unwrap_or_default().trim_end().to_owned();
    (
        answer["exit_code"].as_i64().unwrap_or(0),
        text("stdout"),
        text("stderr"),
    )
}

fn output(node: &Node, id: &str, script: &str) -> String {
    let (code, stdout, stderr) = exec(node, id, script);
    assert_eq!(code, 0, "{script}: {stdout} {stderr}");
    stdout
}

#[test]
fn a_pod_is_a_machine_and_its_containers_are_what_they_say() {
    let Some(node) = Node::start() else { return };
    let node = &node;
    let volume = node.home.file("volume");
    fs::create_dir_all(volume.join("..1")).unwrap();
    fs::write(volume.join("..1/key"), "one\n").unwrap();
    std::os::unix::fs::symlink("..1", volume.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/key", volume.join("key")).unwrap();

    let parent = format!("/zmachine-test-{}", std::process::id());
    let pod = Pod::run(node, "p", json!({"linux": {"cgroup_parent": parent}}));
    let web = pod.start(
        "web",
        "echo up; echo bad >&2; mkdir /tmp/w; echo hello > /tmp/w/index.html; httpd -p 80 -h /tmp/w; sleep 1000",
        json!({
            "mounts": [{"container_path": "/config", "host_path": volume.display().to_string(), "readonly": 1}],
            "linux": {"resources": {"memory_limit_in_bytes": 67_108_864, "cpu_quota": 50_000, "cpu_period": 100_000}},
        }),
    );
    let restricted = pod.start(
        "restricted",
        "sleep 1000",
        json!({"linux": {"security_context": {
            "run_as_user": {"value": 1000}, "run_as_group": {"value": 1000}, "readonly_rootfs": 1, "no_new_privs": 1,
            "capabilities": {"drop": ["ALL"]}, "masked_paths": ["/proc/kcore"], "readonly_paths": ["/proc/sys"],
        }}}),
    );
    let brief = pod.start("brief", "echo done; exit 7", Value::Null);

    let mut checks = Checks::default();
    checks.that("a container that ends has its status, and its output is whole", || {
        assert_eq!(ended(node, &brief), 7);
        assert_eq!(pod.log("brief"), "done");
    });
    checks.that("the pod runs in a virtual machine of its own", || {
        let own = rustix::system::uname().release().to_string_lossy().into_owned();
        assert_ne!(output(node, &web, "uname -r"), own);
        assert_eq!(output(node, &restricted, "hostname"), "p");
    });
    checks.that("executions have their status and both streams", || {
        let ran = exec(node, &web, "echo out; echo err >&2; exit 5");
        assert_eq!(ran, (5, "out".into(), "err".into()));
    });
    checks.that("output goes to the log", || {
        until("both lines", SOON, || {
            let log = pod.log("web");
            (log.contains("up") && log.contains("bad")).then_some(())
        });
    });
    checks.that(
        "containers have roots and processes of their own, and one network",
        || {
            assert_eq!(output(node, &web, "touch /mine; readlink /proc/1/exe"), "/bin/busybox");
            assert_eq!(
                output(node, &restricted, "ls /mine 2>/dev/null; ps | grep -c [h]ttpd; true"),
                "0"
            );
            // shareProcessNamespace: true
            let shared = json!({"linux": {"security_context": {"namespace_options": {"pid": 0}}}});
            let id = pod.start("shared", "sleep 1000", shared);
            assert_eq!(output(node, &id, "ps | grep -c [h]ttpd"), "1");
            node.cri("StopContainer", &json!({"container_id": id, "timeout": 5}));
            node.cri("RemoveContainer", &json!({"container_id": id}));
            let fetch = "wget -q -O - http://127.0.0.1/";
            assert_eq!(output(node, &restricted, fetch), "hello");
        },
    );
    checks.that(
        "users, capabilities, read-only roots and hidden paths are as asked for",
        || {
            assert_eq!(output(node, &restricted, "id -u; id -g"), "1000\n1000");
            let capabilities = output(
                node,
                &restricted,
                "grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status | tr -d '\\t'",
            );
            assert_eq!(
                capabilities,
                "CapEff:0000000000000000\nCapBnd:0000000000000000\nNoNewPrivs:1"
            );
            let (code, _, why) = exec(node, &restricted, "touch /x");
            assert!(code != 0 && why.contains("Read-only"), "{why}");
            assert_eq!(output(node, &restricted, "wc -c < /proc/kcore"), "0");
        },
    );
    checks.that(
        "a system call filter holds in the guest, for executions as well",
        || {
            let profile = node.home.file("no-chmod.json");
            let rules = json!([{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"}]);
            let text = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}).to_string();
            fs::write(&profile, text).unwrap();
            let by_file = json!({"profile_type": 2, "localhost_ref": profile.display().to_string()});
            let filtered = |name: &str, profile: Value| {
                let security = json!({"linux": {"security_context": {"seccomp": profile}}});
                pod.start(name, "sleep 1000", security)
            };
            let id = filtered("filtered", by_file);
            let (code, _, why) = exec(node, &id, "chmod 700 /tmp");
            assert!(code != 0 && why.contains("not permitted"), "{why}");
            assert_eq!(output(node, &id, "grep -c '^Seccomp:.*2$' /proc/1/status"), "1");
            // The runtime's own: it names several hundred calls.
            let default = filtered("default", json!({"profile_type": 0}));
            assert_eq!(
                output(
                    node,
                    &default,
                    "chmod 700 /tmp; grep -c '^Seccomp:.*2$' /proc/self/status"
                ),
                "1"
            );
            for id in [id, default] {
                node.cri("StopContainer", &json!({"container_id": id, "timeout": 0}));
                node.cri("RemoveContainer", &json!({"container_id": id}));
            }
        },
    );
    checks.that(
        "who may manage networks can, and a volume that is read-only is so on the host",
        || {
            let network = json!({"linux": {"security_context": {"capabilities": {"add": ["NET_ADMIN"]}}}});
            let id = pod.start("network", "sleep 1000", network);
            output(node, &id, "brctl addbr b0 && ip link show b0");
            node.cri("StopContainer", &json!({"container_id": id, "timeout": 0}));
            node.cri("RemoveContainer", &json!({"container_id": id}));
            let server = node.processes(&["virtiofsd"]).first().copied().unwrap_or_default();
            let table = fs::read_to_string(format!("/proc/{server}/mountinfo")).unwrap_or_default();
            let volume = table
                .lines()
                .find(|line| line.contains("/mounts/") && line.contains("volume"));
            let options = volume.and_then(|line| line.split(' ').nth(5)).unwrap_or_default();
            assert!(options.starts_with("ro,"), "{table}");
        },
    );
    checks.that("limits are the guest's control groups'", || {
        let limits = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
        assert_eq!(output(node, &web, limits), "67108864\n50000 100000");
        let wanted = json!({"container_id": web, "linux": {"memory_limit_in_bytes": 83_886_080}});
        node.cri("UpdateContainerResources", &wanted);
        assert_eq!(output(node, &web, "cat /sys/fs/cgroup/memory.max"), "83886080");
        let larger = json!({"container_id": web, "linux": {"memory_limit_in_bytes": 8_589_934_592_u64}});
        let refused = node.try_cri("UpdateContainerResources", &larger);
        assert!(
            refused.stderr().contains("more than the pod's machine has"),
            "{refused}"
        );
    });
    checks.that("the pod is at its address, in IPv4 and IPv6", || {
        let ip = pod.ip();
        let fetched = node.inside(&["wget", "-q", "-O", "-", &format!("http://{ip}/")]);
        assert_eq!(fetched.expect_success().stdout(), "hello\n");
        let addresses = output(node, &web, "ip addr show eth0");
        assert!(addresses.contains(&ip) && addresses.contains("fd88::"), "{addresses}");
        output(node, &web, "ping -c 1 -W 20 10.88.0.1");
    });
    checks.that("a port of the guest's loopback is forwarded", || {
        output(node, &web, "httpd -p 127.0.0.1:8081 -h /tmp/w");
        // As the runtime does it: from the pod's network namespace.
        let pid = node.processes(&["hold"]).first().copied().unwrap_or_default();
        let network = format!("--net=/proc/{pid}/ns/net");
        let fetch = |url: &str| node.inside(&["nsenter", &network, "busybox", "wget", "-q", "-O", "-", url]);
        assert_eq!(fetch("http://127.0.0.1:8081/").expect_success().stdout(), "hello\n");
        assert_ne!(fetch("http://127.0.0.1:8082/").code, 0, "nobody listens there");
    });
    checks.that("a volume that changes on the host changes in the pod", || {
        assert_eq!(output(node, &web, "cat /config/key"), "one");
        fs::create_dir(volume.join("..2")).unwrap();
        fs::write(volume.join("..2/key"), "two\n").unwrap();
        std::os::unix::fs::symlink("..2", volume.join("..new")).unwrap();
        fs::rename(volume.join("..new"), volume.join("..data")).unwrap();
        until("the new value", Duration::from_secs(20), || {
            (output(node, &web, "cat /config/key") == "two").then_some(())
        });
        let (code, ..) = exec(node, &web, "echo x > /config/y");
        assert_ne!(code, 0);
    });
    checks.that("what the pod uses is counted in its control group on the host", || {
        let log = fs::read_to_string(node.pods()[0].join("shim.log")).unwrap_or_default();
        if log.contains("is not counted in its control group") {
            return;
        }
        let group = format!("{parent}/{}", pod.id);
        for role in [
            "qemu-system",
            "virtiofsd",
            "containerd-shim-zmachine",
            "--ends-with-client",
        ] {
            let pids = node.processes(&[role]);
            assert!(!pids.is_empty(), "{role}");
            for pid in pids {
                let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                assert!(groups.contains(&group), "{role}: {groups}");
            }
        }
    });
    checks.that("what containers use is told", || {
        let stats = node.cri("ContainerStats", &json!({"container_id": web}))["stats"].clone();
        assert!(
            stats["cpu"]["usage_core_nano_seconds"]["value"].as_i64() > Some(0),
            "{stats}"
        );
        let memory = stats["memory"]["working_set_bytes"]["value"].as_i64();
        assert!(memory > Some(10_000) && memory < Some(67_108_864), "{stats}");
    });
    let device = LoopDevice::new(&node.home.file("volume.img"), 4096);
    checks.that(
        "a volume without a file system is a disk of the one container that has it",
        || {
            let Some(device) = &device else { return };
            let devices =
                json!({"devices": [{"container_path": "/data/disk", "host_path": device.path, "permissions": "mrw"}]});
            let other = File::options()
                .read(true)
                .custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed())
                .open(&device.path)
                .unwrap();
            let refused = pod.try_create("refused", devices.clone());
            assert!(refused.stderr().contains("is in use"), "{refused}");
            drop(other);
            let id = pod.start("block", "sleep 1000", devices);
            output(
                node,
                &id,
                "echo from the guest | dd of=/data/disk bs=4096 count=1 conv=sync,fsync 2>/dev/null",
            );
            let mut start = vec![0; 15];
            File::open(&device.path).unwrap().read_exact(&mut start).unwrap();
            assert_eq!(String::from_utf8_lossy(&start), "from the guest\n");
            // As on the host.
            let mode = fs::metadata(&device.path).unwrap().mode() & 0o777;
            let shown = "stat -c %a%F /data/disk; blockdev --getss /data/disk; blockdev --getsize64 /data/disk";
            let expected = format!("{mode:o}block special file\n4096\n8388608");
            assert_eq!(output(node, &id, shown), expected);
            // Others of the pod cannot have it, whatever nodes they make; nor has this one the machine's own disks.
            let numbers = output(node, &id, "stat -c '%t %T' /data/disk");
            let open = |numbers: &str| {
                let numbers: Vec<String> = numbers.split(' ').map(|hex| format!("$((0x{hex}))")).collect();
                format!("rm -f /node; mknod /node b {} && head -c 1 /node", numbers.join(" "))
            };
            let (code, _, why) = exec(node, &web, &open(&numbers));
            assert!(code != 0 && why.contains("not permitted"), "{why}");
            node.cri("StopContainer", &json!({"container_id": id, "timeout": 0}));
            node.cri("RemoveContainer", &json!({"container_id": id}));
        },
    );
    checks.that("memory of a pod is the guest's, and its containers share it", || {
        let memory = node.home.file("kubernetes.io~empty-dir/m").display().to_string();
        node.inside(&["mkdir", "-p", &memory]).expect_success();
        let mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", &memory];
        node.inside(&mount).expect_success();
        let mounts = json!({"mounts": [{"container_path": "/m", "host_path": memory}]});
        let writes = pod.start(
            "writes",
            "echo shared > /m/x; echo s > /dev/shm/y; sleep 1000",
            mounts.clone(),
        );
        let reads = pod.start("reads", "sleep 1000", mounts);
        until("the other one has written", SOON, || {
            (exec(node, &reads, "cat /m/x /dev/shm/y").1 == "shared\ns").then_some(())
        });
        let kind = output(node, &reads, "grep ' /m ' /proc/mounts");
        assert!(kind.starts_with("tmpfs") && kind.contains("size=8192k"), "{kind}");
        assert_eq!(
            node.inside(&["ls", &memory]).stdout(),
            "",
            "nothing of it is on the host"
        );
        for id in [writes, reads] {
            node.cri("StopContainer", &json!({"container_id": id, "timeout": 0}));
            node.cri("RemoveContainer", &json!({"container_id": id}));
        }
        node.inside(&["umount", &memory]).expect_success();
    });
    checks.that("a container that wants more memory than it may have is told so", || {
        let limit = json!({"linux": {"resources": {"memory_limit_in_bytes": 33_554_432}}});
        // All of it in one system call. A program that takes it piece by piece needs its own pages in between, which the kernel takes away and
        // reads again for as long as it has any, before it gives up.
        let id = pod.start("greedy", "dd if=/dev/zero of=/dev/null bs=64M count=1", limit);
        assert_eq!(ended(node, &id), 137);
        let status = node.cri("ContainerStatus", &json!({"container_id": id}))["status"].clone();
        assert_eq!(status["reason"], "OOMKilled", "{status}");
        assert_eq!(output(node, &web, "echo unharmed"), "unharmed");
    });
    checks.that(
        "a program that is not there is told so, and the container is over",
        || {
            let id = pod.create("missing", "true", json!({"command": ["/no/such/program"]}));
            let failed = node.try_cri("StartContainer", &json!({"container_id": id}));
            assert!(failed.stderr().contains("/no/such/program"), "{failed}");
            node.cri("RemoveContainer", &json!({"container_id": id}));
        },
    );
    checks.that("one container stops, and is made again, without the others", || {
        node.cri("StopContainer", &json!({"container_id": restricted, "timeout": 1}));
        assert_eq!(container_state(node, &restricted), (EXITED, 137));
        node.cri("RemoveContainer", &json!({"container_id": restricted}));
        let again = pod.start(
            "restricted",
            "echo again; sleep 1000",
            json!({"metadata": {"attempt": 1}}),
        );
        assert_eq!(output(node, &again, "echo here"), "here");
        assert_eq!(output(node, &web, "echo still"), "still");
    });
    checks.that("a guest changes nothing in the share but what is mounted there", || {
        let servers = node.processes(&["virtiofsd"]);
        assert!(!servers.is_empty());
        for pid in servers {
            let Ok(table) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else {
                continue;
            };
            let root = table.lines().find(|line| line.split(' ').nth(4) == Some("/"));
            let options = root.and_then(|line| line.split(' ').nth(5)).unwrap_or_default();
            assert!(options.starts_with("ro,"), "{table}");
        }
        let (code, ..) = exec(node, &web, "echo x > /root-is-writable");
        assert_eq!(code, 0);
    });
    checks.that("operators see the pod", || {
        let listed = node
            .home
            .zmachine(["ps", "--format", "{{.Names}} {{.Labels}}"])
            .finish();
        let line = listed.expect_success().stdout();
        assert!(
            line.starts_with("pod-") && line.contains("io.kubernetes.pod.name=p"),
            "{line}"
        );
    });
    pod.stop_and_remove();
    node.assert_no_pods();
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    for folder in hierarchies.map(|entry| entry.path().join(parent.trim_start_matches('/'))) {
        // Its parent is what a kubelet would have made; it is empty.
        let removed = fs::remove_dir(&folder);
        assert!(removed.is_ok() || !folder.exists(), "{}: {removed:?}", folder.display());
    }
    let _ = fs::remove_dir(format!("/sys/fs/cgroup{parent}"));
    checks.that("a device of a pod that is gone is free", || {
        let Some(device) = &device else { return };
        let exclusive = rustix::fs::OFlags::EXCL.bits().cast_signed();
        File::options()
            .read(true)
            .custom_flags(exclusive)
            .open(&device.path)
            .unwrap();
    });
}

#[test]
fn a_container_by_itself_and_pods_whose_roots_are_disks() {
    let Some(node) = Node::start_with_snapshotter() else {
        return;
    };
    let node = &node;
    let mut checks = Checks::default();
    checks.that("ctr runs a container, and its status is exact", || {
        let run = ["run", "--rm", "--runtime", "io.containerd.zmachine.v2", IMAGE, "one"];
        let ran = node.ctr(&[&run[..], &["sh", "-c", "echo out; echo $$; uname -s; exit 3"]].concat());
        assert_eq!((ran.code, ran.stdout().as_str()), (3, "out\n1\nLinux\n"), "{ran}");
    });
    checks.that("input is whole, and so is a lot of output", || {
        let run = ["run", "--rm", "--runtime", "io.containerd.zmachine.v2", IMAGE, "input"];
        let script = "wc -c; head -c 5000000 /dev/zero";
        let ran = node.ctr_with_input(&[&run[..], &["sh", "-c", script]].concat(), &vec![b'x'; 3_000_000]);
        assert_eq!(
            ran.stdout_bytes.len(),
            "3000000\n".len() + 5_000_000,
            "{}",
            ran.stderr()
        );
    });
    checks.that("a container is paused, and goes on", || {
        let run = [
            "run",
            "-d",
            "--runtime",
            "io.containerd.zmachine.v2",
            IMAGE,
            "paused",
            "sleep",
            "1000",
        ];
        node.ctr(&run).expect_success();
        let state = || node.ctr(&["task", "ls"]).expect_success().stdout();
        node.ctr(&["task", "pause", "paused"]).expect_success();
        assert!(state().contains("PAUSED"), "{}", state());
        node.ctr(&["task", "resume", "paused"]).expect_success();
        assert!(state().contains("RUNNING"), "{}", state());
        let ran = node.ctr(&["task", "exec", "--exec-id", "e", "paused", "sh", "-c", "exit 4"]);
        assert_eq!(ran.code, 4, "{ran}");
        node.ctr(&["task", "kill", "-s", "9", "paused"]).expect_success();
        until("the task ends", SOON, || state().contains("STOPPED").then_some(()));
        node.ctr(&["task", "rm", "paused"]);
        node.ctr(&["container", "rm", "paused"]).expect_success();
    });
    checks.that("a container at a terminal has one", || {
        let run = [
            "run",
            "--rm",
            "-t",
            "--runtime",
            "io.containerd.zmachine.v2",
            IMAGE,
            "terminal",
        ];
        let script = "test -t 0 && test -t 1 && stty size > /tmp/x && ls -l /dev/console && exit 9";
        assert_eq!(node.ctr_at_terminal(&[&run[..], &["sh", "-c", script]].concat()), 9);
    });
    checks.that("a network of the host is refused with the way out", || {
        let run = [
            "run",
            "--rm",
            "--net-host",
            "--runtime",
            "io.containerd.zmachine.v2",
            IMAGE,
            "two",
            "true",
        ];
        let refused = node.ctr(&run);
        assert!(
            refused.code != 0 && refused.stderr().contains("hostNetwork"),
            "{refused}"
        );
    });
    let tree = zmachine_testkit::Tree::empty(&node.home, "flist-tree")
        .with_busybox()
        .file("from", "a flist\n");
    let flist = tree.pack(&node.home, "root");
    checks.that("layers of an image are in the library, and not with containerd", || {
        for image in [APP, BOX] {
            node.pull(image);
        }
        let contents = node.ctr(&["content", "ls"]).expect_success().stdout();
        let largest = contents.lines().filter(|line| line.contains("tar"));
        assert_eq!(largest.count(), 0, "{contents}");
    });
    checks.that("a flist in the registry is an image, and says how it is run", || {
        let startup = "[startup.entry]\nname = \"core.system\"\n[startup.entry.args]\nname = \"/bin/sh\"\ndir = \"/work\"\n\
                       args = [\"-c\", \"pwd; echo $SAID; cat from; sleep 1000\"]\nenv = {SAID = \"as it says\"}\n";
        let tree = zmachine_testkit::Tree::empty(&node.home, "started-tree")
            .with_busybox()
            .file("work/from", "a flist in a registry\n")
            .file(".startup.toml", startup);
        let flist = tree.pack(&node.home, "started");
        node.home.zmachine(["image", "pull", &flist, FLIST]).finish().expect_success();
        node.home.zmachine(["push", FLIST]).finish().expect_success();
        node.home.zmachine(["image", "rm", FLIST]).finish().expect_success();
        node.pull(FLIST);
    });
    checks.that(
        "of an image with a table of contents, little comes with the pull",
        || {
            node.pull(LARGE);
            let (bytes, answers) = node.sent("large");
            assert!(bytes < 2 << 20 && answers > 0, "{bytes} in {answers} answers");
        },
    );
    checks.that("a flist and images of the registry are roots in one pod", || {
        // That of one container alone: that of the pod is for all.
        let annotations = json!({"annotations": {"zmachine.io/flist.c": flist}});
        let pod = Pod::run(node, "f", annotations.clone());
        let id = pod.start(
            "c",
            "cat /from; sleep 1000",
            merged(annotations, json!({"image": {"image": BOX}})),
        );
        let script = "cat /from; echo x > /y; cat /y; grep -c ' / overlay ' /proc/mounts";
        assert_eq!(output(node, &id, script), "a flist\nx\n1");
        let of = |image: &str| json!({"image": {"image": image}});
        let app = pod.start("app", "sleep 1000", of(APP));
        let script = "cat /app; echo z > /y; cat /y; grep -c ' / overlay ' /proc/mounts";
        assert_eq!(output(node, &app, script), "the app\nz\n1");
        // The first layer of the other one, which is an image of its own.
        let first = pod.start("first", "sleep 1000", of(BOX));
        assert_eq!(
            output(node, &first, "test -e /app || echo none; test -e /y || echo own"),
            "none\nown"
        );
        // The same image again needs no further disk.
        let again = pod.start("again", "sleep 1000", of(APP));
        assert_eq!(output(node, &again, "ls /sys/block | grep -c ^vd"), "4");
        node.cri("StopContainer", &json!({"container_id": app, "timeout": 0}));
        assert_eq!(output(node, &again, "cat /app"), "the app");
        pod.start("own", "", json!({"image": {"image": FLIST}, "command": []}));
        until("what the flist's program says", SOON, || {
            (pod.log("own") == "/work\nas it says\na flist in a registry").then_some(())
        });
        // From its first layers, which are here, and from pieces of the last one.
        let large = pod.start("large", "sleep 1000", of(LARGE));
        let sum = node.inside(&["sha256sum", &node.home.file("image/large").display().to_string()]);
        let sum = sum.stdout().split(' ').next().unwrap_or_default().to_owned();
        let script = "cat /small; sha256sum < /large | cut -d' ' -f1; cat /small";
        let expected = format!("a small one\n{sum}\na small one");
        assert_eq!(output(node, &large, script), expected);
        let on_host = format!(
            "cat {}/*/small | uniq",
            node.home.path().join("snapshotter/images").display()
        );
        assert_eq!(node.inside(&["sh", "-c", &on_host]).stdout(), "a small one\n");
        // The rest comes meanwhile, and is all that is needed afterwards.
        until("the whole image in its place", SOON, || {
            let inspected = node
                .home
                .zmachine(["image", "inspect", &format!("containerd/{LARGE}")])
                .finish();
            let images: Value = serde_json::from_str(&inspected.expect_success().stdout()).unwrap();
            let whole = images[0]["Digest"].as_str().unwrap_or_default();
            let place = node.home.path().join("images").join(whole);
            (place.is_dir() && !place.join("lazy.json").exists()).then_some(())
        });
        let before = node.sent("large");
        let whole = pod.start("whole", "sleep 1000", of(LARGE));
        assert_eq!(output(node, &whole, script), expected);
        assert_eq!(node.sent("large"), before);
        // A disk's server that is killed has a successor.
        for pid in node.processes(&["--image-dir", "--serial"]) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        assert_eq!(output(node, &again, "cat /late"), "read late");
        pod.stop_and_remove();
    });
    checks.that("containers of a pod have flists of their own", || {
        let other = zmachine_testkit::Tree::empty(&node.home, "other-tree")
            .with_busybox()
            .file("from", "another\n");
        let all = json!({"annotations": {"zmachine.io/flist.a": flist, "zmachine.io/flist.b": other.pack(&node.home, "other")}});
        let pod = Pod::run(node, "g", all.clone());
        for (name, from) in [("a", "a flist"), ("b", "another")] {
            let id = pod.start(name, "sleep 1000", merged(all.clone(), json!({"image": {"image": BOX}})));
            assert_eq!(output(node, &id, "cat /from"), from);
        }
        // They have no names, and are needed as long as the pod has them.
        let images = || {
            let listed = node.home.zmachine(["image", "ls"]).finish();
            listed.expect_success().stdout().lines().count()
        };
        let before = images();
        node.home.zmachine(["image", "prune"]).finish().expect_success();
        assert_eq!(images(), before);
        pod.stop_and_remove();
    });
    checks.that("images that nobody has any more are given back", || {
        for image in [APP, BOX, LARGE, FLIST] {
            node.cri("RemoveImage", &json!({"image": {"image": image}}));
        }
        until("no image has a name", SOON, || {
            let images = node.home.zmachine(["image", "ls"]).finish().stdout();
            (!images.contains("containerd/")).then_some(())
        });
    });
    checks.that("a node says which flists pods may name", || {
        let refused = json!({"annotations": {"zmachine.io/flist": "/etc/passwd"}});
        let config = json!({
            "metadata": {"name": "r", "uid": "r", "namespace": "default"}, "annotations": refused["annotations"],
        });
        let failed = node.try_cri(
            "RunPodSandbox",
            &json!({"config": config, "runtime_handler": "zmachine"}),
        );
        assert!(failed.stderr().contains("does not let pods name"), "{failed}");
    });
    node.assert_no_pods();
}
