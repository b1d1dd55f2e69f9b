//! The agent in a real guest: everything the host can ask of it, on a busybox image.
//!
//! Skipped with a reason on a host without `ZMACHINE_TEST_KERNEL` or QEMU.
#![allow(missing_docs, clippy::missing_panics_doc)]

mod service;
mod support;

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::io::{AsyncReadExt, AsyncWriteExt};
use support::{Bench, config, is_clean, process};
use tokio_util::compat::TokioAsyncReadCompatExt;
use zmachine_agent_protocol::{
    AgentError, ErrorKind, ExitStatus, Frame, FrameDecoder, Identity, Input, MAX_DATA, Mount, Process, Reply, Request,
    Thaw, Upper, WindowSize,
};

const SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

fn with_stdin(args: &[&str]) -> Process {
    Process {
        stdin: true,
        ..process(args)
    }
}

fn at_terminal(args: &[&str]) -> Process {
    Process {
        stdin: true,
        terminal: Some(SIZE),
        ..process(args)
    }
}

fn as_user(user: &str, line: &str) -> Process {
    Process {
        user: Some(user.into()),
        ..process(&["sh", "-c", line])
    }
}

#[test]
fn the_entrypoint_runs_in_the_configured_guest_and_its_status_is_exact() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let line =
            "hostname; cat /etc/hostname; tail -1 /etc/hosts; cat /etc/resolv.conf; echo $HOME $PATH; pwd; exit 7";
        let entrypoint = Process {
            cwd: Some("/srv/new".into()),
            ..process(&["sh", "-c", line])
        };
        let finished = machine.open(&Request::Run(entrypoint)).await.finish().await;
        assert_eq!(finished.end, Ok(ExitStatus::Code(7)));
        let expected = "box\nbox\n10.0.2.15\tbox\nsearch lan\nnameserver 10.0.2.3\n\
            /root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/srv/new\n";
        assert_eq!(String::from_utf8_lossy(&finished.stdout), expected);
    });
    assert!(is_clean(&disks.path().join("upper.ext4")));
}

#[test]
fn the_guest_has_its_network_files_and_mounts() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        let volume = Mount {
            serial: "zm-volume".into(),
            fstype: "ext4".into(),
            target: "/opt".into(),
            read_only: false,
            populate: true,
        };
        machine.configure(support_with_mount(volume)).await;
        let addresses = machine.sh("ip addr show lan0; ip addr show lo").await.text();
        for part in ["10.0.2.15/24", "fd00::15/64", "mtu 1400", "127.0.0.1/8", "UP"] {
            assert!(addresses.contains(part), "{part} in {addresses}");
        }
        assert!(!addresses.contains("tentative"), "{addresses}");
        let routes = machine.sh("ip route; ip -6 route").await.text();
        for part in [
            "default via 10.0.2.2 dev lan0",
            "10.9.0.0/16 dev lan0",
            "default via fd00::2 dev lan0",
        ] {
            assert!(routes.contains(part), "{part} in {routes}");
        }
        assert_eq!(
            machine.sh("ls /etc/ssh; cat /root/.ssh/authorized_keys").await.text(),
            "sshd_config\nssh-ed25519 AAAA me\n"
        );
        assert_eq!(
            machine
                .sh("stat -c %a /root/.ssh /root/.ssh/authorized_keys /dev/shm")
                .await
                .text(),
            "700\n600\n1777\n"
        );
        assert_eq!(
            machine.sh("cat /proc/sys/net/ipv4/ping_group_range").await.text(),
            "0\t2147483647\n"
        );
        let mounts = machine.sh("cat /proc/mounts").await.text();
        for part in [
            "overlay / overlay rw",
            " /opt ext4 rw",
            " /sys/fs/cgroup cgroup2",
            " /dev/mqueue mqueue",
            " /dev/pts devpts",
        ] {
            assert!(mounts.contains(part), "{part} in {mounts}");
        }
        assert_eq!(
            machine
                .sh("echo kept > /opt/file; ls -A /opt; echo a | cat /dev/stdin /dev/fd/0")
                .await
                .text(),
            "file\nplain\ntool\na\n",
            "the image's file is there, and no lost+found"
        );
        machine.stop().await;
    });
    assert!(is_clean(&disks.path().join("volume.ext4")));
    assert!(is_clean(&disks.path().join("upper.ext4")));
}

