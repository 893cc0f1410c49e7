//! The database of an index: its schema, and what is asked of it.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::digest::ContentId;
use crate::index::fault::{Fault, PATIENCE};
use crate::index::seal::{self, Seal};

/// Of the tables and of the seals, whose context names it too.
const SCHEMA: i64 = 1;
/// `mmid`: tells our databases from others.
const APPLICATION: i64 = 0x6d6d_6964;

/// What is remembered last gets the highest id. A file that changes loses its row, and its tensors with it.
const TABLES: &str = "
    CREATE TABLE files (
        id INTEGER PRIMARY KEY,
        device INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        size INTEGER NOT NULL,
        modified_ns INTEGER NOT NULL,
        changed_ns INTEGER NOT NULL,
        content BLOB,
        seal BLOB NOT NULL,
        UNIQUE (device, inode)
    ) STRICT;
    CREATE TABLE tensors (
        id INTEGER PRIMARY KEY,
        file INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
        first INTEGER NOT NULL,
        behind INTEGER NOT NULL,
        content BLOB NOT NULL,
        seal BLOB NOT NULL,
        UNIQUE (file, first, behind)
    ) STRICT;
";

/// What is remembered; what is older goes. At most about 120 MB on disk.
const LIMITS: Limits = Limits { files: 100_000, tensors: 1_000_000 };

#[derive(Clone, Copy)]
struct Limits {
    files: i64,
    tensors: i64,
}

pub(super) struct Database {
    connection: Connection,
    limits: Limits,
}

enum Found {
    Ours,
    Nothing,
}

struct Row {
    id: i64,
    content: Option<ContentId>,
}

impl Database {
    /// Opens the one at `path`, or makes it, with its folders.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let connection = match connect(path) {
            Err(Fault::Unwritable(_)) if !path.exists() => {
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder).map_err(|error| Fault::Unwritable(error.to_string()))?;
                }
                connect(path)?
            }
            connected => connected?,
        };
        let mut database = Self { connection, limits: LIMITS };
        // Rollback journal, SQLite's default, and deleted after each transaction: a write-ahead log needs shared memory,
        // which homes on network file systems do not have, and a journal that stays open is not missed when the
        // database is deleted below us.
        database.connection.busy_handler(Some(wait))?;
        // One state of it, as another process may be making it right now.
        let state = database.connection.unchecked_transaction()?;
        let found = found(&state)?;
        state.finish()?;
        if let Found::Nothing = found {
            database.create()?;
        }
        // What is lost by a power loss is hashed again.
        database.connection.execute_batch("PRAGMA synchronous = NORMAL")?;
        Ok(database)
    }

    fn create(&mut self) -> Result<(), Fault> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been faster.
        if let Found::Nothing = found(&transaction)? {
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", SCHEMA)?;
        }
        Ok(transaction.commit()?)
    }

    /// `numbers` are those of [`Identity::numbers`](crate::identity::Identity::numbers).
    pub(super) fn content(&self, numbers: &[i64; 5]) -> Result<Option<ContentId>, Fault> {
        Ok(row_of(&self.connection, numbers)?.and_then(|row| row.content))
    }

    /// As many as there are ranges.
    pub(super) fn tensors(&self, numbers: &[i64; 5], ranges: &[Range<u64>]) -> Result<Vec<Option<ContentId>>, Fault> {
        // One state of the database for all: ids of rows that go are given out again.
        let transaction = self.connection.unchecked_transaction()?;
        let Some(row) = row_of(&transaction, numbers)? else { return Ok(vec![None; ranges.len()]) };
        let mut statement =
            transaction.prepare("SELECT content, seal FROM tensors WHERE file = ?1 AND first = ?2 AND behind = ?3")?;
        let mut content = |range: &Range<u64>| {
            let Some(range) = signed(range) else { return Ok(None) };
            let found = statement.query_row(params![row.id, range.start, range.end], |row| {
                Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, Seal>(1)?))
            });
            let Some((content, seal)) = found.optional()? else { return Ok(None) };
            let content = ContentId::from(content);
            if seal::of_tensor(numbers, &range, &content) != seal {
                return Err(broken("a tensor"));
            }
            Ok(Some(content))
        };
        ranges.iter().map(&mut content).collect()
    }

    /// Remembers ids of one file, all or none.
    pub(super) fn remember(
        &mut self,
        numbers: &[i64; 5],
        content: Option<ContentId>,
        tensors: &[(Range<u64>, ContentId)],
    ) -> Result<(), Fault> {
        let limits = self.limits;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let id = match row_of(&transaction, numbers)? {
            Some(row) => {
                if let Some(content) = content {
                    let seal = seal::of_file(numbers, Some(&content));
                    let update = "UPDATE files SET content = ?2, seal = ?3 WHERE id = ?1";
                    transaction.execute(update, params![row.id, content.as_bytes(), seal])?;
                }
                row.id
            }
            None => insert_file(&transaction, numbers, content)?,
        };
        let mut insert = transaction.prepare(
            "INSERT OR REPLACE INTO tensors (file, first, behind, content, seal) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for (range, content) in tensors {
            if let Some(range) = signed(range) {
                let seal = seal::of_tensor(numbers, &range, content);
                insert.execute(params![id, range.start, range.end, content.as_bytes(), seal])?;
            }
        }
        drop(insert);
        // By distance from the newest, so that nothing is counted. Rows that were replaced leave gaps, so this keeps as
        // many or fewer.
        transaction.execute("DELETE FROM files WHERE id <= (SELECT max(id) FROM files) - ?1", [limits.files])?;
        transaction.execute("DELETE FROM tensors WHERE id <= (SELECT max(id) FROM tensors) - ?1", [limits.tensors])?;
        Ok(transaction.commit()?)
    }
}

