//! Machine files: `run -f machine.toml`, where every long flag of `run` is a key.
//!
//! ```toml
//! flist = "web.fl"                 # and command = ["serve", "--port", "80"]: the two that are no flags
//! memory = "1G"                    # a flag with a value: text, number
//! env = { MODE = "production" }    # a flag that may be repeated: a list, or a table where it takes NAME=VALUE
//! read-only = true                 # a flag without a value
//! ```
//!
//! # Invariants
//! A file is turned into words of the command line, and those are parsed like any others: so no flag can lack its key,
//! and a value means the same in both places. What the command line gives replaces the file's; only flags that take
//! `NAME=VALUE` are merged. Relative paths are relative to the file's folder.

mod volume;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::ValueHint;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory};
use toml::{Table, Value};
use zmachine_spec::{Class, Failure};

use super::Cli;

/// Marks a value that is JSON in place of a flag's text: a file says more than a flag can. No word of a real command line has a
/// NUL.
pub(crate) const TYPED: char = '\0';

/// Flags that are no property of a machine.
const NO_KEYS: [&str; 3] = ["file", "help", "dry-run"];

/// The words of a command line, with what the file named by `-f` says put in.
///
/// # Errors
/// Why the file cannot be read, or which key is wrong.
pub(super) fn expanded(
    words: &[OsString],
    command: &mut Command,
    matches: &ArgMatches,
) -> Result<Option<Vec<OsString>>, Failure> {
    let Some((name @ ("run" | "create"), given)) = matches.subcommand() else {
        return Ok(None);
    };
    let Some(path) = given.get_one::<PathBuf>("file") else {
        return Ok(None);
    };
    command.build();
    let find = |name: &str| {
        command
            .find_subcommand(name)
            .into_iter()
            .flat_map(Command::get_arguments)
    };
    let file = File {
        path,
        known: find("run").collect(),
        usable: find(name).collect(),
        given,
    };
    let table = file.read()?;
    let mut expanded: Vec<OsString> = words.iter().take(2).cloned().collect();
    for (key, value) in &table {
        expanded.extend(file.words(key, value)?.into_iter().map(OsString::from));
    }
    expanded.extend(words.iter().skip(2).cloned());
    expanded.extend(file.positionals(&table)?.into_iter().map(OsString::from));
    Ok(Some(expanded))
}

/// The words of `create` that a part of another file stands for, which has the keys of machine files. Relative paths are relative to the
/// folder of that file.
///
/// # Errors
/// Which key is wrong.
pub(crate) fn words(path: &Path, table: &Table) -> Result<Vec<String>, Failure> {
    let mut command = Cli::command();
    command.build();
    let Some(create) = command.find_subcommand("create") else {
        return Ok(Vec::new());
    };
    let file = File {
        path,
        known: create.get_arguments().collect(),
        usable: create.get_arguments().collect(),
        given: &ArgMatches::default(),
    };
    let mut words = Vec::new();
    for (key, value) in table {
        words.extend(file.words(key, value)?);
    }
    Ok(words)
}

/// A file, what may be in it, and what the command line gives.
struct File<'a> {
    path: &'a Path,
    /// The arguments of `run`, which has them all.
    known: Vec<&'a Arg>,
    /// Those of the command at hand.
    usable: Vec<&'a Arg>,
    given: &'a ArgMatches,
}

