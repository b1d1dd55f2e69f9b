//! What tests with real guests stand on: the built programs, a private home that must leave no trace, small file trees.
//!
//! ```no_run
//! use zmachine_testkit::{TestHome, Tree};
//!
//! let home = TestHome::new();
//! let image = Tree::busybox(&home).pack(&home, "box");
//! let run = home.zmachine(["run", "--rm", &image, "echo", "hello"]).finish();
//! assert_eq!(run.expect_success().stdout(), "hello\n");
//! // Dropped here: machines removed, then no process, mount, interface, rule, lease or socket may be left.
//! ```
//!
//! Invariants: guests run one after another, across all test programs of a checkout ([`TestHome`] holds a lock); every
//! command has a deadline; a home's networks are in a network namespace of its own, without a way out; what a test lacks
//! is printed ([`skip`]). It starts the programs that `make build` made and never builds any, so it fails with that hint
//! when they are missing or older than their sources. Imports no other crate of the project: tests see what users see.

mod artifacts;
mod certificate;
mod command;
mod home;
mod leftovers;
mod mutate;
mod needs;
mod netns;
mod server;
mod terminal;
mod tree;
mod vm;

pub use artifacts::{Artifacts, artifacts, is_static};
pub use certificate::certificate;
pub use command::{Finished, Invocation};
pub use home::TestHome;
pub use mutate::Mutator;
pub use needs::{Lack, Need, command_path, lacking, skip, test_kernel};
pub use netns::NetworkNamespace;
pub use server::{Server, debian_program};
pub use terminal::Terminal;
pub use tree::Tree;
pub use vm::VmImage;
