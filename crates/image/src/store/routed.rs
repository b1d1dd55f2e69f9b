//! Several stores behind one: every block goes to each store whose range of ids has it.
//!
//! A write that fails for a reason that may pass is tried again with growing pauses; the first store that keeps
//! failing fails the block. Every range has at least one store, which [`RoutedStore::open`] checks.

use std::path::Path;
use std::time::Duration;

use zmachine_flist::{BlockId, Route};

use super::url::without_credentials;
use super::{BlockStore, StoreError, Timeouts, open_store, redact};

/// Pauses before each further try of a write.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(8),
];

/// The stores of a pack.
pub struct RoutedStore {
    stores: Vec<(Route, Box<dyn BlockStore>)>,
}

impl RoutedStore {
    /// Opens the stores of `specs`, each `URL` or `XX-XX=URL` with an inclusive range of the first byte of block ids in
    /// hexadecimal digits.
    ///
    /// # Errors
    /// As [`open_store`]; [`StoreError::Malformed`] for a bad range, or when some blocks would have no store.
    pub fn open(specs: &[String], timeouts: Timeouts) -> Result<RoutedStore, StoreError> {
        let mut stores = Vec::new();
        for spec in specs {
            let route = parse(spec)?;
            let store = open_store(&route.url, timeouts)?;
            stores.push((route, store));
        }
        let uncovered = (0..=u8::MAX).find(|byte| !stores.iter().any(|(route, _)| covers(route, *byte)));
        if let Some(byte) = uncovered {
            return Err(StoreError::Malformed {
                url: specs.iter().map(|spec| redact(spec)).collect::<Vec<_>>().join(" "),
                what: format!("blocks whose id begins with {byte:02x} have no store"),
            });
        }
        Ok(RoutedStore { stores })
    }

    /// The routes for the flist. `keep_credentials`: readers will see them.
    pub fn routes(&self, keep_credentials: bool) -> Vec<Route> {
        let route = |route: &Route| Route {
            url: match keep_credentials {
                true => route.url.clone(),
                false => without_credentials(&route.url),
            },
            ..route.clone()
        };
        self.stores.iter().map(|(r, _)| route(r)).collect()
    }

    fn of<'a>(&'a self, id: &BlockId) -> impl Iterator<Item = &'a dyn BlockStore> + use<'a> {
        let byte = id.0.as_bytes()[0];
        let stores = self.stores.iter().filter(move |(route, _)| covers(route, byte));
        stores.map(|(_, store)| store.as_ref())
    }
}

fn covers(route: &Route, byte: u8) -> bool {
    (route.first..=route.last).contains(&byte)
}

/// `[XX-XX=]URL`.
fn parse(spec: &str) -> Result<Route, StoreError> {
    let is_range = |text: &str| {
        let bytes = text.as_bytes();
        bytes.len() == 5 && bytes[2] == b'-' && bytes.iter().enumerate().all(|(at, b)| at == 2 || b.is_ascii_hexdigit())
    };
    let Some((range, url)) = spec.split_once('=').filter(|(range, _)| is_range(range)) else {
        return Ok(Route::all(spec));
    };
    let byte = |text| u8::from_str_radix(text, 16).unwrap_or_default();
    let (first, last) = (byte(&range[..2]), byte(&range[3..]));
    if first > last {
        return Err(StoreError::Malformed {
            url: redact(url),
            what: format!("its range {range} is empty"),
        });
    }
    Ok(Route {
        first,
        last,
        url: url.to_owned(),
    })
}

/// Tries again what failed for a reason that may pass.
fn persistently<T>(mut attempt: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    for pause in PAUSES {
        match attempt() {
            Err(error) if error.is_transient() => std::thread::sleep(pause),
            other => return other,
        }
    }
    attempt()
}

impl BlockStore for RoutedStore {
    fn get(&self, id: &BlockId) -> Result<Vec<u8>, StoreError> {
        let mut failure = StoreError::NotFound {
            store: self.describe(),
            id: id.to_string(),
        };
        for store in self.of(id) {
            match store.get(id) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn has(&self, id: &BlockId) -> Result<bool, StoreError> {
        for store in self.of(id) {
            if !persistently(|| store.has(id))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn holds(&self, id: &BlockId) -> Result<bool, StoreError> {
        for store in self.of(id) {
            if !persistently(|| store.holds(id))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn put(&self, id: &BlockId, sealed: &[u8]) -> Result<bool, StoreError> {
        let mut new = false;
        for store in self.of(id) {
            new |= persistently(|| store.put(id, sealed))?;
        }
        Ok(new)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.stores.iter().try_for_each(|(_, store)| store.flush())
    }

    fn describe(&self) -> String {
        let each: Vec<String> = self.stores.iter().map(|(_, store)| store.describe()).collect();
        each.join(", ")
    }

    fn local_directories(&self) -> Vec<&Path> {
        self.stores
            .iter()
            .flat_map(|(_, store)| store.local_directories())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zmachine_flist::BlockRef;

    fn open(specs: &[&str]) -> Result<RoutedStore, StoreError> {
        let specs: Vec<String> = specs.iter().map(|spec| (*spec).to_owned()).collect();
        RoutedStore::open(&specs, Timeouts::default())
    }

    #[test]
    fn a_block_goes_to_every_store_whose_range_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("dir://{}", dir.path().join(name).display());
        let (low, high, all) = (
            format!("00-7f={}", url("low")),
            format!("80-ff={}", url("high")),
            url("all"),
        );
        let store = open(&[&low, &high, &all]).unwrap();
        for number in 0..20u8 {
            let (block, sealed) = BlockRef::seal(&[number]);
            assert!(store.put(&block.id, &sealed).unwrap());
            assert!(store.has(&block.id).unwrap() && !store.put(&block.id, &sealed).unwrap());
            assert_eq!(store.get(&block.id).unwrap(), sealed);
            let is_low = block.id.0.as_bytes()[0] < 0x80;
            let has = |name| open(&[&url(name)]).unwrap().has(&block.id).unwrap();
            assert_eq!((has("low"), has("high"), has("all")), (is_low, !is_low, true));
        }
    }

    #[test]
    fn a_gap_or_an_empty_range_is_refused() {
        for specs in [&["00-7f=dir:///a"][..], &["80-7f=dir:///a", "dir:///b"], &[]] {
            assert!(open(specs).is_err(), "{specs:?}");
        }
    }

    #[test]
    fn routes_have_no_credentials_unless_asked_for() {
        let store = open(&["s3://k:s@h:1/b?region=eu", "zdb://u:p@h/n"]).unwrap();
        let urls = |keep| {
            store
                .routes(keep)
                .into_iter()
                .map(|route| route.url)
                .collect::<Vec<_>>()
        };
        assert_eq!(urls(false), ["s3://h:1/b?region=eu", "zdb://h/n"]);
        assert_eq!(urls(true), ["s3://k:s@h:1/b?region=eu", "zdb://u:p@h/n"]);
    }
}
