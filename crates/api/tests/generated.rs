//! Clients that others' generators make of the description of the API, in Python and in TypeScript, used against a real server.
//!
//! Python's asks by the Unix socket, TypeScript's by TLS with a token. The generators are those of PyPI and npm, at versions that are pinned:
//! what a later one makes of the same description is its own business.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use zmachine_testkit::{Need, artifacts, certificate, lacking, skip};

const PROGRAM: &str = env!("CARGO_BIN_EXE_zmachine-api");

const PYTHON: &str = r#"
import httpx, sys
from zmachine_client import Client
from zmachine_client.api.default import create_volume, get_volume, list_machines, list_volumes, remove_volume, version, create_machine
from zmachine_client.models import MachineSpec, NewVolume, Problem
client = Client(base_url="http://zmachine", httpx_args={"transport": httpx.HTTPTransport(uds=sys.argv[1])})
assert version.sync(client=client).api == "v1"
page = list_machines.sync(client=client, limit=10, label=["a=b"])
assert page.machines == [] and page.next_ is None, page
made = create_volume.sync(client=client, body=NewVolume(name="v1", size_bytes=1 << 26))
assert (made.name, made.size_bytes) == ("v1", 1 << 26), made
assert [volume.name for volume in list_volumes.sync(client=client).volumes] == ["v1"]
assert get_volume.sync("v1", client=client).fs == "ext4"
again = create_volume.sync_detailed(client=client, body=NewVolume(name="v1"))
assert again.status_code == 409, again
problem = again.parsed
assert isinstance(problem, Problem) and "there is a volume 'v1' already" in problem.detail, problem
refused = create_machine.sync_detailed(client=client, body=MachineSpec(flist="/none.fl"))
assert isinstance(refused.parsed, Problem) and refused.parsed.text.startswith("error: "), refused
assert remove_volume.sync_detailed("v1", client=client).status_code == 204
print("all is well")
"#;

const TYPESCRIPT: &str = r#"
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

const [, , address, token] = process.argv;
const client = createClient<paths>({ baseUrl: address, headers: { Authorization: `Bearer ${token}` } });
function check(ok: boolean | undefined, what: unknown): asserts ok {
  if (!ok) throw new Error(JSON.stringify(what));
}
const version = await client.GET("/v1/version");
check(version.data?.api === "v1", version);
const page = await client.GET("/v1/machines", { params: { query: { limit: 10, label: ["a=b"] } } });
check(page.data?.machines.length === 0, page);
const made = await client.POST("/v1/volumes", { body: { name: "v1", size_bytes: 1 << 26 } });
check(made.data?.size_bytes === 1 << 26, made);
const missing = await client.GET("/v1/volumes/{name}", { params: { path: { name: "none" } } });
check(missing.error?.class === "not_found" && missing.error.detail.includes("none"), missing);
const removed = await client.DELETE("/v1/volumes/{name}", { params: { path: { name: "v1" } } });
check(removed.response.status === 204, removed);
console.log("all is well");
"#;

struct Server {
    child: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir_in("/tmp").expect("a folder");
        certificate(folder.path());
        let mut command = Command::new(PROGRAM);
        command.args(["--program", "/bin/true", "serve", "--listen", "127.0.0.1:0"]);
        for (option, file) in [
            ("--docker", "docker.sock"),
            ("--socket", "api.sock"),
            ("--tls-cert", "cert.pem"),
            ("--tls-key", "key.pem"),
        ] {
            command.arg(option).arg(folder.path().join(file));
        }
        command.env("ZMACHINE_HOME", folder.path().join("home"));
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the server");
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().expect("its words"));
        while !said.contains("https://") {
            assert!(stderr.read_line(&mut said).expect("its words") > 0, "no server: {said}");
        }
        let port = said.trim().rsplit_once(':').expect("a port").1.to_owned();
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Server {
            child,
            address: format!("https://localhost:{port}"),
            folder,
        }
    }

    fn token(&self) -> String {
        let made = Command::new(PROGRAM)
            .args(["token", "create", "client", "--role", "admin"])
            .env("ZMACHINE_HOME", self.folder.path().join("home"))
            .output()
            .expect("the program");
        String::from_utf8(made.stdout).expect("text").trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn description() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json")
}

