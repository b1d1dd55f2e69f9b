//! The docker command.

use std::fs;
use std::io::Read;

use crate::support::{Served, until};

#[test]
fn the_docker_command_runs_a_container_to_its_end_as_at_home() {
    let Some(served) = Served::new() else { return };
    let piped = served.command(&[
        "run",
        "--rm",
        "-i",
        "bb",
        "sh",
        "-c",
        "cat; echo end; echo err >&2; exit 7",
    ]);
    let piped = piped.input(&b"words\n".repeat(20_000)).finish();
    assert_eq!((piped.code, piped.stderr()), (7, "err\n".into()), "{piped}");
    assert_eq!(piped.stdout().len(), 6 * 20_000 + 4);
    let wrong = served.docker(&["run", "--rm", "bb", "no-such-command"]);
    assert_eq!(wrong.code, 127, "{wrong}");
    let missing = served.docker(&["run", "--rm", "--pull", "never", "no-such-image", "true"]);
    assert_eq!(missing.code, 125, "{missing}");
    assert!(
        missing.stderr().contains("No such image: no-such-image:latest"),
        "{missing}"
    );
    let mut terminal = served
        .command(&["run", "--rm", "-it", "-e", "PS1=ready> ", "bb", "sh"])
        .on_terminal();
    terminal.expect("ready> ");
    terminal.type_in("tty; exit 5\r");
    let (code, shown) = terminal.finish();
    assert!(code == 5 && shown.contains("/dev/pts/0"), "{shown}");
    for (words, why) in [
        (&["--pid", "host"][..], "PidMode host"),
        (&["--network", "host"], "publish the ports"),
        (&["--device", "/dev/null"], "devices"),
        (
            &["-v", "/run/no-such/x.sock:/x", "--network", "no-such"],
            "network no-such not found",
        ),
    ] {
        let refused = served.docker(&[&["create"], words, &["bb", "true"]].concat());
        assert!(refused.code != 0 && refused.stderr().contains(why), "{refused}");
    }
    assert_eq!(served.output(&["ps", "-aq"]), "");
}

#[test]
fn the_docker_command_does_its_everyday_work_on_a_service() {
    let Some(mut served) = Served::new() else { return };
    let began = served.output(&["info", "-f", "{{.SystemTime}}"]);
    served.output(&["network", "create", "--label", "tier=test", "back"]);
    served.output(&["volume", "create", "--label", "tier=test", "data"]);
    let id = served.output(&[
        "run", "-d", "--name", "web", "--network", "back", "--network-alias", "www", "-p", "8099:80", "-v", "data:/data",
        "-e", "WORD=hello", "-l", "tier=front", "--health-cmd", "test -e /data/up", "--health-interval", "300ms", "bb",
        "sh", "-c", "mkdir /www; echo page > /www/index.html; echo begun; echo oops >&2; touch /data/up; exec httpd -f -p 80 -h /www",
    ]);
    assert_eq!(id.len(), 64);
    listed_and_inspected(&served, &id);
    commands_in_it(&served);
    files_in_and_out(&served);
    told_as_time_goes_by(&served, &began);
    survives_its_server(&mut served);
    changed_and_ended(&served);
}

