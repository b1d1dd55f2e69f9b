//! Looking up paths: as they are ([`Tree::lookup`]), and as a kernel inside of the image would ([`Tree::resolve`]).

use super::{NodeId, NodeKind, Tree, show};

/// Symbolic links followed in one resolution before it counts as a loop (as Linux does).
const LINK_LIMIT: usize = 40;

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A component does not exist.
    #[error("{path:?} does not exist in the image")]
    NotFound {
        /// The path asked for.
        path: String,
    },
    /// A component in the middle, or the last one before a final slash, is no directory.
    #[error("{path:?} goes through something that is not a directory")]
    NotADirectory {
        /// The path asked for.
        path: String,
    },
    /// More than 40 symbolic links.
    #[error("{path:?} goes through too many symbolic links")]
    Loop {
        /// The path asked for.
        path: String,
    },
}

/// The components of a path, without empty ones.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

/// The inner outcome, to which the path asked for is added at the end.
enum Failure {
    NotFound,
    NotADirectory,
    Loop,
}

impl Tree {
    /// The node at a path from the root, without following any symbolic link and without `.` and `..`.
    #[must_use]
    pub fn lookup(&self, path: &[u8]) -> Option<NodeId> {
        components(path).try_fold(NodeId::ROOT, |directory, name| self.child(directory, name))
    }

    /// The node at a path, following every symbolic link **inside of the tree**: an absolute target starts at the root of
    /// the tree and `..` of the root is the root, so nothing leads out (as with `RESOLVE_IN_ROOT`).
    pub fn resolve(&self, path: &[u8]) -> Result<NodeId, ResolveError> {
        self.walk_path(path, true).map_err(|failure| named(failure, path))
    }

    /// As [`Tree::resolve`], but a link as last component is the result itself (as `lstat` does).
    pub fn resolve_no_follow(&self, path: &[u8]) -> Result<NodeId, ResolveError> {
        self.walk_path(path, false).map_err(|failure| named(failure, path))
    }

    fn walk_path(&self, path: &[u8], follow_last: bool) -> Result<NodeId, Failure> {
        // `todo` holds the components still to go, the next one last; `trail` the directories from the root to here.
        let mut todo: Vec<&[u8]> = with_final_slash(path);
        let mut trail = vec![NodeId::ROOT];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let here = *trail.last().unwrap_or(&NodeId::ROOT);
            if self.get(here).entries().is_none() {
                return Err(Failure::NotADirectory);
            }
            match name {
                b"." => continue,
                b".." => {
                    if trail.len() > 1 {
                        trail.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let id = self.child(here, name).ok_or(Failure::NotFound)?;
            match &self.get(id).kind {
                NodeKind::Symlink(target) if follow_last || !todo.is_empty() => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(Failure::Loop);
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    todo.extend(with_final_slash(target));
                }
                _ => trail.push(id),
            }
        }
        Ok(*trail.last().unwrap_or(&NodeId::ROOT))
    }
}

/// The components of a path in reverse. A final slash asks for a directory, which a last `.` says as well.
fn with_final_slash(path: &[u8]) -> Vec<&[u8]> {
    let last = path.ends_with(b"/").then_some(&b"."[..]);
    last.into_iter().chain(components(path).rev()).collect()
}

fn named(failure: Failure, path: &[u8]) -> ResolveError {
    let path = show(path);
    match failure {
        Failure::NotFound => ResolveError::NotFound { path },
        Failure::NotADirectory => ResolveError::NotADirectory { path },
        Failure::Loop => ResolveError::Loop { path },
    }
}
