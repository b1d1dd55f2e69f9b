//! `events`.

use std::time::Duration;

use zmachine_engine::Engine;
use zmachine_spec::Failure;
use zmachine_store::events::{Event, EventReader};

use crate::args::{EventsArgs, Format};
use crate::output;
use zmachine_spec::time::parse_time;

/// How often the end of the file is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Shows what happened to all machines.
pub(crate) fn events(engine: &Engine, args: &EventsArgs) -> Result<u8, Failure> {
    let since = args
        .since
        .as_deref()
        .map(|text| parse_time("--since", text))
        .transpose()?;
    let mut reader = EventReader::open(engine.home());
    loop {
        let mut text = String::new();
        while let Some(event) = reader.next_event()? {
            if since.is_none_or(|since| event.time >= since) {
                text.push_str(&line(&event, args.output)?);
            }
        }
        output::print(&text)?;
        if !args.follow {
            return Ok(0);
        }
        std::thread::sleep(POLL);
    }
}

fn line(event: &Event, format: Format) -> Result<String, Failure> {
    if format == Format::Json {
        let mut text = serde_json::to_string(event).map_err(std::io::Error::from)?;
        text.push('\n');
        return Ok(text);
    }
    let code = event.exit_code.map(|code| format!(" ({code})")).unwrap_or_default();
    let object = event
        .object
        .map(|object| format!("{} ", object.word()))
        .unwrap_or_default();
    let detail = event
        .detail
        .as_ref()
        .map(|text| format!(": {text}"))
        .unwrap_or_default();
    Ok(format!(
        "{:.3} {} {} {object}{}{code}{detail}\n",
        event.time, event.id, event.name, event.event
    ))
}
