//! Progress bars on stderr, when it is a terminal and the work takes over a second. The layers of an image have one each, and a line each
//! where there is no terminal.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{
    HumanBytes, HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use zmachine_image::Progress;

/// Work shorter than this shows no bar.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A bar for one step after the other.
pub(crate) struct Bars {
    step: Mutex<Option<(ProgressBar, Instant)>>,
    parts: Mutex<Parts>,
    is_bytes: bool,
    /// Asked once: a bar advances for every block.
    has_terminal: bool,
}

/// The layers that come at once.
#[derive(Default)]
struct Parts {
    all: MultiProgress,
    bars: BTreeMap<usize, Part>,
}

struct Part {
    name: String,
    total: u64,
    bar: ProgressBar,
}

impl Bars {
    /// Bars for work that is counted in bytes.
    pub(crate) fn bytes() -> Bars {
        Bars {
            step: Mutex::new(None),
            parts: Mutex::default(),
            is_bytes: true,
            has_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Bars for work that is counted in pieces.
    pub(crate) fn pieces() -> Bars {
        Bars {
            step: Mutex::new(None),
            parts: Mutex::default(),
            is_bytes: false,
            has_terminal: std::io::stderr().is_terminal(),
        }
    }

    fn style(&self, has_total: bool) -> ProgressStyle {
        let template = match (self.is_bytes, has_total) {
            (true, true) => "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {left} left",
            (true, false) => "{msg} {spinner} {bytes}, {bytes_per_sec}",
            (false, true) => "{msg} {wide_bar} {human_pos} of {human_len}, {rate}, {left} left",
            (false, false) => "{msg} {spinner} {human_pos}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        style
            .with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
                let _ = write!(out, "{}/s", HumanCount(state.per_sec().round() as u64));
            })
            .with_key("left", |state: &ProgressState, out: &mut dyn fmt::Write| {
                let _ = write!(out, "{:#}", HumanDuration(state.eta()));
            })
    }

    fn with_parts<T>(&self, f: impl FnOnce(&mut Parts) -> T) -> T {
        f(&mut self.parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Option<(ProgressBar, Instant)>) -> T) -> T {
        f(&mut self.step.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Progress for Bars {
    fn begin(&self, total: Option<u64>, what: &str) {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        bar.set_style(self.style(total.is_some()));
        bar.set_message(what.to_owned());
        self.with(|step| {
            if let Some((old, _)) = step.replace((bar, Instant::now())) {
                old.finish_and_clear();
            }
        });
    }

    fn advance(&self, amount: u64) {
        self.with(|step| {
            let Some((bar, since)) = step else { return };
            bar.inc(amount);
            let has_parts = self.with_parts(|parts| !parts.bars.is_empty());
            if self.has_terminal && !has_parts && bar.is_hidden() && since.elapsed() >= TIMEOUT {
                bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(8));
            }
        });
    }

    fn message(&self, text: &str) {
        self.with_parts(|parts| parts.all.suspend(|| eprintln!("{text}")));
    }

    fn begin_part(&self, part: usize, total: u64, what: &str) {
        self.with_parts(|parts| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
            if self.has_terminal {
                // Hidden by itself where stderr is no terminal.
                parts.all.add(bar.clone());
            }
            bar.set_style(self.style(true));
            bar.set_message(what.to_owned());
            let name = what.to_owned();
            parts.bars.insert(part, Part { name, total, bar });
        });
    }

    fn advance_part(&self, part: usize, amount: u64) {
        self.with_parts(|parts| {
            if let Some(Part { bar, .. }) = parts.bars.get(&part) {
                bar.inc(amount);
            }
        });
    }

    fn end_part(&self, part: usize, how: &str) {
        self.with_parts(|parts| {
            let Some(Part { name, total, bar }) = parts.bars.get(&part) else {
                return;
            };
            let output = format!("{name} {how}, {}", HumanBytes(*total));
            if self.has_terminal {
                bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.finish_with_message(output);
            } else {
                eprintln!("{output}");
            }
        });
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.with(|step| {
            if let Some((bar, _)) = step.take() {
                bar.finish_and_clear();
            }
        });
    }
}
