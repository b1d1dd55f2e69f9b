//! Another host: whether a command line means one, and the program that carries it out there.
//!
//! Options for it stand before the command: `zmachine --host URL ps`. What they say goes to the client (`zmachine-api client`) in variables, so that
//! they may as well be set once; with none of them, the context in use counts, if there is one.

use std::ffi::{OsStr, OsString};
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use zmachine_spec::{Class, Failure, MachineSpec};

use crate::Programs;

/// Options, and the variables that mean the same.
const OPTIONS: [(&str, &str); 4] = [
    ("--host", "ZMACHINE_HOST"),
    ("--context", "ZMACHINE_CONTEXT"),
    ("--token-file", "ZMACHINE_TOKEN_FILE"),
    ("--ca-file", "ZMACHINE_CA_FILE"),
];

/// Commands of this host alone, whatever is said; its own roles among them.
const HERE: [&str; 18] = [
    "serve",
    "token",
    "context",
    "completion",
    "help",
    "--help",
    "-h",
    "--version",
    "-V",
    "flist",
    "monitor",
    "rootfs",
    "complete",
    "share",
    "jail",
    "install-units",
    "snapshotter",
    "ssh",
];

/// The context that is this host.
const LOCAL: &str = "local";

/// Where a command line goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goes {
    /// To this host.
    Here,
    /// To another one, as it is.
    There,
    /// To another one, as the machine that it asks for: what its options mean is known here.
    AsMachine,
}

/// What a command line says of another host.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    said: Vec<(&'static str, OsString)>,
}

