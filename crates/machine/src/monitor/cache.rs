//! Keeping the block cache within its limit while machines fill it.
//!
//! Every monitor looks once a minute; the library sees to it that one of them does the work, of all homes of a cache. A cache can be over its
//! limit by what all machines fetch in that minute.

use std::time::Duration;

use zmachine_image::library::TrimReport;

use super::SharedLog;
use crate::bytes::Human;
use crate::engine;
use crate::failure::Failure;
use crate::home::Home;
use crate::log::Source;

const PERIOD: Duration = Duration::from_secs(60);

/// Starts the task, which lives as long as the monitor.
pub(super) fn start(home: Home, log: SharedLog) {
    tokio::spawn(async move {
        let mut told = None;
        loop {
            tokio::time::sleep(PERIOD).await;
            let home = home.clone();
            let Ok(trimmed) = tokio::task::spawn_blocking(move || engine::trim_cache(&home)).await else {
                continue;
            };
            let line = describe(trimmed);
            if line.is_some() && line != told {
                log.note(Source::Monitor, line.as_deref().unwrap_or_default());
            }
            told = line;
        }
    });
}

/// What of it belongs into the machine's log.
fn describe(trimmed: Result<Option<TrimReport>, Failure>) -> Option<String> {
    match trimmed {
        Ok(None) => None,
        Ok(Some(TrimReport { over, .. })) if over > 0 => Some(format!(
            "the block cache is over its limit by {}: running machines need what is in it",
            Human(over)
        )),
        Ok(Some(TrimReport { blocks: 0, .. })) => None,
        Ok(Some(TrimReport { blocks, bytes, .. })) => Some(format!(
            "the block cache was over its limit: {blocks} blocks removed, {}",
            Human(bytes)
        )),
        Err(failure) => Some(format!("the block cache can not be kept within its limit: {failure}")),
    }
}
