//! What every command is answered in every phase.
//!
//! The table is complete because the compiler says so: a new command, or a new phase, has no row, and no way to it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use zmachine_agent_protocol::{ContainerRequest, Frame, Reply as AgentReply, Transfer};
use zmachine_hypervisor::ExitReason;
use zmachine_spec::control::{Reconnect, Reply, Request};
use zmachine_spec::restart::RestartPolicy;
use zmachine_spec::{Change, Class, Exit, Failure, Kind, Phase};

use super::agent::Agent;
use super::rig::{KINDS, LIMIT, Rig, VOLUME, Wanted, process, run};

/// What a client is answered.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Done,
    /// The stream begins.
    Stream,
    /// Its connection is let go: there is nothing to follow.
    LetGo,
    Capacity,
    Traffic,
    Execs,
    Processes,
    Container,
    /// There is no such process.
    Unknown,
    /// Refused at once, in words with these in them.
    Refused(&'static str),
    /// The machine ends by that, and this is the answer.
    Ends,
    /// Nothing before the machine ends.
    Waits,
}

/// The answers to `request` in the phases starting, running, paused, stopping, restarting. A container that starts boots its
/// guest; the hypervisor of a VM that starts does not come up yet, and what needs a guest waits for it.
fn answers(kind: Kind, request: &Request) -> [Answer; 5] {
    use Answer::{Capacity, Container, Done, Ends, Execs, LetGo, Processes, Refused, Stream, Traffic, Unknown, Waits};
    const STARTING: Answer = Refused("still starting");
    const PAUSED: Answer = Refused("paused");
    const RESTARTING: Answer = Refused("waits to be started again");
    const NOT_YET: Answer = Refused("not running yet");
    const NO_AGENT: Answer = Refused("no zmachine agent");
    const UNSAVEABLE: Answer = Refused("not built to be saved");
    const NO_FILE: Answer = Refused("no place for /nowhere");
    const TAKEN: Answer = Refused("does not stand by");
    const NO_PLACE: Answer = Refused("no place for one more image");
    const NO_ENTRYPOINT: Answer = Refused("no entrypoint");
    match (request, kind) {
        (Request::Attach { .. }, _) => [Waits, Stream, Stream, Stream, LetGo],
        (Request::Console { .. }, Kind::Container) => [Stream, Stream, Stream, Stream, LetGo],
        (Request::Console { .. }, Kind::Vm) => [Waits, Stream, Stream, Stream, LetGo],
        (Request::Exec(_) | Request::Transfer(_), Kind::Container) => [NOT_YET, Stream, PAUSED, Stream, NOT_YET],
        (Request::Exec(_) | Request::Transfer(_), Kind::Vm) => [NO_AGENT, Stream, PAUSED, Stream, NOT_YET],
        (Request::Hold { .. }, Kind::Container) => [NOT_YET, Done, Done, Done, NOT_YET],
        // Without an agent it is paused for that.
        (Request::Hold { .. }, Kind::Vm) => [Waits, Done, Done, Done, NOT_YET],
        // It begins with the same word.
        (Request::Dial { .. }, Kind::Container) => [NOT_YET, Done, PAUSED, Done, NOT_YET],
        (Request::Dial { .. }, Kind::Vm) => [NO_AGENT, Done, PAUSED, Done, NOT_YET],
        (Request::StartExec { .. }, Kind::Container) => [NOT_YET, Execs, PAUSED, Execs, NOT_YET],
        (Request::StartExec { .. }, Kind::Vm) => [NO_AGENT, Execs, PAUSED, Execs, NOT_YET],
        (Request::StartInContainer { .. }, Kind::Container) => [NOT_YET, Execs, PAUSED, Execs, NOT_YET],
        (Request::StartInContainer { .. }, Kind::Vm) => [NO_AGENT, Execs, PAUSED, Execs, NOT_YET],
        (Request::Container { .. }, _) => [NOT_YET, Container, PAUSED, Container, NOT_YET],
        (Request::AttachExec { .. } | Request::WaitExec { .. }, _) => [Unknown; 5],
        (Request::Execs, _) => [Execs; 5],
        (Request::Processes, _) => [NOT_YET, Processes, PAUSED, Processes, NOT_YET],
        (Request::Stop { .. } | Request::Kill, _) => [Ends, Ends, Ends, Ends, Ends],
        (Request::Signal(_), Kind::Container) => [STARTING, Done, PAUSED, Done, RESTARTING],
        (Request::Signal(_), Kind::Vm) => [Waits, NO_ENTRYPOINT, NO_ENTRYPOINT, NO_ENTRYPOINT, RESTARTING],
        (Request::Wait, _) => [Waits, Waits, Waits, Waits, Waits],
        (Request::Capacity, _) => [NOT_YET, Capacity, PAUSED, Capacity, NOT_YET],
        (Request::Traffic, _) => [Traffic, Traffic, Traffic, Traffic, Traffic],
        (Request::Save { .. }, Kind::Container) => [STARTING, UNSAVEABLE, UNSAVEABLE, UNSAVEABLE, RESTARTING],
        (Request::Save { .. }, Kind::Vm) => [Waits, UNSAVEABLE, UNSAVEABLE, UNSAVEABLE, RESTARTING],
        (Request::Pause, Kind::Container) => [STARTING, Done, Done, Refused("being stopped"), RESTARTING],
        (Request::Pause, Kind::Vm) => [Waits, Done, Done, Refused("being stopped"), RESTARTING],
        (Request::Resume, Kind::Container) => [STARTING, Done, Done, Done, RESTARTING],
        (Request::Resume, Kind::Vm) => [Waits, Done, Done, Done, RESTARTING],
        (Request::AddImage { .. }, Kind::Container) => [STARTING, NO_PLACE, NO_PLACE, NO_PLACE, RESTARTING],
        (Request::AddImage { .. }, Kind::Vm) => [Waits, NO_PLACE, NO_PLACE, NO_PLACE, RESTARTING],
        (Request::AddFile { .. }, Kind::Container) => [STARTING, NO_FILE, NO_FILE, NO_FILE, RESTARTING],
        (Request::AddFile { .. }, Kind::Vm) => [Waits, NO_FILE, NO_FILE, NO_FILE, RESTARTING],
        (Request::Reconnect(_), Kind::Container) => [STARTING, Done, PAUSED, Done, RESTARTING],
        (Request::Reconnect(_), Kind::Vm) => [Waits, Done, PAUSED, Done, RESTARTING],
        (Request::Change(_), Kind::Container) => [Done, Done, Done, Done, Done],
        (Request::Change(_), Kind::Vm) => [Waits, Done, Done, Done, Done],
        (Request::Claim { .. }, Kind::Container) => [STARTING, TAKEN, TAKEN, TAKEN, RESTARTING],
        (Request::Claim { .. }, Kind::Vm) => [Waits, TAKEN, TAKEN, TAKEN, RESTARTING],
        (Request::GrowVolume { .. }, Kind::Container) => [STARTING, Done, PAUSED, Done, RESTARTING],
        // The disk has grown; the file system does when the guest runs on.
        (Request::GrowVolume { .. }, Kind::Vm) => [Waits, Done, Done, Done, RESTARTING],
    }
}

