//! Failures on stderr, and their exit codes: the one place that picks them.

use std::io::IsTerminal;

use zmachine_machine::spec::Setting;
use zmachine_machine::{Class, Failure};

use crate::args::spelling;

/// Prints a failure: what, why, and what to do.
pub(crate) fn print(failure: &Failure) {
    // In the colours of errors about arguments, where somebody sees them.
    let is_coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let label = |text: &str, colour: &str| match is_coloured {
        true => format!("\x1b[1;{colour}m{text}:\x1b[0m"),
        false => format!("{text}:"),
    };
    eprintln!("{} {}", label("error", "31"), failure.message);
    for cause in &failure.causes {
        eprintln!("{} {cause}", label("caused by", "31"));
    }
    if let Some(hint) = hint(failure.hint.as_deref(), &failure.settings, spelling::flag) {
        eprintln!("{} {hint}", label("hint", "32"));
    }
}

/// What to do, with `spelling` of the settings to change.
pub(crate) fn hint(
    hint: Option<&str>,
    settings: &[Setting],
    spelling: impl Fn(Setting) -> &'static str,
) -> Option<String> {
    let spelled: Vec<&str> = settings.iter().map(|setting| spelling(*setting)).collect();
    match (hint, spelled.as_slice()) {
        (None, []) => None,
        (Some(hint), []) => Some(hint.to_owned()),
        (None, spelled) => Some(format!("see {}", spelled.join(" and "))),
        (Some(hint), spelled) => Some(format!("{hint} ({})", spelled.join(", "))),
    }
}

/// The exit code of a failure. `covers_guest`: the command's code is otherwise that of a program in the guest, so ours
/// must be told apart from it (125 to 127, as docker and podman do).
pub(crate) fn exit_code(class: Class, covers_guest: bool) -> u8 {
    match (class, covers_guest) {
        (Class::CommandNotFound, _) => 127,
        (Class::CommandNotExecutable, _) => 126,
        (_, true) => 125,
        (Class::Failed, _) => 1,
        (Class::Usage, _) => 2,
        (Class::NotFound, _) => 3,
        (Class::Conflict, _) => 4,
        (Class::Fetch, _) => 5,
        (Class::Unsupported, _) => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_says_how_settings_are_spelled() {
        let settings = [Setting::Size, Setting::Volumes];
        let with = |text, settings| hint(text, settings, spelling::flag);
        assert_eq!(
            with(Some("do it"), &settings).as_deref(),
            Some("do it (--size, --volume)")
        );
        assert_eq!(with(None, &settings[..1]).as_deref(), Some("see --size"));
        assert_eq!(
            (with(Some("do it"), &[]).as_deref(), with(None, &[])),
            (Some("do it"), None)
        );
    }

    #[test]
    fn what_fails_before_the_guest_runs_never_looks_like_the_guests_own_status() {
        for class in [
            Class::Failed,
            Class::Usage,
            Class::NotFound,
            Class::Conflict,
            Class::Fetch,
            Class::Unsupported,
        ] {
            assert_eq!(exit_code(class, true), 125);
            assert!(exit_code(class, false) < 7);
        }
        assert_eq!(exit_code(Class::CommandNotFound, true), 127);
        assert_eq!(exit_code(Class::CommandNotExecutable, true), 126);
    }
}
