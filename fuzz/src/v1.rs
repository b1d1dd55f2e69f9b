//! Format 1: files of any bytes, and objects of any bytes in a sound database.
//!
//! The input of [`v1_objects`] is a list of objects: one byte (even: a directory, odd: an access list), the 16 or 8 bytes of
//! its key, two of its length (little-endian), the bytes.

use rusqlite::Connection;

use crate::scratch;

/// A file.
pub fn v1_file(input: &[u8]) {
    scratch::open(input);
}

/// Objects.
pub fn v1_objects(input: &[u8]) {
    let folder = scratch::folder();
    let path = folder.path().join("db");
    let db = Connection::open(&path).expect("a database");
    db.execute_batch(
        "PRAGMA page_size = 512; PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; BEGIN;
         CREATE TABLE entries (key VARCHAR(64) PRIMARY KEY, value BLOB)",
    )
    .expect("the schema");
    for (key, value) in objects(input) {
        // A key may come again, or the value be too long for the database: it is left out.
        let _ = db.execute("INSERT INTO entries VALUES (?, ?)", (key, value));
    }
    db.execute_batch("COMMIT").expect("commit");
    db.close().expect("close");
    let database = std::fs::read(&path).expect("the database");
    scratch::open(&archive(&database));
}

/// The objects of an input: key in hexadecimal digits, value.
fn objects(mut input: &[u8]) -> Vec<(String, &[u8])> {
    let mut objects = Vec::new();
    while let Some((kind, rest)) = input.split_first() {
        let Some((key, rest)) = rest.split_at_checked(if kind % 2 == 0 { 16 } else { 8 }) else {
            break;
        };
        let Some((length, rest)) = rest.split_first_chunk() else {
            break;
        };
        let (value, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        objects.push((key.iter().map(|byte| format!("{byte:02x}")).collect(), value));
        input = rest;
    }
    objects
}

/// The input that has all objects of a database, as far as they are short enough.
///
/// # Panics
/// When it is no database of format 1.
pub fn objects_of(db: &Connection) -> Vec<u8> {
    let mut statement = db.prepare("SELECT key, value FROM entries").expect("the table");
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)));
    let mut input = Vec::new();
    for (key, value) in rows.expect("rows").flatten() {
        let Ok(length) = u16::try_from(value.len()) else {
            continue;
        };
        let digits = |at| u8::from_str_radix(&key[at..at + 2], 16).expect("digits");
        input.push(u8::from(key.len() == 16));
        input.extend((0..key.len()).step_by(2).map(digits));
        input.extend(length.to_le_bytes());
        input.extend(value);
    }
    input
}

/// A plain tar with the database.
fn archive(database: &[u8]) -> Vec<u8> {
    let mut tar = vec![0; 512];
    tar[..15].copy_from_slice(b"flistdb.sqlite3");
    tar[124..135].copy_from_slice(format!("{:011o}", database.len()).as_bytes());
    tar[257..265].copy_from_slice(b"ustar  \0");
    tar[148..156].fill(b' ');
    tar[156] = b'0';
    let sum: u32 = tar.iter().map(|byte| u32::from(*byte)).sum();
    tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend(database);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}