fn support_with_mount(mount: Mount) -> zmachine_agent_protocol::BootConfig {
    zmachine_agent_protocol::BootConfig {
        mounts: vec![mount],
        ..config()
    }
}

#[test]
fn processes_have_their_user_and_fail_by_their_kind() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let ids = "id -u; id -g; id -G; echo $HOME; cat /proc/self/oom_score_adj; grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l; echo x > /dev/stdout";
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n4\nx\n";
        assert_eq!(machine.exec(as_user("web", ids)).await.text(), format!("1000\n1000\n1000 29\n/home/web\n0\n{status}"));
        assert_eq!(machine.exec(as_user("7:8", "id -u; id -g; echo $HOME")).await.text(), "7\n8\n/\n");
        for (line, end) in [("exit 0", ExitStatus::Code(0)), ("exit 42", ExitStatus::Code(42)), ("kill -9 $$", ExitStatus::Signal(9)), ("kill -15 $$", ExitStatus::Signal(15))] {
            assert_eq!(machine.sh(line).await.end, Ok(end), "{line}");
        }
        let failures = [
            (process(&["nowhere"]), ErrorKind::CommandNotFound),
            (process(&["/bin/nowhere"]), ErrorKind::CommandNotFound),
            (process(&["/bin"]), ErrorKind::CommandNotExecutable),
            (process(&["/opt/plain"]), ErrorKind::CommandNotExecutable),
            (as_user("nobody", "true"), ErrorKind::UnknownUser),
            (as_user("web:wheel", "true"), ErrorKind::UnknownUser),
            (Process { cwd: Some("/nowhere".into()), ..process(&["true"]) }, ErrorKind::WorkingDirectory),
        ];
        for (process, kind) in failures {
            let end = machine.exec(process.clone()).await.end;
            assert_eq!(end.as_ref().map_err(|error| error.kind), Err(kind), "{process:?}: {end:?}");
        }
        machine.sh("printf garbage > /opt/bad; chmod +x /opt/bad").await.text();
        assert_eq!(machine.exec(process(&["/opt/bad"])).await.end.unwrap_err().kind, ErrorKind::CommandNotExecutable);
        machine.stop().await;
    });
}

#[test]
fn ten_megabytes_go_in_and_come_out_unchanged() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let sent: Vec<u8> = (0..10_000_000u32)
            .map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let conversation = machine.open(&Request::Exec(with_stdin(&["cat"]))).await;
        let start = Instant::now();
        let (mut read, mut write) = conversation.into_stream().split();
        let feed = async {
            for piece in sent.chunks(MAX_DATA) {
                write.write_all(&Frame::Stdin(piece.to_vec()).to_bytes()).await.unwrap();
            }
            write.write_all(&Frame::StdinEof.to_bytes()).await.unwrap();
        };
        let collect = async {
            let (mut decoder, mut got, mut buffer) = (FrameDecoder::new(), Vec::new(), vec![0; 65536]);
            loop {
                while let Some(frame) = decoder.next_frame().unwrap() {
                    match frame {
                        Frame::Stdout(data) => got.extend(data),
                        Frame::Message(_) => match frame.parse().unwrap() {
                            Reply::Started { .. } => {}
                            reply => return (got, reply),
                        },
                        other => panic!("{other:?}"),
                    }
                }
                let count = read.read(&mut buffer).await.unwrap();
                decoder.push(&buffer[..count]);
            }
        };
        let ((), (got, end)) = futures::future::join(feed, collect).await;
        eprintln!("10 MB in and out: {:?}", start.elapsed());
        assert_eq!(end, Reply::Exited(ExitStatus::Code(0)));
        assert!(got == sent, "{} bytes came back", got.len());
        machine.stop().await;
    });
}

