//! `top`: the processes in a machine, whatever its image has.

use zmachine_engine::Engine;
use zmachine_spec::Failure;
use zmachine_spec::bytes::Human;

use crate::args::{Format, TopArgs};
use crate::output;

/// Lists the processes of a machine.
pub(crate) fn top(engine: &Engine, args: &TopArgs) -> Result<u8, Failure> {
    let processes = engine.processes(&args.name)?;
    if args.output == Format::Json {
        output::json(&processes)?;
        return Ok(0);
    }
    let clock = |ms: u64| {
        let seconds = ms / 1000;
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    };
    let rows = processes.iter().map(|process| {
        vec![
            process.uid.to_string(),
            process.pid.to_string(),
            process.ppid.to_string(),
            clock(process.age_ms),
            clock(process.cpu_ms),
            Human(process.resident_bytes).to_string(),
            process
                .command
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect(),
        ]
    });
    output::table(
        &["UID", "PID", "PPID", "AGE", "TIME", "MEMORY", "COMMAND"],
        &rows.collect::<Vec<_>>(),
    )?;
    Ok(0)
}
