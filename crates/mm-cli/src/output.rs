//! Files that appear whole or not at all.

use crate::exit::Failure;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file to be written later, in a place that was found writable.
pub(crate) struct OutputFile {
    path: PathBuf,
}

impl OutputFile {
    /// Finds out whether the file can be written, and leaves nothing behind.
    pub(crate) fn check(path: &Path) -> Result<Self, Failure> {
        // A link stays a link: what it leads to is replaced.
        let file = Self { path: path.canonicalize().unwrap_or_else(|_| path.to_owned()) };
        let refused = |source| Failure::Output { path: path.to_owned(), source };
        match file.path.metadata() {
            Ok(metadata) if !metadata.is_file() => {
                return Err(refused(io::Error::other("it exists and is not a regular file")));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(error)),
            _ => {}
        }
        file.temporary().map_err(refused)?;
        Ok(file)
    }

    /// The same for a file whose name says what it is, as it will be written in these forms alone.
    pub(crate) fn check_named(flag: &str, path: &Path, extensions: &[&str], why: &str) -> Result<Self, Failure> {
        let found = path.extension().and_then(OsStr::to_str);
        if found.is_some_and(|found| extensions.iter().any(|known| found.eq_ignore_ascii_case(known))) {
            return Self::check(path);
        }
        let names: Vec<String> = extensions.iter().map(|extension| format!(".{extension}")).collect();
        Err(Failure::usage(flag, format!("{why}: name a {} file, not {}", names.join(" or "), path.display())))
    }

    /// Writes the file, or leaves what was there.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.temporary().and_then(|mut file| {
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(&self.path).map_err(|error| error.error)
        });
        written.map(drop).map_err(|source| Failure::Output { path: self.path.clone(), source })
    }

    /// In the same folder, as only then it can take the file's place in one step.
    fn temporary(&self) -> io::Result<NamedTempFile> {
        let folder = self.path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any new file; the umask applies.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        builder.tempfile_in(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn checking_leaves_nothing_and_writing_replaces() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        let file = OutputFile::check(&path).expect("writable");
        assert!(names(folder.path()).is_empty());
        file.write(b"one").expect("writes");
        file.write(b"two").expect("writes");
        assert_eq!(fs::read(&path).expect("reads"), b"two");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_folder_or_a_missing_folder_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(OutputFile::check(folder.path()).is_err());
        assert!(OutputFile::check(&folder.path().join("no/a")).is_err());
        let file = OutputFile { path: folder.path().join("d") };
        fs::create_dir(&file.path).expect("creates");
        assert!(file.write(b"one").is_err());
        assert_eq!(names(folder.path()), ["d"], "no temporary file stays");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        fs::write(&target, "old").expect("writes");
        std::os::unix::fs::symlink(&target, &link).expect("links");
        OutputFile::check(&link).expect("writable").write(b"new").expect("writes");
        assert!(link.is_symlink());
        assert_eq!(fs::read(&target).expect("reads"), b"new");
    }
}
