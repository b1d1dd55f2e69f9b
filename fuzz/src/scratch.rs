//! Scratch files of the targets, and what all of them ask of a flist.

use std::path::Path;

use zmachine_flist::Flist;

/// A folder that ends with the value.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder for temporary files")
}

/// Opens `bytes` as a flist.
pub(crate) fn open(bytes: &[u8]) -> Option<Flist> {
    let folder = folder();
    let path = folder.path().join("x");
    std::fs::write(&path, bytes).expect("a temporary file");
    open_file(&path)
}

/// Opens a file as a flist, which must be a tree then.
pub(crate) fn open_file(path: &Path) -> Option<Flist> {
    let flist = Flist::open(path).ok()?;
    assert_eq!(flist.tree.check(), Ok(()));
    Some(flist)
}

/// What was read or made once must be the same after it was written.
pub(crate) fn rewrite(flist: &Flist) {
    let folder = folder();
    let path = folder.path().join("x.fl");
    flist.write(&path).expect("what is a flist can be written");
    let again = Flist::open(&path).expect("what was written can be read");
    assert!(again == *flist, "what was written is not what was read");
}
