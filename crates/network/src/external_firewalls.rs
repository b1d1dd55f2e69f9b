//! Other firewalls on the host.
//!
//! An `accept` of ours ends our chain only: what a chain of somebody else drops stays dropped, and there is no way around
//! it. Docker sets the policy of `FORWARD` to drop, and leaves the chain `DOCKER-USER`, which it asks first and never
//! touches, to the rules of others. When that chain is there, each network has two rules of its own in it, with a comment
//! that says whose they are; they go with the network. No other chain of others is ever written to.

use serde_json::Value;

use crate::error::NetworkError;
use crate::nft;

/// The chain that docker leaves to others, in the tables where it makes it.
const CHAIN: &str = "DOCKER-USER";
const FAMILIES: [&str; 2] = ["ip", "ip6"];

fn comment(bridge: &str) -> String {
    format!("zmachine {bridge}")
}

/// Lets the traffic of a bridge through docker's firewall, where there is one. Idempotent.
pub(crate) async fn open(bridge: &str, is_internal: bool) -> Result<(), NetworkError> {
    if is_internal {
        return Ok(());
    }
    for family in present(&chains().await) {
        let Some(chain) = read(family).await else { continue };
        if handles(&chain, &comment(bridge)).len() == 2 {
            continue;
        }
        let mut script = removal(family, &handles(&chain, &comment(bridge)));
        for direction in ["iifname", "oifname"] {
            script += &format!(
                "insert rule {family} filter {CHAIN} {direction} \"{bridge}\" accept comment \"{}\"\n",
                comment(bridge)
            );
        }
        nft::apply(CHAIN, &script).await?;
    }
    Ok(())
}

/// Takes the rules of a bridge out again. Idempotent.
pub(crate) async fn close(bridge: &str) -> Result<(), NetworkError> {
    for family in present(&chains().await) {
        let Some(chain) = read(family).await else { continue };
        let script = removal(family, &handles(&chain, &comment(bridge)));
        if !script.is_empty() {
            nft::apply(CHAIN, &script).await?;
        }
    }
    Ok(())
}

/// A sentence about each chain of another firewall that drops what machines send or ask for, as far as its policy and its
/// rules tell: one in whose table no rule names links of ours.
pub async fn external_firewalls() -> Vec<String> {
    // All rules of a host may be many; its chains are few.
    if !chains_of(&chains().await).any(meets_us) {
        return Vec::new();
    }
    let listed = nft::run(&["-j", "list", "ruleset"], "").await;
    match listed {
        Ok((true, text)) => serde_json::from_str(&text).map_or_else(|_| Vec::new(), |all| dropping(&all)),
        _ => Vec::new(),
    }
}

fn entries(all: &Value) -> impl Iterator<Item = &Value> {
    all["nftables"].as_array().into_iter().flatten()
}

fn chains_of(all: &Value) -> impl Iterator<Item = &Value> {
    entries(all).map(|entry| &entry["chain"])
}

/// Whether what machines send passes this chain of somebody else.
fn meets_us(chain: &Value) -> bool {
    let is_ours = chain["table"].as_str().is_some_and(|table| table.starts_with("zm"));
    (chain["hook"] == "forward" || chain["hook"] == "input") && chain["family"] != "bridge" && !is_ours
}

/// The same out of a listing as JSON.
fn dropping(all: &Value) -> Vec<String> {
    let of_table = |chain: &Value| -> Vec<&Value> {
        let rules = entries(all).map(|entry| &entry["rule"]);
        rules
            .filter(|rule| rule["family"] == chain["family"] && rule["table"] == chain["table"])
            .collect()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let obstacle = |chain: &Value| {
        let rules = of_table(chain);
        // firewalld's policy is to accept, and its last rule refuses all.
        let mut own = rules.iter().filter(|rule| rule["chain"] == chain["name"]);
        let drops = chain["policy"] == "drop" || own.any(|rule| refuses_all(rule));
        let knows_us = rules.iter().any(|rule| rule["expr"].to_string().contains("\"zm"));
        let [name, family, table, hook] = ["name", "family", "table", "hook"].map(|key| text(&chain[key]));
        (drops && !knows_us).then(|| {
            format!(
                "chain {name} of table {family} {table} drops what it does not know at {hook}, and knows no link zm*"
            )
        })
    };
    chains_of(all)
        .filter(|chain| meets_us(chain))
        .filter_map(obstacle)
        .collect()
}

/// Whether a rule drops or rejects whatever reaches it: it counts and logs at most, and matches nothing.
fn refuses_all(rule: &Value) -> bool {
    let parts = || rule["expr"].as_array().into_iter().flatten();
    let has = |part: &Value, names: &[&str]| names.iter().any(|name| part.get(name).is_some());
    parts().any(|part| has(part, &["drop", "reject"]))
        && parts().all(|part| has(part, &["drop", "reject", "counter", "log"]))
}

/// All chains of the host, without their rules; nothing when they cannot be read.
async fn chains() -> Value {
    let listed = nft::run(&["-j", "list", "chains"], "").await;
    match listed {
        Ok((true, text)) => serde_json::from_str(&text).unwrap_or_default(),
        _ => Value::Null,
    }
}

/// The families in which docker has left its chain.
fn present(chains: &Value) -> Vec<&'static str> {
    let has = |family: &&str| {
        let mut all = chains["nftables"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|entry| &entry["chain"]);
        all.any(|chain| chain["name"] == CHAIN && chain["table"] == "filter" && chain["family"] == **family)
    };
    FAMILIES.into_iter().filter(has).collect()
}

