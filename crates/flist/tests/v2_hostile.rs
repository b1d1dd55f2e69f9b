//! Format 2 files that are broken on purpose: each is refused with an error that names the file and the thing.

use std::path::Path;

use crate::support::fixture;
use rusqlite::Connection;
use zmachine_flist::{Flist, OpenError};

/// The whole text of an error with its sources.
fn text(error: &dyn std::error::Error) -> String {
    let source = error
        .source()
        .map_or(String::new(), |source| format!(": {}", text(source)));
    format!("{error}{source}")
}

/// What opening `kinds.fl` says after `sql` was run on it.
fn refusal(sql: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hostile.fl");
    std::fs::copy(fixture("kinds.fl"), &path).unwrap();
    let db = Connection::open(&path).unwrap();
    db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    drop(db);
    match Flist::open(&path) {
        Ok(_) => panic!("accepted after {sql}"),
        Err(error) => {
            let text = text(&error);
            assert!(text.contains("hostile.fl"), "{sql}: {text}");
            text
        }
    }
}

#[test]
fn every_impossible_row_is_refused_by_name() {
    let mut wrong = Vec::new();
    for (sql, expected) in [
        // The shape of the tree.
        ("DELETE FROM inode WHERE ino = 1", "not the root"),
        ("DELETE FROM inode", "its inode does not exist"),
        (
            "DELETE FROM inode; DELETE FROM extra; DELETE FROM block",
            "not the root",
        ),
        (
            "UPDATE inode SET name = 'x' WHERE ino = 1",
            "row 1: the first inode is not the root",
        ),
        (
            "UPDATE inode SET mode = 33188 WHERE ino = 1; DELETE FROM inode WHERE ino > 1; DELETE FROM extra; DELETE FROM block",
            "row 1: it has 0 blocks instead of 1",
        ),
        (
            "UPDATE inode SET mode = 33188, size = 0 WHERE ino = 1",
            "its parent is not a directory",
        ),
        ("UPDATE inode SET ino = -5 WHERE ino = 49", "row -5"),
        (
            "UPDATE inode SET parent = 4711 WHERE ino = 24",
            "row 24: its parent does not exist",
        ),
        (
            "UPDATE inode SET parent = 0 WHERE ino = 24",
            "row 24: its parent does not exist",
        ),
        (
            "UPDATE inode SET parent = 26 WHERE ino = 24",
            "row 24: its parent is not a directory",
        ),
        (
            "UPDATE inode SET parent = 47 WHERE ino = 40",
            "cannot be reached from the root",
        ),
        (
            "UPDATE inode SET parent = ino WHERE ino = 38",
            "row 38: it cannot be reached",
        ),
        (
            "UPDATE inode SET name = 'hello.txt' WHERE ino = 21",
            "\"hello.txt\" exists twice",
        ),
        // Names.
        ("UPDATE inode SET name = '../x' WHERE ino = 24", "\"../x\""),
        ("UPDATE inode SET name = '/etc' WHERE ino = 24", "\"/etc\""),
        ("UPDATE inode SET name = '..' WHERE ino = 24", "\"..\""),
        ("UPDATE inode SET name = '.' WHERE ino = 24", "\".\""),
        ("UPDATE inode SET name = '' WHERE ino = 24", "is not a file name"),
        (
            "UPDATE inode SET name = CAST(x'610062' AS TEXT) WHERE ino = 24",
            "a\\\\x00b",
        ),
        (
            "UPDATE inode SET name = printf('%.300c', 'n') WHERE ino = 24",
            "has 300 bytes",
        ),
        (
            "UPDATE inode SET name = x'61' WHERE ino = 24",
            "name is Blob instead of text",
        ),
        (
            "UPDATE inode SET name = NULL WHERE ino = 24",
            "name is Null instead of text",
        ),
        // Numbers.
        (
            "UPDATE inode SET uid = -1 WHERE ino = 24",
            "row 24: uid -1 is out of range",
        ),
        (
            "UPDATE inode SET gid = 4294967296 WHERE ino = 24",
            "gid 4294967296 is out of range",
        ),
        (
            "UPDATE inode SET mtime = 'soon' WHERE ino = 24",
            "mtime is Text instead of a number",
        ),
        (
            "UPDATE inode SET ctime = 1.5 WHERE ino = 24",
            "ctime is Real instead of a number",
        ),
        (
            "UPDATE inode SET rdev = NULL WHERE ino = 7",
            "rdev is Null instead of a number",
        ),
        ("UPDATE inode SET mode = 420 WHERE ino = 24", "mode 644 is no file type"),
        ("UPDATE inode SET mode = 33188 + 65536 WHERE ino = 24", "out of range"),
        // Content.
        (
            "UPDATE inode SET size = 9223372036854775807 WHERE ino = 24",
            "row 24: it has 1 blocks instead of 17592186044416",
        ),
        ("UPDATE inode SET size = -1 WHERE ino = 24", "size -1 is out of range"),
        (
            "UPDATE inode SET size = 0 WHERE ino = 24",
            "it has 1 blocks instead of 0",
        ),
        ("DELETE FROM block WHERE ino = 24", "it has 0 blocks instead of 1"),
        (
            "INSERT INTO block SELECT ino, id, key FROM block WHERE ino = 24",
            "it has 2 blocks instead of 1",
        ),
        (
            "UPDATE block SET id = x'00' WHERE ino = 24",
            "id has 1 bytes instead of 32",
        ),
        (
            "UPDATE block SET key = zeroblob(16) WHERE ino = 24",
            "key has 16 bytes instead of 32",
        ),
        (
            "UPDATE block SET id = hex(zeroblob(16)) WHERE ino = 24",
            "id is Text instead of a blob",
        ),
        (
            "UPDATE block SET ino = 38 WHERE ino = 24",
            "its inode is not a regular file",
        ),
        ("UPDATE block SET ino = 4711 WHERE ino = 24", "its inode does not exist"),
        (
            "UPDATE block SET ino = NULL WHERE ino = 24",
            "ino is Null instead of a number",
        ),
        (
            "UPDATE inode SET mode = 40960 + 511 WHERE ino = 24",
            "its inode is not a regular file",
        ),
        // Links.
        (
            "DELETE FROM extra WHERE ino = 34",
            "\"link-rel\" has no usable link target",
        ),
        (
            "UPDATE extra SET data = x'' WHERE ino = 34",
            "\"link-rel\" has no usable link target",
        ),
        (
            "UPDATE extra SET data = x'6100' WHERE ino = 34",
            "\"link-rel\" has no usable link target",
        ),
        ("UPDATE extra SET data = zeroblob(5000) WHERE ino = 34", "(5000 bytes)"),
        ("UPDATE extra SET data = zeroblob(2000000) WHERE ino = 34", "too big"),
        (
            "INSERT INTO extra VALUES (24, x'61')",
            "its inode is not a symbolic link",
        ),
        ("INSERT INTO extra VALUES (4711, x'61')", "its inode does not exist"),
        // Routes and tags.
        ("INSERT INTO route VALUES (5, 4, 'dir:///x')", "its range 5-4 is empty"),
        (
            "INSERT INTO route VALUES (0, 256, 'dir:///x')",
            "end 256 is out of range",
        ),
        ("INSERT INTO route VALUES (0, 255, NULL)", "url is Null"),
        ("INSERT INTO tag VALUES (NULL, 'x')", "key is Null"),
        // The table of raw names.
        (
            "CREATE TABLE name_bytes (ino INTEGER PRIMARY KEY, name BLOB); INSERT INTO name_bytes VALUES (24, x'6162')",
            "is not that of",
        ),
        (
            "CREATE TABLE name_bytes (ino INTEGER PRIMARY KEY, name BLOB); INSERT INTO name_bytes VALUES (4711, x'61')",
            "its inode does not exist",
        ),
    ] {
        let found = refusal(sql);
        if !found.contains(expected) {
            wrong.push(format!("{sql}\n  says:   {found}\n  wanted: {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tables_that_are_missing_or_something_else_are_refused() {
    for table in ["inode", "extra", "block", "tag", "route"] {
        assert!(refusal(&format!("DROP TABLE {table}")).contains(&format!("no table {table}")));
    }
    let mut wrong = Vec::new();
    for (sql, expected) in [
        ("ALTER TABLE inode DROP COLUMN rdev", "no column rdev"),
        (
            "ALTER TABLE block RENAME TO b; CREATE VIEW block AS SELECT * FROM b",
            "not an ordinary table",
        ),
        (
            "DROP TABLE block; CREATE TABLE block (ino, id, key, rowid)",
            "not an ordinary column",
        ),
        (
            "ALTER TABLE tag ADD COLUMN x AS (zeroblob(1000000))",
            "not an ordinary column",
        ),
        (
            "DROP TABLE extra; CREATE VIRTUAL TABLE extra USING fts5(ino, data)",
            "not an ordinary table",
        ),
        (
            "DROP TABLE extra; CREATE TABLE extra (ino INTEGER PRIMARY KEY, data BLOB) WITHOUT ROWID",
            "extra",
        ),
        (
            "CREATE TABLE i AS SELECT * FROM inode; DROP TABLE inode; ALTER TABLE i RENAME TO inode; UPDATE inode SET ino = 7",
            "ino is not the key of its row",
        ),
    ] {
        let found = refusal(sql);
        if !found.contains(expected) {
            wrong.push(format!("{sql}\n  says:   {found}\n  wanted: {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_path_deeper_than_linux_can_name_is_refused() {
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
        INSERT INTO inode SELECT i, CASE i WHEN 1000 THEN 1 ELSE i - 1 END, 'd', 4096, 0, 0, 16877, 0, 0, 0 FROM n";
    assert!(refusal(sql).contains("more than 4095 bytes"));
}

#[test]
fn files_that_are_no_flist_are_refused_by_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.fl");
    let open = |path: &Path| text(&Flist::open(path).unwrap_err());
    assert!(open(&path).contains("x.fl: No such file"));
    assert!(open(directory.path()).contains("not a regular file"));
    for (content, expected) in [
        (&b""[..], "not a SQLite database"),
        (b"SQLite format 3\0", "not a SQLite database"),
        (b"\x1f\x8b\x08\0\0", "broken (unexpected end of file)"),
        (&[7; 5000], "not a SQLite database"),
    ] {
        std::fs::write(&path, content).unwrap();
        assert!(open(&path).contains(expected), "{}", open(&path));
    }
    std::fs::remove_file(&path).unwrap();
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE other (x)")
        .unwrap();
    assert!(open(&path).contains("no table inode"));
}

#[test]
fn a_file_beside_an_unfinished_journal_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.fl");
    std::fs::copy(fixture("kinds.fl"), &path).unwrap();
    for suffix in ["-journal", "-wal"] {
        let journal = directory.path().join(format!("x.fl{suffix}"));
        std::fs::write(&journal, "").unwrap();
        assert!(Flist::open(&path).is_ok(), "an empty journal says nothing");
        std::fs::write(&journal, "half").unwrap();
        assert!(matches!(Flist::open(&path), Err(OpenError::Unfinished { .. })));
        std::fs::remove_file(&journal).unwrap();
    }
}

#[test]
fn a_file_that_was_cut_anywhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (path, whole) = (
        directory.path().join("x.fl"),
        std::fs::read(fixture("kinds.fl")).unwrap(),
    );
    for len in (0..whole.len()).step_by(509).chain([whole.len() - 1]) {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(Flist::open(&path).is_err(), "accepted {len} of {} bytes", whole.len());
    }
}

#[test]
fn pages_that_lead_in_circles_end_in_an_error() {
    // Every page becomes an inner page whose children are, many times over, the next page: walked naively this has no end.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.fl");
    let mut bytes = std::fs::read(fixture("kinds.fl")).unwrap();
    let pages = bytes.len() / 4096;
    for page in 2..=pages {
        let start = (page - 1) * 4096;
        let next = (page % pages + 1).max(2) as u32;
        let at = &mut bytes[start..start + 4096];
        at.fill(0);
        at[0] = 5; // an inner page of a table
        at[3..5].copy_from_slice(&400u16.to_be_bytes());
        at[5..7].copy_from_slice(&900u16.to_be_bytes());
        at[8..12].copy_from_slice(&next.to_be_bytes());
        for cell in 0..400usize {
            let offset = 900 + cell * 5;
            at[12 + cell * 2..14 + cell * 2].copy_from_slice(&(offset as u16).to_be_bytes());
            at[offset..offset + 4].copy_from_slice(&next.to_be_bytes());
            at[offset + 4] = 1;
        }
    }
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(
        Flist::open(&path),
        Err(OpenError::Damaged { .. } | OpenError::Row { .. })
    ));
}
