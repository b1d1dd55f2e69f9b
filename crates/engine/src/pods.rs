//! Pods as operators see them: commands in their containers, by the containers' names.

use zmachine_agent_protocol::{ContainerProcess, Process};
use zmachine_spec::pod::ContainerNames;
use zmachine_spec::{Class, Failure, PodSettings};
use zmachine_store::catalog::{self, Machine};

use super::Engine;
use crate::attach::{ProcessInput, ProcessOutput};

/// Where programs of a container are looked for when nothing else is said.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Engine {
    pub(super) fn exec_in_pod(
        &self,
        machine: &Machine,
        pod: &PodSettings,
        container: Option<&str>,
        process: &Process,
    ) -> Result<(ProcessInput, ProcessOutput), Failure> {
        let names: ContainerNames = match pod.names_file() {
            file if file.is_file() => zmachine_sys::file::read_json(&file)?,
            _ => ContainerNames::new(),
        };
        let id = one_of(&names, container)?;
        let process = in_container(process)?;
        let session = format!("exec-{}", catalog::new_id());
        self.start_in_container(&machine.id, &session, id, None, process)?;
        self.attach_exec(&machine.id, &session, 0)
    }
}

/// The id of the container that is wanted.
fn one_of<'a>(names: &'a ContainerNames, wanted: Option<&str>) -> Result<&'a str, Failure> {
    let all = || names.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let found = match wanted {
        Some(name) => names.get(name),
        None if names.len() == 1 => names.values().next(),
        None => None,
    };
    match (found, wanted) {
        (Some(id), _) => Ok(id),
        (None, _) if names.is_empty() => Err(Failure::new(Class::NotFound, "the pod has no container yet")),
        (None, Some(name)) => Err(
            Failure::new(Class::NotFound, format!("the pod has no container '{name}'"))
                .hint(format!("it has {}", all())),
        ),
        (None, None) => Err(
            Failure::new(Class::Usage, format!("the pod has {} containers", names.len())).hint(format!(
                "name one of them behind a colon, as in POD:CONTAINER: {}",
                all()
            )),
        ),
    }
}

/// A command as a process of a container, with all that the container's guest allows.
fn in_container(process: &Process) -> Result<ContainerProcess, Failure> {
    let (uid, gid) = user(process.user.as_deref())?;
    let mut env: Vec<String> = process
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    Ok(ContainerProcess {
        args: process.args.clone(),
        env,
        cwd: process.cwd.clone().unwrap_or_else(|| "/".to_owned()),
        uid,
        gid,
        terminal: process.terminal,
        stdin: process.stdin,
        ..ContainerProcess::default()
    })
}

/// `UID[:GID]`; root when nothing is said.
fn user(text: Option<&str>) -> Result<(u32, u32), Failure> {
    let Some(text) = text else { return Ok((0, 0)) };
    let (user, group) = text.split_once(':').unwrap_or((text, "0"));
    match (user.parse(), group.parse()) {
        (Ok(uid), Ok(gid)) => Ok((uid, gid)),
        _ => Err(
            Failure::new(Class::Usage, format!("'{text}' are no numbers of a user and a group"))
                .hint("users of containers of a pod are given by their numbers, as in 1000:1000"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_named_unless_there_is_one() {
        let one = ContainerNames::from([("web".into(), "1".into())]);
        let two = ContainerNames::from([("web".into(), "1".into()), ("log".into(), "2".into())]);
        assert_eq!(one_of(&one, None).unwrap(), "1");
        assert_eq!(one_of(&two, Some("log")).unwrap(), "2");
        let hint = |result: Result<&str, Failure>| result.unwrap_err().hint.unwrap_or_default();
        assert!(hint(one_of(&two, None)).ends_with("log, web"));
        assert!(hint(one_of(&one, Some("x"))).ends_with("web"));
        assert!(one_of(&ContainerNames::new(), None).is_err());
    }

    #[test]
    fn users_are_numbers() {
        assert_eq!(user(None).unwrap(), (0, 0));
        assert_eq!(user(Some("7:8")).unwrap(), (7, 8));
        assert!(user(Some("www-data")).unwrap_err().to_string().contains("www-data"));
    }
}
