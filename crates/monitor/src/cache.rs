//! Keeping the block cache within its limit while machines fill it.
//!
//! Every monitor looks once a minute; the library sees to it that one of them does the work, of all homes of a cache. A cache can be over its
//! limit by what all machines fetch in that minute.

use std::path::PathBuf;
use std::time::Duration;

use zmachine_image::library::TrimReport;
use zmachine_spec::bytes::Human;
use zmachine_spec::{Failure, Home};
use zmachine_store::cache::trim_cache;
use zmachine_store::log::Source;

use super::output::SharedLog;

const PERIOD: Duration = Duration::from_secs(60);

/// Starts the task, which lives as long as the monitor.
pub(super) fn start(home: Home, log: SharedLog) {
    tokio::spawn(async move {
        let mut notified = None;
        loop {
            tokio::time::sleep(PERIOD).await;
            let home = home.clone();
            let Ok(trimmed) = tokio::task::spawn_blocking(move || trim_cache(&home)).await else {
                continue;
            };
            let line = describe(trimmed);
            if line.is_some() && line != notified {
                log.note(Source::Monitor, line.as_deref().unwrap_or_default());
            }
            notified = line;
        }
    });
}

/// What of it belongs into the machine's log.
fn describe(trimmed: Result<Option<TrimReport>, Failure>) -> Option<String> {
    let report = match trimmed {
        Ok(report) => report?,
        Err(failure) => return Some(format!("the block cache cannot be kept within its limit: {failure}")),
    };
    let mut reported = Vec::new();
    if report.over > 0 {
        reported.push(format!(
            "the block cache is over its limit by {}: running machines need what is in it",
            Human(report.over)
        ));
    } else if report.blocks > 0 {
        reported.push(format!(
            "the block cache was over its limit: {} blocks removed, {}",
            report.blocks,
            Human(report.bytes)
        ));
    }
    let gone = |home: &PathBuf| {
        format!(
            "the home {} is gone: the cache it shared has forgotten it",
            home.display()
        )
    };
    reported.extend(report.forgotten.iter().map(gone));
    (!reported.is_empty()).then(|| reported.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_says_what_was_removed_or_why_nothing_was_and_which_home_is_gone() {
        assert_eq!(describe(Ok(None)), None);
        assert_eq!(describe(Ok(Some(TrimReport::default()))), None);
        let report = TrimReport {
            blocks: 3,
            bytes: 4096,
            forgotten: vec!["/srv/old".into()],
            ..TrimReport::default()
        };
        let reported = describe(Ok(Some(report))).unwrap();
        assert!(
            reported.contains("3 blocks removed") && reported.contains("/srv/old is gone"),
            "{reported}"
        );
        let failure = Failure::new(zmachine_spec::Class::Failed, "the home /srv/b cannot be read");
        assert!(describe(Err(failure)).unwrap().contains("/srv/b"));
    }
}
