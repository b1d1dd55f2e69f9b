//! Guests of every kind: whatever their agent is like, each command is answered within its deadline, and the machine is ended by
//! a kill.

use std::time::Duration;

use tokio::time::Instant;
use zmachine_agent_protocol::{Frame, Reply as AgentReply};
use zmachine_spec::control::{Reply, Request};
use zmachine_spec::{Kind, Phase};

use super::agent::{Agent, BAD, ON_ITS_WAY};
use super::rig::{KINDS, Rig, Wanted, run};
use super::table::commands;

/// Whether the guest has a part in what is asked for.
fn is_of_the_guest(request: &Request) -> bool {
    match request {
        Request::Exec(_)
        | Request::StartExec { .. }
        | Request::StartInContainer { .. }
        | Request::Container { .. }
        | Request::Dial { .. }
        | Request::Processes
        | Request::Transfer(_)
        | Request::Hold { .. }
        | Request::Signal(_)
        | Request::Capacity
        | Request::Reconnect(_)
        | Request::GrowVolume { .. } => true,
        Request::Attach { .. }
        | Request::Console { .. }
        | Request::AttachExec { .. }
        | Request::WaitExec { .. }
        | Request::Execs
        | Request::Stop { .. }
        | Request::Kill
        | Request::Wait
        | Request::Traffic
        | Request::Change(_)
        | Request::AddImage { .. }
        | Request::AddFile { .. }
        // None of these machines is built for it.
        | Request::Save { .. }
        | Request::Claim { .. }
        | Request::Pause
        | Request::Resume => false,
    }
}

fn is_good(frame: &Frame) -> bool {
    matches!(
        (frame.parse::<Reply>(), frame.parse::<AgentReply>()),
        (
            Ok(Reply::Done | Reply::Capacity(_) | Reply::Execs(_) | Reply::Processes(_) | Reply::Container(_)),
            _
        ) | (_, Ok(AgentReply::Started { .. }))
    )
}

/// A machine that runs, whose agent is of no use: in a container, from when it has started it.
async fn with_bad_agent(kind: Kind, agent: Agent) -> Rig {
    let wanted = match kind {
        Kind::Container => Wanted::turning(agent),
        Kind::Vm => Wanted::new(kind, agent),
    };
    let rig = Rig::running(wanted).await;
    tokio::time::sleep(2 * ON_ITS_WAY).await;
    rig
}

#[test]
fn whatever_the_guest_is_like_every_command_is_answered_and_a_kill_ends_it() {
    run(async {
        for kind in KINDS {
            for agent in BAD {
                for request in commands().into_iter().filter(is_of_the_guest) {
                    let what = format!("{kind:?}, {agent:?}, {request:?}");
                    let rig = with_bad_agent(kind, agent).await;
                    let frame = rig.first_frame(&request).await;
                    let frame = frame.unwrap_or_else(|| panic!("{what}: no answer"));
                    // Interfaces and disks of a guest with an init of its own come, grow and go without its agent.
                    let needs_no_agent = kind == Kind::Vm
                        && matches!(
                            request,
                            Request::Reconnect(_) | Request::GrowVolume { .. } | Request::Hold { .. }
                        );
                    // What a stream carries is for the client to judge.
                    let is_stream = kind == Kind::Container
                        && agent == Agent::Lying
                        && matches!(
                            request,
                            Request::Exec(_) | Request::Transfer(_) | Request::Hold { .. } | Request::Dial { .. }
                        );
                    assert_eq!(is_good(&frame), needs_no_agent || is_stream, "{what}: {frame:?}");
                    rig.does(&Request::Pause).await;
                    rig.does(&Request::Resume).await;
                    assert!(matches!(rig.kill().await, Phase::Stopped { .. }), "{what}");
                }
            }
        }
    });
}

#[test]
fn a_slow_agent_is_waited_for() {
    run(async {
        for kind in KINDS {
            for request in commands().into_iter().filter(is_of_the_guest) {
                let what = format!("{kind:?}, {request:?}");
                let rig = Rig::running(Wanted::new(kind, Agent::Slow)).await;
                let frame = rig.first_frame(&request).await.expect(&what);
                // Statistics are not waited for so long; a VM has no entrypoint.
                let is_refused = matches!(request, Request::Capacity | Request::Processes)
                    || kind == Kind::Vm && matches!(request, Request::Signal(_));
                assert_eq!(is_good(&frame), !is_refused, "{what}: {frame:?}");
                rig.kill().await;
            }
        }
    });
}

#[test]
fn a_container_comes_up_with_a_good_agent_alone_and_a_vm_with_any() {
    run(async {
        for agent in BAD {
            let vm = Rig::start(Wanted::new(Kind::Vm, agent)).await;
            vm.until(&Phase::Running).await;
            vm.kill().await;

            let begun = Instant::now();
            let container = Rig::start(Wanted::new(Kind::Container, agent)).await;
            let Phase::Failed { step, failure } = container.end().await else {
                panic!("{agent:?}: it has started")
            };
            assert!(
                step == "guest boot" || step == "guest set-up" || step == "entrypoint",
                "{agent:?}: {step}"
            );
            assert!(!failure.message.is_empty());
            // The golden plan gives it 300 s.
            assert!(begun.elapsed() < Duration::from_secs(310), "{agent:?}");
        }
        for kind in KINDS {
            let slow = Rig::start(Wanted::new(kind, Agent::Slow)).await;
            slow.until(&Phase::Running).await;
            slow.kill().await;
        }
    });
}
