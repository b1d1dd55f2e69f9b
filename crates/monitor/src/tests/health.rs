//! Health checks: what comes of them, when they are made, and that they are in nobody's way.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use zmachine_hypervisor::{ExitReason, VmEvent};
use zmachine_spec::control::Request;
use zmachine_spec::health::OUTPUT_LIMIT;
use zmachine_spec::restart::RestartPolicy;
use zmachine_spec::{HealthStatus, Kind, Phase};
use zmachine_store::events::EventReader;

use super::agent::{Agent, ON_ITS_WAY};
use super::rig::{KINDS, Probes, Rig, Wanted, run};
use HealthStatus::{Healthy, Starting, Unhealthy};

/// The health after each of the next checks: seconds since `begun`, status, failing streak.
async fn results(rig: &Rig, begun: Instant, count: usize) -> Vec<(u64, HealthStatus, u32)> {
    let mut found = Vec::new();
    let mut before = rig.health().log;
    while found.len() < count {
        sleep(Duration::from_millis(100)).await;
        let health = rig.health();
        if health.log != before {
            found.push((begun.elapsed().as_secs(), health.status, health.failing_streak));
            before = health.log;
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "{found:?}");
    }
    found
}

fn told(rig: &Rig) -> Vec<String> {
    let mut reader = EventReader::open(&rig.home);
    let mut found = Vec::new();
    while let Some(event) = reader.next_event().unwrap() {
        if event.event == "health_status" {
            found.extend(event.detail);
        }
    }
    found
}

#[test]
fn checks_turn_a_machine_healthy_and_unhealthy_and_each_turn_is_an_event() {
    run(async {
        for kind in KINDS {
            let rig = Rig::running(Wanted::probed(kind, &["1", "0", "7", "missing", "0"])).await;
            let begun = Instant::now();
            assert_eq!(rig.health().status, Starting);
            assert_eq!(
                results(&rig, begun, 5).await,
                [
                    (10, Starting, 1),
                    (20, Healthy, 0),
                    (30, Healthy, 1),
                    (40, Unhealthy, 2),
                    (50, Healthy, 0)
                ],
                "{kind:?}"
            );
            assert_eq!(told(&rig), ["healthy", "unhealthy", "healthy"]);
            let log = rig.health().log;
            let codes: Vec<i32> = log.iter().map(|probe| probe.exit_code).collect();
            assert_eq!(codes, [1, 0, 7, -1, 0]);
            assert_eq!(
                (log[0].output.as_str(), log[3].output.as_str()),
                ("checked: 1", "there is no program 'check'")
            );
            assert!(log.iter().all(|probe| probe.start <= probe.end));
            rig.kill().await;
        }
    });
}

#[test]
fn failures_in_the_start_period_do_not_count_until_a_success_ends_it() {
    run(async {
        let probes = Probes {
            script: &["1", "1", "hang", "0", "1", "1"],
            start_period_s: 25,
        };
        let wanted = Wanted {
            probes: Some(probes),
            ..Wanted::new(Kind::Container, Agent::Good)
        };
        let rig = Rig::running(wanted).await;
        let begun = Instant::now();
        assert_eq!(
            results(&rig, begun, 6).await,
            [
                (2, Starting, 0),
                (4, Starting, 0),
                // Every 2 s, and one took 3 s.
                (9, Starting, 0),
                (11, Healthy, 0),
                (21, Healthy, 1),
                (31, Unhealthy, 2)
            ]
        );
        rig.kill().await;
    });
}

#[test]
fn a_check_that_takes_too_long_is_killed_and_has_failed() {
    run(async {
        // One that does not even end by SIGKILL is let alone after 5 s.
        for (script, times) in [(&["hang"], [13, 26]), (&["stuck"], [18, 36])] {
            let rig = Rig::running(Wanted::probed(Kind::Container, script)).await;
            let begun = Instant::now();
            assert_eq!(
                results(&rig, begun, 2).await,
                [(times[0], Starting, 1), (times[1], Unhealthy, 2)],
                "{script:?}"
            );
            let last = rig.health().log.pop().unwrap();
            assert_eq!(
                (last.exit_code, last.output.as_str()),
                (-1, "the health check took more than 3s")
            );
            rig.kill().await;
        }
    });
}

