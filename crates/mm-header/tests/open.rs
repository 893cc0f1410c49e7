//! Files are opened, and nothing else.

use std::fs;
use std::io::{ErrorKind, Read};

use mm_header::open_regular;

#[test]
fn a_file_is_opened_and_what_is_none_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    fs::write(&path, b"bytes").expect("writes");
    let (mut file, metadata) = open_regular(&path).expect("there").expect("a file");
    let mut read = Vec::new();
    file.read_to_end(&mut read).expect("reads");
    assert_eq!((&read[..], metadata.len()), (&b"bytes"[..], 5));

    assert!(open_regular(folder.path()).expect("there").is_none(), "a folder");
    let missing = open_regular(folder.path().join("missing")).expect_err("missing");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    fn pipe(path: &Path) {
        assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo is there").success());
    }

    #[test]
    fn links_are_followed_and_special_files_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), b"bytes").expect("writes");
        symlink(at("file"), at("link")).expect("links");
        assert!(open_regular(at("link")).expect("there").is_some());
        symlink(at("nowhere"), at("dangling")).expect("links");
        assert_eq!(open_regular(at("dangling")).expect_err("nowhere").kind(), ErrorKind::NotFound);

        pipe(&at("pipe"));
        assert!(open_regular(at("pipe")).expect("there").is_none(), "a pipe");
        let _listener = UnixListener::bind(at("socket")).expect("binds");
        assert!(open_regular(at("socket")).expect("there").is_none(), "a socket");
        assert!(open_regular("/dev/zero").expect("there").is_none(), "a device");
    }

    /// A pipe takes a file's place again and again. To wait for its writer would be to hang here, as there is none.
    #[test]
    fn a_pipe_in_a_files_place_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), b"bytes").expect("writes");
        fs::hard_link(at("file"), at("either")).expect("links");
        pipe(&at("pipe"));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..20_000 {
                    let next = if round % 2 == 0 { at("pipe") } else { at("file") };
                    fs::hard_link(next, at("next")).expect("links");
                    fs::rename(at("next"), at("either")).expect("renames");
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                if let Some((_, metadata)) = open_regular(at("either")).expect("there") {
                    assert_eq!(metadata.len(), 5);
                }
            }
        });
    }
}
