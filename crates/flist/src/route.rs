//! Routes: where the blocks of a flist live.
//!
//! A route covers an inclusive range of the first byte of block ids. Ranges may overlap (the block is in each of those
//! stores) and may leave gaps (such a block is not routable). The URL is kept as text: which schemes exist is not the
//! format's business. A URL may hold credentials, so it is data to be shown with care.

use crate::block::BlockId;

/// One store and the block ids that it has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Lowest first byte of an id.
    pub first: u8,
    /// Highest first byte of an id, inclusive; not below `first`.
    pub last: u8,
    /// URL of the store, as in the flist (`dir:///...`, `zdb://...`, `http://...`, ...).
    pub url: String,
}

impl Route {
    /// A route for all blocks.
    #[must_use]
    pub fn all(url: impl Into<String>) -> Route {
        Route {
            first: 0,
            last: u8::MAX,
            url: url.into(),
        }
    }
}

/// The routes of a flist in their stored order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteTable(pub Vec<Route>);

impl RouteTable {
    /// The routes that cover a block, in stored order; none means that the flist does not say where it is.
    pub fn for_block<'a>(&'a self, id: &BlockId) -> impl Iterator<Item = &'a Route> + use<'a> {
        let byte = id.0.as_bytes()[0];
        self.0
            .iter()
            .filter(move |route| (route.first..=route.last).contains(&byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Digest;

    fn id(byte: u8) -> BlockId {
        BlockId(Digest::from_bytes(&[byte; 32]).unwrap())
    }

    #[test]
    fn a_block_is_in_every_store_whose_range_has_its_first_byte() {
        let route = |first, last, url: &str| Route {
            first,
            last,
            url: url.into(),
        };
        let table = RouteTable(vec![
            route(0, 0x7f, "a"),
            route(0x10, 0x20, "b"),
            route(0x81, 0xff, "c"),
        ]);
        let urls = |byte| {
            table
                .for_block(&id(byte))
                .map(|route| route.url.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(urls(0x10), ["a", "b"]);
        assert_eq!(urls(0x21), ["a"]);
        assert!(urls(0x80).is_empty());
        assert_eq!(urls(0xff), ["c"]);
    }
}