#[test]
fn a_terminal_echoes_resizes_and_interrupts() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let mut shell = machine.open(&Request::Exec(at_terminal(&["sh"]))).await;
        shell.send(Frame::Stdin(b"stty size; tty; echo $TERM\n".to_vec())).await;
        let seen = shell.until("xterm\r\n").await;
        assert!(seen.contains("24 80") && seen.contains("/dev/pts/"), "{seen}");
        shell
            .send(Frame::message(&Input::Resize(WindowSize { rows: 50, columns: 132 })))
            .await;
        shell.send(Frame::Stdin(b"stty size\n".to_vec())).await;
        shell.until("50 132").await;
        shell.send(Frame::Stdin(b"sleep 1000; echo status $?\n".to_vec())).await;
        shell.until("\n").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        shell.send(Frame::Stdin(vec![3])).await;
        shell.until("^C").await;
        shell.send(Frame::Stdin(b"exit 5\n".to_vec())).await;
        assert_eq!(shell.finish().await.end, Ok(ExitStatus::Code(5)));
        let mut cat = machine.open(&Request::Exec(at_terminal(&["cat"]))).await;
        cat.send(Frame::Stdin(b"line\n".to_vec())).await;
        cat.send(Frame::StdinEof).await;
        let finished = cat.finish().await;
        assert_eq!(
            (finished.text().as_str(), finished.stderr.len()),
            ("line\r\nline\r\n", 0)
        );
        machine.stop().await;
    });
}

#[test]
fn a_hundred_processes_run_at_once_and_nothing_is_mixed_up() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let before = machine.sh("grep VmRSS /proc/1/status").await.text();
        let start = Instant::now();
        let one = async |number: usize| {
            let line = format!(
                "seq 1 2000 | sed s/^/{number}:/; echo {number} >&2; exit {}",
                number % 100
            );
            let finished = machine.sh(&line).await;
            assert_eq!(finished.end, Ok(ExitStatus::Code((number % 100) as u8)));
            assert_eq!(finished.stderr, format!("{number}\n").into_bytes());
            let expected: String = (1..=2000).map(|line| format!("{number}:{line}\n")).collect();
            assert!(finished.stdout == expected.as_bytes(), "{number}");
        };
        futures::future::join_all((0..100).map(one)).await;
        eprintln!(
            "100 processes: {:?}; {} -> {}",
            start.elapsed(),
            before.trim(),
            machine.sh("grep -E 'VmRSS|VmHWM' /proc/1/status").await.text()
        );
        machine.stop().await;
    });
}

#[test]
fn orphans_are_reaped_and_background_children_do_not_hold_the_end_back() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let start = Instant::now();
        let finished = machine.sh("sleep 600 & yes > /dev/null & echo done").await;
        assert_eq!(finished.text(), "done\n");
        let noisy = machine.sh("while true; do echo noise; done & exit 4").await;
        assert_eq!(noisy.end, Ok(ExitStatus::Code(4)));
        assert!(start.elapsed() < Duration::from_secs(30));
        machine
            .sh("killall yes sleep; for i in $(seq 20); do sh -c 'sleep 0 & exit' & done; wait; sleep 1")
            .await;
        assert_eq!(
            machine
                .sh("grep -l 'State:.Z' /proc/[0-9]*/status | wc -l")
                .await
                .text(),
            "0\n"
        );
        assert_eq!(
            machine.sh("kill -9 1; kill -15 1; kill -11 1; echo alive").await.text(),
            "alive\n"
        );
        assert_eq!(machine.ask(Request::Ping).await, Reply::Done);
        assert!(matches!(machine.ask(Request::Capacity).await, Reply::Capacity(capacity) if capacity.cpus == 1));
        machine.stop().await;
    });
}

#[test]
fn a_stop_signals_the_entrypoint_then_kills_and_leaves_a_clean_disk() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let line = "trap 'echo caught; exit 9' TERM; echo ready; exec 3>/root/open; while true; do echo x >&3; sleep 0.1; done";
        let mut entrypoint = machine.open(&Request::Run(process(&["sh", "-c", line]))).await;
        entrypoint.until("ready").await;
        let stubborn = machine.open(&Request::Exec(process(&["sh", "-c", "trap '' TERM; while true; do sleep 1; done > /root/busy"]))).await;
        machine.sh("dd if=/dev/zero of=/root/big bs=1M count=8").await;
        machine.stop().await;
        let finished = entrypoint.finish().await;
        assert_eq!((finished.end, finished.stdout.as_slice()), (Ok(ExitStatus::Code(9)), &b"caught\n"[..]));
        drop(stubborn);
    });
    assert!(is_clean(&disks.path().join("upper.ext4")));
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        assert_eq!(
            machine
                .sh("wc -c < /root/big; wc -l < /root/.ssh/authorized_keys")
                .await
                .text(),
            "8388608\n1\n"
        );
        machine.stop().await;
    });
}

