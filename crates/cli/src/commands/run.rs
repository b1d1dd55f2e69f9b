//! `run` and `create`.

use std::env;
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::thread;

use zmachine_engine::{CreateOptions, Engine, Starting};
use zmachine_spec::{Class, Exit, Failure, MachineSpec, Phase, RestartPolicy, redact};
use zmachine_store::attempt::{Outcome, explain};
use zmachine_store::catalog::{self, Machine};

use crate::args::{CreateArgs, RunArgs};
use crate::output;
use crate::progress::Bars;
use crate::terminal::{self, Follow, Followed};

/// Creates a machine and prints its name.
pub(crate) fn create(engine: &Engine, args: &CreateArgs) -> Result<u8, Failure> {
    let spec = spec(engine, args)?;
    made(engine, args, &spec, Engine::create)?;
    output::print(&format!("{}\n", spec.name))?;
    Ok(0)
}

/// Creates a machine, starts it, and follows it. One that never ran its entrypoint is removed again, so that a mistake
/// on the command line leaves nothing to tidy up.
pub(crate) fn run(engine: &Engine, args: &RunArgs) -> Result<u8, Failure> {
    let spec = spec(engine, &args.machine)?;
    if spec.terminal && spec.stdin && !args.detach && !args.dry_run {
        terminal::require_terminal()?;
    }
    if args.dry_run {
        let plan = with_options(&args.machine, |options| engine.plan(&spec, options))?;
        output::json(&redact::shown(&plan))?;
        return Ok(0);
    }
    made(engine, &args.machine, &spec, Engine::create_to_start)?;
    let ran = if args.detach {
        detached(engine, &spec, &args.machine)
    } else {
        pidfile(&args.machine).and_then(|file| attached(engine, &spec, spec.stdin, file))
    };
    ran.inspect_err(|_| remove_if_it_never_ran(engine, &spec.name))
}