/// The command after this one, in the order of the protocol; the first one after none.
fn next_command(before: Option<&Request>) -> Option<Request> {
    let Some(before) = before else {
        return Some(Request::Attach {
            stdin: false,
            owner: false,
        });
    };
    Some(match before {
        Request::Attach { .. } => Request::Console { stdin: false },
        Request::Console { .. } => Request::Exec(process()),
        Request::Exec(_) => Request::Transfer(Transfer::Send { path: "/x".into() }),
        Request::Transfer(_) => Request::Hold {
            disks: vec!["zm-x".into()],
        },
        Request::Hold { .. } => Request::StartExec {
            id: None,
            process: process(),
            discard: true,
        },
        Request::StartExec { .. } => Request::StartInContainer {
            id: "first".into(),
            container: "app".into(),
            new: None,
            process: Box::default(),
        },
        Request::StartInContainer { .. } => Request::Container {
            id: "app".into(),
            request: ContainerRequest::Pids,
        },
        Request::Container { .. } => Request::Dial { port: 80 },
        Request::Dial { .. } => Request::AttachExec {
            id: "nobody".into(),
            received: 0,
        },
        Request::AttachExec { .. } => Request::WaitExec { id: "nobody".into() },
        Request::WaitExec { .. } => Request::Execs,
        Request::Execs => Request::Processes,
        Request::Processes => Request::Stop { grace_ms: None },
        Request::Stop { .. } => Request::Kill,
        Request::Kill => Request::Signal(1),
        Request::Signal(_) => Request::Wait,
        Request::Wait => Request::Capacity,
        Request::Capacity => Request::Traffic,
        Request::Traffic => Request::Save {
            folder: "/nowhere".into(),
        },
        Request::Save { .. } => Request::Pause,
        Request::Pause => Request::Resume,
        Request::Resume => Request::Reconnect(Box::new(Reconnect {
            attachments: Vec::new(),
            networks: Vec::new(),
        })),
        Request::Reconnect(_) => Request::Change(Box::new(Change {
            restart: Some(RestartPolicy::UnlessStopped),
            ..Change::default()
        })),
        Request::Change(_) => Request::Claim {
            wait_for_owner: false,
            ends_with_client: false,
        },
        Request::Claim { .. } => Request::GrowVolume {
            name: VOLUME.into(),
            size_bytes: 96 << 20,
        },
        Request::GrowVolume { .. } => Request::AddImage { digest: "0".repeat(64) },
        Request::AddImage { .. } => Request::AddFile {
            path: "/nowhere".into(),
            serial: "zm-x".into(),
            read_only: true,
        },
        Request::AddFile { .. } => return None,
    })
}