#[test]
fn the_entrypoint_is_pid_1_of_its_namespaces_and_execs_join_them() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let line = "mkdir -p /mnt && mount -t tmpfs tmpfs /mnt; trap 'echo asked' USR1; trap 'exit 3' TERM; \
                    echo $$ $(readlink /proc/1/exe); while true; do sleep 0.2; done";
        let init = Process {
            env: vec![("MARK".into(), "here".into())],
            ..process(&["sh", "-c", line])
        };
        let mut entrypoint = machine.open(&Request::Run(init)).await;
        entrypoint.until("1 /bin/busybox\n").await;
        assert_eq!(machine.sh("grep -c ' /mnt ' /proc/mounts").await.text(), "1\n");
        assert_eq!(
            machine.sh("tr '\\0' '\\n' < /proc/1/environ | grep MARK").await.text(),
            "MARK=here\n"
        );
        let processes = machine.sh("cat /proc/[0-9]*/comm | sort -u").await.text();
        assert!(
            !processes.contains("init") && !processes.contains("kthreadd"),
            "{processes}"
        );
        machine.sh("echo through the descriptor > /proc/1/fd/1").await.text();
        entrypoint.until("through the descriptor\n").await;
        // What has no handler is dropped, SIGKILL among it; what has one comes.
        machine.sh("kill -9 1; kill -HUP 1; kill -USR1 1").await.text();
        entrypoint.until("asked\n").await;
        let beside = machine.open(&Request::Exec(process(&["sleep", "1000"]))).await;
        machine.sh("kill -TERM 1").await;
        assert_eq!(
            beside.finish().await.end,
            Ok(ExitStatus::Signal(9)),
            "all of the namespace ends with it"
        );
        assert_eq!(entrypoint.finish().await.end, Ok(ExitStatus::Code(3)));
    });
    assert!(is_clean(&disks.path().join("upper.ext4")));
}

#[test]
fn a_small_init_in_front_passes_signals_on_and_reaps_orphans() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let with_init = |args: &[&str]| Process {
            init: true,
            restrictions: None,
            user: Some("web".into()),
            env: vec![("MARK".into(), "here".into())],
            ..at_terminal(args)
        };
        let missing = machine.open(&Request::Run(with_init(&["nowhere"]))).await.finish().await;
        assert_eq!(missing.end.unwrap_err().kind, ErrorKind::CommandNotFound);
        let line = "trap 'echo asked' USR1; trap 'exit 5' INT; id -u; echo $PPID; while true; do sleep 0.2; done";
        let mut entrypoint = machine.open(&Request::Run(with_init(&["sh", "-c", line]))).await;
        entrypoint.until("1000\r\n1\r\n").await;
        assert_eq!(machine.ask(Request::Signal { signal: 10 }).await, Reply::Done);
        entrypoint.until("asked").await;
        let line = "cat /proc/1/comm; tr '\\0' '\\n' < /proc/1/environ | grep MARK; \
                    for i in 1 2 3; do sh -c 'sleep 0.1 & exit'; done; sleep 1; grep -l 'State:.Z' /proc/[0-9]*/status | wc -l";
        assert_eq!(machine.sh(line).await.text(), "zmachine-init\nMARK=here\n0\n");
        // Typed at the terminal, it is for the program.
        entrypoint.send(Frame::Stdin(vec![3])).await;
        assert_eq!(entrypoint.finish().await.end, Ok(ExitStatus::Code(5)));
    });
    assert!(is_clean(&disks.path().join("upper.ext4")));
}

