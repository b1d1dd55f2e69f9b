//! This program as the front end of a project: its flags, its terminal.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use clap::Parser;
use serde_json::{Map, Value as Json};
use toml::{Table, Value};
use zmachine_image::Progress;
use zmachine_project::Front;
use zmachine_spec::{Class, Failure, MachineSpec, Setting, VolumeRequest};

use crate::args::{Cli, Command, file};
use crate::output;
use crate::progress::Bars;

/// The one there is.
pub(super) struct Terminal;

impl Front for Terminal {
    fn spec(&self, words: Vec<OsString>, folder: &Path) -> Result<MachineSpec, Failure> {
        match parsed("create", words)? {
            Command::Create(args) => args.spec(folder, String::new, |name| std::env::var(name).ok()),
            _ => Err(Failure::new(Class::Failed, "'create' was read as another command")),
        }
    }

    fn keys(&self, file: &Path, keys: &Map<String, Json>) -> Result<Vec<OsString>, Failure> {
        let table: Table = keys
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), toml_of(value)?)))
            .collect();
        let words = file::words(file, &table)?;
        Ok(words.into_iter().map(OsString::from).collect())
    }

    fn volume(&self, request: &VolumeRequest) -> Result<OsString, Failure> {
        let json = serde_json::to_string(request).map_err(|e| Failure::from_error(Class::Usage, &e))?;
        Ok(format!("--volume={}{json}", file::TYPED).into())
    }

    fn respelled(&self, failure: Failure) -> Failure {
        crate::failure::respelled(failure, spelling)
    }

    fn progress(&self) -> Box<dyn Progress> {
        Box::new(Bars::bytes())
    }

    fn done(&self, thing: &str, what: &str) {
        say(&format!(" {thing}  {what}"));
    }

    fn warn(&self, line: &str) {
        say(&format!("warning: {line}"));
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        output::write_bytes(bytes)
    }

    fn failed(&self, failure: &Failure) {
        crate::failure::print(failure);
    }
}

/// Tells what was done. Where nobody reads that any more the work goes on: its threads wait for each other.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The words of a command as its arguments.
pub(super) fn parsed(command: &str, words: Vec<OsString>) -> Result<Command, Failure> {
    let all = ["zmachine", command].map(OsString::from).into_iter().chain(words);
    let cli = Cli::try_parse_from(all).map_err(|error| {
        // The first line, without clap's label and its advice about flags that nobody wrote.
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        Failure::new(Class::Usage, first.trim_start_matches("error: "))
    })?;
    Ok(cli.command)
}

/// JSON as the value of a machine file; `None` for null.
fn toml_of(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => return None,
        Json::Bool(truth) => Value::Boolean(*truth),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            None => Value::Float(number.as_f64()?),
        },
        Json::String(text) => Value::String(text.clone()),
        Json::Array(items) => Value::Array(items.iter().filter_map(toml_of).collect()),
        Json::Object(map) => Value::Table(
            map.iter()
                .filter_map(|(key, value)| Some((key.clone(), toml_of(value)?)))
                .collect(),
        ),
    })
}

/// The key of a compose file for a setting.
fn spelling(setting: Setting) -> Option<&'static str> {
    Some(match setting {
        Setting::Name => "container_name",
        Setting::Flist => "image",
        Setting::Cpus => "cpus",
        Setting::CpuSet => "cpuset",
        Setting::Snapshots => "snapshots",
        Setting::IdleTimeout => "x-zmachine: idle-timeout",
        Setting::Memory => "mem_limit",
        Setting::Size => "x-zmachine: size",
        Setting::Env => "environment",
        Setting::Entrypoint => "entrypoint",
        Setting::Workdir => "working_dir",
        Setting::User => "user",
        Setting::Hostname => "hostname",
        Setting::Networks | Setting::NetworkAliases => "networks",
        Setting::Publish => "ports",
        Setting::Dns => "dns",
        Setting::Terminal => "tty",
        Setting::ReadOnly => "read_only",
        Setting::Init => "init",
        Setting::Kernel => "x-zmachine: kernel",
        Setting::Accel => "x-zmachine: accel",
        Setting::Hypervisor => "x-zmachine: hypervisor",
        Setting::StopSignal => "stop_signal",
        Setting::Stores => "x-zmachine: store",
        Setting::Mode => "x-zmachine: kind",
        Setting::Volumes => "volumes",
        Setting::UserData => "x-zmachine: user-data",
        Setting::Reinstall => "x-zmachine: reinstall",
        Setting::Rootfs => "x-zmachine: rootfs",
        Setting::Restart => "restart",
        Setting::LogLimits | Setting::LogTo => "logging",
        Setting::Secrets => "secrets",
        Setting::Tmpfs => "tmpfs",
        Setting::Hosts => "extra_hosts",
        Setting::Sysctls => "sysctls",
        Setting::Ulimits => "ulimits",
        Setting::Capabilities => "cap_drop",
        Setting::Health => "healthcheck",
    })
}
