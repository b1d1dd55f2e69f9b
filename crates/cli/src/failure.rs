//! Failures on stderr, and their exit codes: the one place that picks them.

use std::io::IsTerminal;

use zmachine_spec::{Class, Failure, Setting};

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
    if let Some(hint) = hint(failure) {
        eprintln!("{} {hint}", label("hint", "32"));
    }
}

/// What to do, with the flags of the settings to change.
pub(crate) fn hint(failure: &Failure) -> Option<String> {
    let flags: Vec<&str> = failure
        .settings
        .iter()
        .map(|setting| spelling::flag(*setting))
        .collect();
    with_spelling(failure.hint.as_deref(), &flags)
}

/// The same failure for somebody who writes settings otherwise; one that cannot be written there is left out.
pub(crate) fn respelled(mut failure: Failure, spelling: impl Fn(Setting) -> Option<&'static str>) -> Failure {
    let spelled: Vec<&str> = std::mem::take(&mut failure.settings)
        .iter()
        .copied()
        .filter_map(spelling)
        .collect();
    failure.hint = with_spelling(failure.hint.as_deref(), &spelled);
    failure
}

fn with_spelling(hint: Option<&str>, spelled: &[&str]) -> Option<String> {
    match (hint, spelled) {
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
        let mut failure = Failure::new(Class::Usage, "no")
            .about(Setting::Size)
            .about(Setting::Volumes);
        assert_eq!(hint(&failure).as_deref(), Some("see --size and --volume"));
        failure.hint = Some("do it".into());
        assert_eq!(hint(&failure).as_deref(), Some("do it (--size, --volume)"));
        let respelled = respelled(failure, |setting| (setting == Setting::Size).then_some("size"));
        assert_eq!(hint(&respelled).as_deref(), Some("do it (size)"));
        assert_eq!(hint(&Failure::new(Class::Usage, "no")), None);
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