#[test]
fn the_clock_follows_the_host_and_a_long_change_of_the_guest_holds_nothing_up() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        machine.sh("date -s @1000000000").await.text();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let unix_nanos = now.as_nanos() as u64;
        assert_eq!(machine.ask(Request::SetTime { unix_nanos }).await, Reply::Done);
        let shown: u64 = machine.sh("date +%s").await.text().trim().parse().unwrap();
        assert!((now.as_secs()..now.as_secs() + 60).contains(&shown), "{shown}, {now:?}");
        // No such disk comes: the agent waits for it, and answers others meanwhile.
        let grow = Request::Grow {
            serial: "nothing".into(),
            partition: None,
            fstype: "ext4".into(),
            disk_bytes: 1,
        };
        let mut waiting = machine.open(&grow).await;
        assert_eq!(machine.sh("echo meanwhile").await.text(), "meanwhile\n");
        let (answer, ping) = (pin!(waiting.reply()), pin!(machine.ask(Request::Ping)));
        let futures::future::Either::Right((Reply::Done, waiting)) = futures::future::select(answer, ping).await else {
            panic!("the agent was deaf until it gave the disk up");
        };
        assert!(matches!(waiting.await, Reply::Error(error) if error.message.contains("nothing")));
        machine.stop().await;
    });
}

#[test]
fn a_read_only_or_memory_root_leaves_the_disk_alone() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    for (upper, writes) in [(Upper::ReadOnly, "no"), (Upper::Memory, "yes")] {
        bench.with_machine(disks.path(), async |machine| {
            let mut config = config();
            config.root.upper = upper;
            machine.configure(config).await;
            let line = "echo x 2>/dev/null > /file && echo yes || echo no; echo x > /tmp/file; cat /etc/hostname; tail -1 /etc/resolv.conf";
            assert_eq!(machine.sh(line).await.text(), format!("{writes}\nbox\nnameserver 10.0.2.3\n"));
            machine.stop().await;
        });
    }
}

#[test]
fn a_set_up_that_fails_names_the_thing_and_requests_out_of_order_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        let refused = |reply: Reply| match reply {
            Reply::Error(error) => (error.kind, error.message),
            other => panic!("{other:?}"),
        };
        let run = Request::Run(process(&["true"]));
        assert_eq!(refused(machine.ask(run.clone()).await).0, ErrorKind::BadRequest);
        let mut broken = config();
        broken.routes[0].gateway = Some("192.0.2.1".parse().unwrap());
        let (kind, message) = refused(machine.ask(Request::Configure(Box::new(broken))).await);
        assert_eq!(kind, ErrorKind::Setup);
        assert!(
            message.contains("0.0.0.0/0") && message.contains("192.0.2.1"),
            "{message}"
        );
        assert_eq!(
            refused(machine.ask(Request::Configure(Box::new(config()))).await).0,
            ErrorKind::BadRequest
        );
        assert_eq!(refused(machine.ask(run).await).0, ErrorKind::BadRequest);
        machine.stop().await;
    });
    assert!(is_clean(&disks.path().join("upper.ext4")));
}

#[test]
fn a_host_that_goes_away_ends_the_machine_cleanly() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let mut entrypoint = machine
            .open(&Request::Run(process(&["sh", "-c", "echo up; sleep 1000"])))
            .await;
        entrypoint.until("up").await;
        machine.hang_up();
    });
    assert!(is_clean(&disks.path().join("upper.ext4")));
}

