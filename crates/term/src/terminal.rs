//! Following a process stream: the guest's output on our stdout and stderr, our input and signals to the guest.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;
use zmachine_agent_protocol::{ExitStatus, Frame, Input, MAX_DATA, Reply, WindowSize};
use zmachine_engine::attach::{ProcessInput, ProcessOutput};
use zmachine_spec::{Class, Failure};
use zmachine_sys::tty::{self, RawMode};

/// SIGPIPE: what a process gets whose output nobody reads.
const SIGPIPE: i32 = 13;

/// ctrl-p ctrl-q leave a terminal session and let the process run on.
const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

/// So many interrupts and terminations, all together, end the command itself, as docker's do.
const ENOUGH: u32 = 3;

/// How to follow.
#[derive(Debug, Clone, Copy)]
pub struct Follow {
    /// Our standard input goes to the process.
    pub stdin: bool,
    /// The process has a terminal.
    pub terminal: bool,
    /// ctrl-p ctrl-q detach.
    pub detachable: bool,
}

/// How following ended.
#[derive(Debug)]
pub enum Followed {
    /// The process ended.
    Exited(ExitStatus),
    /// The user left.
    Detached,
    /// The user asked for the end again and again; what runs in the machine may go on. The code to exit with.
    GivenUp(u8),
    /// The stream ended without the process's status: the machine ended.
    Cut,
}

/// Whether our standard input is a terminal.
pub fn is_terminal() -> bool {
    tty::is_terminal(io::stdin().as_fd())
}

/// That somebody could type, for a process with a terminal whose input is ours.
///
/// # Errors
/// [`Class::Usage`] in a script or a pipe: the process would wait for keys that never come.
pub fn require_terminal() -> Result<(), Failure> {
    match is_terminal() {
        true => Ok(()),
        false => Err(
            Failure::new(Class::Usage, "standard input is not a terminal, and -it needs one")
                .hint("leave out -t: -i alone passes on what is piped in"),
        ),
    }
}

/// Follows until the process ends. `begun` is called when there is something to follow, `abort` for an interrupt that comes before the
/// process runs.
///
/// # Errors
/// What the guest says when the process cannot be started, or a stream that breaks.
pub fn follow(
    input: ProcessInput,
    mut output: ProcessOutput,
    how: Follow,
    begun: impl FnOnce(),
    abort: impl Fn() + Send + 'static,
) -> Result<Followed, Failure> {
    let stdin = io::stdin();
    let raw = how.terminal && how.stdin && tty::is_terminal(stdin.as_fd());
    let _raw = raw.then(|| RawMode::enter(stdin.as_fd())).transpose()?;
    let started = Arc::new(AtomicBool::new(false));
    if how.terminal {
        send_size(&mut input.try_clone()?);
    }
    let given_up = Arc::new(AtomicU8::new(0));
    pass_signals(
        input.try_clone()?,
        how.terminal,
        started.clone(),
        given_up.clone(),
        abort,
    )?;
    let detached = Arc::new(AtomicBool::new(false));
    if how.stdin {
        let (input, detached) = (input.try_clone()?, detached.clone());
        let keys = raw && how.detachable;
        thread::spawn(move || pass_stdin(input, keys, &detached));
    }
    let followed = pump(&mut output, input, begun, &started, &detached);
    match given_up.load(Ordering::Relaxed) {
        0 => followed,
        code => Ok(Followed::GivenUp(code)),
    }
}

