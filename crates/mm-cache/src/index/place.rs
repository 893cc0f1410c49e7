//! Where the user's index lies, and what else is kept for this user.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

const FILE: &str = "index.sqlite3";

/// The folder in which things are kept for this user that may be made anew at any time: the one that `MM_CACHE_DIR` names, or
/// `mm` in the system's folder for caches. `None`: there is no home folder.
pub fn user_folder() -> Option<PathBuf> {
    of_user().ok().and_then(|path| path.parent().map(Path::to_owned))
}

/// The path, or the problem of a machine that has no place for it.
pub(super) fn of_user() -> Result<PathBuf, String> {
    // Asked for only where it is needed.
    path(env::var_os("MM_CACHE_DIR"), || etcetera::choose_base_strategy().ok().map(|user| user.cache_dir()))
}

fn path(named: Option<OsString>, cache: impl FnOnce() -> Option<PathBuf>) -> Result<PathBuf, String> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return Ok(PathBuf::from(named).join(FILE));
    }
    // An empty `HOME` gives a relative path, and caches do not belong into whatever folder one works in.
    cache().filter(|cache| cache.is_absolute()).map(|cache| cache.join("mm").join(FILE)).ok_or_else(|| {
        "there is no home folder to keep content ids in, so all files are hashed again: set MM_CACHE_DIR to a folder"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn the_variable_comes_before_the_systems_folder() {
        let home = || Some(PathBuf::from("/home/someone/.cache"));
        let unset = PathBuf::from("/home/someone/.cache/mm/index.sqlite3");
        assert_eq!(path(Some("/fast".into()), home), Ok(PathBuf::from("/fast/index.sqlite3")));
        assert_eq!(path(None, home), Ok(unset.clone()));
        assert_eq!(path(Some("".into()), home), Ok(unset));
    }

    #[test]
    fn without_a_home_it_says_what_to_set() {
        for cache in [None, Some(PathBuf::from(".cache"))] {
            let problem = path(None, || cache.clone()).expect_err("nowhere");
            assert!(problem.contains("set MM_CACHE_DIR"), "{problem}");
        }
    }
}
