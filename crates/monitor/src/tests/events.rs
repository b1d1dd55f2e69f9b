//! What guest and hypervisor do by themselves, and what comes of it.

use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use zmachine_hypervisor::{ExitReason, VmEvent};
use zmachine_network::Attachment;
use zmachine_spec::control::{Reconnect, Reply, Request};
use zmachine_spec::{Change, Class, Kind, Phase, RestartPolicy};
use zmachine_store::volume::Volumes;

use super::agent::{Agent, BAD};
use super::rig::{ID, KINDS, Rig, VOLUME, Wanted, process, run};
use super::status_of;

#[test]
fn whoever_paused_or_resumed_a_machine_finds_it_so() {
    run(async {
        for kind in KINDS {
            let rig = Rig::running(Wanted::new(kind, Agent::Good)).await;
            for _ in 0..20 {
                rig.does(&Request::Pause).await;
                assert_eq!(rig.phase(), Phase::Paused);
                rig.does(&Request::Resume).await;
                assert_eq!(rig.phase(), Phase::Running);
            }
            rig.kill().await;
        }
    });
}

#[test]
fn a_guest_that_finds_no_room_is_let_go_on_now_and_again_unless_its_user_pauses_it() {
    run(async {
        for kind in KINDS {
            let rig = Rig::running(Wanted::new(kind, Agent::Good)).await;
            let guest = rig.guest();
            let full = VmEvent::DiskError {
                disk: "volume0".to_owned(),
                operation: "write".to_owned(),
                reason: "No space left on device".to_owned(),
                no_space: true,
            };
            let resumes = || {
                guest
                    .orders
                    .lock()
                    .unwrap()
                    .iter()
                    .filter(|order| **order == "resume")
                    .count()
            };
            for round in 1..=3 {
                guest.events.send(full.clone()).unwrap();
                guest.events.send(VmEvent::Paused).unwrap();
                rig.until(&Phase::Paused).await;
                rig.until(&Phase::Running).await;
                assert_eq!(resumes(), round, "{kind:?}");
            }
            let reported = rig
                .state()
                .warnings
                .into_iter()
                .filter(|w| w.contains("no room"))
                .count();
            assert_eq!(reported, 1, "{kind:?}");
            guest.events.send(full).unwrap();
            guest.events.send(VmEvent::Paused).unwrap();
            rig.until(&Phase::Paused).await;
            rig.does(&Request::Pause).await;
            sleep(Duration::from_secs(60)).await;
            assert_eq!((resumes(), rig.phase()), (3, Phase::Paused), "{kind:?}");
            rig.kill().await;
        }
    });
}

#[test]
fn an_agent_that_comes_and_goes_is_there_for_an_exec_only_while_it_is() {
    run(async {
        let rig = Rig::start(Wanted::new(Kind::Vm, Agent::Good)).await;
        rig.until(&Phase::Running).await;
        let exec = async || {
            let frame = rig.first_frame(&Request::Exec(process())).await.expect("an answer");
            frame.parse::<zmachine_agent_protocol::Reply>().unwrap()
        };
        use zmachine_agent_protocol::Reply as AgentReply;
        assert!(matches!(exec().await, AgentReply::Error(_)));
        assert!(rig.state().is_booting(jiff::Timestamp::now()));
        rig.agent_comes().await;
        assert!(matches!(exec().await, AgentReply::Started { .. }));
        assert!(rig.state().booted_at.is_some());
        rig.guest().events.send(VmEvent::AgentPort { is_open: false }).unwrap();
        while !rig.log().contains("the guest's agent went") {
            sleep(Duration::from_millis(10)).await;
        }
        assert!(matches!(exec().await, AgentReply::Error(_)));
        rig.kill().await;
    });
}

#[test]
fn a_restart_of_the_guest_is_told_once_and_ends_nothing() {
    run(async {
        let rig = Rig::running(Wanted::new(Kind::Vm, Agent::Gone)).await;
        for _ in 0..3 {
            rig.guest().events.send(VmEvent::Rebooted).unwrap();
        }
        rig.does(&Request::Resume).await;
        sleep(Duration::from_secs(5)).await;
        rig.guest().events.send(VmEvent::Rebooted).unwrap();
        sleep(Duration::from_secs(5)).await;
        assert_eq!(rig.log().matches("the guest restarts").count(), 2);
        assert_eq!(rig.phase(), Phase::Running);
        rig.kill().await;
    });
}

/// A network that has nothing on this host, not even a tap.
fn attachment(network: &str) -> Attachment {
    serde_json::from_value(serde_json::json!({
        "network": network, "machine": ID, "interface": network, "mac": "02:00:00:00:00:02", "mtu": 1500, "tap": "zm1",
        "addresses": [], "gateway4": "10.9.1.1", "gateway6": null, "routes": [], "nameservers": [], "search": [],
        "publish": [],
    }))
    .unwrap()
}

fn networks(attachments: Vec<Attachment>) -> Request {
    Request::Reconnect(Box::new(Reconnect {
        attachments,
        networks: Vec::new(),
    }))
}

