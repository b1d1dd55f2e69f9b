//! docker-py.

use zmachine_testkit::{Need, lacking, skip};

use crate::support::Served;

const SCRIPT: &str = r#"
import docker, io, tarfile
client = docker.from_env()
assert client.ping()
# What is raised has the code, which the server tells after the removal, and the log, which it has told before.
try:
    client.containers.run("bb", ["sh", "-c", "echo hi; echo err >&2; exit 3"], remove=True, stderr=True)
    raise SystemExit("no error")
except docker.errors.ContainerError as error:
    assert error.exit_status == 3, error
box = client.containers.run("bb", ["sh", "-c", "echo begun; exec sleep 1000"], detach=True, name="py", labels={"a": "b"})
assert [c.name for c in client.containers.list(filters={"label": "a=b"})] == ["py"]
code, out = box.exec_run(["sh", "-c", "echo out; echo err >&2; exit 2"], demux=True)
assert (code, out) == (2, (b"out\n", b"err\n")), (code, out)
assert box.logs() == b"begun\n", box.logs()
archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w") as tar:
    info = tarfile.TarInfo("f.txt"); info.size = 5
    tar.addfile(info, io.BytesIO(b"words"))
assert box.put_archive("/tmp", archive.getvalue())
stream, stat = box.get_archive("/tmp/f.txt")
with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
    assert tar.extractfile("f.txt").read() == b"words"
assert stat["name"] == "f.txt" and stat["size"] == 5, stat
stats = box.stats(stream=False)
assert stats["cpu_stats"]["system_cpu_usage"] > 0, stats
network = client.networks.create("pynet", labels={"a": "b"})
network.connect(box, aliases=["alias"])
box.reload()
assert "pynet" in box.attrs["NetworkSettings"]["Networks"], box.attrs
network.disconnect(box)
network.remove()
box.stop(timeout=1)
assert box.wait()["StatusCode"] in (137, 143)
box.remove()
try:
    client.containers.get("py")
    raise SystemExit("still there")
except docker.errors.NotFound:
    pass
print("all is well")
"#;

#[test]
fn docker_py_runs_looks_copies_and_removes() {
    if let Some(reason) = lacking(&[Need::Command("python3")]) {
        return skip(&reason);
    }
    let Some(served) = Served::new() else { return };
    let Some(python) = served.python("docker") else { return };
    let run = served.with(&python, &["-c", SCRIPT]).finish();
    assert_eq!((run.code, run.stdout()), (0, "all is well\n".into()), "{run}");
}
