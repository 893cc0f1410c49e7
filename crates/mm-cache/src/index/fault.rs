//! What can be wrong with an index, split by what becomes of it.

use std::path::Path;
use std::time::Duration;

use rusqlite::ErrorCode;
use rusqlite::ffi::SQLITE_READONLY_DBMOVED;

/// How long to wait for another process that reads or writes.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) enum Fault {
    /// Not what was written, or no database: replaced.
    Damaged(String),
    /// An earlier schema's: replaced.
    Older,
    /// Deleted or moved while open: opened anew.
    Moved,
    /// Of a newer schema: left alone.
    Newer(i64),
    /// Another program's: left alone.
    Foreign,
    /// Others kept it locked for longer than `PATIENCE`.
    Locked,
    /// No room to write; what is there can still be read.
    Full,
    /// Not allowed to write; what is there can still be read, if it was opened.
    Unwritable(String),
    /// Anything else, such as a disk that fails.
    Other(String),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error as E;
        let why = error.to_string();
        let sqlite = match error {
            E::SqliteFailure(sqlite, _) | E::SqlInputError { error: sqlite, .. } => sqlite,
            E::FromSqlConversionFailure(..) | E::InvalidColumnType(..) | E::IntegralValueOutOfRange(..) => {
                return Self::Damaged(why);
            }
            _ => return Self::Other(why),
        };
        match sqlite.code {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Damaged(why),
            // Our statements are right and keep to the schema's rules, so these tell of a schema that is not ours.
            ErrorCode::Unknown
            | ErrorCode::InternalMalfunction
            | ErrorCode::ConstraintViolation
            | ErrorCode::TypeMismatch
            | ErrorCode::TooBig => Self::Damaged(why),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed => Self::Locked,
            ErrorCode::ReadOnly if sqlite.extended_code == SQLITE_READONLY_DBMOVED => Self::Moved,
            ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied => Self::Unwritable(why),
            ErrorCode::DiskFull => Self::Full,
            _ => Self::Other(why),
        }
    }
}

impl Fault {
    /// One sentence for the user; `None` where there is nothing to tell.
    pub(super) fn sentence(&self, path: &Path) -> Option<String> {
        let index = format!("the index of content ids {}", path.display());
        let elsewhere = "or set MM_CACHE_DIR to another folder";
        Some(match self {
            Self::Older | Self::Moved => return None,
            Self::Damaged(why) => format!(
                "{index} was damaged ({why}) and is replaced by a fresh one, so files are hashed once more: check the \
                 disk if this happens again"
            ),
            Self::Newer(schema) => format!(
                "{index} is of a newer mm (schema {schema}) and is left alone, so files are hashed again: update mm, \
                 delete it {elsewhere}"
            ),
            Self::Foreign => format!(
                "{index} is a database of another program and is left alone, so files are hashed again: move it away \
                 {elsewhere}"
            ),
            Self::Locked => format!(
                "{index} was locked by another process for more than {} s, so files are hashed again: end that process \
                 {elsewhere}",
                PATIENCE.as_secs()
            ),
            Self::Full => {
                format!("the disk of {index} is full, so files are hashed again: free some space {elsewhere}")
            }
            Self::Unwritable(why) => format!(
                "{index} cannot be written ({why}), so files are hashed again: make it and its folder writable \
                 {elsewhere}"
            ),
            Self::Other(why) => {
                format!("{index} cannot be used ({why}), so files are hashed again: delete it {elsewhere}")
            }
        })
    }
}