#[test]
fn of_a_flood_the_beginning_is_kept_and_commands_go_on() {
    run(async {
        let rig = Rig::running(Wanted::probed(Kind::Container, &["flood"])).await;
        sleep(Duration::from_secs(11)).await;
        rig.does(&Request::Signal(1)).await;
        results(&rig, Instant::now(), 1).await;
        let health = rig.health();
        assert_eq!((health.status, health.failing_streak), (Starting, 1));
        let output = &health.log[0].output;
        assert!(
            output.starts_with("the health check took more than 3s: xxx"),
            "{output}"
        );
        assert_eq!(output.len(), OUTPUT_LIMIT + "...".len());
        rig.kill().await;
    });
}

#[test]
fn no_check_is_made_and_none_counts_while_the_machine_is_paused() {
    run(async {
        for kind in KINDS {
            let rig = Rig::running(Wanted::probed(kind, &["hang", "0"])).await;
            // In the middle of a check.
            sleep(Duration::from_secs(11)).await;
            rig.does(&Request::Pause).await;
            sleep(Duration::from_secs(120)).await;
            assert_eq!((rig.health().status, rig.health().log.len()), (Starting, 0), "{kind:?}");
            rig.does(&Request::Resume).await;
            let resumed = Instant::now();
            assert_eq!(results(&rig, resumed, 1).await, [(10, Healthy, 0)], "{kind:?}");
            rig.kill().await;
        }
    });
}

#[test]
fn a_container_whose_agent_is_of_no_use_is_unhealthy_and_still_obeys() {
    run(async {
        // The end of the channel to the others ends the machine.
        for agent in [Agent::Silent, Agent::Lying] {
            let wanted = Wanted {
                probes: Wanted::probed(Kind::Container, &["0"]).probes,
                ..Wanted::turning(agent)
            };
            let rig = Rig::running(wanted).await;
            sleep(2 * ON_ITS_WAY).await;
            let found = results(&rig, Instant::now(), 2).await;
            assert_eq!((found[1].1, found[1].2), (Unhealthy, 2), "{agent:?}: {found:?}");
            assert!(rig.health().log.iter().all(|probe| probe.exit_code == -1), "{agent:?}");
            let begun = Instant::now();
            rig.does(&Request::Pause).await;
            rig.does(&Request::Resume).await;
            assert!(begun.elapsed() < Duration::from_secs(1), "{agent:?}");
            assert_eq!(rig.phase(), Phase::Running);
            rig.kill().await;
        }
    });
}

#[test]
fn a_vm_is_checked_when_its_agent_is_there_and_unhealthy_when_it_goes() {
    run(async {
        let rig = Rig::start(Wanted::probed(Kind::Vm, &["0"])).await;
        rig.until(&Phase::Running).await;
        sleep(Duration::from_secs(300)).await;
        assert_eq!((rig.health().status, rig.health().log.len()), (Starting, 0));
        rig.agent_comes().await;
        assert_eq!(results(&rig, Instant::now(), 1).await, [(10, Healthy, 0)]);
        rig.guest().events.send(VmEvent::AgentPort { is_open: false }).unwrap();
        let gone = results(&rig, Instant::now(), 2).await;
        assert_eq!((gone[0].1, gone[1].1), (Healthy, Unhealthy));
        assert!(rig.health().log[2].output.contains("no agent"));
        rig.kill().await;
    });
}

#[test]
fn each_run_begins_anew_and_one_that_ended_is_not_healthy() {
    run(async {
        let wanted = Wanted {
            restart: RestartPolicy::Always,
            ..Wanted::probed(Kind::Container, &["0"])
        };
        let rig = Rig::running(wanted).await;
        results(&rig, Instant::now(), 1).await;
        assert_eq!(rig.health().status, Healthy);
        rig.exit(ExitReason::GuestShutdown);
        let restarting = Phase::Restarting {
            after: String::new(),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        rig.until(&restarting).await;
        assert_eq!(rig.health().status, Unhealthy);
        rig.until(&Phase::Running).await;
        assert_eq!((rig.health().status, rig.health().log.len()), (Starting, 1));
        results(&rig, Instant::now(), 1).await;
        assert_eq!((rig.health().status, rig.health().log.len()), (Healthy, 2));
        assert_eq!(rig.state().restarts, 1);
        rig.kill().await;
    });
}
