//! The places of connections: there are so many at a time.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A connection's place among all. It goes with a request, for whoever takes the connection over: it counts until that has ended.
#[derive(Clone)]
pub struct Place(#[allow(dead_code)] Arc<dyn Any + Send + Sync>);

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

impl Place {
    /// One that is taken for as long as `held` is there.
    pub fn taken(held: impl Any + Send + Sync) -> Place {
        Place(Arc::new(held))
    }
}
