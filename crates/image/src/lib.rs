//! From a reference to a verified local image.
//!
//! | module | owns |
//! |---|---|
//! | [`mod@reference`] | what a user writes: path, URL, name, image of a registry or another engine |
//! | [`library`] | `images/` of a home: resolving, naming, listing and removing images |
//! | [`facts`] | what an image is: its kind, what it starts, its sizes |
//! | [`fetch`] | blocks: cache first, then the stores of the flist's routes |
//! | [`lazy`] | blocks that are still inside layers of a registry |
//! | [`cache`] | `blocks/` of a home: verified plaintext blocks |
//! | `claim` | one download of a block at a time, among all processes |
//! | `reader` | a file of an image, read at any place |
//! | [`store`] | block stores: directories, web servers, 0-db, S3 |
//! | [`progress`] | how long operations report |
//!
//! Everything blocks the calling thread: the users are the threads of the vhost-user server, the packer and the command
//! line. A caller on an async runtime wraps a call in its `spawn_blocking`.
//!
//! The crate reads no environment and no home directory: paths, URLs and limits come in as arguments.

pub mod cache;
mod claim;
pub mod facts;
pub mod fetch;
pub mod lazy;
pub mod library;
pub mod pace;
pub mod progress;
mod reader;
pub mod reference;
pub mod store;

pub use cache::{BlockCache, CacheError};
pub use facts::{ImageFacts, ImageKind, Mode};
pub use fetch::{FetchError, FetchOptions, Fetched, Fetcher};
pub use library::{Image, Library, PullPolicy, ResolveError};
pub use progress::{Progress, Silent};
pub use reader::FileReader;
pub use reference::{ImageName, ImageSource, Reference};
pub use store::{BlockStore, StoreError, Timeouts, open_store};