impl File<'_> {
    fn read(&self) -> Result<Table, Failure> {
        let text = std::fs::read_to_string(self.path).map_err(|e| {
            let class = match e.kind() {
                std::io::ErrorKind::NotFound => Class::NotFound,
                _ => Class::Failed,
            };
            Failure::from_error(class, &e).context(format!("cannot read -f {}", self.path.display()))
        })?;
        let mut table = text.parse::<Table>().map_err(|e| {
            let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            Failure::new(
                Class::Usage,
                format!("{}, line {line}: {}", self.path.display(), e.message()),
            )
            .hint("it must be TOML, with the long flags of 'zmachine run' as keys")
        })?;
        // Either name is right; the older one is written.
        if let Some(image) = table.remove("image")
            && table.insert("flist".to_owned(), image).is_some()
        {
            return Err(self.refused("image", "it is the same as flist, which is there as well", ""));
        }
        Ok(table)
    }

    fn refused(&self, key: &str, why: &str, hint: impl Into<String>) -> Failure {
        Failure::new(Class::Usage, format!("{}: {key}: {why}", self.path.display())).hint(hint)
    }

    /// The words one key stands for; none when the command line says otherwise.
    fn words(&self, key: &str, value: &Value) -> Result<Vec<String>, Failure> {
        if key == "flist" || key == "command" {
            return Ok(Vec::new());
        }
        let arg = self.known(key)?;
        let merges = takes_pairs(arg);
        let is_usable = self.usable.iter().any(|a| a.get_id() == arg.get_id());
        let is_given = is_usable && self.given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let texts = self.texts(key, arg, value)?;
        if !is_usable || (is_given && !merges) {
            return Ok(Vec::new());
        }
        let word = |text: String| match takes_value(arg) {
            true => format!("--{key}={text}"),
            false => format!("--{key}"),
        };
        Ok(texts.into_iter().map(word).collect())
    }

    fn known(&self, key: &str) -> Result<&Arg, Failure> {
        let find = |key: &str| {
            let known = self.known.iter().find(|arg| arg.get_long() == Some(key));
            known.filter(|_| !NO_KEYS.contains(&key))
        };
        find(key).copied().ok_or_else(|| {
            let kebab = key.replace('_', "-").to_ascii_lowercase();
            let singular = kebab.trim_end_matches('s');
            let hint = [kebab.as_str(), singular]
                .into_iter()
                .find(|near| find(near).is_some())
                .map_or_else(
                    || "keys are image, command, and the long flags of 'zmachine run --help'".to_owned(),
                    |near| format!("the key is '{near}', like the flag --{near}"),
                );
            self.refused(key, "there is no such key", hint)
        })
    }

    /// The values a key gives its flag; one that is present without a value is an empty text.
    fn texts(&self, key: &str, arg: &Arg, value: &Value) -> Result<Vec<String>, Failure> {
        if !takes_value(arg) {
            return match value {
                Value::Boolean(true) => Ok(vec![String::new()]),
                Value::Boolean(false) => Ok(Vec::new()),
                _ => Err(self.refused(key, "it is either true or false", "")),
            };
        }
        if key == "volume" {
            return self.volumes(value);
        }
        let repeats = matches!(arg.get_action(), ArgAction::Append);
        match value {
            Value::Array(values) if repeats => values.iter().map(|value| self.text(key, arg, value)).collect(),
            Value::Table(pairs) if takes_pairs(arg) => pairs
                .iter()
                .map(|(name, value)| Ok(format!("{name}={}", self.scalar(key, value)?)))
                .collect(),
            Value::Array(_) => Err(self.refused(key, "it has one value, not a list", "")),
            value => Ok(vec![self.text(key, arg, value)?]),
        }
    }

    fn volumes(&self, value: &Value) -> Result<Vec<String>, Failure> {
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        let typed = |value: &Value| {
            let request = volume::request(value, &self.folder());
            let request = request.map_err(|(why, hint)| self.refused("volume", &why, hint))?;
            let json = serde_json::to_string(&request).map_err(|e| Failure::from_error(Class::Usage, &e))?;
            Ok(format!("{TYPED}{json}"))
        };
        values.iter().map(typed).collect()
    }

    fn text(&self, key: &str, arg: &Arg, value: &Value) -> Result<String, Failure> {
        let text = self.scalar(key, value)?;
        let is_path = matches!(arg.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath);
        Ok(match is_path && !super::run::is_content(&text) {
            true => self.beside(&text),
            false => text,
        })
    }

    fn scalar(&self, key: &str, value: &Value) -> Result<String, Failure> {
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Integer(number) => Ok(number.to_string()),
            Value::Float(number) => Ok(number.to_string()),
            Value::Boolean(truth) => Ok(truth.to_string()),
            _ => Err(self.refused(
                key,
                &format!("a {} cannot stand here", value.type_str()),
                "write a text",
            )),
        }
    }

    /// IMAGE and COMMAND, as far as the command line does not give them.
    fn positionals(&self, table: &Table) -> Result<Vec<String>, Failure> {
        let mut words = Vec::new();
        if !self.given.contains_id("flist") {
            let flist = match table.get("flist") {
                Some(Value::String(flist)) => flist,
                Some(_) => return Err(self.refused("flist", "it must be a text", "")),
                None => return Err(self.refused("flist", "there is none", "add flist = \"...\", or give IMAGE")),
            };
            // What follows is IMAGE, whatever it begins with.
            words.push("--".to_owned());
            words.push(super::run::absolute(flist, &self.folder()));
        }
        if !self.given.contains_id("command") {
            let command = match table.get("command") {
                Some(Value::Array(command)) => command.as_slice(),
                Some(_) => {
                    return Err(self.refused(
                        "command",
                        "it must be a list of texts",
                        "command = [\"sh\", \"-c\", \"...\"]",
                    ));
                }
                None => &[],
            };
            for word in command {
                words.push(self.scalar("command", word)?);
            }
        }
        Ok(words)
    }

    fn folder(&self) -> PathBuf {
        std::path::absolute(self.path)
            .ok()
            .and_then(|path| path.parent().map(Path::to_owned))
            .unwrap_or_default()
    }

    fn beside(&self, path: &str) -> String {
        self.folder().join(path).to_string_lossy().into_owned()
    }
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// Whether its values are `NAME=VALUE`, as its help says.
fn takes_pairs(arg: &Arg) -> bool {
    let names = arg.get_value_names().unwrap_or_default();
    names.iter().any(|name| name.contains("=VALUE"))
}
