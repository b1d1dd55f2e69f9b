//! Everything a child needs, made before the fork: after it, nothing is allocated.

use std::ffi::CString;
use std::os::fd::{AsRawFd, RawFd};

use zmachine_agent_protocol::{Process, Restrictions, Transfer};

use super::StartError;
use crate::setup::Layers;
use crate::users::Identity;

/// Where programs are looked for when the environment does not say.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process ready to be started.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Files to try, in order.
    pub(super) candidates: Vec<CString>,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) directory: CString,
    /// Make the directory when it is missing.
    pub(super) make_directory: bool,
    pub(super) identity: Identity,
    /// Started by an init of ours, which is PID 1 in its place.
    pub(super) init: bool,
    /// What it may use and do.
    pub(super) restrictions: Restrictions,
    /// Done by the child itself, in place of a program.
    pub(super) transfer: Option<Transfer>,
    /// What it needs for that of the container's root: the upper and the lower directory, which must stay open.
    pub(super) layers: Option<[RawFd; 2]>,
}

impl Plan {
    /// Resolves `process` for `identity`; `entrypoint` makes the working directory when it is missing.
    ///
    /// # Errors
    /// [`StartError::Unusable`] for text with a NUL, [`StartError::NotFound`] for no program at all.
    pub(crate) fn new(process: &Process, identity: Identity, entrypoint: bool) -> Result<Plan, StartError> {
        let program = process.args.first().map(String::as_str).unwrap_or_default();
        if program.is_empty() {
            return Err(StartError::NotFound { program: "\"\"".into() });
        }
        let variables = variables(process, &identity);
        let path = variables
            .iter()
            .find(|(name, _)| name == "PATH")
            .map_or("", |(_, value)| value);
        let environment = variables.iter().map(|(name, value)| format!("{name}={value}"));
        Ok(Plan {
            candidates: candidates(program, path)
                .iter()
                .map(|file| c_string(file))
                .collect::<Result<_, _>>()?,
            arguments: process
                .args
                .iter()
                .map(|argument| c_string(argument))
                .collect::<Result<_, _>>()?,
            environment: environment.map(|entry| c_string(&entry)).collect::<Result<_, _>>()?,
            directory: c_string(process.cwd.as_deref().filter(|cwd| !cwd.is_empty()).unwrap_or("/"))?,
            make_directory: entrypoint,
            identity,
            init: entrypoint && process.init,
            restrictions: process.restrictions.clone().unwrap_or_default(),
            transfer: None,
            layers: None,
        })
    }

    /// A child that copies files, as root; `layers` stay open until it is started.
    pub(crate) fn transfer(transfer: Transfer, layers: Option<&Layers>, identity: Identity) -> Plan {
        Plan {
            candidates: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: c"/".to_owned(),
            make_directory: false,
            identity,
            init: false,
            restrictions: Restrictions::default(),
            transfer: Some(transfer),
            layers: layers.map(|layers| [layers.upper.as_raw_fd(), layers.lower.as_raw_fd()]),
        }
    }

    /// The program as the user wrote it.
    pub(super) fn program(&self) -> String {
        self.arguments
            .first()
            .map(|program| program.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

fn c_string(text: &str) -> Result<CString, StartError> {
    CString::new(text).map_err(|_| StartError::Unusable {
        what: format!("{text:?}"),
    })
}

/// The environment: each name once with its last value, in the order of first mention, with what a program expects.
fn variables(process: &Process, identity: &Identity) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for (name, value) in &process.env {
        match variables.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1.clone_from(value),
            None => variables.push((name.clone(), value.clone())),
        }
    }
    let mut default = |name: &str, value: &str| {
        if !variables.iter().any(|(known, _)| known == name) {
            variables.push((name.into(), value.into()));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOME", &identity.home);
    if process.terminal.is_some() {
        default("TERM", "xterm");
    }
    variables
}

/// The files a program name stands for. A name with a slash is a file; an empty part of `PATH` is the working directory.
pub(crate) fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.into()];
    }
    let file = |directory: &str| match directory {
        "" => format!("./{program}"),
        directory => format!("{}/{program}", directory.trim_end_matches('/')),
    };
    path.split(':').map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zmachine_agent_protocol::WindowSize;

    fn process(env: &[(&str, &str)]) -> Process {
        Process {
            args: vec!["sh".into(), "-c".into()],
            env: env
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            cwd: None,
            user: None,
            terminal: None,
            stdin: false,
            init: false,
            restrictions: None,
        }
    }

    fn root() -> Identity {
        Identity {
            uid: 0,
            gid: 0,
            groups: vec![],
            home: "/root".into(),
        }
    }

    #[test]
    fn a_program_is_looked_for_in_path_order() {
        assert_eq!(
            candidates("ls", "/usr/bin:/bin/::rel"),
            ["/usr/bin/ls", "/bin/ls", "./ls", "rel/ls"]
        );
        assert_eq!(candidates("./ls", "/bin"), ["./ls"]);
        assert_eq!(candidates("/a/ls", "/bin"), ["/a/ls"]);
    }

    #[test]
    fn the_last_value_of_a_variable_wins_and_defaults_fill_the_gaps() {
        let variables = variables(&process(&[("A", "1"), ("B", "2"), ("A", "3")]), &root());
        let names: Vec<_> = variables
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(names, ["A=3", "B=2", &format!("PATH={DEFAULT_PATH}"), "HOME=/root"]);
    }

    #[test]
    fn a_terminal_has_a_type_and_what_is_given_stays() {
        let mut process = process(&[("HOME", "/here"), ("PATH", "/opt")]);
        process.terminal = Some(WindowSize { rows: 24, columns: 80 });
        let plan = Plan::new(&process, root(), false).unwrap();
        assert_eq!(
            plan.environment,
            [c"HOME=/here".to_owned(), c"PATH=/opt".into(), c"TERM=xterm".into()]
        );
        assert_eq!(plan.candidates, [c"/opt/sh".to_owned()]);
    }

    #[test]
    fn no_program_and_text_with_a_nul_are_refused() {
        let mut empty = process(&[]);
        empty.args.clear();
        assert!(matches!(
            Plan::new(&empty, root(), false),
            Err(StartError::NotFound { .. })
        ));
        let nul = process(&[("A", "x\0y")]);
        assert!(matches!(
            Plan::new(&nul, root(), false),
            Err(StartError::Unusable { .. })
        ));
    }
}