/// Every command once.
pub(super) fn commands() -> Vec<Request> {
    std::iter::successors(next_command(None), |before| next_command(Some(before))).collect()
}

/// The phases with a monitor, in the order of the table.
fn active_phases() -> [Phase; 5] {
    let restarting = Phase::Restarting {
        after: String::new(),
        at: Timestamp::UNIX_EPOCH,
    };
    [
        Phase::Starting,
        Phase::Running,
        Phase::Paused,
        Phase::Stopping,
        restarting,
    ]
}

/// A machine in that phase; `None` for those in which no monitor is there to answer.
async fn rig_in(phase: &Phase, kind: Kind) -> Option<Rig> {
    let stubborn = Wanted::new(kind, Agent::Stubborn);
    let rig = match phase {
        Phase::Created | Phase::Stopped { .. } | Phase::Failed { .. } => return None,
        Phase::Starting => {
            Rig::start(Wanted {
                hangs_at_launch: kind == Kind::Vm,
                ..Wanted::new(kind, Agent::Silent)
            })
            .await
        }
        Phase::Running => return Some(Rig::running(stubborn).await),
        Phase::Paused => {
            let rig = Rig::running(stubborn).await;
            rig.does(&Request::Pause).await;
            rig
        }
        Phase::Stopping => {
            let rig = Rig::running(stubborn).await;
            rig.asking(&Request::Stop { grace_ms: None });
            rig
        }
        Phase::Restarting { .. } => {
            let restart = RestartPolicy::Always;
            let rig = Rig::running(Wanted { restart, ..stubborn }).await;
            rig.exit(ExitReason::GuestShutdown);
            rig
        }
    };
    rig.until(phase).await;
    Some(rig)
}

/// Whether that is the answer.
fn fits(answer: Answer, frame: Option<&Frame>) -> bool {
    let reply = frame.and_then(|frame| frame.parse::<Reply>().ok());
    let begun = frame.and_then(|frame| frame.parse::<AgentReply>().ok());
    match answer {
        Answer::Done => matches!(reply, Some(Reply::Done)),
        Answer::Stream => matches!(begun, Some(AgentReply::Started { .. })),
        Answer::LetGo => frame.is_none(),
        Answer::Capacity => matches!(reply, Some(Reply::Capacity(_))),
        Answer::Traffic => matches!(reply, Some(Reply::Traffic(_))),
        Answer::Execs => matches!(reply, Some(Reply::Execs(_))),
        Answer::Container => matches!(reply, Some(Reply::Container(_))),
        Answer::Processes => matches!(reply, Some(Reply::Processes(_))),
        Answer::Unknown => matches!(reply, Some(Reply::Failed(failure)) if failure.class == Class::NotFound),
        Answer::Ends => matches!(reply, Some(Reply::Ended(Ok(_)))),
        Answer::Waits => match reply {
            Some(Reply::Ended(ended)) => ended.is_ok(),
            Some(Reply::Failed(failure)) => failure.to_string().contains("ended"),
            _ => match begun {
                Some(AgentReply::Error(error)) => error.message.contains("ended"),
                _ => frame.is_none(),
            },
        },
        Answer::Refused(words) => match (reply, begun) {
            (Some(Reply::Failed(failure)), _) => {
                failure.class == Class::Conflict && failure.to_string().contains(words)
            }
            (_, Some(AgentReply::Error(error))) => error.message.contains(words),
            _ => false,
        },
    }
}