fn pump(
    output: &mut ProcessOutput,
    mut input: ProcessInput,
    begun: impl FnOnce(),
    started: &AtomicBool,
    detached: &AtomicBool,
) -> Result<Followed, Failure> {
    let mut is_stdout_open = true;
    let mut begun = Some(begun);
    while let Some(frame) = output.next_frame()? {
        if let Some(begun) = begun.take() {
            begun();
        }
        match frame {
            Frame::Stdout(bytes) if is_stdout_open => {
                let mut stdout = io::stdout().lock();
                match stdout.write_all(&bytes).and_then(|()| stdout.flush()) {
                    // Nobody reads us: the process learns it as it would in a pipeline on this host.
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                        is_stdout_open = false;
                        let _ = input.send(&Frame::message(&Input::Signal(SIGPIPE)));
                    }
                    other => other.map_err(|e| Failure::from(e).context("cannot write to standard output"))?,
                }
            }
            Frame::Stderr(bytes) => {
                let _ = io::stderr().lock().write_all(&bytes);
            }
            Frame::Message(_) => match frame.parse::<Reply>() {
                Ok(Reply::Exited(status)) => return Ok(Followed::Exited(status)),
                Ok(Reply::Started { .. }) => started.store(true, Ordering::Relaxed),
                Ok(Reply::Error(error)) => return Err(error.into()),
                _ => {}
            },
            _ => {}
        }
    }
    match detached.load(Ordering::Relaxed) {
        true => {
            // The guest's cursor is where it is; the user's prompt begins a line of its own.
            eprint!("\r\n");
            Ok(Followed::Detached)
        }
        false => Ok(Followed::Cut),
    }
}

fn send_size(input: &mut ProcessInput) {
    let size = [
        tty::window_size(io::stdin().as_fd()),
        tty::window_size(io::stdout().as_fd()),
    ]
    .into_iter()
    .flatten()
    .next();
    if let Some((rows, columns)) = size {
        let _ = input.send(&Frame::message(&Input::Resize(WindowSize { rows, columns })));
    }
}

/// Passes signals on, as docker does: an interrupt of ours is one of the process. Before it runs there is nothing to pass it
/// to, so the machine is given up. Who asks for the end again and again gets it, whatever the process does.
fn pass_signals(
    mut input: ProcessInput,
    terminal: bool,
    started: Arc<AtomicBool>,
    given_up: Arc<AtomicU8>,
    abort: impl Fn() + Send + 'static,
) -> Result<(), Failure> {
    // Closed to leave: who follows ends then, and puts the terminal right.
    let stream = input.try_clone()?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH])?;
    let (sender, passed) = mpsc::channel();
    // A thread of its own: a guest that takes nothing holds up the sending, not the counting.
    thread::spawn(move || {
        for signal in passed {
            match signal {
                SIGWINCH => send_size(&mut input),
                signal => drop(input.send(&Frame::message(&Input::Signal(signal)))),
            }
        }
    });
    thread::spawn(move || {
        let mut asked = 0;
        for signal in signals.forever() {
            match signal {
                SIGWINCH if !terminal => {}
                SIGWINCH => drop(sender.send(signal)),
                _ if !started.load(Ordering::Relaxed) => abort(),
                SIGINT | SIGTERM => {
                    asked += 1;
                    if asked == ENOUGH {
                        eprintln!("zmachine: left after {ENOUGH} requests to end; what runs in the machine may go on");
                        given_up.store(128 + signal as u8, Ordering::Relaxed);
                        stream.close();
                        return;
                    }
                    let _ = sender.send(signal);
                }
                signal => drop(sender.send(signal)),
            }
        }
    });
    Ok(())
}

fn pass_stdin(mut input: ProcessInput, keys: bool, detached: &AtomicBool) {
    let mut buffer = vec![0; MAX_DATA];
    let mut held = 0;
    let mut stdin = io::stdin().lock();
    loop {
        let n = match stdin.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Ok(n) => n,
            Err(_) => 0,
        };
        if n == 0 {
            let _ = input.send(&Frame::StdinEof);
            return;
        }
        let mut bytes = Vec::with_capacity(n + 1);
        for byte in &buffer[..n] {
            held = match (keys, held, *byte) {
                (true, 1, b) if b == DETACH_KEYS[1] => {
                    detached.store(true, Ordering::Relaxed);
                    input.close();
                    return;
                }
                (true, _, b) if b == DETACH_KEYS[0] => {
                    bytes.extend((held == 1).then_some(DETACH_KEYS[0]));
                    1
                }
                (_, held, b) => {
                    bytes.extend((held == 1).then_some(DETACH_KEYS[0]));
                    bytes.push(b);
                    0
                }
            };
        }
        if !bytes.is_empty() && input.send(&Frame::Stdin(bytes)).is_err() {
            return;
        }
    }
}
