//! A containerd of the test's own, as a node of a cluster has one: its folders are the test's, it has a mount namespace of its own, and
//! it is in the network namespace of the test's home.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};
use zmachine_testkit::{Finished, Invocation, Need, TestHome, Tree, lacking, skip};

use crate::support::{Registry, home, until};

/// The image of every pod and container: busybox.
pub(super) const IMAGE: &str = "docker.io/library/box:1";

/// The sockets of shims are at a place of the host's, which is this containerd's alone here.
const SOCKETS: &str = "mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd";

/// A client of the container runtime interface.
const CRI: &str = include_str!("cri.py");

/// Debian's, which has `python3-grpcio`.
const PYTHON: &str = "/usr/bin/python3";

/// The same image in the registry of a node that has one.
pub(super) const BOX: &str = "127.0.0.1:5000/box:1";

/// The same with one more layer, which has the files `/app` and `/late`.
pub(super) const APP: &str = "127.0.0.1:5000/app:1";

/// One whose second layer has a table of contents, and the files `/large`, of 12 MiB that nothing makes shorter, and `/small`.
pub(super) const LARGE: &str = "127.0.0.1:5000/large:1";

/// A flist in the registry.
pub(super) const FLIST: &str = "127.0.0.1:5000/flist:1";

/// Where a node with our snapshotter has the images of pods from.
const SNAPSHOTTER: &str = r#"
    snapshotter = "zmachine"
    disable_snapshot_annotations = false"#;

/// The node.
pub(super) struct Node {
    pub(super) home: TestHome,
    /// Where images come from, on a node with our snapshotter.
    registry: Option<Registry>,
    containerd: Option<Child>,
    /// Its mount namespace.
    place: Option<File>,
}

impl Node {
    /// Starts it; `None`, with the reason printed, on a host that has not what it needs.
    pub(super) fn start() -> Option<Node> {
        Node::start_with(false)
    }

    /// The same with a registry, and our snapshotter for the images of pods.
    pub(super) fn start_with_snapshotter() -> Option<Node> {
        let more = ["skopeo", "apt-get", "dpkg-deb"].map(Need::Command);
        if let Some(reason) = lacking(&more) {
            skip(&reason);
            return None;
        }
        Node::start_with(true)
    }

    fn start_with(has_snapshotter: bool) -> Option<Node> {
        let needs = [
            Need::Guest,
            Need::Command("containerd"),
            Need::Command("ctr"),
            Need::File("/usr/lib/cni/bridge"),
            Need::File("/usr/lib/python3/dist-packages/grpc/__init__.py"),
        ];
        if let Some(reason) = lacking(&needs) {
            skip(&reason);
            return None;
        }
        let home = home()?;
        let mut node = Node {
            registry: has_snapshotter.then(|| Registry::start(&home)),
            home,
            containerd: None,
            place: None,
        };
        node.write_files();
        node.start_containerd(None);
        let pid = fs::read_to_string(node.home.file("containerd.pid")).unwrap();
        node.place = Some(File::open(format!("/proc/{}/ns/mnt", pid.trim())).unwrap());
        let archive = node.image();
        node.ctr(&["images", "import", &archive]).expect_success();
        if has_snapshotter {
            node.push(&archive);
        }
        Some(node)
    }

    /// Puts the images into the registry. Their archives end with two blocks of zeros, without those that tar fills a record up with: what skopeo
    /// 1.9 writes with a table of contents has no more, and would not be the layer that the configuration names.
    fn push(&self, archive: &str) {
        let folder = self.file("image");
        let script = format!(
            r#"set -e; cd {folder}; echo the app > app; echo read late > late; tar -cf app.tar app late
head -c 12582912 /dev/urandom > large; echo a small one > small; tar -b 1 -cf large.tar large small
first=$(sha256sum layer.tar | cut -d' ' -f1)
for name in app large; do
second=$(sha256sum $name.tar | cut -d' ' -f1)
echo '{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:'$first'","sha256:'$second'"]}}}}' > config.json
echo '[{{"Config":"config.json","RepoTags":["docker.io/library/'$name':1"],"Layers":["layer.tar","'$name'.tar"]}}]' > manifest.json
tar -cf $name-image.tar manifest.json config.json layer.tar $name.tar
done
skopeo copy -q --dest-tls-verify=false docker-archive:{archive} docker://{BOX}
skopeo copy -q --dest-tls-verify=false docker-archive:app-image.tar docker://{APP}
skopeo copy -q --dest-tls-verify=false --dest-compress-format zstd:chunked docker-archive:large-image.tar docker://{LARGE}"#
        );
        let pushed = self.home.command(Path::new("/bin/sh"), ["-c", &script]);
        pushed.deadline(Duration::from_secs(120)).finish().expect_success();
    }