#[test]
fn a_network_that_was_left_is_left_in_the_plan_and_one_that_can_not_be_joined_is_not_in_it() {
    run(async {
        for kind in KINDS {
            let rig = Rig::running(Wanted::new(kind, Agent::Good)).await;
            let written = || {
                let plan = zmachine_store::catalog::Machine::load(&rig.home, ID)
                    .unwrap()
                    .plan()
                    .unwrap();
                plan.attachments().iter().map(|a| a.network.clone()).collect::<Vec<_>>()
            };
            let present: Vec<Attachment> = {
                let plan = zmachine_store::catalog::Machine::load(&rig.home, ID)
                    .unwrap()
                    .plan()
                    .unwrap();
                plan.attachments().to_vec()
            };
            let joined = [present.clone(), vec![attachment("more")]].concat();
            let reply = rig.ask(&networks(joined)).await;
            assert!(
                matches!(&reply, Some(Reply::Failed(f)) if f.message.contains("no tap")),
                "{kind:?}: {reply:?}"
            );
            assert_eq!(written(), ["n"], "{kind:?}");
            // That two change at once is refused before anything is done.
            let reply = rig.ask(&networks(vec![attachment("more")])).await;
            assert!(
                matches!(&reply, Some(Reply::Failed(f)) if f.class == Class::Conflict),
                "{kind:?}: {reply:?}"
            );
            rig.does(&networks(Vec::new())).await;
            assert!(written().is_empty(), "{kind:?}");
            assert!(rig.guest().orders.lock().unwrap().contains(&"remove_nic"));
            rig.kill().await;
        }
    });
}

#[test]
fn a_running_machine_is_changed_in_what_it_may_be_and_keeps_the_rest() {
    run(async {
        for kind in KINDS {
            let rig = Rig::running(Wanted::new(kind, Agent::Good)).await;
            let written = || zmachine_store::catalog::Machine::load(&rig.home, ID).unwrap();
            // Its network has nothing on this host that could be told of another name.
            rig.does(&networks(Vec::new())).await;
            let before = written();
            let change = |change: Change| Request::Change(Box::new(change));
            let memory = Change {
                memory_bytes: Some(1 << 30),
                restart: Some(RestartPolicy::Always),
                ..Change::default()
            };
            let reply = rig.ask(&change(memory)).await;
            assert!(
                matches!(&reply, Some(Reply::Failed(f)) if f.message.contains("keeps its memory")),
                "{kind:?}: {reply:?}"
            );
            assert_eq!(written().spec, before.spec);
            let new = Change {
                name: Some("front".into()),
                restart: Some(RestartPolicy::Always),
                labels: [("tier".to_owned(), "1".to_owned())].into(),
                ..Change::default()
            };
            rig.does(&change(new.clone())).await;
            assert_eq!(written().spec, new.applied(&before.spec), "{kind:?}");
            assert_eq!(written().plan().unwrap().vm().name, "front", "{kind:?}");
            // The policy is that of this run.
            rig.exit(ExitReason::GuestShutdown);
            let restarting = Phase::Restarting {
                after: String::new(),
                at: jiff::Timestamp::UNIX_EPOCH,
            };
            rig.until(&restarting).await;
            let no_more = Change {
                restart: Some(RestartPolicy::No),
                ..Change::default()
            };
            rig.does(&change(no_more)).await;
            rig.until(&Phase::Running).await;
            rig.exit(ExitReason::GuestShutdown);
            assert!(matches!(rig.end().await, Phase::Stopped { .. }), "{kind:?}");
        }
    });
}

#[test]
fn one_change_of_networks_at_a_time_and_none_outlives_a_silent_agent() {
    run(async {
        let rig = Rig::running(Wanted::turning(Agent::Silent)).await;
        let begun = Instant::now();
        let first = rig.asking(&networks(Vec::new()));
        sleep(Duration::from_secs(1)).await;
        let second = rig.ask(&networks(Vec::new())).await;
        assert!(
            matches!(&second, Some(Reply::Failed(f)) if f.message.contains("already")),
            "{second:?}"
        );
        let first = first.await.unwrap().unwrap().parse::<Reply>().unwrap();
        assert!(
            matches!(&first, Reply::Failed(f) if f.message.contains("did not answer")),
            "{first:?}"
        );
        assert!(begun.elapsed() < Duration::from_secs(61));
        // The next one may be tried.
        let third = rig.ask(&networks(Vec::new())).await;
        assert!(
            matches!(&third, Some(Reply::Failed(f)) if f.message.contains("did not answer")),
            "{third:?}"
        );
        rig.kill().await;
    });
}

#[test]
fn the_disk_of_a_vm_grows_whatever_its_agent_makes_of_the_file_system() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(64 << 20).unwrap();
    let mut mkfs = Command::new("/usr/sbin/mke2fs");
    mkfs.args(["-q", "-t", "ext4"]).arg(disk.path());
    assert!(status_of(&mut mkfs).success());
    run(async {
        for agent in [Agent::Good].into_iter().chain(BAD) {
            let rig = Rig::running(Wanted::new(Kind::Vm, agent)).await;
            let data = Volumes::new(&rig.home).data(VOLUME);
            std::fs::copy(disk.path(), &data).unwrap();
            rig.does(&Request::GrowVolume {
                name: VOLUME.into(),
                size_bytes: 96 << 20,
            })
            .await;
            assert_eq!(std::fs::metadata(data).unwrap().len(), 96 << 20, "{agent:?}");
            assert!(rig.guest().orders.lock().unwrap().contains(&"resize_disk"));
            // Only one that answers is an agent, and asked at all.
            assert!(!rig.log().contains("did not grow"), "{agent:?}");
            rig.kill().await;
        }
    });
}
