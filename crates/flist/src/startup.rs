//! `.startup.toml`: the program that an image starts.
//!
//! ```toml
//! [startup.entry]
//! name = "core.system"          # or core.base; any other name starts nothing
//! [startup.entry.args]
//! name = "/bin/server"          # the program
//! args = ["-v"]
//! dir = "/srv"
//! [startup.entry.args.env]
//! LANG = "C"
//! ```
//! Everything else in the file is ignored, as the readers of old do. Parsing only: nothing is looked up or run here.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Path of the file in the tree of an image.
pub const PATH: &[u8] = b".startup.toml";

/// What `.startup.toml` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Startup {
    /// Program, when the entry is of a kind that starts one and names one.
    pub program: Option<String>,
    /// Arguments, without the program itself.
    pub args: Vec<String>,
    /// Working directory.
    pub dir: Option<String>,
    /// Environment; it also counts when the file starts nothing.
    pub env: BTreeMap<String, String>,
}

/// A `.startup.toml` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// Not UTF-8.
    #[error("{file} is not text: a byte at {offset} is not UTF-8")]
    NotText {
        /// The name given by the caller.
        file: String,
        /// Offset of the first bad byte.
        offset: usize,
    },
    /// Not TOML, or a wrong type somewhere in `[startup.entry]`.
    #[error("{file} is broken")]
    Broken {
        /// The name given by the caller.
        file: String,
        /// Line, column and what was expected.
        source: Box<toml::de::Error>,
    },
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    startup: Table,
}

#[derive(Deserialize, Default)]
struct Table {
    entry: Option<Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    name: String,
    args: Args,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Args {
    name: String,
    args: Vec<String>,
    dir: String,
    env: BTreeMap<String, String>,
}

impl Startup {
    /// Parses the bytes of a `.startup.toml`; `file` is the name that an error shows. `None`: there is no `[startup.entry]`.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Option<Startup>, StartupError> {
        let text = std::str::from_utf8(bytes).map_err(|error| StartupError::NotText {
            file: file.into(),
            offset: error.valid_up_to(),
        })?;
        let document: Document = toml::from_str(text).map_err(|source| StartupError::Broken {
            file: file.into(),
            source: Box::new(source),
        })?;
        Ok(document.startup.entry.map(Startup::from))
    }
}

impl From<Entry> for Startup {
    fn from(entry: Entry) -> Startup {
        let starts = matches!(entry.name.as_str(), "core.system" | "core.base");
        let some = |text: String| (!text.is_empty()).then_some(text);
        Startup {
            program: some(entry.args.name).filter(|_| starts),
            args: entry.args.args,
            dir: some(entry.args.dir),
            env: entry.args.env,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Startup>, StartupError> {
        Startup::parse("image:/.startup.toml", text.as_bytes())
    }

    #[test]
    fn an_entry_gives_program_arguments_directory_and_environment() {
        let text = "[startup.entry]\nname='core.system'\nafter=['x']\n[startup.entry.args]\nname='/bin/sh'\n\
                    args=['-c','true']\ndir='/work'\nenv={A='1'}\n[startup.other]\nname=7\n[else]\n";
        let startup = parse(text).unwrap().unwrap();
        assert_eq!(startup.program.as_deref(), Some("/bin/sh"));
        assert_eq!(startup.args, ["-c", "true"]);
        assert_eq!(startup.dir.as_deref(), Some("/work"));
        assert_eq!(startup.env, BTreeMap::from([("A".into(), "1".into())]));
    }

    #[test]
    fn another_kind_of_entry_starts_nothing_but_keeps_its_environment() {
        let startup = parse("[startup.entry]\nname='bash'\nargs={name='x',env={A='1'}}")
            .unwrap()
            .unwrap();
        assert_eq!(startup.program, None);
        assert_eq!(startup.env.len(), 1);
    }

    #[test]
    fn a_file_without_an_entry_asks_for_nothing() {
        assert_eq!(parse("").unwrap(), None);
        assert_eq!(parse("[startup.other]\nname='core.system'").unwrap(), None);
    }

    #[test]
    fn a_broken_file_is_an_error_that_names_it() {
        for text in [
            "[startup.entry",
            "[startup.entry]\nname=7",
            "[startup.entry]\nname='core.base'\nargs={env={A=1}}",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains("image:/.startup.toml"), "{error}");
        }
        assert!(matches!(
            Startup::parse("f", b"a='\xff'"),
            Err(StartupError::NotText { offset: 3, .. })
        ));
    }
}
