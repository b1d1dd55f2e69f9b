//! What is wished of a project, as words of the command line.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use zmachine_spec::{Class, Failure};

/// What is to be done with a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Act {
    Up,
    Down,
    Start,
    Stop,
    Restart,
    Kill,
    Pause,
    Unpause,
    Rm,
    Pull,
}

/// A wish.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    pub(super) action: Act,
    #[serde(default)]
    pub(super) config: Option<Value>,
    #[serde(default)]
    pub(super) secrets: BTreeMap<String, String>,
    #[serde(default)]
    services: Vec<String>,
    #[serde(default)]
    timeout: Option<u64>,
    #[serde(default)]
    signal: Option<String>,
    #[serde(default)]
    scale: BTreeMap<String, u32>,
    #[serde(default)]
    pull: Option<String>,
    #[serde(default)]
    wait: bool,
    #[serde(default)]
    wait_timeout: Option<u64>,
    #[serde(default)]
    force_recreate: bool,
    #[serde(default)]
    no_recreate: bool,
    #[serde(default)]
    no_deps: bool,
    #[serde(default)]
    no_start: bool,
    #[serde(default)]
    remove_orphans: bool,
    #[serde(default)]
    volumes: bool,
    #[serde(default)]
    stop: bool,
}

impl Wish {
    /// As words of the command line, behind `compose` and its options.
    ///
    /// # Errors
    /// [`Class::Usage`] for a wish that its action does not have.
    pub(super) fn words(&self) -> Result<Vec<String>, Failure> {
        let act = self.action;
        let mut words = vec![format!("{act:?}").to_lowercase()];
        let flag = |is_set: bool, word: &str| is_set.then(|| word.to_owned());
        let up = [
            flag(self.wait, "--wait"),
            self.wait_timeout.map(|seconds| format!("--wait-timeout={seconds}")),
            flag(self.force_recreate, "--force-recreate"),
            flag(self.no_recreate, "--no-recreate"),
            flag(self.no_deps, "--no-deps"),
            flag(self.no_start, "--no-start"),
            self.pull.as_ref().map(|when| format!("--pull={when}")),
        ];
        let mut up: Vec<String> = up.into_iter().flatten().collect();
        up.extend(
            self.scale
                .iter()
                .map(|(service, number)| format!("--scale={service}={number}")),
        );
        let groups = [
            (up, matches!(act, Act::Up)),
            (
                flag(self.remove_orphans, "--remove-orphans").into_iter().collect(),
                matches!(act, Act::Up | Act::Down),
            ),
            (
                flag(self.volumes, "--volumes").into_iter().collect(),
                matches!(act, Act::Down),
            ),
            (flag(self.stop, "--stop").into_iter().collect(), matches!(act, Act::Rm)),
            (
                self.timeout
                    .map(|seconds| format!("--timeout={seconds}"))
                    .into_iter()
                    .collect(),
                matches!(act, Act::Up | Act::Down | Act::Stop | Act::Restart),
            ),
            (
                self.signal
                    .as_ref()
                    .map(|signal| format!("--signal={signal}"))
                    .into_iter()
                    .collect(),
                matches!(act, Act::Kill),
            ),
            (
                self.services.iter().take(1).cloned().collect(),
                !matches!(act, Act::Down),
            ),
        ];
        for (group, fits) in &groups {
            if let (Some(word), false) = (group.first(), fits) {
                let message = format!("'{word}' is nothing for the action '{}'", words[0]);
                return Err(Failure::new(Class::Usage, message));
            }
        }
        let [options @ .., _services] = groups;
        words.extend(options.into_iter().flat_map(|(group, _)| group));
        words.extend(flag(act == Act::Up, "--detach"));
        words.extend(flag(act == Act::Rm, "--force"));
        if !self.services.is_empty() {
            words.push("--".to_owned());
            words.extend(self.services.iter().cloned());
        }
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<String, Failure> {
        let wish: Wish = serde_json::from_str(text).unwrap();
        wish.words().map(|words| words.join(" "))
    }

    #[test]
    fn a_wish_is_words_and_one_that_its_action_does_not_have_is_refused() {
        for (text, wanted) in [
            (r#"{"action":"up"}"#, "up --detach"),
            (
                r#"{"action":"up","wait":true,"scale":{"web":2},"timeout":3,"services":["-x"]}"#,
                "up --wait --scale=web=2 --timeout=3 --detach -- -x",
            ),
            (r#"{"action":"down","volumes":true}"#, "down --volumes"),
            (r#"{"action":"rm","stop":true}"#, "rm --stop --force"),
            (r#"{"action":"kill","signal":"HUP"}"#, "kill --signal=HUP"),
        ] {
            assert_eq!(words(text).unwrap(), wanted);
        }
        for wrong in [
            r#"{"action":"up","volumes":true}"#,
            r#"{"action":"down","services":["web"]}"#,
            r#"{"action":"stop","signal":"HUP"}"#,
            r#"{"action":"start","wait":true}"#,
        ] {
            assert_eq!(words(wrong).unwrap_err().class, Class::Usage, "{wrong}");
        }
        assert!(serde_json::from_str::<Wish>(r#"{"action":"exec"}"#).is_err());
    }
}