#[test]
fn a_host_that_takes_over_finds_entrypoint_and_sessions_and_misses_nothing() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let line = "trap 'echo asked' USR1; trap 'exit 7' TERM; echo up; while true; do sleep 0.2; done";
        let mut entrypoint = machine.open(&Request::Run(process(&["sh", "-c", line]))).await;
        entrypoint.until("up\n").await;
        // Twice as much as pipes and windows hold: it has to wait for somebody who reads.
        let session = |id: &str, line: &str| Request::ExecSession {
            id: id.to_owned(),
            process: with_stdin(&["sh", "-c", line]),
        };
        let mut long = machine
            .open(&session("long", "seq 1 100000; read word; echo got $word; exit 3"))
            .await;
        let mut seen = long.until("\n500\n").await;
        let short = machine.open(&session("short", "echo short; exit 4")).await;
        let short = short.finish().await;
        assert_eq!(
            (short.stdout.as_slice(), short.end),
            (&b"short\n"[..], Ok(ExitStatus::Code(4)))
        );
        let again = machine.ask(session("long", "true")).await;
        assert!(
            matches!(
                again,
                Reply::Error(AgentError {
                    kind: ErrorKind::BadRequest,
                    ..
                })
            ),
            "{again:?}"
        );

        machine.hang_up();
        machine.take_over().await;

        let Reply::Sessions(sessions) = machine.ask(Request::Sessions).await else {
            panic!("no sessions")
        };
        let ends: Vec<_> = sessions.iter().map(|s| (s.id.as_deref(), s.exited)).collect();
        let code = |code| Some(ExitStatus::Code(code));
        assert_eq!(ends, [(None, None), (Some("long"), None), (Some("short"), code(4))]);
        // The stream of a host that goes on from where the one before was, its own count.
        let resume = |id: Option<&str>, received: usize| Request::Resume {
            id: id.map(str::to_owned),
            received: received as u64,
        };
        let mut long = machine.open(&resume(Some("long"), seen.len())).await;
        assert!(matches!(long.reply().await, Reply::Resumed { lost: 0, .. }));
        seen += &long.until("\n100000\n").await;
        let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
        assert!(seen == expected, "{} bytes of {}", seen.len(), expected.len());
        long.send(Frame::Stdin(b"a-word\n".to_vec())).await;
        let long = long.finish().await;
        assert_eq!(
            (long.stdout.as_slice(), long.end),
            (&b"got a-word\n"[..], Ok(ExitStatus::Code(3)))
        );
        let mut short = machine.open(&resume(Some("short"), 2)).await;
        assert!(matches!(short.reply().await, Reply::Resumed { lost: 0, .. }));
        let short = short.finish().await;
        assert_eq!(
            (short.stdout.as_slice(), short.end),
            (&b"ort\n"[..], Ok(ExitStatus::Code(4)))
        );
        let wait = |id: &str| Request::WaitSession { id: id.to_owned() };
        assert_eq!(machine.ask(wait("long")).await, Reply::Exited(ExitStatus::Code(3)));
        let unknown = machine.ask(wait("nobody")).await;
        assert!(matches!(unknown, Reply::Error(_)), "{unknown:?}");
        let unread = session("unread", "sleep 1; seq 1 10; exit 5");
        let mut unread = machine.open(&unread).await;
        assert!(matches!(unread.reply().await, Reply::Started { .. }));
        drop(unread);
        assert_eq!(machine.ask(wait("unread")).await, Reply::Exited(ExitStatus::Code(5)));
        // Whoever comes after the end of a process that nobody followed, however soon, gets all of it.
        for number in 0..5 {
            let id = format!("brief-{number}");
            let mut brief = machine.open(&session(&id, "echo brief; exit 6")).await;
            assert!(matches!(brief.reply().await, Reply::Started { .. }));
            drop(brief);
            tokio::time::sleep(Duration::from_millis(number * 60)).await;
            let mut brief = machine.open(&resume(Some(&id), 0)).await;
            assert!(matches!(brief.reply().await, Reply::Resumed { lost: 0, .. }));
            let brief = brief.finish().await;
            assert_eq!(
                (brief.stdout.as_slice(), brief.end),
                (&b"brief\n"[..], Ok(ExitStatus::Code(6))),
                "{number}"
            );
        }
        let unknown = machine.ask(resume(Some("nobody"), 0)).await;
        assert!(matches!(unknown, Reply::Error(_)), "{unknown:?}");

        let mut entrypoint = machine.open(&resume(None, 3)).await;
        assert!(matches!(entrypoint.reply().await, Reply::Resumed { lost: 0, .. }));
        assert_eq!(machine.ask(Request::Signal { signal: 10 }).await, Reply::Done);
        entrypoint.until("asked\n").await;
        machine.stop().await;
        assert_eq!(entrypoint.finish().await.end, Ok(ExitStatus::Code(7)));
    });
    assert!(is_clean(&disks.path().join("upper.ext4")));
}

