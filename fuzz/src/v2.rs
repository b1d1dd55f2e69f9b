//! Format 2: files of any bytes, and rows of any values.

use arbitrary::{Result, Unstructured};
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use crate::scratch;

/// The tables of the format and of our extensions, with the number of their columns.
const TABLES: [(&str, usize); 9] = [
    ("inode", 10),
    ("extra", 2),
    ("block", 3),
    ("tag", 2),
    ("route", 3),
    ("name_bytes", 2),
    ("hard_link", 2),
    ("nsec", 2),
    ("xattr", 3),
];

/// Without keys and constraints, so that rows may contradict each other.
const SCHEMA: &str = "PRAGMA page_size = 512; PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; BEGIN;
    CREATE TABLE inode (ino INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER, name VARCHAR(255), size INTEGER, uid INTEGER,
        gid INTEGER, mode INTEGER, rdev INTEGER, ctime INTEGER, mtime INTEGER);
    CREATE TABLE extra (ino INTEGER PRIMARY KEY, data VARCHAR(4096));
    CREATE TABLE block (ino INTEGER, id VARCHAR(32), key VARCHAR(32));
    CREATE TABLE tag (key VARCHAR(10) PRIMARY KEY, value VARCHAR(255));
    CREATE TABLE route (start integer, end integer, url VARCHAR(2048));";

const EXTENSIONS: [&str; 4] = [
    "CREATE TABLE name_bytes (ino INTEGER PRIMARY KEY, name BLOB)",
    "CREATE TABLE hard_link (ino INTEGER PRIMARY KEY, target INTEGER)",
    "CREATE TABLE nsec (ino INTEGER PRIMARY KEY, mtime INTEGER)",
    "CREATE TABLE xattr (ino INTEGER, name BLOB, value BLOB)",
];

/// A file.
pub fn v2_file(input: &[u8]) {
    if let Some(flist) = scratch::open(input).filter(|_| input.starts_with(b"SQLite")) {
        scratch::rewrite(&flist);
    }
}

/// Rows.
pub fn v2_rows(input: &[u8]) {
    let folder = scratch::folder();
    let path = folder.path().join("x.fl");
    let db = Connection::open(&path).expect("a database");
    db.execute_batch(SCHEMA).expect("the schema");
    let mut input = Unstructured::new(input);
    // The end of the input is the end of the rows.
    let _ = fill(&db, &mut input);
    // A row with the largest number there is leaves no number for the next, which rolls everything back.
    if !db.is_autocommit() {
        db.execute_batch("COMMIT").expect("commit");
    }
    db.close().expect("close");
    if let Some(flist) = scratch::open_file(&path) {
        scratch::rewrite(&flist);
    }
}

fn fill(db: &Connection, input: &mut Unstructured<'_>) -> Result<()> {
    let extensions: u8 = input.arbitrary()?;
    for (at, table) in EXTENSIONS.iter().enumerate() {
        if extensions >> at & 1 == 1 {
            db.execute_batch(table).expect("a table");
        }
    }
    insert(db, "inode", root(input)?);
    for ino in 2..40 {
        if input.is_empty() {
            break;
        }
        if input.ratio(1, 4)? {
            let (table, columns) = *input.choose(&TABLES)?;
            let values = (0..columns).map(|_| value(input)).collect::<Result<_>>()?;
            insert(db, table, values);
        } else {
            node(db, input, ino)?;
        }
    }
    Ok(())
}

fn root(input: &mut Unstructured<'_>) -> Result<Vec<Value>> {
    let mode = 0o040_000 | i64::from(input.int_in_range(0..=0o7777u16)?);
    Ok([1, 0]
        .map(Value::Integer)
        .into_iter()
        .chain([Value::Text("/".into())])
        .chain([4096, 0, 0, mode, 0, 1, 1].map(Value::Integer))
        .collect())
}

/// A row that is nearly right, with what belongs to it.
fn node(db: &Connection, input: &mut Unstructured<'_>, ino: i64) -> Result<()> {
    let kind = *input.choose(&[
        0o040_000i64,
        0o100_000,
        0o120_000,
        0o020_000,
        0o060_000,
        0o010_000,
        0o140_000,
    ])?;
    let parent = input.int_in_range(1..=ino)?;
    let name = text(input, 6)?;
    let mut size = 4096;
    if kind == 0o100_000 {
        let blocks = input.int_in_range(0..=3i64)?;
        size = blocks * 524_288
            - if blocks > 0 {
                input.int_in_range(0..=524_288)?
            } else {
                0
            };
        for _ in 0..blocks {
            let digest = Value::Blob(vec![input.arbitrary()?; 32]);
            insert(db, "block", vec![Value::Integer(ino), digest.clone(), digest]);
        }
    }
    if kind == 0o120_000 {
        let target = text(input, 20)?.into_bytes();
        size = target.len() as i64;
        insert(db, "extra", vec![Value::Integer(ino), Value::Blob(target)]);
    }
    let mode = kind | i64::from(input.int_in_range(0..=0o7777u16)?);
    let numbers = |list: &[i64]| list.iter().map(|number| Value::Integer(*number)).collect::<Vec<_>>();
    let mut row = numbers(&[ino, parent]);
    row.push(Value::Text(name));
    row.extend(numbers(&[
        size,
        input.arbitrary::<u32>()?.into(),
        input.arbitrary::<u32>()?.into(),
        mode,
    ]));
    row.extend(numbers(&[input.arbitrary()?, input.arbitrary()?, input.arbitrary()?]));
    insert(db, "inode", row);
    match input.int_in_range(0..=9)? {
        0 => insert(db, "nsec", numbers(&[ino, input.int_in_range(-1..=1_000_000_000)?])),
        1 => insert(db, "hard_link", numbers(&[ino, input.int_in_range(0..=ino)?])),
        2 => {
            let name = format!("user.{}", text(input, 6)?).into_bytes();
            insert(db, "xattr", vec![Value::Integer(ino), Value::Blob(name), value(input)?]);
        }
        3 => {
            let name: Vec<u8> = input.arbitrary_iter()?.take(6).collect::<Result<_>>()?;
            insert(db, "name_bytes", vec![Value::Integer(ino), Value::Blob(name)]);
        }
        _ => {}
    }
    Ok(())
}

fn text(input: &mut Unstructured<'_>, longest: usize) -> Result<String> {
    let length = input.int_in_range(0..=longest)?;
    Ok(String::from_utf8_lossy(input.bytes(length.min(input.len()))?).into_owned())
}

/// Any value, those at the limits more often.
fn value(input: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match input.int_in_range(0..=6)? {
        0 => Value::Null,
        1 => Value::Integer(*input.choose(&[0, 1, 2, -1, i64::MAX, i64::MIN, 255, 256, 1 << 31, 1 << 32])?),
        2 => Value::Integer(input.int_in_range(0..=40)?),
        3 => Value::Integer(input.arbitrary()?),
        4 => Value::Real(input.arbitrary()?),
        5 => Value::Text(text(input, 12)?),
        _ => {
            let length = *input.choose(&[0, 1, 16, 31, 32, 33])?;
            Value::Blob(vec![input.arbitrary()?; length])
        }
    })
}

/// A row that a key or a missing table refuses is left out.
fn insert(db: &Connection, table: &str, values: Vec<Value>) {
    let places = vec!["?"; values.len()].join(",");
    let _ = db.execute(
        &format!("INSERT INTO {table} VALUES ({places})"),
        params_from_iter(values),
    );
}