fn removal(family: &str, handles: &[u64]) -> String {
    let one = |handle: &u64| format!("delete rule {family} filter {CHAIN} handle {handle}\n");
    handles.iter().map(one).collect()
}

/// The chain as JSON; `None` when there is none, or none that nft can read.
async fn read(family: &str) -> Option<Value> {
    let (found, text) = nft::run(&["-j", "-a", "list", "chain", family, "filter", CHAIN], "")
        .await
        .ok()?;
    found.then(|| serde_json::from_str(&text).ok())?
}

/// The handles of the rules with that comment.
fn handles(chain: &Value, comment: &str) -> Vec<u64> {
    let entries = chain["nftables"].as_array().into_iter().flatten();
    let rules = entries.map(|entry| &entry["rule"]);
    rules
        .filter(|rule| rule["comment"] == comment)
        .filter_map(|rule| rule["handle"].as_u64())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_drop_policy_is_found_unless_its_table_knows_our_links() {
        let listing = |policy: &str, rule: &str| {
            let text = format!(
                r#"{{"nftables":[{{"metainfo":{{}}}},{{"chain":{{"family":"ip","table":"filter","name":"FORWARD","hook":"forward","policy":"{policy}"}}}},
                {{"rule":{{"family":"ip","table":"filter","chain":"X","expr":[{{"match":{{"right":"{rule}"}}}}]}}}}]}}"#
            );
            dropping(&serde_json::from_str(&text).unwrap())
        };
        assert!(listing("drop", "eth0")[0].starts_with("chain FORWARD of table ip filter drops"));
        assert!(listing("drop", "zm*").is_empty() && listing("accept", "eth0").is_empty());
    }

    #[test]
    fn a_rule_that_refuses_all_is_one_too() {
        let listing = |table: &str, rules: &[&str]| {
            let rule = |expr: &&str| {
                format!(r#",{{"rule":{{"family":"inet","table":"{table}","chain":"FORWARD","expr":[{expr}]}}}}"#)
            };
            let rules: String = rules.iter().map(rule).collect();
            let text = format!(
                r#"{{"nftables":[{{"chain":{{"family":"inet","table":"{table}","name":"FORWARD","hook":"forward","policy":"accept"}}}}{rules}]}}"#
            );
            dropping(&serde_json::from_str(&text).unwrap()).len()
        };
        let (all, some) = (
            r#"{"reject":{"type":"icmpx"}}"#,
            r#"{"match":{"right":"lo"}},{"drop":null}"#,
        );
        assert_eq!(listing("firewalld", &[some, all]), 1);
        assert_eq!(listing("firewalld", &[r#"{"counter":null},{"drop":null}"#]), 1);
        assert_eq!(listing("firewalld", &[some]), 0);
        assert_eq!(listing("zm0123", &[some, all]), 0, "ours");
        assert_eq!(listing("firewalld", &[]), 0);
    }

    #[test]
    fn only_rules_with_our_comment_are_ours() {
        let chain = r#"{"nftables":[{"metainfo":{}},{"chain":{"name":"DOCKER-USER"}},
            {"rule":{"handle":4,"comment":"zmachine zm1"}},{"rule":{"handle":5,"comment":"zmachine zm12"}},{"rule":{"handle":6}}]}"#;
        let chain = serde_json::from_str(chain).unwrap();
        assert_eq!(handles(&chain, &comment("zm1")), [4]);
        assert_eq!(removal("ip", &[4]), "delete rule ip filter DOCKER-USER handle 4\n");
    }
}
