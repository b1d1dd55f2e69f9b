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

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// A bar for one step after the other.
pub struct Bars {
    step: Mutex<Option<(ProgressBar, Instant)>>,
    parts: Mutex<Parts>,
    waits: Mutex<Waits>,
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

/// What is waited for.
#[derive(Default)]
struct Waits {
    spinner: Option<ProgressBar>,
    /// What was waited for is there: nothing is drawn any more.
    is_over: bool,
}

impl Bars {
    /// Bars for work that is counted in bytes.
    pub fn bytes() -> Bars {
        Bars {
            step: Mutex::new(None),
            parts: Mutex::default(),
            waits: Mutex::default(),
            is_bytes: true,
            has_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Bars for work that is counted in pieces.
    pub fn pieces() -> Bars {
        Bars {
            step: Mutex::new(None),
            parts: Mutex::default(),
            waits: Mutex::default(),
            is_bytes: false,
            has_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Takes everything away that is drawn, and draws nothing more: somebody else writes to the terminal now.
    pub fn end(&self) {
        self.with_waits(|waits| {
            waits.is_over = true;
            waits.clear();
        });
        self.with(|step| {
            if let Some((bar, _)) = step.take() {
                bar.finish_and_clear();
            }
        });
    }

    fn with_waits<T>(&self, f: impl FnOnce(&mut Waits) -> T) -> T {
        f(&mut self.waits.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
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

impl Waits {
    fn clear(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn begin(&self, total: Option<u64>, what: &str) {
        self.with_waits(Waits::clear);
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

    fn waiting(&self, what: &str) {
        // Of a dumb terminal nothing can be taken away again.
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        self.with(|step| {
            if let Some((bar, _)) = step.take() {
                bar.finish_and_clear();
            }
        });
        self.with_waits(|waits| {
            if waits.is_over || !self.has_terminal || is_dumb {
                return;
            }
            let spinner = waits.spinner.get_or_insert_with(|| {
                let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
                let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
                spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
                spinner.enable_steady_tick(TICK);
                spinner
            });
            spinner.set_message(what.to_owned());
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
        self.end();
    }
}
