//! How machines end: asked to, by themselves, by force; and what a hypervisor that hangs does to that.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use zmachine_hypervisor::ExitReason;
use zmachine_spec::control::{Reply, Request};
use zmachine_spec::restart::RestartPolicy;
use zmachine_spec::{Exit, Kind, Phase};

use super::agent::{Agent, BAD};
use super::rig::{KINDS, Rig, VOLUME, Wanted, run};
use crate::inbox::Event;

const POWERED_OFF: Phase = Phase::Stopped { exit: Exit::PoweredOff };
const KILLED: Phase = Phase::Stopped { exit: Exit::Killed };

fn stop(grace_ms: u64) -> Request {
    Request::Stop {
        grace_ms: Some(grace_ms),
    }
}

fn reply(frame: Option<zmachine_agent_protocol::Frame>) -> Option<Reply> {
    frame?.parse().ok()
}

#[test]
fn a_stop_ends_every_container_in_its_time_and_a_paused_one_too() {
    run(async {
        for agent in [Agent::Good, Agent::Slow, Agent::Stubborn].into_iter().chain(BAD) {
            for pauses in [false, true] {
                let rig = Rig::running(Wanted::turning(agent)).await;
                if pauses {
                    rig.does(&Request::Pause).await;
                }
                let begun = Instant::now();
                let stopped = rig.ask(&stop(2000)).await;
                assert!(matches!(stopped, Some(Reply::Ended(Ok(_)))), "{agent:?}: {stopped:?}");
                assert!(begun.elapsed() < Duration::from_secs(40), "{agent:?}");
                let is_orderly = matches!(agent, Agent::Good | Agent::Slow);
                assert_eq!(rig.end().await == POWERED_OFF, is_orderly, "{agent:?}");
            }
        }
    });
}

#[test]
fn the_power_button_of_a_vm_is_pressed_again_until_its_grace_is_over() {
    run(async {
        for pauses in [false, true] {
            let rig = Rig::running(Wanted::new(Kind::Vm, Agent::Silent)).await;
            if pauses {
                rig.does(&Request::Pause).await;
            }
            let (begun, guest) = (Instant::now(), rig.guest());
            assert!(matches!(
                rig.ask(&stop(35_000)).await,
                Some(Reply::Ended(Ok(Exit::Killed)))
            ));
            assert!(begun.elapsed() >= Duration::from_secs(35) && begun.elapsed() < Duration::from_secs(40));
            let mut expected = vec!["power_button"; 4];
            if pauses {
                expected.splice(0..0, ["pause", "resume"]);
            }
            expected.push("kill");
            assert_eq!(guest.orders.lock().unwrap()[..expected.len()], expected);
            assert_eq!(rig.end().await, KILLED);
        }
        // One that does what the button says.
        let rig = Rig::running(Wanted::new(Kind::Vm, Agent::Gone)).await;
        let stopping = rig.asking(&stop(35_000));
        rig.until(&Phase::Stopping).await;
        rig.exit(ExitReason::GuestShutdown);
        assert!(matches!(
            reply(stopping.await.unwrap()),
            Some(Reply::Ended(Ok(Exit::PoweredOff)))
        ));
        assert_eq!(rig.end().await, POWERED_OFF);
    });
}

#[test]
fn a_second_stop_may_shorten_the_time_and_not_lengthen_it() {
    run(async {
        for kind in KINDS {
            let rig = Rig::running(Wanted::new(kind, Agent::Stubborn)).await;
            let begun = Instant::now();
            let first = rig.asking(&stop(500_000));
            rig.until(&Phase::Stopping).await;
            let shorter = rig.asking(&stop(5_000));
            let longer = rig.asking(&stop(900_000));
            for asking in [first, shorter, longer] {
                assert!(
                    matches!(reply(asking.await.unwrap()), Some(Reply::Ended(Ok(Exit::Killed)))),
                    "{kind:?}"
                );
            }
            assert!(begun.elapsed() < Duration::from_secs(40), "{kind:?}");
            assert_eq!(rig.end().await, KILLED);
        }
    });
}

#[test]
fn the_end_of_this_host_is_a_stop() {
    run(async {
        for kind in KINDS {
            let rig = Rig::running(Wanted::new(kind, Agent::Good)).await;
            rig.events.send(Event::Terminate).await.unwrap();
            rig.until(&Phase::Stopping).await;
            if kind == Kind::Vm {
                assert!(rig.guest().orders.lock().unwrap().contains(&"power_button"));
                rig.exit(ExitReason::GuestShutdown);
            }
            assert_eq!(rig.end().await, POWERED_OFF);
        }
    });
}

#[test]
fn a_hypervisor_that_hangs_holds_up_neither_a_command_nor_a_kill() {
    run(async {
        let commands = [
            Request::Pause,
            Request::Resume,
            Request::GrowVolume {
                name: VOLUME.into(),
                size_bytes: 96 << 20,
            },
        ];
        for kind in KINDS {
            for request in &commands {
                let rig = Rig::running(Wanted::new(kind, Agent::Good)).await;
                rig.hang();
                let reply = rig.ask(request).await;
                assert!(
                    matches!(reply, Some(Reply::Failed(_))),
                    "{kind:?} {request:?}: {reply:?}"
                );
                // Not even its process goes: the monitor ends all the same.
                assert_eq!(rig.kill().await, KILLED, "{kind:?} {request:?}");
            }
            // A kill does not wait for the command before it.
            let rig = Rig::running(Wanted::new(kind, Agent::Good)).await;
            rig.hang();
            let begun = Instant::now();
            let pausing = rig.asking(&Request::Pause);
            sleep(Duration::from_secs(1)).await;
            assert_eq!(rig.kill().await, KILLED);
            assert!(matches!(reply(pausing.await.unwrap()), Some(Reply::Failed(_))));
            assert!(begun.elapsed() < Duration::from_secs(30));
        }
    });
}