fn connect(path: &Path) -> Result<Connection, Fault> {
    // One thread at a time: behind a lock of ours.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Ok(Connection::open_with_flags(path, flags)?)
}

/// Whether to try again, after a while. Often, as SQLite's own way of waiting longer and longer loses against a process
/// that writes again and again.
fn wait(tries: i32) -> bool {
    const WHILE: Duration = Duration::from_millis(5);
    thread::sleep(WHILE);
    WHILE * tries.unsigned_abs() < PATIENCE
}

fn found(connection: &Connection) -> Result<Found, Fault> {
    let number = |of: &str| connection.query_row(of, [], |row| row.get::<_, i64>(0));
    match (number("PRAGMA application_id")?, number("PRAGMA user_version")?) {
        (APPLICATION, SCHEMA) => Ok(Found::Ours),
        (APPLICATION, schema) if schema > SCHEMA => Err(Fault::Newer(schema)),
        (APPLICATION, _) => Err(Fault::Older),
        (0, 0) if number("SELECT count(*) FROM sqlite_schema")? == 0 => Ok(Found::Nothing),
        _ => Err(Fault::Foreign),
    }
}

/// The row of that file in that state.
fn row_of(connection: &Connection, numbers: &[i64; 5]) -> Result<Option<Row>, Fault> {
    let [device, inode, ..] = *numbers;
    let select = "SELECT id, size, modified_ns, changed_ns, content, seal FROM files WHERE device = ?1 AND inode = ?2";
    let found = connection.query_row(select, [device, inode], |row| {
        let numbers = [device, inode, row.get(1)?, row.get(2)?, row.get(3)?];
        let content = row.get::<_, Option<[u8; 32]>>(4)?.map(ContentId::from);
        Ok((numbers, Row { id: row.get(0)?, content }, row.get::<_, Seal>(5)?))
    });
    let Some((held, row, seal)) = found.optional()? else { return Ok(None) };
    if seal::of_file(&held, row.content.as_ref()) != seal {
        return Err(broken("a file"));
    }
    Ok((held == *numbers).then_some(row))
}

