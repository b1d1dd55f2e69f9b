//! Machines from a program of your own: creates one, starts it, runs two commands in it, is started anew in the middle, finds
//! both again by their ids, and removes the machine.
//!
//! `embed DATA RUN PROGRAM IMAGE`: the folders of the state, the `zmachine` whose roles the machine's processes are, the image.

use std::error::Error;
use std::io::{Write, stdout};
use std::os::unix::process::CommandExt;
use std::path::Path;

use zmachine_agent_protocol::{Frame, Process, Reply};
use zmachine_engine::attach::ProcessOutput;
use zmachine_engine::{AbortAt, CreateOptions, Engine, Programs};
use zmachine_image::{PullPolicy, Silent};
use zmachine_spec::{Home, MachineSpec};

const NAME: &str = "embedded";
const COUNT: &str = "seq 1 3; sleep 2; seq 4 6; exit 3";
const GREET: &str = "read name; echo hello $name";

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let home = Home::open(Path::new(&args[1]), Path::new(&args[2]))?;
    let programs = Programs::at(Path::new(&args[3]));
    let engine = Engine::open(home, programs, AbortAt::default(), |line| eprintln!("warning: {line}"))?;
    if let Some(received) = args.get(5) {
        return second_life(&engine, received.parse()?);
    }
    let mut spec = MachineSpec::new(NAME, &args[4]);
    spec.command = ["sh", "-c", "echo up; sleep 1000"].map(str::to_owned).into();
    spec.networks.clear();
    let (cwd, pull, progress) = (&std::env::current_dir()?, PullPolicy::Missing, &Silent);
    engine.create(
        &spec,
        &CreateOptions {
            cwd,
            pull,
            progress,
            installs_kernel: true,
        },
    )?;
    engine.start(NAME, false)?.wait_ready(&Silent)?;
    for (id, line) in [("count", COUNT), ("greet", GREET)] {
        let mut process = Process::new(["sh", "-c", line]);
        process.stdin = true;
        engine.start_exec(NAME, Some(id.to_owned()), process, false)?;
    }
    let (_input, mut output) = engine.attach_exec(NAME, "count", 0)?;
    let received = follow(&mut output, |received| received >= "1\n2\n3\n".len())?;
    println!("-- a new life");
    // This process is gone in the next moment; machine and commands go on.
    Err(std::process::Command::new("/proc/self/exe")
        .args(&args[1..])
        .arg(received.to_string())
        .exec()
        .into())
}

fn second_life(engine: &Engine, received: u64) -> Result<(), Box<dyn Error>> {
    let (_input, mut output) = engine.attach_exec(NAME, "count", received)?;
    follow(&mut output, |_| false)?;
    let (mut input, mut output) = engine.attach_exec(NAME, "greet", 0)?;
    input.send(&Frame::Stdin(b"world\n".to_vec()))?;
    follow(&mut output, |_| false)?;
    for exec in engine.execs(NAME)? {
        println!(
            "{}: {:?}",
            exec.id,
            engine.wait_exec(NAME, &exec.id)?.ended.and_then(|end| end.status)
        );
    }
    Ok(engine.remove(NAME, true, true)?)
}

/// Prints what a command writes until it ends or `is_enough` of its bytes came; how many did.
fn follow(output: &mut ProcessOutput, is_enough: impl Fn(usize) -> bool) -> Result<usize, Box<dyn Error>> {
    let mut received = 0;
    while !is_enough(received)
        && let Some(frame) = output.next_frame()?
    {
        match frame {
            Frame::Stdout(bytes) | Frame::Stderr(bytes) => {
                received += bytes.len();
                stdout().write_all(&bytes)?;
            }
            frame => {
                if let Reply::Exited(_) = frame.parse()? {
                    break;
                }
            }
        }
    }
    Ok(received)
}