#[test]
fn kills_that_are_repeated_do_not_keep_a_monitor_that_waits_for_its_hypervisor() {
    run(async {
        for kind in KINDS {
            let rig = Rig::running(Wanted::new(kind, Agent::Good)).await;
            rig.hang();
            let begun = Instant::now();
            let mut killing = Vec::new();
            while begun.elapsed() < Duration::from_secs(9) {
                killing.push(rig.asking(&Request::Kill));
                sleep(Duration::from_secs(3)).await;
            }
            for asking in killing {
                assert!(
                    matches!(reply(asking.await.unwrap()), Some(Reply::Ended(Ok(Exit::Killed)))),
                    "{kind:?}"
                );
            }
            // 10 s for the loop, and as much for the end of the process.
            assert!(
                begun.elapsed() < Duration::from_secs(25),
                "{kind:?}: {:?}",
                begun.elapsed()
            );
            assert_eq!(rig.end().await, KILLED);
        }
    });
}

#[test]
fn a_start_that_does_not_come_up_is_ended_by_a_stop_a_kill_or_the_host() {
    run(async {
        for kind in KINDS {
            for request in [stop(90_000), Request::Kill] {
                let hangs_at_launch = true;
                let rig = Rig::start(Wanted {
                    hangs_at_launch,
                    ..Wanted::new(kind, Agent::Good)
                })
                .await;
                rig.until(&Phase::Starting).await;
                sleep(Duration::from_secs(1)).await;
                let pausing = rig.asking(&Request::Pause);
                let begun = Instant::now();
                let ended = rig.ask(&request).await;
                assert!(
                    matches!(ended, Some(Reply::Ended(Ok(Exit::Killed)))),
                    "{kind:?}: {ended:?}"
                );
                assert!(begun.elapsed() < Duration::from_secs(1));
                assert!(matches!(reply(pausing.await.unwrap()), Some(Reply::Failed(_))));
                assert_eq!(rig.end().await, KILLED);
            }
            let rig = Rig::start(Wanted {
                hangs_at_launch: true,
                ..Wanted::new(kind, Agent::Good)
            })
            .await;
            rig.until(&Phase::Starting).await;
            sleep(Duration::from_secs(1)).await;
            rig.events.send(Event::Terminate).await.unwrap();
            assert_eq!(rig.end().await, KILLED);
        }
    });
}

#[test]
fn a_guest_that_ends_meanwhile_ends_what_waits_for_it() {
    run(async {
        let rig = Rig::running(Wanted::turning(Agent::Silent)).await;
        let (waiting, signalling) = (rig.asking(&Request::Wait), rig.asking(&Request::Signal(1)));
        sleep(Duration::from_secs(1)).await;
        rig.exit(ExitReason::GuestShutdown);
        assert!(matches!(
            reply(waiting.await.unwrap()),
            Some(Reply::Ended(Ok(Exit::PoweredOff)))
        ));
        assert!(matches!(reply(signalling.await.unwrap()), Some(Reply::Failed(_))));
        assert_eq!(rig.end().await, POWERED_OFF);
    });
}

#[test]
fn the_exit_of_an_entrypoint_is_the_machines_and_its_policy_decides_what_follows() {
    run(async {
        let brief = Wanted::new(Kind::Container, Agent::Brief);
        let exit = Exit::Code(3);
        assert_eq!(Rig::start(brief).await.end().await, Phase::Stopped { exit });
        let most = NonZeroU32::new(2);
        let restart = RestartPolicy::OnFailure { most };
        let rig = Rig::start(Wanted { restart, ..brief }).await;
        let Phase::Failed { failure, .. } = rig.end().await else {
            panic!("it was not given up")
        };
        assert!(
            failure.message.contains("code 3, after 2 restarts in a row"),
            "{failure}"
        );
    });
}

#[test]
fn a_machine_that_is_restarted_is_as_good_as_one_that_was_started() {
    run(async {
        for kind in KINDS {
            let restart = RestartPolicy::Always;
            let rig = Rig::running(Wanted {
                restart,
                ..Wanted::new(kind, Agent::Good)
            })
            .await;
            rig.exit(ExitReason::GuestPanic);
            rig.until(&Phase::Restarting {
                after: String::new(),
                at: jiff::Timestamp::UNIX_EPOCH,
            })
            .await;
            let waiting = rig.asking(&Request::Wait);
            rig.until(&Phase::Running).await;
            assert_eq!(rig.state().restarts, 1);
            rig.does(&Request::Pause).await;
            rig.does(&Request::Resume).await;
            assert_eq!(rig.kill().await, KILLED, "{kind:?}");
            assert!(matches!(
                reply(waiting.await.unwrap()),
                Some(Reply::Ended(Ok(Exit::Killed)))
            ));
        }
    });
}