impl Elsewhere {
    /// Takes the options before the command from a command line, whose first word is the program.
    ///
    /// # Errors
    /// [`Class::Usage`] for an option without its value, and for a host and a context at once.
    pub fn split(words: Vec<OsString>) -> Result<(Elsewhere, Vec<OsString>), Failure> {
        let mut words = words.into_iter();
        let mut rest: Vec<OsString> = words.next().into_iter().collect();
        let mut said: Vec<(&'static str, OsString)> = Vec::new();
        while let Some(word) = words.next() {
            let text = word.to_string_lossy();
            let option = OPTIONS.iter().find(|(option, _)| {
                text.strip_prefix(option)
                    .is_some_and(|value| value.is_empty() || value.starts_with('='))
            });
            let Some((option, variable)) = option else {
                rest.push(word);
                rest.extend(words);
                break;
            };
            let value = match text[option.len()..].strip_prefix('=') {
                Some(value) => Some(OsString::from(value)),
                None => words.next(),
            };
            let missing = || {
                Failure::new(Class::Usage, format!("{option} has no value"))
                    .hint("'zmachine --help' shows what it is for")
            };
            said.push((variable, value.filter(|value| !value.is_empty()).ok_or_else(missing)?));
        }
        let elsewhere = Elsewhere { said };
        if elsewhere.get("ZMACHINE_HOST").is_some() && elsewhere.get("ZMACHINE_CONTEXT").is_some() {
            return Err(
                Failure::new(Class::Usage, "--host and --context contradict each other").hint("use one of them")
            );
        }
        Ok((elsewhere, rest))
    }

    fn get(&self, variable: &str) -> Option<&OsStr> {
        let found = self.said.iter().rev().find(|(said, _)| *said == variable);
        found.map(|(_, value)| value.as_os_str())
    }

    /// Where a command line, without those options, goes.
    ///
    /// # Errors
    /// [`Class::Usage`] for a command of this host alone with a host named for it.
    pub fn goes(&self, words: &[OsString], variable: impl Fn(&str) -> Option<String>) -> Result<Goes, Failure> {
        let command = words.get(1).map(|word| word.to_string_lossy()).unwrap_or_default();
        if HERE.contains(&command.as_ref()) || command.is_empty() {
            return match self.said.is_empty() || command.starts_with('-') || command.is_empty() {
                true => Ok(Goes::Here),
                false => Err(
                    Failure::new(Class::Usage, format!("'{command}' is for this host alone"))
                        .hint("leave --host and --context out"),
                ),
            };
        }
        Ok(match (self.is_meant(variable), command.as_ref()) {
            (false, _) => Goes::Here,
            (true, "run" | "create") => Goes::AsMachine,
            (true, _) => Goes::There,
        })
    }

    fn is_meant(&self, variable: impl Fn(&str) -> Option<String>) -> bool {
        let is_other = |context: &OsStr| context != LOCAL;
        if let Some(context) = self.get("ZMACHINE_CONTEXT") {
            return is_other(context);
        }
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        if self.get("ZMACHINE_HOST").is_some() || given("ZMACHINE_HOST").is_some() {
            return true;
        }
        match given("ZMACHINE_CONTEXT") {
            Some(context) => is_other(context.as_ref()),
            None => has_context(given),
        }
    }

    /// Becomes the program that carries a command line out on the other host. It returns the reason when that cannot be started.
    /// `machine` is what `run` and `create` ask for, with the flags that are for the client itself.
    pub fn become_client(&self, words: &[OsString], machine: Option<(&MachineSpec, &[&str])>) -> Failure {
        let program = Programs::own_server();
        let mut command = Command::new(&program);
        if self.get("ZMACHINE_CONTEXT").is_some() {
            command.env_remove("ZMACHINE_HOST");
        }
        command.envs(self.said.iter().map(|(variable, value)| (variable, value)));
        command.arg("client");
        // A file without a name: what a machine is asked for with may be secret, and words are for everybody on this host to see.
        let described = match machine
            .map(|(machine, flags)| Ok::<_, std::io::Error>((describe(machine)?, flags)))
            .transpose()
        {
            Ok(described) => described,
            Err(error) => return error.into(),
        };
        match &described {
            Some((file, flags)) => {
                command
                    .args(words.get(1))
                    .arg("--spec-fd")
                    .arg(file.as_raw_fd().to_string())
                    .args(*flags);
            }
            None => drop(command.args(words.iter().skip(1))),
        }
        let failure = Failure::from_error(Class::Unsupported, &command.exec());
        failure
            .context(format!("the client {} cannot be started", program.display()))
            .hint("it comes with the package; from the sources, 'make build-api' makes it")
    }
}

/// Whether a context is in use.
fn has_context(given: impl Fn(&str) -> Option<String>) -> bool {
    let folder = |name: &str| given(name).map(PathBuf::from);
    let configuration = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
    let Some(path) = configuration.map(|folder| folder.join("zmachine/contexts.json")) else {
        return false;
    };
    // One that cannot be read is told by the client: nobody must take this host for another.
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice::<Value>(&bytes).map_or(true, |contexts| contexts["current"].is_string()),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// The machine, in a file in memory that the client gets.
fn describe(machine: &MachineSpec) -> std::io::Result<std::fs::File> {
    let descriptor = rustix::fs::memfd_create("machine", rustix::fs::MemfdFlags::empty())?;
    let mut file = std::fs::File::from(descriptor);
    let mut wanted = serde_json::to_value(machine)?;
    if let Some(fields) = wanted.as_object_mut() {
        // The other host makes a name up, and knows its own version of the format.
        fields.retain(|name, value| !(name == "name" && value == "") && name != "version");
    }
    file.write_all(wanted.to_string().as_bytes())?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Result<(Elsewhere, Vec<OsString>), Failure> {
        Elsewhere::split(line.split(' ').map(OsString::from).collect())
    }

    fn goes(line: &str, variables: &[(&str, &str)]) -> Result<Goes, Failure> {
        let (elsewhere, words) = split(line).unwrap();
        elsewhere.goes(&words, |name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn options_before_the_command_are_taken_and_those_behind_are_the_commands() {
        let (elsewhere, words) = split("zmachine --host https://a --token-file=t ps --host b").unwrap();
        assert_eq!(elsewhere.get("ZMACHINE_HOST"), Some(OsStr::new("https://a")));
        assert_eq!(elsewhere.get("ZMACHINE_TOKEN_FILE"), Some(OsStr::new("t")));
        assert_eq!(words, ["zmachine", "ps", "--host", "b"]);
        for wrong in [
            "zmachine --host",
            "zmachine --host=",
            "zmachine --host a --context b ps",
        ] {
            assert_eq!(split(wrong).unwrap_err().class, Class::Usage, "{wrong}");
        }
    }

    #[test]
    fn a_command_goes_where_it_is_said() {
        for (line, variables, wanted) in [
            ("zmachine ps", &[][..], Goes::Here),
            ("zmachine --host unix:///s ps", &[], Goes::There),
            ("zmachine --host unix:///s run x", &[], Goes::AsMachine),
            ("zmachine ps", &[("ZMACHINE_HOST", "unix:///s")], Goes::There),
            (
                "zmachine --context local ps",
                &[("ZMACHINE_HOST", "unix:///s")],
                Goes::Here,
            ),
            ("zmachine ps", &[("ZMACHINE_CONTEXT", "far")], Goes::There),
            ("zmachine ps", &[("ZMACHINE_CONTEXT", "local")], Goes::Here),
            ("zmachine monitor x", &[("ZMACHINE_HOST", "unix:///s")], Goes::Here),
            ("zmachine --host unix:///s --help", &[], Goes::Here),
        ] {
            assert_eq!(goes(line, variables).unwrap(), wanted, "{line} {variables:?}");
        }
        assert_eq!(
            goes("zmachine --host unix:///s serve", &[]).unwrap_err().class,
            Class::Usage
        );
    }

    #[test]
    fn a_context_in_use_counts_and_a_file_that_cannot_be_read_too() {
        let folder = tempfile::tempdir().unwrap();
        let configuration = folder.path().display().to_string();
        let has = || has_context(|name| (name == "XDG_CONFIG_HOME").then(|| configuration.clone()));
        assert!(!has());
        std::fs::create_dir(folder.path().join("zmachine")).unwrap();
        for (text, wanted) in [
            (r#"{"current": null}"#, false),
            (r#"{"current": "far"}"#, true),
            ("{", true),
        ] {
            std::fs::write(folder.path().join("zmachine/contexts.json"), text).unwrap();
            assert_eq!(has(), wanted, "{text}");
        }
    }

    #[test]
    fn a_machine_is_described_without_a_name_that_nobody_gave() {
        use std::io::Read;
        let mut text = String::new();
        describe(&MachineSpec::new(String::new(), "nginx".to_owned()))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        let wanted: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((wanted.get("name"), &wanted["flist"]), (None, &"nginx".into()));
    }
}