/// Runs a command; `Err` with what it said when it fails.
fn run(command: &mut Command) -> Result<String, String> {
    let done = command.output().map_err(|e| e.to_string())?;
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    match done.status.success() {
        true => Ok(out.into_owned()),
        false => Err(format!("{command:?}: {out}{err}")),
    }
}

/// A folder of tools that outlives the test; made by `make` once.
fn tools(name: &str, make: impl FnOnce(&Path) -> Result<String, String>) -> Option<PathBuf> {
    let folder = artifacts().target.join("test-cache").join(name);
    if !folder.join("done").exists() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        if let Err(why) = make(&folder) {
            skip(format!("needs {name} of its registry: {why}").as_str());
            return None;
        }
        fs::write(folder.join("done"), "").expect("a file");
    }
    Some(folder)
}

#[test]
fn a_client_in_python_is_made_of_the_description_and_works() {
    if let Some(reason) = lacking(&[Need::Command("python3"), Need::Command("openssl")]) {
        return skip(&reason);
    }
    let made = tools("openapi-python-client-0.29.1", |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        run(Command::new(folder.join("bin/python")).args([
            "-m",
            "pip",
            "-q",
            "install",
            "openapi-python-client==0.29.1",
        ]))
    });
    let Some(tools) = made else { return };
    let server = Server::start();
    let work = server.folder.path();
    let mut generate = Command::new(tools.join("bin/openapi-python-client"));
    generate.args([
        "generate",
        "--meta",
        "none",
        "--output-path",
        "zmachine_client",
        "--path",
    ]);
    let said = run(generate.arg(description()).current_dir(work)).expect("a client");
    // What it cannot read is left out with a warning: that may be streams, and nothing else.
    let unread: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("annot parse response"))
        .collect();
    assert!(
        unread.iter().all(|line| line.contains("Unsupported content_type")),
        "{said}"
    );
    assert!(!said.contains("removal of"), "{said}");
    let mut client = Command::new(tools.join("bin/python"));
    client.args(["-c", PYTHON]).arg(work.join("api.sock")).current_dir(work);
    assert_eq!(run(&mut client).expect("it works"), "all is well\n");
}

#[test]
fn a_client_in_typescript_is_made_of_the_description_and_works() {
    let needs = [Need::Command("node"), Need::Command("npm"), Need::Command("openssl")];
    if let Some(reason) = lacking(&needs) {
        return skip(&reason);
    }
    let made = tools("openapi-typescript-7.13.0", |folder| {
        let packages = [
            "openapi-typescript@7.13.0",
            "openapi-fetch@0.17.0",
            "typescript@5.9.3",
            "@types/node@20",
        ];
        fs::write(folder.join("package.json"), r#"{"type": "module", "private": true}"#).map_err(|e| e.to_string())?;
        run(Command::new("npm")
            .args(["install", "--silent"])
            .args(packages)
            .current_dir(folder))
    });
    let Some(tools) = made else { return };
    let server = Server::start();
    // A folder of its own: the tools are others' too.
    let work = server.folder.path();
    std::os::unix::fs::symlink(tools.join("node_modules"), work.join("node_modules")).expect("a link");
    fs::write(work.join("package.json"), r#"{"type": "module"}"#).expect("a file");
    fs::write(work.join("client.ts"), TYPESCRIPT).expect("a file");
    let tool = |name: &str| {
        let mut command = Command::new(work.join("node_modules/.bin").join(name));
        command.current_dir(work);
        command
    };
    run(tool("openapi-typescript")
        .arg(description())
        .args(["-o", "schema.d.ts"]))
    .expect("types");
    let strict = [
        "--strict",
        "--target",
        "es2022",
        "--module",
        "nodenext",
        "--skipLibCheck",
        "client.ts",
    ];
    run(tool("tsc").args(strict)).expect("a client that fits the description");
    let mut client = Command::new("node");
    client
        .arg("client.js")
        .arg(&server.address)
        .arg(server.token())
        .current_dir(work);
    client.env("NODE_EXTRA_CA_CERTS", work.join("cert.pem"));
    assert_eq!(run(&mut client).expect("it works"), "all is well\n");
}
