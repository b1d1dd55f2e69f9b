//! Beside other firewalls: nothing of theirs is touched, and docker's drop policy is passed where docker leaves room.

use super::*;

/// As docker leaves the tables of a host (iptables 1.8, nf_tables): all forwarding drops that its own chains do not accept.
const DOCKER: &str = "-P FORWARD DROP
-N DOCKER
-N DOCKER-USER
-N DOCKER-ISOLATION-STAGE-1
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -j RETURN";

fn have_docker() {
    for program in ["iptables", "ip6tables"] {
        for line in DOCKER.lines() {
            output(program, &line.split_whitespace().collect::<Vec<_>>());
        }
    }
}

/// What there is of us and of docker, without what the counters of docker's rules say.
fn uncounted() -> String {
    let without = |line: &str| match line.split_once("counter packets") {
        Some((before, after)) => {
            before.to_owned() + after.split_whitespace().skip(3).collect::<Vec<_>>().join(" ").as_str()
        }
        None => line.to_owned(),
    };
    let rules = output("nft", &["list", "ruleset"]);
    let rules: Vec<String> = rules.lines().map(without).collect();
    format!(
        "{rules:?} {} {}",
        output("iptables", &["-S"]),
        output("ip6tables", &["-S"])
    )
}

#[test]
fn beside_docker_machines_reach_the_world_and_are_reached_and_docker_has_its_rules_back() {
    in_own_space(|space| {
        if let Some(lack) = zmachine_testkit::lacking(&[zmachine_testkit::Need::Command("iptables")]) {
            return zmachine_testkit::skip(lack);
        }
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            have_docker();
            let before = uncounted();
            let (network, attachment) = plan(&networks, "m1", &["8080:80"]).await;
            let made = make(&networks, &attachment.resources()).await.unwrap();
            space.guest(&network, &attachment);
            serve_tcp(space.outside_ns(), 80);
            serve_tcp(space.guest_ns(), 80);

            for address in ["198.51.100.2", "2001:db8:1::2"] {
                assert!(
                    answers_tcp(Some(space.guest_ns()), address, 80).is_some(),
                    "out to {address}"
                );
            }
            for address in ["198.51.100.1", "2001:db8:1::1"] {
                assert!(
                    answers_tcp(Some(space.outside_ns()), address, 8080).is_some(),
                    "in by {address}"
                );
            }
            let rules = output("iptables", &["-S", "DOCKER-USER"]);
            assert_eq!(
                rules.matches(network.bridge()).count(),
                4,
                "two rules and their comments: {rules}"
            );

            // Another start adds nothing.
            let (_, second) = plan(&networks, "m2", &[]).await;
            let second_made = make(&networks, &second.resources()).await.unwrap();
            assert_eq!(output("iptables", &["-S", "DOCKER-USER"]), rules);

            drop((made, second_made));
            let _ = Command::new("ip").args(["link", "del", &attachment.tap]).output();
            for attachment in [&attachment, &second] {
                undo(&networks, &attachment.resources()).await.unwrap();
            }
            assert_eq!(uncounted(), before);
        })
    });
}

#[test]
fn a_drop_policy_of_somebody_else_is_told_of_with_what_mends_it() {
    in_own_space(|space| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let wall = "table inet wall { chain walls { type filter hook forward priority 0; policy drop; }; }";
            output("nft", &[wall]);
            let (network, attachment) = plan(&networks, "m1", &[]).await;
            let _made = make(&networks, &attachment.resources()).await.unwrap();
            space.guest(&network, &attachment);
            serve_tcp(space.outside_ns(), 80);
            assert!(
                answers_tcp(Some(space.guest_ns()), "198.51.100.2", 80).is_none(),
                "it does drop"
            );
            let reported = zmachine_network::external_firewalls().await.join("; ");
            assert!(
                reported.contains("chain walls of table inet wall") && reported.contains("forward"),
                "{reported}"
            );

            // The line that the documentation gives.
            output("nft", &["insert rule inet wall walls iifname \"zm*\" accept"]);
            output("nft", &["insert rule inet wall walls oifname \"zm*\" accept"]);
            assert!(answers_tcp(Some(space.guest_ns()), "198.51.100.2", 80).is_some());
            assert_eq!(zmachine_network::external_firewalls().await, Vec::<String>::new());
        })
    });
}