fn in_words(frame: Option<&Frame>) -> String {
    match frame {
        Some(Frame::Message(json)) => String::from_utf8_lossy(json).into_owned(),
        other => format!("{other:?}"),
    }
}

async fn check(kind: Kind, phase: &Phase, request: &Request, answer: Answer) {
    let what = format!("{kind:?}, {}, {request:?}: {answer:?}", phase.word());
    let rig = rig_in(phase, kind).await.expect("a monitor");
    let begun = Instant::now();
    let mut asking = rig.asking(request);
    match answer {
        Answer::Ends => {
            let frame = timeout(LIMIT, asking).await.expect(&what).unwrap();
            assert!(fits(answer, frame.as_ref()), "{what}, not {}", in_words(frame.as_ref()));
            assert!(matches!(rig.end().await, Phase::Stopped { .. }), "{what}");
        }
        Answer::Waits => {
            let early = timeout(Duration::from_millis(200), &mut asking).await;
            assert!(early.is_err(), "{what}, not at once: {early:?}");
            assert!(matches!(rig.kill().await, Phase::Stopped { .. }), "{what}");
            let frame = timeout(LIMIT, asking).await.expect(&what).unwrap();
            assert!(fits(answer, frame.as_ref()), "{what}, not {}", in_words(frame.as_ref()));
        }
        _ => {
            let frame = timeout(LIMIT, asking).await.expect(&what).unwrap();
            assert!(fits(answer, frame.as_ref()), "{what}, not {}", in_words(frame.as_ref()));
            assert!(begun.elapsed() < Duration::from_secs(1), "{what}: at once");
            assert!(matches!(rig.kill().await, Phase::Stopped { .. }), "{what}");
        }
    }
}

fn check_phase(at: usize) {
    run(async {
        let phase = &active_phases()[at];
        for kind in KINDS {
            for request in commands() {
                check(kind, phase, &request, answers(kind, &request)[at]).await;
            }
        }
    });
}

#[test]
fn commands_while_the_machine_starts() {
    check_phase(0);
}

#[test]
fn commands_while_the_machine_runs() {
    check_phase(1);
}

#[test]
fn commands_while_the_machine_is_paused() {
    check_phase(2);
}

#[test]
fn commands_while_the_machine_stops() {
    check_phase(3);
}

#[test]
fn commands_while_the_machine_waits_to_be_started_again() {
    check_phase(4);
}

#[test]
fn nobody_answers_before_the_first_start_and_after_the_last_end() {
    run(async {
        let ended = [
            Phase::Created,
            Phase::Stopped { exit: Exit::Killed },
            Phase::Failed {
                step: String::new(),
                failure: Failure::new(Class::Failed, ""),
            },
        ];
        for phase in ended {
            assert!(!phase.is_active());
            for kind in KINDS {
                assert!(rig_in(&phase, kind).await.is_none());
            }
        }
        assert!(active_phases().iter().all(Phase::is_active));
        for kind in KINDS {
            // `Rig::end` sees that nobody listens.
            let stopped = Rig::running(Wanted::new(kind, Agent::Good)).await;
            stopped.exit(ExitReason::GuestShutdown);
            assert_eq!(stopped.end().await, Phase::Stopped { exit: Exit::PoweredOff });
            let failed = Rig::running(Wanted::new(kind, Agent::Good)).await;
            failed.exit(ExitReason::GuestPanic);
            assert!(matches!(failed.end().await, Phase::Failed { .. }));
        }
    });
}
