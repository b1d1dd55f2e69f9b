//! Asking a SQLite database that nobody vouches for.
//!
//! What keeps a hostile file harmless:
//! * It is opened read-only and `immutable`: no locks, no journal, nothing made beside it. A journal that lies there
//!   already means that the file is half-written, and is refused.
//! * A table must be a table with plain columns: views, virtual tables and generated columns would run the author's code.
//! * Rows are read in the order of their key, which must rise; the number of virtual machine steps is limited by the size
//!   of the file, the length of one value by the caller. So pages that point at each other end in an error.
//! * The database checks its own pages and indexes first, so damage that would only lose rows is found.

use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};

use crate::block::Digest;
use crate::error::OpenError;

/// Steps of the database's virtual machine between two looks at the budget.
const STEPS: i32 = 1 << 16;

/// Looks at the budget that every file is granted; on top comes one per 4096 bytes, so 16 steps per byte. Checking and
/// reading a row takes under 200 steps, and a row with its index entries has more than 50 bytes.
const BASE_LOOKS: u64 = 64;

/// Refuses what is not a complete SQLite file by its first bytes and its neighbours.
fn check_file(shown: &Path, path: &Path) -> Result<(), OpenError> {
    let read_error = |source| OpenError::Read {
        path: shown.into(),
        source,
    };
    let not_a_flist = |found: &str| OpenError::NotAFlist {
        path: shown.into(),
        found: found.into(),
    };
    let file = crate::file::open_regular(path).map_err(read_error)?;
    let mut file = file.ok_or_else(|| not_a_flist("it is not a regular file"))?;
    let mut start = Vec::new();
    file.by_ref().take(100).read_to_end(&mut start).map_err(read_error)?;
    if start.len() < 100 || !start.starts_with(b"SQLite format 3\0") {
        return Err(not_a_flist("it is not a SQLite database"));
    }
    let bytes = file.metadata().map_err(read_error)?.len();
    if let Some(problem) = wrong_length(&start, bytes) {
        return Err(OpenError::Damaged {
            path: shown.into(),
            reading: "the file header",
            source: problem.into(),
        });
    }
    for suffix in ["-journal", "-wal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let journal = PathBuf::from(name);
        if std::fs::symlink_metadata(&journal).is_ok_and(|journal| journal.len() > 0) {
            return Err(OpenError::Unfinished {
                path: shown.into(),
                journal,
            });
        }
    }
    Ok(())
}

/// Holds the length of the file against its header, which the database does only roughly. `header` has 100 bytes
/// (<https://sqlite.org/fileformat2.html>): page size at 16, change counter at 24, pages at 28, the change counter for
/// which that number holds at 92, all big-endian.
fn wrong_length(header: &[u8], bytes: u64) -> Option<String> {
    let number = |at: usize| {
        header[at..at + 4]
            .iter()
            .fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let page = match number(14) & 0xffff {
        1 => 65_536,
        page => page.max(1),
    };
    let expected = page * number(28);
    if !bytes.is_multiple_of(page) || (number(24) == number(92) && expected != bytes) {
        return Some(format!("the file has {bytes} bytes, its header says {expected}"));
    }
    None
}

/// Opens the database so that it can do nothing but answer.
fn connect(shown: &Path, path: &Path, value_bytes: i32) -> Result<Connection, OpenError> {
    let read_error = |source| OpenError::Read {
        path: shown.into(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(read_error)?.len();
    let uri = immutable_uri(&std::path::absolute(path).map_err(read_error)?);
    let open = || -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(uri, flags)?;
        db.set_limit(Limit::SQLITE_LIMIT_LENGTH, value_bytes)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
        let mut looks = BASE_LOOKS + bytes / 4096;
        db.progress_handler(
            STEPS,
            Some(move || {
                looks = looks.saturating_sub(1);
                looks == 0
            }),
        )?;
        Ok(db)
    };
    open().map_err(damaged(shown, "the database"))
}

/// `file:` URI of an absolute path.
fn immutable_uri(path: &Path) -> String {
    let mut uri = String::from("file://");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => uri.push(char::from(*byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri + "?mode=ro&immutable=1"
}

/// Turns what the database says into an error about the file.
fn damaged(path: &Path, reading: &'static str) -> impl Fn(rusqlite::Error) -> OpenError {
    move |source| OpenError::Damaged {
        path: path.into(),
        reading,
        source: Box::new(source),
    }
}

/// An open database with the name for its errors.
pub(crate) struct Source<'a> {
    pub(crate) path: &'a Path,
    pub(crate) db: Connection,
}

/// One row that is being read: makes typed values or errors that name it.
pub(crate) struct Cells<'a> {
    path: &'a Path,
    table: &'static str,
    pub(crate) rowid: i64,
    row: &'a Row<'a>,
}

impl Cells<'_> {
    pub(crate) fn error(&self, problem: impl Into<String>) -> OpenError {
        OpenError::Row {
            path: self.path.into(),
            table: self.table,
            row: self.rowid,
            problem: problem.into(),
        }
    }

    pub(crate) fn value(&self, column: usize) -> Result<ValueRef<'_>, OpenError> {
        self.row.get_ref(column).map_err(damaged(self.path, self.table))
    }

    fn column(&self, column: usize) -> &str {
        self.row.as_ref().column_name(column).unwrap_or("?")
    }

    pub(crate) fn wrong_type(&self, column: usize, wanted: &str, found: ValueRef<'_>) -> OpenError {
        self.error(format!(
            "{} is {} instead of {wanted}",
            self.column(column),
            found.data_type()
        ))
    }

    /// A number of the range of `T`.
    pub(crate) fn number<T: TryFrom<i64>>(&self, column: usize) -> Result<T, OpenError> {
        match self.value(column)? {
            ValueRef::Integer(number) => {
                T::try_from(number).map_err(|_| self.error(format!("{} {number} is out of range", self.column(column))))
            }
            other => Err(self.wrong_type(column, "a number", other)),
        }
    }

    pub(crate) fn text(&self, column: usize) -> Result<&[u8], OpenError> {
        match self.value(column)? {
            ValueRef::Text(bytes) => Ok(bytes),
            other => Err(self.wrong_type(column, "text", other)),
        }
    }

    pub(crate) fn string(&self, column: usize) -> Result<String, OpenError> {
        let bytes = self.text(column)?;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned)
            .map_err(|_| self.error(format!("{} is not UTF-8", self.column(column))))
    }

    pub(crate) fn blob(&self, column: usize) -> Result<&[u8], OpenError> {
        match self.value(column)? {
            ValueRef::Blob(bytes) => Ok(bytes),
            other => Err(self.wrong_type(column, "a blob", other)),
        }
    }

    pub(crate) fn digest(&self, column: usize) -> Result<Digest, OpenError> {
        let bytes = self.blob(column)?;
        match Digest::from_bytes(bytes) {
            Ok(digest) if bytes.len() == 32 => Ok(digest),
            _ => Err(self.error(format!(
                "{} has {} bytes instead of 32",
                self.column(column),
                bytes.len()
            ))),
        }
    }
}

