//! What happens to commands in containers, among the events of the home: `exec_created`, `exec_started`, and `exec_ended` with the code. The
//! detail of such an event is the id of the command and its words.
//!
//! They are written down by the server that starts a command for a client. The end of one that nobody follows (`exec -d`) is waited for by
//! a thread of its own, of at most 64 at a time; of more, and after the end of the server, that end is not told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use zmachine_spec::Home;
use zmachine_store::events::{self, Event};

use crate::app::App;

/// Threads that wait for the end of commands.
const WAITERS: usize = 64;

/// The stack of one of them, in bytes.
const STACK: usize = 128 << 10;

/// The longest command that is written down, in characters.
const SHOWN: usize = 1024;

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// An event of the command `exec` in the machine with this id and name.
pub fn event((id, name): (&str, &str), what: &str, exec: &str, args: &[String]) -> Event {
    // One line, however the command is written.
    let command: String = args.join(" ").replace(char::is_control, " ");
    let command: String = command.chars().take(SHOWN).collect();
    Event {
        detail: Some(format!("{exec} {command}")),
        ..Event::new(id, name, what)
    }
}

/// The id of a command, and its words.
pub fn parts(event: &Event) -> (&str, &str) {
    let detail = event.detail.as_deref().unwrap_or_default();
    detail.split_once(' ').unwrap_or((detail, ""))
}

/// Writes an event down, in a thread that may wait for the disk.
pub fn tell(app: &Arc<App>, event: Event) {
    let home: Home = app.engine.home().clone();
    tokio::task::spawn_blocking(move || events::record(&home, &event));
}

/// Waits for the end of a command that nobody follows, and writes it down.
pub fn tell_of_end(app: &Arc<App>, machine: String, exec: String, mut event: Event) {
    if WAITING.fetch_add(1, Ordering::AcqRel) >= WAITERS {
        WAITING.fetch_sub(1, Ordering::AcqRel);
        return;
    }
    let app = Arc::clone(app);
    let waiting = std::thread::Builder::new()
        .name("exec".into())
        .stack_size(STACK)
        .spawn(move || {
            if let Ok(record) = app.engine.wait_exec(&machine, &exec) {
                let status = record.ended.and_then(|end| end.status);
                event.exit_code = Some(status.map_or(super::exec::GONE_CODE, |status| status.shell_code()));
                event.time = jiff::Timestamp::now();
                events::record(app.engine.home(), &event);
            }
            WAITING.fetch_sub(1, Ordering::AcqRel);
        });
    if waiting.is_err() {
        WAITING.fetch_sub(1, Ordering::AcqRel);
    }
}