fn listed_and_inspected(served: &Served, id: &str) {
    let row = served.output(&[
        "ps",
        "--no-trunc",
        "--format",
        "{{.ID}} {{.Names}} {{.Image}} {{.Ports}}",
        "--filter",
        "label=tier=front",
    ]);
    assert!(
        row.starts_with(&format!("{id} web bb ")) && row.contains("0.0.0.0:8099->80/tcp"),
        "{row}"
    );
    assert_eq!(served.output(&["ps", "-q", "--filter", "label=tier=back"]), "");
    let address = served.output(&["inspect", "-f", "{{.NetworkSettings.Networks.back.IPAddress}}", "web"]);
    assert!(address.parse::<std::net::Ipv4Addr>().is_ok(), "{address}");
    assert_eq!(
        served.output(&["port", "web", "80"]).lines().next(),
        Some("0.0.0.0:8099")
    );
    until("its health", || {
        let health = served.output(&["inspect", "-f", "{{.State.Health.Status}}", "web"]);
        (health == "healthy").then_some(())
    });
    let networks = served.output(&["network", "inspect", "-f", "{{.Id}} {{index .Labels \"tier\"}}", "back"]);
    let of_web = served.output(&["inspect", "-f", "{{.NetworkSettings.Networks.back.NetworkID}}", "web"]);
    assert_eq!(networks, format!("{of_web} test"));
    let volume = served.output(&["volume", "ls", "-q", "--filter", "label=tier=test"]);
    assert_eq!(volume, "data");
    for (command, why) in [
        (&["volume", "rm", "data"][..], "in use"),
        (&["network", "rm", "back"], "has active endpoints"),
        (&["rm", "web"], "container is running"),
        (&["create", "--name", "web", "bb"], "is already in use by container"),
        (&["inspect", "no-such"], "no such object"),
    ] {
        let refused = served.docker(command);
        let text = refused.stderr().to_lowercase();
        assert!(refused.code != 0 && text.contains(why), "{refused}");
    }
}

fn commands_in_it(served: &Served) {
    let run = served.docker(&[
        "exec",
        "-e",
        "X=1",
        "-w",
        "/tmp",
        "web",
        "sh",
        "-c",
        "echo $X $WORD $(pwd); echo err >&2; exit 6",
    ]);
    assert_eq!(
        (run.code, run.stdout(), run.stderr()),
        (6, "1 hello /tmp\n".into(), "err\n".into()),
        "{run}"
    );
    let piped = served
        .command(&["exec", "-i", "web", "wc", "-c"])
        .input(&[7; 100_000])
        .finish();
    assert_eq!(piped.stdout().trim(), "100000", "{piped}");
    let wrong = served.docker(&["exec", "web", "no-such-command"]);
    assert!(wrong.code == 126 || wrong.code == 127, "{wrong}");
    let mut terminal = served
        .command(&["exec", "-it", "-e", "PS1=ready> ", "web", "sh"])
        .on_terminal();
    terminal.expect("ready> ");
    terminal.resize(33, 99);
    terminal.type_in("while ! stty size | grep '33 99'; do sleep 0.1; done; exit 4\r");
    let (code, shown) = terminal.finish();
    assert_eq!(code, 4, "{shown}");
    served.output(&["exec", "-d", "web", "sh", "-c", "echo kept > /tmp/kept"]);
    until("what a detached command wrote", || {
        (served.docker(&["exec", "web", "cat", "/tmp/kept"]).stdout() == "kept\n").then_some(())
    });
    let top = served.output(&["top", "web"]);
    assert!(top.contains("PID") && top.contains("httpd"), "{top}");
}

fn files_in_and_out(served: &Served) {
    let home = &served.home;
    let folder = home.file("tree");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("a"), "one\n").expect("a file");
    let path = |name: &str| home.file(name).display().to_string();
    served.output(&["cp", &path("tree"), "web:/srv"]);
    served.output(&["cp", &path("tree/a"), "web:/tmp/b"]);
    assert_eq!(served.output(&["exec", "web", "cat", "/srv/a", "/tmp/b"]), "one\none");
    served.output(&["cp", "web:/srv", &path("back")]);
    assert_eq!(fs::read_to_string(home.file("back/a")).expect("the copy"), "one\n");
    let missing = served.docker(&["cp", &path("tree/a"), "web:/no/such/folder/x"]);
    assert!(
        missing.code != 0 && missing.stderr().contains("Could not find the file"),
        "{missing}"
    );
    let outside = served.docker(&["cp", "web:/no-such-file", &path("x")]);
    assert!(outside.code != 0, "{outside}");
    let diff = served.output(&["diff", "web"]);
    assert!(diff.lines().any(|line| line == "A /srv/a"), "{diff}");
}