    /// Pulls an image of the registry, as the kubelet does.
    #[track_caller]
    pub(super) fn pull(&self, image: &str) {
        self.cri("PullImage", &json!({"image": {"image": image}}));
    }

    /// What the registry has sent of an image's blobs: bytes, and answers.
    pub(super) fn sent(&self, repository: &str) -> (u64, usize) {
        self.registry.as_ref().expect("a registry").sent(repository)
    }

    fn file(&self, name: &str) -> String {
        self.home.file(name).display().to_string()
    }

    fn socket(&self) -> String {
        self.file("containerd.sock")
    }

    fn write_files(&self) {
        let (sandbox_image, snapshotter) = match self.registry {
            Some(_) => (BOX, SNAPSHOTTER),
            None => (IMAGE, ""),
        };
        let config = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[proxy_plugins.zmachine]
  type = "snapshot"
  address = "{snapshots}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "zmachine"{snapshotter}
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.zmachine]
      runtime_type = "io.containerd.zmachine.v2"
      pod_annotations = ["zmachine.io/*"]
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".registry.mirrors."{registry}"]
    endpoint = ["http://{registry}"]
"#,
            registry = Registry::HOST,
            snapshots = self.file("snapshotter.sock"),
            root = self.file("root"),
            state = self.file("state"),
            socket = self.socket(),
            cni = self.file("cni"),
        );
        let network = json!({
            "cniVersion": "0.4.0", "name": "pods", "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {
                    "type": "host-local", "dataDir": self.file("addresses"),
                    "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                }},
            ],
        });
        fs::create_dir(self.home.file("cni")).unwrap();
        fs::write(self.home.file("cni").join("10-pods.conflist"), network.to_string()).unwrap();
        fs::write(self.home.file("config.toml"), config).unwrap();
        fs::write(self.home.file("cri.py"), CRI).unwrap();
        let settings = format!(
            "flists = [\"{}/\"]\n",
            self.home.file("").display().to_string().trim_end_matches('/')
        );
        fs::write(self.home.file("kubernetes.toml"), settings).unwrap();
    }

    /// `place`: the mount namespace that it is to be in, in place of one of its own.
    fn start_containerd(&mut self, place: Option<&File>) {
        let prepare = match (place, &self.registry) {
            (Some(_), _) => "true".to_owned(),
            (None, None) => SOCKETS.to_owned(),
            // containerd asks it when it starts.
            (None, Some(_)) => format!(
                "{SOCKETS} && {{ zmachine snapshotter --socket {socket} 2>> {log} & }} && until test -S {socket}; do sleep 0.1; done",
                socket = self.file("snapshotter.sock"),
                log = self.file("snapshotter.log"),
            ),
        };
        let script = format!(
            "{prepare} && echo $$ > {pid} && exec containerd -c {config} 2>> {log}",
            pid = self.file("containerd.pid"),
            config = self.file("config.toml"),
            log = self.file("containerd.log"),
        );
        let programs = self.home.zmachine_path().parent().unwrap_or(Path::new("/")).to_owned();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let place = place.map(|file| format!("--mount=/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        let (program, words) = match &place {
            Some(place) => ("/usr/bin/nsenter", vec![place.as_str(), "--"]),
            None => ("/usr/bin/unshare", vec!["--mount", "--propagation", "private"]),
        };
        let words = [words, vec!["sh", "-c", &script]].concat();
        let command = self.home.command(Path::new(program), words);
        let settings = self.file("kubernetes.toml");
        self.containerd = Some(
            command
                .env("PATH", path)
                .env("ZMACHINE_KUBERNETES_CONFIG", settings)
                .start(),
        );
        until("containerd answers", Duration::from_secs(60), || {
            fs::metadata(self.home.file("containerd.pid")).ok()?;
            (self.ctr(&["version"]).code == 0).then_some(())
        });
    }

    /// containerd is killed, and started again.
    pub(super) fn restart_containerd(&mut self) {
        self.end_containerd();
        fs::remove_file(self.home.file("containerd.pid")).unwrap();
        // What it has mounted is there, as it is on a host.
        let place = self.place.take();
        self.start_containerd(place.as_ref());
        self.place = place;
        // It looks at all pods first, also at those that are being made.
        until("containerd knows its pods", Duration::from_secs(60), || {
            (self.try_cri("ListPodSandbox", &json!({})).code == 0).then_some(())
        });
    }

    /// Kills containerd, and nothing else.
    pub(super) fn kill_containerd(&self) {
        if let Some(child) = &self.containerd
            && let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed())
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    fn end_containerd(&mut self) {
        if let Some(mut child) = self.containerd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A program where containerd is.
    pub(super) fn inside(&self, words: &[&str]) -> Finished {
        self.invocation(words).finish()
    }

    fn invocation(&self, words: &[&str]) -> Invocation {
        let pid = fs::read_to_string(self.home.file("containerd.pid")).unwrap_or_default();
        let mut all = vec!["--mount", "-t", pid.trim(), "--"];
        all.extend(words);
        let command = self.home.command(Path::new("/usr/bin/nsenter"), all);
        command.deadline(Duration::from_secs(300))
    }

    /// containerd's own client, in the namespace of Kubernetes.
    pub(super) fn ctr(&self, words: &[&str]) -> Finished {
        self.ctr_with_input(words, b"")
    }

    /// The same, with input.
    pub(super) fn ctr_with_input(&self, words: &[&str], input: &[u8]) -> Finished {
        self.ctr_invocation(words).input(input).finish()
    }

    /// The same at a terminal; its status.
    pub(super) fn ctr_at_terminal(&self, words: &[&str]) -> i32 {
        self.ctr_invocation(words).on_terminal().finish().0
    }

    fn ctr_invocation(&self, words: &[&str]) -> Invocation {
        let socket = self.socket();
        let mut all = vec!["ctr", "-a", &socket, "-n", "k8s.io"];
        all.extend(words);
        self.invocation(&all)
    }

    /// A call as the kubelet makes it.
    #[track_caller]
    pub(super) fn cri(&self, method: &str, request: &Value) -> Value {
        let called = self.try_cri(method, request);
        serde_json::from_str(&called.expect_success().stdout()).expect("JSON")
    }

    pub(super) fn try_cri(&self, method: &str, request: &Value) -> Finished {
        let client = self.file("cri.py");
        self.inside(&[PYTHON, &client, &self.socket(), method, &request.to_string()])
    }

    /// An image of busybox, as docker saves it.
    fn image(&self) -> String {
        let tree = Tree::busybox(&self.home);
        let (folder, archive) = (self.file("image"), self.file("image.tar"));
        let script = format!(
            r#"set -e; mkdir {folder}; tar -b 1 -C {tree} -cf {folder}/layer.tar .
digest=$(sha256sum {folder}/layer.tar | cut -d' ' -f1)
echo '{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:'$digest'"]}}}}' > {folder}/config.json
echo '[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["layer.tar"]}}]' > {folder}/manifest.json
tar -C {folder} -cf {archive} manifest.json config.json layer.tar"#,
            tree = tree.root().display(),
        );
        let made = self.home.command(Path::new("/bin/sh"), ["-c", &script]);
        made.finish().expect_success();
        archive
    }

    /// Processes of this host whose command line has all of `words`.
    pub(super) fn processes(&self, words: &[&str]) -> Vec<i32> {
        let folder = self.home.path().display().to_string();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_one = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let all = format!("{line} {}", String::from_utf8_lossy(&environment));
            all.contains(&folder) && words.iter().all(|word| line.contains(word))
        };
        numbers.filter(is_one).collect()
    }

    /// Folders of pods.
    pub(super) fn pods(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home.path().join("run/pods"));
        entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect()
    }

    /// That nothing of a pod is on this host.
    #[track_caller]
    pub(super) fn assert_no_pods(&self) {
        until("nothing of the pods is left", Duration::from_secs(30), || {
            let machines = self.home.zmachine(["ps", "-a", "-q"]).finish().stdout();
            let shims = self.processes(&["containerd-shim-zmachine"]);
            let held = self.processes(&["hold"]);
            (self.pods().is_empty() && machines.trim().is_empty() && shims.is_empty() && held.is_empty()).then_some(())
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let snapshotters = self.processes(&["snapshotter"]);
        for pid in self
            .processes(&["containerd-shim-zmachine"])
            .into_iter()
            .chain(snapshotters)
        {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        self.end_containerd();
        // Before the home, which looks whether anything is left.
        drop(self.registry.take());
        let _ = self
            .home
            .command(Path::new("/bin/sh"), ["-c", "ip link delete cni0"])
            .finish();
    }
}
