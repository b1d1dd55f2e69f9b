//! Every block of every route: whether each store that should have a block has it, and has it right.
//!
//! A fetch is content with one good replica; this asks all of them. A store that cannot be reached is asked for
//! `TIMEOUT` blocks and then counted as a whole, so a dead server does not cost its time-out per block.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde::Serialize;
use zmachine_flist::{BlockRef, Flist};
use zmachine_image::progress::Progress;
use zmachine_image::store::{BlockStore, StoreError, Timeouts, open_store, redact};

use crate::pack::{PackError, thread_pool};

/// Threads that read; a store's answer time is what they hide.
const THREADS: usize = 8;

/// Blocks that a store may fail to answer for before it is given up.
const TIMEOUT: usize = 3;

/// The most bad blocks that are listed; all are counted.
const LISTED: usize = 1000;

/// A block that is not where it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadBlock {
    /// The store, without credentials; empty when no route leads to the block.
    pub store: String,
    /// The block id.
    pub block: String,
    /// A file that needs it.
    pub file: String,
    /// What is wrong.
    pub problem: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct VerifyReport {
    /// Different blocks of the flist.
    pub blocks: u64,
    /// Blocks read and found right, each store counted.
    pub good: u64,
    /// Blocks that are missing, wrong or unreachable, each store counted.
    pub bad: u64,
    /// The first 1000 of them.
    pub list: Vec<BadBlock>,
    /// Stores that could not be used at all, with the reason.
    pub dead_stores: Vec<(String, String)>,
}

/// A store with how often it failed to answer.
struct Source {
    url: String,
    store: Result<Box<dyn BlockStore>, String>,
    silent: AtomicUsize,
    last: Mutex<String>,
}

/// Reads every block from every store that should have it; `stores` replaces the routes of the flist.
///
/// # Errors
/// When the threads cannot be started. What is wrong with blocks is in the report.
pub fn verify(
    flist: &Flist,
    stores: &[String],
    timeouts: Timeouts,
    progress: &dyn Progress,
) -> Result<VerifyReport, PackError> {
    let blocks = flist.tree.unique_blocks();
    let urls = |block: &BlockRef| -> Vec<&str> {
        if stores.is_empty() {
            flist
                .routes
                .for_block(&block.id)
                .map(|route| route.url.as_str())
                .collect()
        } else {
            stores.iter().map(String::as_str).collect()
        }
    };
    let all = flist.routes.0.iter().map(|route| &route.url).chain(stores);
    let sources: HashMap<&str, Source> = all.map(|url| (url.as_str(), Source::open(url, timeouts))).collect();
    let checks: Vec<(&BlockRef, Option<&Source>)> = blocks
        .iter()
        .flat_map(|block| {
            let urls = urls(block);
            let places: Vec<_> = match urls.is_empty() {
                true => vec![(block, None)],
                false => urls.into_iter().map(|url| (block, sources.get(url))).collect(),
            };
            places
        })
        .collect();
    progress.begin(
        Some(checks.iter().map(|(block, _)| u64::from(block.len)).sum()),
        "verifying",
    );
    let (good, bad, list) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(Vec::new()));
    let each = |(block, source): &(&BlockRef, Option<&Source>)| {
        let problem = match source {
            None => Some("no route of the flist leads to it".to_owned()),
            Some(source) => source.check(block),
        };
        progress.advance(u64::from(block.len));
        let Some(problem) = problem else {
            good.fetch_add(1, Relaxed);
            return;
        };
        bad.fetch_add(1, Relaxed);
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() < LISTED {
            list.push((
                **block,
                source.map_or_else(String::new, |source| redact(&source.url)),
                problem,
            ));
        }
    };
    thread_pool(THREADS)?.install(|| checks.par_iter().for_each(each));
    let list = list.into_inner().unwrap_or_else(PoisonError::into_inner);
    let dead_stores = sources.values().filter_map(Source::dead);
    let mut report = VerifyReport {
        blocks: blocks.len() as u64,
        good: good.into_inner(),
        bad: bad.into_inner(),
        list: named(flist, list),
        dead_stores: dead_stores.collect(),
    };
    report.dead_stores.sort();
    Ok(report)
}

/// Adds to each bad block a file that has it, in one walk.
fn named(flist: &Flist, bad: Vec<(BlockRef, String, String)>) -> Vec<BadBlock> {
    let mut files: HashMap<BlockRef, Option<String>> = bad.iter().map(|(block, ..)| (*block, None)).collect();
    for (path, id) in flist.tree.walk() {
        for block in flist.tree.get(id).content().map_or(&[][..], |(_, blocks)| blocks) {
            if let Some(file @ None) = files.get_mut(block) {
                *file = Some(format!("/{}", String::from_utf8_lossy(&path)));
            }
        }
    }
    let mut list: Vec<BadBlock> = bad
        .into_iter()
        .map(|(block, store, problem)| BadBlock {
            store,
            block: block.id.to_string(),
            file: files.get(&block).cloned().flatten().unwrap_or_default(),
            problem,
        })
        .collect();
    list.sort_by(|a, b| (&a.file, &a.block, &a.store).cmp(&(&b.file, &b.block, &b.store)));
    list
}

impl Source {
    fn open(url: &str, timeouts: Timeouts) -> Source {
        Source {
            url: url.to_owned(),
            store: open_store(url, timeouts).map_err(|error| error.to_string()),
            silent: AtomicUsize::new(0),
            last: Mutex::default(),
        }
    }

    /// What is wrong with the block in this store.
    fn check(&self, block: &BlockRef) -> Option<String> {
        let store = match &self.store {
            Ok(store) => store,
            Err(problem) => return Some(problem.clone()),
        };
        if self.silent.load(Relaxed) >= TIMEOUT {
            return Some("the store could not be reached".to_owned());
        }
        let mut answer = store.get(&block.id);
        if answer.as_ref().is_err_and(StoreError::is_transient) {
            answer = store.get(&block.id);
        }
        match answer {
            Ok(sealed) => block.open(&sealed).err().map(|error| error.to_string()),
            // What the flist itself says to be zeros need be nowhere.
            Err(error) if error.may_mean_missing() && block.is_zeros() => None,
            Err(error) => {
                if error.is_transient() {
                    self.silent.fetch_add(1, Relaxed);
                    *self.last.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
                }
                Some(error.to_string())
            }
        }
    }

    fn dead(&self) -> Option<(String, String)> {
        let reason = match &self.store {
            Err(problem) => problem.clone(),
            Ok(_) if self.silent.load(Relaxed) >= TIMEOUT => {
                self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
            }
            Ok(_) => return None,
        };
        Some((redact(&self.url), reason))
    }
}