/// Makes the machine, and tells its id where that is wanted.
fn made(
    engine: &Engine,
    args: &CreateArgs,
    spec: &MachineSpec,
    create: impl FnOnce(&Engine, &MachineSpec, &CreateOptions<'_>) -> Result<Machine, Failure>,
) -> Result<(), Failure> {
    args.guest.notes().iter().for_each(|line| eprintln!("warning: {line}"));
    let file = args.guest.cidfile().map(|path| {
        File::create_new(path).map_err(|e| {
            let failure = Failure::from(e).context(format!("--cidfile {} cannot be made", path.display()));
            failure.hint("a file of an earlier machine has to be removed first")
        })
    });
    let file = file.transpose()?;
    let machine = with_options(args, |options| create(engine, spec, options)).inspect_err(|_| {
        // Only now it is known that there is no id to tell.
        let _ = args.guest.cidfile().map(std::fs::remove_file);
    })?;
    if let Some(mut file) = file {
        file.write_all(machine.id.as_bytes())?;
    }
    Ok(())
}

/// The file for the monitor's process id, opened before anything runs that a failure would leave behind.
fn pidfile(args: &CreateArgs) -> Result<Option<File>, Failure> {
    let opened = args.guest.pidfile().map(|path| {
        File::create(path)
            .map_err(|e| Failure::from(e).context(format!("--pidfile {} cannot be written", path.display())))
    });
    opened.transpose()
}

/// Tells the monitor's process id where that is wanted. The machine runs by now, so it is no failure that this cannot be told.
fn tell_pid(file: Option<File>, starting: &Starting) {
    if let (Some(mut file), Some(id)) = (file, starting.monitor_id())
        && let Err(error) = writeln!(file, "{}", id.pid)
    {
        eprintln!(
            "warning: the process id {} cannot be written to --pidfile: {error}",
            id.pid
        );
    }
}

fn spec(engine: &Engine, args: &CreateArgs) -> Result<MachineSpec, Failure> {
    let cwd = env::current_dir()?;
    let spec = args.spec(&cwd, || catalog::free_name(engine.home()), |name| env::var(name).ok())?;
    if spec.auto_remove && spec.restart != RestartPolicy::No {
        return Err(Failure::new(Class::Usage, "--rm and --restart contradict each other").hint("use one of them"));
    }
    Ok(spec)
}

fn with_options<T>(args: &CreateArgs, f: impl FnOnce(&CreateOptions<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
    let bars = Bars::bytes();
    f(&CreateOptions {
        cwd: &env::current_dir()?,
        pull: args.pull.into(),
        installs_kernel: !args.no_install,
        progress: &bars,
    })
}

fn detached(engine: &Engine, spec: &MachineSpec, args: &CreateArgs) -> Result<u8, Failure> {
    let file = pidfile(args)?;
    let mut starting = engine.start(&spec.name, false)?;
    tell_pid(file, &starting);
    starting.wait_ready(&Bars::bytes())?;
    output::print(&format!("{}\n", spec.name))?;
    Ok(0)
}

/// Starts a machine and follows it. `file` is told the monitor's process id.
pub(super) fn attached(engine: &Engine, spec: &MachineSpec, stdin: bool, file: Option<File>) -> Result<u8, Failure> {
    let stdin = stdin && spec.stdin;
    let mut starting = engine.start(&spec.name, true)?;
    tell_pid(file, &starting);
    starting.wait_listening()?;
    let (input, output) = match engine.attach(&spec.name, stdin, true) {
        Ok(streams) => streams,
        // It failed between the two: its own words say why.
        Err(failure) => {
            let started = starting.wait_ready(&Bars::bytes());
            starting.wait_gone();
            return started.and(Err(failure));
        }
    };
    let follow = Follow {
        stdin,
        terminal: spec.terminal,
        detachable: true,
    };
    let monitor = starting.monitor_id();
    // The monitor takes SIGTERM as a request to stop, also before its guest is up.
    let abort = move || drop(monitor.map(|id| id.signal(15)));
    // Beside following: an image that is installed before the machine can run shows a bar meanwhile.
    let bars = Arc::new(Bars::bytes());
    let drawn = bars.clone();
    let watched = thread::spawn(move || {
        let started = starting.wait_ready(&*drawn);
        (starting, started)
    });
    let followed = terminal::follow(input, output, follow, || bars.end(), abort);
    bars.end();
    match followed {
        Ok(Followed::Detached) => return Ok(0),
        Ok(Followed::GivenUp(code)) => return Ok(code),
        _ => {}
    }
    let Ok((mut starting, started)) = watched.join() else {
        return Err(Failure::new(
            Class::Failed,
            "the thread that watched the start ended early",
        ));
    };
    match followed {
        Ok(Followed::Exited(status)) => {
            // With a restart policy the monitor goes on after this run.
            if spec.restart == RestartPolicy::No {
                starting.wait_gone();
                tell_of_signal(engine, &spec.name);
            }
            Ok(status.shell_code())
        }
        Ok(_) => {
            starting.wait_gone();
            ended(engine, spec, &starting, started)
        }
        Err(failure) => {
            // One that never ran is gone before it is removed.
            if started.is_err() {
                starting.wait_gone();
            }
            Err(failure)
        }
    }
}

/// Says why a machine was ended by a signal that its user did not send: the status alone, 137, is that of any SIGKILL.
fn tell_of_signal(engine: &Engine, name: &str) {
    let Ok(history) = engine.history(name) else { return };
    let Some(attempt) = history.attempts.last() else { return };
    if let Some(process) = attempt.out_of_memory() {
        let hint = "give it more with --memory, or make the program use less";
        eprintln!("zmachine: the guest ran out of memory, and its kernel killed '{process}': {hint}");
        return;
    }
    let is_unexpected = match attempt.outcome {
        Some(Outcome::Stopped { exit, asked }) => match exit {
            Exit::Signal(signal) => !asked && !USERS_SIGNALS.contains(&signal),
            // A shell's, or an init's, whose command was ended so.
            Exit::Code(code @ 129..=192) => !asked && !USERS_SIGNALS.contains(&(i32::from(code) - 128)),
            Exit::Killed => true,
            Exit::Code(_) | Exit::PoweredOff => false,
        },
        _ => false,
    };
    if is_unexpected {
        eprintln!("zmachine: {}", explain(attempt).what);
    }
}

/// Signals by which users end programs (HUP, INT, QUIT, PIPE, TERM): they know.
const USERS_SIGNALS: [i32; 5] = [1, 2, 3, 13, 15];

/// The machine ended without its entrypoint's status: it never started, was killed, or failed.
fn ended(
    engine: &Engine,
    spec: &MachineSpec,
    starting: &Starting,
    started: Result<(), Failure>,
) -> Result<u8, Failure> {
    engine.reconcile()?;
    if let Err(failure) = started {
        // Stopped by a signal or another command while it started.
        return if starting.was_stopped() {
            Ok(Exit::Killed.shell_code())
        } else {
            Err(failure)
        };
    }
    match engine.machine(&spec.name).map(|machine| machine.state.phase) {
        Ok(Phase::Stopped { exit }) => {
            tell_of_signal(engine, &spec.name);
            Ok(exit.shell_code())
        }
        Ok(Phase::Failed { failure, .. }) => Err(failure),
        // Made with --rm, and gone.
        _ => {
            tell_of_signal(engine, &spec.name);
            Ok(Exit::Killed.shell_code())
        }
    }
}

pub(super) fn remove_if_it_never_ran(engine: &Engine, name: &str) {
    if let Ok(machine) = engine.machine(name)
        && machine.state.ready_at.is_none()
        && !machine.state.phase.is_active()
    {
        let _ = engine.remove(name, false, true);
    }
}
