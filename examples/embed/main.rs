//! Machines from a program of your own: creates one, starts it, runs two commands in it, is started anew in the middle, finds
//! both again by their ids, and removes the machine.
//!
//! `embed DATA RUN PROGRAM IMAGE`: the folders of the state, the `zmachine` whose roles the machine's processes are, the image.

use std::error::Error;
use std::io::{self, Read, stdout};
use std::os::unix::process::CommandExt;
use std::path::Path;

use zmachine_agent_protocol::{Frame, Process};
use zmachine_engine::transfer::FromGuest;
use zmachine_engine::{AbortAt, CreateOptions, Engine, Programs};
use zmachine_spec::{Home, MachineSpec};

const NAME: &str = "embedded";
const COMMANDS: [(&str, &str); 2] = [
    ("count", "seq 1 3; sleep 2; seq 4 6; exit 3"),
    ("greet", "read name; echo hello $name"),
];

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
    engine.create(&spec, &CreateOptions::quiet(&std::env::current_dir()?))?;
    engine.start(NAME, false)?.wait_ready(&zmachine_image::Silent)?;
    for (id, line) in COMMANDS {
        let process = Process {
            stdin: true,
            ..Process::new(["sh", "-c", line])
        };
        engine.start_exec(NAME, Some(id.to_owned()), process, false)?;
    }
    let mut first = [0; "1\n2\n3\n".len()];
    (&mut FromGuest::new(engine.attach_exec(NAME, "count", 0)?.1)).read_exact(&mut first)?;
    println!("{}-- a new life", String::from_utf8_lossy(&first));
    // This process is gone in the next moment; machine and commands go on.
    let mut anew = std::process::Command::new("/proc/self/exe");
    Err(anew.args(&args[1..]).arg(first.len().to_string()).exec().into())
}

fn second_life(engine: &Engine, received: u64) -> Result<(), Box<dyn Error>> {
    io::copy(
        &mut (&mut FromGuest::new(engine.attach_exec(NAME, "count", received)?.1)),
        &mut stdout(),
    )?;
    let (mut input, output) = engine.attach_exec(NAME, "greet", 0)?;
    input.send(&Frame::Stdin(b"world\n".to_vec()))?;
    io::copy(&mut (&mut FromGuest::new(output)), &mut stdout())?;
    for exec in engine.execs(NAME)? {
        println!(
            "{}: {:?}",
            exec.id,
            engine.wait_exec(NAME, &exec.id)?.ended.and_then(|end| end.status)
        );
    }
    Ok(engine.remove(NAME, true, true)?)
}