fn told_as_time_goes_by(served: &Served, began: &str) {
    let logs = served.docker(&["logs", "web"]);
    assert_eq!(
        (logs.stdout(), logs.stderr()),
        ("begun\n".into(), "oops\n".into()),
        "{logs}"
    );
    assert!(served.output(&["logs", "-t", "web"]).ends_with("Z begun"));
    let stats = served.output(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", "web"]);
    assert!(stats.starts_with("web ") && stats.contains("MiB"), "{stats}");
    served.output(&["pause", "web"]);
    assert!(served.output(&["ps", "--format", "{{.Status}}"]).ends_with("(Paused)"));
    served.output(&["unpause", "web"]);
    let now = served.output(&["info", "-f", "{{.SystemTime}}"]);
    let events = served.output(&[
        "events",
        "--since",
        began,
        "--until",
        &now,
        "--filter",
        "type=container",
        "--format",
        "{{.Action}} {{.Actor.Attributes.tier}}",
    ]);
    let others = [
        "events",
        "--since",
        began,
        "--until",
        &now,
        "--filter",
        "type=volume",
        "--filter",
        "type=network",
    ];
    let others = served.output(&[others.as_slice(), &["--format", "{{.Type}} {{.Action}}"]].concat());
    for wanted in ["volume create", "volume mount", "network create", "network connect"] {
        assert!(others.lines().any(|line| line == wanted), "{wanted}: {others}");
    }
    let (commands, told): (Vec<&str>, Vec<&str>) = events
        .lines()
        .filter(|line| !line.starts_with("health"))
        .partition(|line| line.starts_with("exec_"));
    for wanted in ["exec_create: wc -c front", "exec_start: wc -c front", "exec_die front"] {
        assert!(commands.contains(&wanted), "{wanted}: {events}");
    }
    // That of a detached command, too.
    let ends = commands.iter().filter(|line| line.starts_with("exec_die")).count();
    let starts = commands.iter().filter(|line| line.starts_with("exec_start")).count();
    assert_eq!(ends, starts, "{events}");
    assert_eq!(
        told,
        ["create front", "start front", "pause front", "unpause front"],
        "{events}"
    );
}

/// A server that is killed under its clients: they see an end, the container nothing, and the next server goes on.
fn survives_its_server(served: &mut Served) {
    let mut follower = served.command(&["logs", "-f", "web"]).start();
    let mut output = follower.stdout.take().expect("its output");
    let mut line = [0; 6];
    output.read_exact(&mut line).expect("the first line");
    let started = served.output(&["inspect", "-f", "{{.State.StartedAt}}", "web"]);
    served.kill();
    output.read_to_end(&mut Vec::new()).expect("the end");
    follower.wait().expect("its end");
    served.start();
    assert_eq!(
        served.output(&["inspect", "-f", "{{.State.StartedAt}}", "web"]),
        started
    );
    assert_eq!(served.output(&["exec", "web", "cat", "/tmp/kept"]), "kept");
}

fn changed_and_ended(served: &Served) {
    served.output(&["rename", "web", "www"]);
    served.output(&["update", "--restart", "no", "www"]);
    served.output(&["stop", "-t", "2", "www"]);
    let state = served.output(&["inspect", "-f", "{{.State.Status}} {{.State.Running}}", "www"]);
    assert_eq!(state, "exited false");
    assert_eq!(served.docker(&["exec", "www", "true"]).code, 1);
    // Into a container that does not run.
    let file = served.home.file("tree/a").display().to_string();
    served.output(&["cp", &file, "www:/late"]);
    served.output(&["start", "www"]);
    assert_eq!(
        served.output(&["exec", "www", "cat", "/late", "/data/up", "/srv/a"]),
        "one\none"
    );
    served.output(&["kill", "www"]);
    assert_eq!(served.output(&["wait", "www"]), "137");
    served.output(&["rm", "-v", "www"]);
    served.output(&["network", "rm", "back"]);
    served.output(&["volume", "rm", "data"]);
    served.output(&["system", "prune", "-f"]);
    assert_eq!(served.output(&["ps", "-aq"]), "");
    assert!(served.output(&["system", "df"]).contains("Containers"));
}