#[test]
fn a_copy_is_told_who_it_is_before_its_connection_begins_and_no_output_is_lost() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let line = "trap 'exit 7' TERM; i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done";
        let mut entrypoint = machine.open(&Request::Run(process(&["sh", "-c", line]))).await;
        let mut seen = entrypoint.until("\n20\n").await;
        assert_eq!(machine.ask(Request::Freeze).await, Reply::Done);
        let clock = machine.ask(Request::Clock).await;
        assert!(
            matches!(
                clock,
                Reply::Clock {
                    is_thawed_first: true,
                    ..
                }
            ),
            "{clock:?}"
        );
        while let Ok(frame) = tokio::time::timeout(Duration::from_secs(1), entrypoint.next()).await {
            match frame {
                Some(Frame::Stdout(data)) => seen.push_str(&String::from_utf8_lossy(&data)),
                other => panic!("{other:?}"),
            }
        }

        let identity = Identity {
            hostname: "copy".into(),
            ..Identity::default()
        };
        let thaw = Thaw {
            seed: vec![1; 64],
            unix_nanos: 1_000_000_000_000_000_000,
            monotonic_began: None,
            identity: Some(Box::new(identity)),
        };
        let sent = seen.len() as u64;
        let (reply, stream) = machine.thaw(&thaw).await;
        assert_eq!(reply, Reply::Thawed { sent });
        // It writes while nobody asks for that.
        tokio::time::sleep(Duration::from_secs(1)).await;
        machine.drive(stream.compat());
        let resume = Request::Resume {
            id: None,
            received: sent,
        };
        let mut entrypoint = machine.open(&resume).await;
        assert!(matches!(entrypoint.reply().await, Reply::Resumed { lost: 0, .. }));
        seen += &entrypoint.until("\n100\n").await;
        let all: String = (1..=seen.lines().count()).map(|n| format!("{n}\n")).collect();
        assert_eq!(seen, all);
        let names = machine
            .sh("cat /proc/sys/kernel/hostname /etc/hostname; date +%s")
            .await
            .text();
        let names: Vec<&str> = names.lines().collect();
        assert_eq!(names[..2], ["copy", "copy"]);
        let seconds: u64 = names[2].parse().unwrap();
        assert!((1_000_000_000..1_000_001_000).contains(&seconds), "{seconds}");
        let again = machine.ask(Request::Thaw(Box::new(thaw))).await;
        assert!(matches!(again, Reply::Error(_)), "{again:?}");
        machine.stop().await;
        // Somebody hears of the end, or the machine would wait for that.
        assert_eq!(entrypoint.finish().await.end, Ok(ExitStatus::Code(7)));
    });
    assert!(is_clean(&disks.path().join("upper.ext4")));
}

#[test]
fn a_stream_closed_early_hangs_a_terminal_up_and_lets_other_execs_go_on() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        let mut shell = machine
            .open(&Request::Exec(at_terminal(&["sh", "-c", "echo up; sleep 4242"])))
            .await;
        shell.until("up").await;
        let line = "echo up; cat > /dev/null; seq 1 300000; echo went on > /root/proof";
        let mut worker = machine.open(&Request::Exec(with_stdin(&["sh", "-c", line]))).await;
        worker.until("up").await;
        drop((shell, worker));
        let wait =
            "while ! [ -e /root/proof ] || pgrep -f 'sleep 424[2]' > /dev/null; do sleep 0.2; done; cat /root/proof";
        assert_eq!(machine.sh(wait).await.text(), "went on\n");
        machine.stop().await;
    });
}

#[test]
fn a_long_stream_passes_in_order_and_in_bounded_memory() {
    let Some(bench) = Bench::new() else { return };
    let disks = bench.disks();
    bench.with_machine(disks.path(), async |machine| {
        machine.configure(config()).await;
        // 17 bytes times 61,440 a file: the pattern goes on from one file to the next.
        machine
            .sh("yes 0123456789abcdef | head -c 1044480 > /dev/shm/part")
            .await
            .text();
        let start = Instant::now();
        let line = "for i in $(seq 200); do cat /dev/shm/part; done";
        let mut stream = machine.open(&Request::Exec(process(&["sh", "-c", line]))).await;
        let (mut total, expected) = (0usize, b"0123456789abcdef\n".repeat(MAX_DATA / 17 + 2));
        let end = loop {
            match stream.next().await.unwrap() {
                Frame::Stdout(data) => {
                    let phase = total % 17;
                    assert!(data == expected[phase..phase + data.len()], "at {total}");
                    total += data.len();
                }
                frame => match frame.parse().unwrap() {
                    Reply::Started { .. } => {}
                    reply => break reply,
                },
            }
        };
        eprintln!("209 MB out: {:?}", start.elapsed());
        assert_eq!((total, end), (208_896_000, Reply::Exited(ExitStatus::Code(0))));
        let peak = machine.sh("awk '/VmHWM/ { print $2 }' /proc/1/status").await.text();
        assert!(peak.trim().parse::<u32>().unwrap() < 16_000, "{peak} kB");
        machine.stop().await;
    });
}
