//! `why`: the record of a machine's start attempts, in words.

use std::fmt::Write as _;

use serde::Serialize;
use zmachine_engine::{Engine, History};
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure, Phase};
use zmachine_store::attempt::{Attempt, Explanation, Outcome, explain};

use crate::args::{Format, WhyArgs};
use crate::output;

/// Lines of the console that are shown.
const CONSOLE_LINES: usize = 12;

#[derive(Serialize)]
struct Reported<'a> {
    explanation: Explanation,
    #[serde(flatten)]
    attempt: &'a Attempt,
}

/// Tells why a machine ended as it did.
pub(crate) fn why(engine: &Engine, args: &WhyArgs) -> Result<u8, Failure> {
    let history = engine.history(&args.name)?;
    if history.attempts.is_empty() {
        let message = format!("machine '{}' was never started", history.spec.name);
        return Err(Failure::new(Class::Conflict, message).hint(format!("'zmachine start {}' starts it", args.name)));
    }
    let newest = history.attempts.iter().rev().take(args.attempts.max(1));
    if args.output == Format::Json {
        let reported: Vec<Reported<'_>> = newest
            .map(|attempt| Reported {
                explanation: explain(attempt),
                attempt,
            })
            .collect();
        output::json(&reported)?;
        return Ok(0);
    }
    let mut text = String::new();
    for attempt in newest {
        if !text.is_empty() {
            text.push('\n');
        }
        tell(&mut text, &history, attempt);
    }
    output::print(&text)?;
    Ok(0)
}

fn tell(text: &mut String, history: &History, attempt: &Attempt) {
    let explanation = explain(attempt);
    let is_newest = history
        .attempts
        .last()
        .is_some_and(|last| last.number == attempt.number);
    let removed = history
        .removed_at
        .map(|at| format!(", removed {at:.0}"))
        .unwrap_or_default();
    let of = history.attempts.last().map_or(attempt.number, |last| last.number);
    let _ = writeln!(
        text,
        "machine '{}' ({}{removed}), start {} of {of}",
        attempt.name, attempt.id, attempt.number
    );
    let _ = writeln!(text, "{}", explanation.what);
    for because in &explanation.because {
        let _ = writeln!(text, "  because: {because}");
    }
    if let Some(hint) = &explanation.hint {
        let _ = writeln!(text, "  hint: {hint}");
    }
    // Such as that it was restarted as often as it may be.
    if let (true, Some(Phase::Failed { failure, .. })) = (is_newest, history.state.as_ref().map(|s| &s.phase))
        && matches!(attempt.outcome, Some(Outcome::Stopped { .. }))
    {
        let _ = writeln!(text, "  then: {}", failure.message);
        if let Some(hint) = crate::failure::hint(failure) {
            let _ = writeln!(text, "  hint: {hint}");
        }
    }
    let _ = writeln!(
        text,
        "\nstarted   {:.3}{}",
        attempt.started_at,
        after_restarts(attempt.restarts)
    );
    if let Some(at) = attempt.ready_at {
        let took = at.duration_since(attempt.started_at).as_secs_f64();
        let _ = writeln!(text, "ready     {at:.3} (after {took:.2} s)");
    }
    if let Some(at) = attempt.ended_at {
        let _ = writeln!(text, "ended     {at:.3}");
    }
    let _ = writeln!(text, "flist     {}", attempt.flist);
    if let Some(hypervisor) = &attempt.hypervisor {
        let accel = attempt.plan["vm"]["accel"].as_str().unwrap_or("?");
        let cpus = &attempt.plan["vm"]["cpus"];
        let memory = attempt.plan["vm"]["memory_bytes"].as_u64().unwrap_or(0);
        let _ = writeln!(
            text,
            "machine   {hypervisor}, {accel}, {cpus} {}, {}",
            if *cpus == 1 { "CPU" } else { "CPUs" },
            Human(memory)
        );
    }
    let rootfs = &attempt.rootfs;
    let _ = writeln!(
        text,
        "fetched   {} blocks, {} ({} over the network), {} failed",
        rootfs.blocks_fetched,
        Human(rootfs.bytes_fetched),
        Human(rootfs.bytes_fetched_stored),
        rootfs.blocks_failed
    );
    for phase in &attempt.phases {
        let _ = writeln!(text, "  {:<22} {:>9.1} ms", phase.name, phase.took_ms);
    }
    lines(text, "warnings", &attempt.warnings);
    lines(text, "the guest kernel's panic", &attempt.panic);
    lines(text, "the guest kernel on its memory", &attempt.guest_oom);
    if attempt.panic.is_empty() {
        let from = attempt.console.len().saturating_sub(CONSOLE_LINES);
        lines(text, "last lines of the console", &attempt.console[from..]);
    }
}

fn after_restarts(restarts: u64) -> String {
    match restarts {
        0 => String::new(),
        n => format!(" (automatic restart {n})"),
    }
}

fn lines(text: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(text, "{title}:");
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
}
