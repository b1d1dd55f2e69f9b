//! What a record means, in words a user can act on. A pure function of the record.

use zmachine_hypervisor::ExitReason;
use zmachine_spec::{Class, Exit};

use super::{Attempt, Outcome};

/// Why an attempt ended as it did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Explanation {
    /// One sentence: what happened.
    pub what: String,
    /// What led to it, outermost first.
    pub because: Vec<String>,
    /// What to do; `None` when nothing is wrong.
    pub hint: Option<String>,
}

impl Explanation {
    fn new(what: impl Into<String>, hint: &str) -> Explanation {
        Explanation {
            what: what.into(),
            because: Vec::new(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        }
    }
}

/// Explains a record. The cause that lies deepest wins: a guest that ran out of memory over the signal that ended its
/// entrypoint, a panic over the machine that ended.
pub fn explain(attempt: &Attempt) -> Explanation {
    let name = &attempt.name;
    let explained = panic(attempt)
        .or_else(|| guest_oom(attempt))
        .or_else(|| host_killed(attempt))
        .or_else(|| missing_blocks(attempt));
    let outcome = match &attempt.outcome {
        None => Explanation::new(running(attempt), ""),
        Some(Outcome::Stopped { exit, asked }) => stopped(name, *exit, *asked),
        Some(Outcome::Failed { step, failure }) => {
            let mut explanation = Explanation::new(
                format!("it failed at '{step}': {}", failure.message),
                failure.hint.as_deref().unwrap_or_default(),
            );
            explanation.because.clone_from(&failure.causes);
            if let Some(hint) = hint_for(failure.class, &failure.to_string()) {
                explanation.hint = Some(hint.to_owned());
            }
            explanation
        }
    };
    match explained {
        None => outcome,
        Some(mut deepest) => {
            deepest.because.push(outcome.what);
            deepest.because.extend(outcome.because);
            deepest
        }
    }
}

fn panic(attempt: &Attempt) -> Option<Explanation> {
    let is_panic = attempt.vm_ended == Some(ExitReason::GuestPanic) || !attempt.panic.is_empty();
    if !is_panic || matches!(attempt.outcome, Some(Outcome::Stopped { asked: true, .. })) {
        return None;
    }
    let line = attempt.panic.first().map_or("it said nothing", String::as_str);
    let text = line.split("Kernel panic - not syncing:").last().unwrap_or(line).trim();
    let hint = match text {
        t if t.contains("Attempted to kill init") => "the agent or the image's init ended: look at the console lines",
        t if t.contains("Unable to mount root") => "the kernel found no root: check the image and its kernel",
        t if t.contains("Out of memory") || t.contains("no killable processes") => "give it more memory",
        _ => "look at the console lines; another guest kernel may not have the fault",
    };
    Some(Explanation::new(format!("the guest's kernel panicked: {text}"), hint))
}

/// A record without an end. Where the machine does not run any more, its state knows better, and what comes of a killed
/// monitor is written down by the next command.
fn running(attempt: &Attempt) -> String {
    match attempt.ready_at {
        Some(at) => format!("it is running since {at:.0}"),
        None => format!("it is starting since {:.0}", attempt.started_at),
    }
}

fn guest_oom(attempt: &Attempt) -> Option<Explanation> {
    let line = attempt
        .guest_oom
        .iter()
        .rev()
        .find(|line| line.contains("Killed process"))?;
    let died = match &attempt.outcome {
        Some(Outcome::Stopped { exit, asked }) => !asked && *exit != Exit::Code(0),
        Some(Outcome::Failed { .. }) => true,
        None => false,
    };
    let process = victim(line);
    died.then(|| {
        Explanation::new(
            format!("the guest ran out of memory, and its kernel killed '{process}'"),
            "give it more memory, or make the program use less",
        )
    })
}

/// The process that a guest's kernel killed for lack of memory, by the kernel's own line.
fn victim(line: &str) -> &str {
    let name = line.split('(').nth(1).and_then(|rest| rest.split(')').next());
    name.unwrap_or("a process")
}

impl Attempt {
    /// What the guest's kernel killed last for lack of memory, if that ended the run.
    pub fn out_of_memory(&self) -> Option<&str> {
        guest_oom(self)?;
        let line = self.guest_oom.iter().rev().find(|line| line.contains("Killed process"));
        line.map(|line| victim(line))
    }
}

fn host_killed(attempt: &Attempt) -> Option<Explanation> {
    let Some(ExitReason::HostSignal(signal)) = attempt.vm_ended else {
        return None;
    };
    if matches!(attempt.outcome, Some(Outcome::Stopped { .. })) {
        return None;
    }
    Some(match (signal, attempt.host_oom_kills) {
        (9, 1..) => Explanation::new(
            "the host ran out of memory, and its kernel killed the hypervisor",
            "run fewer or smaller machines on this host, or add memory or swap; 'dmesg' on the host tells the details",
        ),
        (9, 0) => Explanation::new(
            "somebody killed the hypervisor with SIGKILL",
            "start it again; 'zmachine kill' or 'zmachine stop' end a machine in a way that is told apart",
        ),
        (31, _) => Explanation::new(
            "the hypervisor was ended by its own sandbox (SIGSYS)",
            "another version of QEMU may help; please report this with the record ('zmachine why -o json')",
        ),
        (n, _) => Explanation::new(
            format!("the hypervisor was ended by signal {n}"),
            "start it again; if it happens again, the hypervisor's lines in the log tell more",
        ),
    })
}

fn missing_blocks(attempt: &Attempt) -> Option<Explanation> {
    let failed = attempt.rootfs.blocks_failed > 0 || attempt.warnings.iter().any(|w| w.starts_with("block "));
    let ended_badly = match &attempt.outcome {
        Some(Outcome::Stopped { exit, asked }) => !asked && *exit != Exit::Code(0),
        Some(Outcome::Failed { .. }) => true,
        None => false,
    };
    (failed && ended_badly).then(|| {
        let mut explanation = Explanation::new(
            format!(
                "{} of the image's blocks could not be had from any store",
                attempt.rootfs.blocks_failed.max(1)
            ),
            "is the store reachable, and does it hold the image's blocks? another one can be named for the machine; \
             'zmachine logs --source monitor' names the files",
        );
        explanation.because = attempt
            .warnings
            .iter()
            .filter(|w| w.starts_with("block "))
            .cloned()
            .collect();
        explanation
    })
}

fn stopped(name: &str, exit: Exit, asked: bool) -> Explanation {
    let look = format!("'zmachine logs {name}' shows what it said");
    match (exit, asked) {
        (Exit::Code(code), true) => Explanation::new(format!("it was asked to stop, and ended with code {code}"), ""),
        (Exit::Signal(signal), true) => Explanation::new(
            format!("it was asked to stop, and ended by {}", signal_name(signal)),
            "",
        ),
        (Exit::Killed, true) => Explanation::new("it was killed, as asked", ""),
        (Exit::PoweredOff, true) => Explanation::new("it was asked to stop, and its guest powered off", ""),
        (Exit::PoweredOff, false) => Explanation::new("the guest powered itself off", ""),
        (Exit::Code(0), false) => Explanation::new("its entrypoint ended by itself, with success", ""),
        (Exit::Code(126), false) => Explanation::new(
            "its entrypoint ended with code 126: by a shell's habit, a command was found and could not be run",
            &look,
        ),
        (Exit::Code(127), false) => Explanation::new(
            "its entrypoint ended with code 127: by a shell's habit, a command was not found",
            &look,
        ),
        (Exit::Code(code @ 129..=192), false) => Explanation::new(
            format!(
                "its entrypoint ended with code {code}: by a shell's habit, {} ended a command",
                signal_name(i32::from(code) - 128)
            ),
            &look,
        ),
        (Exit::Code(code), false) => {
            Explanation::new(format!("its entrypoint ended by itself, with code {code}"), &look)
        }
        (Exit::Signal(signal), false) => {
            Explanation::new(format!("its entrypoint was ended by {}", signal_name(signal)), &look)
        }
        (Exit::Killed, false) => Explanation::new(
            "the guest did not power off in time after its entrypoint ended, and was killed",
            "'zmachine logs --source console' may tell what it waited for",
        ),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL (an instruction the CPU does not have)",
        6 => "SIGABRT (it gave up by itself)",
        7 => "SIGBUS (a part of a file or memory that is not there)",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV (it used memory it does not have)",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        31 => "SIGSYS",
        n => return format!("signal {n}"),
    };
    name.to_owned()
}

/// What to do about a failure that says itself only what the system said.
pub fn hint_for(class: Class, text: &str) -> Option<&'static str> {
    let has = |part: &str| text.contains(part);
    if has("No space left on device") || has("disk full") || has("Disk quota exceeded") {
        return Some(
            "free space on the disk that holds zmachine's state: 'zmachine rm' and 'zmachine image rm' do, 'df' shows it",
        );
    }
    if has("Cannot allocate memory") || has("cannot set up guest memory") {
        return Some("give the machine less memory, or free some on the host");
    }
    if has("Address already in use") {
        return Some("another program has that port: publish another one, or end the program ('ss -lntup' shows it)");
    }
    if has("Too many open files") {
        return Some("raise the limit of open files ('ulimit -n') and start it again");
    }
    if class == Class::Failed && has("was not up within") {
        return Some("the host may be overloaded; 'zmachine logs --source console,agent' shows how far the guest came");
    }
    if has("the host was restarted") {
        return Some(
            "start it again; with the restart policy always or unless-stopped, 'zmachine start --all-enabled' does it at boot",
        );
    }
    if has("monitor ended without a word") {
        return Some(
            "its monitor was killed or crashed; logs/monitor.stderr in its folder has a panic, and 'dmesg' an out-of-memory kill",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::tests::attempt;
    use super::*;
    use zmachine_spec::Failure;

    fn failed(step: &str, message: &str, cause: &str) -> Attempt {
        let mut failure = Failure::new(Class::Failed, message);
        if !cause.is_empty() {
            failure.causes.push(cause.to_owned());
        }
        let outcome = Outcome::Failed {
            step: step.to_owned(),
            failure,
        };
        Attempt {
            outcome: Some(outcome),
            ..attempt(1)
        }
    }

    fn ended(exit: Exit) -> Attempt {
        Attempt {
            outcome: Some(Outcome::Stopped { exit, asked: false }),
            ..attempt(1)
        }
    }

    fn says(attempt: &Attempt, what: &str, hint: &str) {
        let explanation = explain(attempt);
        assert!(explanation.what.contains(what), "{explanation:?}");
        assert!(
            explanation.hint.as_deref().unwrap_or_default().contains(hint),
            "{explanation:?}"
        );
    }

    #[test]
    fn the_deepest_cause_is_told_first() {
        let mut oom = ended(Exit::Signal(9));
        oom.guest_oom = vec!["Out of memory: Killed process 7 (eater) total-vm:9kB".into()];
        says(&oom, "killed 'eater'", "more memory");
        assert_eq!(explain(&oom).because, ["its entrypoint was ended by SIGKILL"]);

        let mut panicked = failed("running", "the virtual machine ended: the guest's kernel panicked", "");
        panicked.panic = vec!["[ 1.0] Kernel panic - not syncing: sysrq triggered crash".into()];
        says(&panicked, "panicked: sysrq triggered crash", "console");

        let mut killed = failed("running", "the virtual machine ended: the hypervisor got signal 9", "");
        killed.vm_ended = Some(ExitReason::HostSignal(9));
        says(&killed, "somebody killed the hypervisor", "start it again");
        killed.host_oom_kills = 1;
        says(&killed, "the host ran out of memory", "dmesg");

        let mut blocks = ended(Exit::Code(1));
        blocks.rootfs.blocks_failed = 2;
        says(&blocks, "2 of the image's blocks", "store");
    }

    #[test]
    fn what_the_system_said_gets_a_hint() {
        for (message, cause, hint) in [
            (
                "cannot write state.json",
                "No space left on device (os error 28)",
                "free space",
            ),
            (
                "the hypervisor gave up",
                "cannot set up guest memory: Cannot allocate memory",
                "less memory",
            ),
            (
                "port 80 of this host cannot be published",
                "Address already in use (os error 98)",
                "ss -lntup",
            ),
            ("the guest was not up within 60 s", "", "overloaded"),
            ("its monitor ended without a word", "", "monitor.stderr"),
            ("the host was restarted while it ran", "", "--all-enabled"),
            ("cannot make a socket", "Too many open files (os error 24)", "ulimit"),
        ] {
            says(&failed("network", message, cause), message, hint);
        }
    }

    #[test]
    fn exits_are_told_as_a_shell_user_knows_them() {
        says(&ended(Exit::Code(0)), "with success", "");
        says(&ended(Exit::Code(3)), "with code 3", "zmachine logs web");
        says(&ended(Exit::Code(127)), "was not found", "logs");
        says(&ended(Exit::Code(139)), "SIGSEGV", "logs");
        says(&ended(Exit::Signal(11)), "memory it does not have", "logs");
        says(&ended(Exit::Killed), "did not power off in time", "console");
        let asked = Outcome::Stopped {
            exit: Exit::Signal(15),
            asked: true,
        };
        assert_eq!(
            explain(&Attempt {
                outcome: Some(asked),
                ..attempt(1)
            })
            .hint,
            None
        );
    }
}