/// In place of whatever was known of that inode.
fn insert_file(transaction: &Transaction<'_>, numbers: &[i64; 5], content: Option<ContentId>) -> Result<i64, Fault> {
    let [device, inode, size, modified_ns, changed_ns] = *numbers;
    transaction.execute("DELETE FROM files WHERE device = ?1 AND inode = ?2", [device, inode])?;
    let seal = seal::of_file(numbers, content.as_ref());
    let content = content.as_ref().map(ContentId::as_bytes);
    let insert = "INSERT INTO files (device, inode, size, modified_ns, changed_ns, content, seal)
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    transaction.execute(insert, params![device, inode, size, modified_ns, changed_ns, content, seal])?;
    Ok(transaction.last_insert_rowid())
}

fn broken(of: &str) -> Fault {
    Fault::Damaged(format!("the row of {of} is not what was written"))
}

/// As a database holds it; `None` where it does not fit.
fn signed(range: &Range<u64>) -> Option<Range<i64>> {
    Some(i64::try_from(range.start).ok()?..i64::try_from(range.end).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(of: i64) -> ContentId {
        ContentId::of(&of.to_le_bytes())
    }

    fn count(database: &Database, of: &str) -> i64 {
        let count = format!("SELECT count(*) FROM {of}");
        database.connection.query_row(&count, [], |row| row.get(0)).expect("counts")
    }

    #[test]
    fn what_was_remembered_longest_ago_goes_first_and_its_tensors_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = Database::open(&folder.path().join("index.sqlite3")).expect("opens");
        database.limits = Limits { files: 10, tensors: 25 };
        for file in 0..30 {
            let tensors = [(0..1, id(file)), (1..2, id(-file))];
            database.remember(&[1, file, 3, 4, 5], Some(id(file)), &tensors).expect("remembers");
        }
        assert_eq!((count(&database, "files"), count(&database, "tensors")), (10, 20));
        for file in 0..30 {
            let expected = (file >= 20).then(|| id(file));
            let numbers = [1, file, 3, 4, 5];
            assert_eq!(database.content(&numbers).expect("looks up"), expected);
            assert_eq!(database.tensors(&numbers, &[0..1, 5..6]).expect("looks up"), [expected, None]);
        }
        let many: Vec<_> = (0..40).map(|at| (at..at + 1, id(0))).collect();
        database.remember(&[1, 99, 3, 4, 5], None, &many).expect("remembers");
        assert_eq!((count(&database, "files"), count(&database, "tensors")), (10, 25));
    }

    #[test]
    fn all_of_one_file_is_remembered_or_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = Database::open(&folder.path().join("index.sqlite3")).expect("opens");
        let stop = "CREATE TRIGGER stop BEFORE INSERT ON tensors WHEN NEW.first = 3
                    BEGIN SELECT RAISE(FAIL, 'stop'); END";
        database.connection.execute_batch(stop).expect("creates");
        let tensors: Vec<_> = (0..5).map(|at| (at..at + 1, id(0))).collect();
        database.remember(&[1, 2, 3, 4, 5], Some(id(1)), &tensors).expect_err("stopped");
        assert_eq!((count(&database, "files"), count(&database, "tensors")), (0, 0));
        assert_eq!(database.content(&[1, 2, 3, 4, 5]).expect("looks up"), None);
    }

    #[test]
    fn a_full_disk_is_no_damage_and_what_is_there_can_be_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = Database::open(&folder.path().join("index.sqlite3")).expect("opens");
        database.remember(&[1, 2, 3, 4, 5], Some(id(1)), &[]).expect("remembers");
        // The same error as that of a disk without room.
        database.connection.execute_batch("PRAGMA max_page_count = 8").expect("limits");
        let many: Vec<_> = (0..1000).map(|at| (at..at + 1, id(0))).collect();
        let fault = database.remember(&[1, 7, 3, 4, 5], Some(id(2)), &many).expect_err("no room");
        assert!(matches!(fault, Fault::Full), "{fault:?}");
        assert!(fault.sentence(folder.path()).expect("a sentence").contains("free some space"));
        assert_eq!(database.content(&[1, 2, 3, 4, 5]).expect("looks up"), Some(id(1)));
        assert_eq!(database.content(&[1, 7, 3, 4, 5]).expect("looks up"), None);
    }
}
