//! Parameters of operations.

/// The kind of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Words.
    Text,
    /// A whole number.
    Number,
    /// Yes or no.
    Flag,
    /// Words, given several times.
    List,
}

/// A parameter of the query.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it means.
    pub about: &'static str,
}

pub(super) const fn parameter(name: &'static str, kind: Kind, about: &'static str) -> Parameter {
    Parameter { name, kind, about }
}

pub(super) const NONE: &[Parameter] = &[];
pub(super) const LIST: &[Parameter] = &[
    parameter(
        "limit",
        Kind::Number,
        "how many at most, from 1 to 1000; 100 when it is not given",
    ),
    parameter("after", Kind::Text, "where the page before ended: its 'next'"),
    parameter("label", Kind::List, "KEY or KEY=VALUE; all must hold"),
    parameter("state", Kind::Text, "the phase in a word"),
    parameter("kind", Kind::Text, "container or vm"),
];
pub(super) const GRACE: &[Parameter] = &[parameter(
    "time",
    Kind::Number,
    "seconds between the stop signal and the end by force; the machine's own when it is not given",
)];
pub(super) const SPAN: &[Parameter] = &[
    parameter("follow", Kind::Flag, "go on until the machine ends"),
    parameter("tail", Kind::Number, "the last lines alone"),
    parameter("since", Kind::Text, "a time of RFC 3339, or seconds since 1970"),
    parameter("until", Kind::Text, "the same"),
    parameter(
        "source",
        Kind::List,
        "stdout, stderr, console, agent, hypervisor or monitor; the programs' own output when none is given",
    ),
];

pub(super) const COMMAND: &[Parameter] = &[
    parameter("command", Kind::List, "the program and its arguments"),
    parameter("env", Kind::List, "NAME=VALUE, over the environment of the entrypoint"),
    parameter(
        "workdir",
        Kind::Text,
        "where it runs; the entrypoint's when it is not given",
    ),
    parameter(
        "user",
        Kind::Text,
        "as whom; the entrypoint's user when it is not given",
    ),
    parameter("tty", Kind::Flag, "give it a terminal"),
    parameter("stdin", Kind::Flag, "pass input on"),
    parameter("rows", Kind::Number, "of the terminal"),
    parameter("columns", Kind::Number, "of the terminal"),
];
pub(super) const NAME: &[Parameter] = &[parameter(
    "name",
    Kind::Text,
    "of the machine; one is made up when it is not given",
)];
pub(super) const PATH: &[Parameter] = &[
    parameter("path", Kind::Text, "an absolute path in the machine"),
    parameter(
        "root",
        Kind::Text,
        "what the file or directory is called in the archive; its own name when it is not given",
    ),
];
pub(super) const TARGET: &[Parameter] = &[
    parameter("path", Kind::Text, "an absolute path in the machine"),
    parameter(
        "source",
        Kind::Text,
        "copy as 'zmachine cp' a file or directory of this name, which is 'tree' in the archive, with what is below it; whatever is in the archive goes into the directory at 'path' when it is not given",
    ),
    parameter("contents", Kind::Flag, "what is in that directory, not the directory"),
    parameter(
        "owner",
        Kind::Flag,
        "keep owners and groups, as numbers; all is root's otherwise",
    ),
];
pub(super) const SAVED: &[Parameter] = &[
    parameter("image", Kind::List, "which"),
    parameter(
        "format",
        Kind::Text,
        "docker-archive or oci-archive; docker-archive when it is not given",
    ),
];
pub(super) const PROJECT_LOGS: &[Parameter] = &[
    parameter("service", Kind::List, "of these alone"),
    parameter("follow", Kind::Flag, "go on until all machines have ended"),
    parameter("timestamps", Kind::Flag, "with the time of each line"),
    parameter(
        "no_prefix",
        Kind::Flag,
        "without the name of its machine before each line",
    ),
    parameter("tail", Kind::Text, "the last lines alone"),
    parameter("since", Kind::Text, "a time, or how long ago"),
    parameter("until", Kind::Text, "the same"),
];
pub(super) const FORCE: &[Parameter] = &[parameter("force", Kind::Flag, "also one that a machine starts with")];
pub(super) const STDIN: &[Parameter] = &[parameter("stdin", Kind::Flag, "pass input on")];