impl<'a> Source<'a> {
    /// Opens the database `file`; errors call it `shown`. No value of more than `value_bytes` is taken.
    pub(crate) fn open(shown: &'a Path, file: &Path, value_bytes: i32) -> Result<Source<'a>, OpenError> {
        check_file(shown, file)?;
        let db = connect(shown, file, value_bytes)?;
        Ok(Source { path: shown, db })
    }

    pub(crate) fn damaged(&self, reading: &'static str) -> impl Fn(rusqlite::Error) -> OpenError {
        damaged(self.path, reading)
    }

    pub(crate) fn not_a_flist(&self, found: String) -> OpenError {
        OpenError::NotAFlist {
            path: self.path.into(),
            found,
        }
    }

    /// Whether a table exists; refuses one that is something else, lacks columns, or has broken pages.
    pub(crate) fn check_table(&self, table: &'static str, required: bool, columns: &[&str]) -> Result<bool, OpenError> {
        let failed = self.damaged(table);
        let mut query = self
            .db
            .prepare("SELECT type, rootpage FROM sqlite_master WHERE name = ?")
            .map_err(&failed)?;
        let mut rows = query.query([table]).map_err(&failed)?;
        let Some(row) = rows.next().map_err(&failed)? else {
            return if required {
                Err(self.not_a_flist(format!("it has no table {table}")))
            } else {
                Ok(false)
            };
        };
        let kind: String = row.get(0).map_err(&failed)?;
        let page: i64 = row.get(1).map_err(&failed)?;
        if kind != "table" || page <= 0 {
            return Err(self.not_a_flist(format!("its {table} is not an ordinary table")));
        }
        self.check_columns(table, columns)?;
        self.check_pages(table)?;
        Ok(true)
    }

    fn check_columns(&self, table: &'static str, columns: &[&str]) -> Result<(), OpenError> {
        let failed = self.damaged(table);
        let mut query = self
            .db
            .prepare("SELECT lower(name), hidden FROM pragma_table_xinfo(?)")
            .map_err(&failed)?;
        let found = query
            .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(&failed)?;
        let found: Vec<(String, i64)> = found.collect::<Result<_, _>>().map_err(&failed)?;
        if let Some(column) = columns
            .iter()
            .find(|column| !found.iter().any(|(name, _)| name == *column))
        {
            return Err(self.not_a_flist(format!("its table {table} has no column {column}")));
        }
        let odd = |name: &str, hidden: i64| hidden != 0 || matches!(name, "rowid" | "_rowid_" | "oid");
        if let Some((name, _)) = found.iter().find(|(name, hidden)| odd(name, *hidden)) {
            return Err(self.not_a_flist(format!(
                "column {name:?} of its table {table} is not an ordinary column"
            )));
        }
        Ok(())
    }

    /// Lets the database check the pages of a table and its indexes against each other.
    fn check_pages(&self, table: &'static str) -> Result<(), OpenError> {
        let failed = self.damaged(table);
        let query = format!("PRAGMA integrity_check({table})");
        let answer: String = self.db.query_row(&query, [], |row| row.get(0)).map_err(&failed)?;
        if answer == "ok" {
            return Ok(());
        }
        Err(OpenError::Damaged {
            path: self.path.into(),
            reading: table,
            source: answer.into(),
        })
    }

    /// Gives every row of a table to `take` in the order of rowid. Column 0 of the query is the rowid.
    pub(crate) fn each(
        &self,
        table: &'static str,
        columns: &str,
        mut take: impl FnMut(&Cells<'_>) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let failed = self.damaged(table);
        let query = format!("SELECT rowid, {columns} FROM {table} NOT INDEXED ORDER BY rowid");
        let mut query = self.db.prepare(&query).map_err(&failed)?;
        let mut rows = query.query([]).map_err(&failed)?;
        let mut last = i64::MIN;
        while let Some(row) = rows.next().map_err(&failed)? {
            let rowid = row.get(0).map_err(&failed)?;
            let cells = Cells {
                path: self.path,
                table,
                rowid,
                row,
            };
            if rowid <= last {
                return Err(cells.error("its key does not rise"));
            }
            last = rowid;
            take(&cells)?;
        }
        Ok(())
    }
}
