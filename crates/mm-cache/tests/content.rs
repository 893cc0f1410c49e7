//! Content ids are blake3 over the bytes, of files and of folders.

use std::fs;

use mm_cache::{ContentError, ContentId, component_hash, content_id, content_ids};

const EMPTY: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
const ABC: &str = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
/// From blake3's own test vectors: bytes 0, 1, …, 250, 0, 1, … of these lengths.
const VECTORS: [(usize, &str); 3] = [
    (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
    (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
    (102_400, "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"),
];

#[test]
fn known_vectors() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("f");
    let mut cases = vec![(vec![], EMPTY), (b"abc".to_vec(), ABC)];
    cases.extend(VECTORS.map(|(length, id)| ((0..length).map(|i| (i % 251) as u8).collect(), id)));
    for (bytes, id) in cases {
        fs::write(&file, &bytes).expect("writes");
        assert_eq!(content_id(&file).expect("hashes").to_string(), id, "{} bytes", bytes.len());
        assert_eq!(ContentId::of(&bytes), id.parse().expect("an id"));
    }
    assert_eq!(component_hash("abc").to_string(), ABC);
}

#[test]
fn ids_are_read_back_only_in_full() {
    let id: ContentId = ABC.parse().expect("an id");
    assert_eq!(id, ContentId::of(b"abc"));
    for bad in ["", "6437", &ABC[1..], &format!("{ABC}0"), &ABC.replace('6', "g"), "é".repeat(32).as_str()] {
        let error = bad.parse::<ContentId>().expect_err("not an id");
        assert!(error.to_string().contains("64 hex digits"), "{error}");
    }
}

#[test]
fn a_folder_is_listed_sorted_and_in_full() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("b/deep")).expect("creates");
    for name in ["z", "a", "b/deep/c", "b/a"] {
        fs::write(at(name), name).expect("writes");
    }
    let ids = content_ids(folder.path()).expect("hashes");
    let expected = ["a", "b/a", "b/deep/c", "z"].map(|name| (at(name), ContentId::of(name.as_bytes())));
    assert_eq!(ids, expected);
    assert_eq!(content_ids(at("a")).expect("hashes"), [(at("a"), ContentId::of(b"a"))]);
}

#[test]
fn missing_is_an_error_that_names_the_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing.safetensors");
    let error = content_id(&missing).expect_err("missing");
    assert!(matches!(&error, ContentError::Io { path, .. } if *path == missing), "{error:?}");
    assert!(error.to_string().contains("missing.safetensors"), "{error}");
    assert!(content_ids(&missing).is_err());
    let error = content_id(folder.path()).expect_err("a folder");
    assert!(matches!(&error, ContentError::NotAFile { path } if path == folder.path()), "{error:?}");
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_cycles_end() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("blobs")).expect("creates");
    fs::write(at("blobs/x"), "x").expect("writes");
    symlink(at("blobs/x"), at("model")).expect("links");
    symlink(folder.path(), at("blobs/up")).expect("links");
    let ids = content_ids(folder.path()).expect("hashes");
    assert_eq!(ids, ["blobs/x", "model"].map(|name| (at(name), ContentId::of(b"x"))));

    symlink(at("nowhere"), at("broken")).expect("links");
    let error = content_ids(folder.path()).expect_err("a link to nowhere");
    assert!(matches!(&error, ContentError::Io { path, .. } if *path == at("broken")), "{error:?}");
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("binds");
    let error = content_ids(folder.path()).expect_err("a socket");
    assert!(matches!(&error, ContentError::NotAFile { path } if *path == socket), "{error:?}");
}

/// Under a mapping the first look behind the new end would end the process.
#[test]
fn a_file_truncated_while_it_is_hashed_is_an_error_or_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("f");
    let (whole, size) = (vec![7; 24 << 20], 24 << 20);
    fs::write(&path, &whole).expect("writes");
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut cut = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::OpenOptions::new().write(true).open(&path).expect("opens");
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                file.set_len(1000).expect("truncates");
                file.set_len(size).expect("grows");
            }
        });
        for _ in 0..200 {
            match content_id(&path) {
                Ok(_) => {}
                Err(error) => {
                    assert!(matches!(&error, ContentError::Io { path: named, .. } if *named == path), "{error:?}");
                    let told = error.to_string();
                    assert!(told.contains("truncated") || told.contains("being written"), "{told}");
                    cut += 1;
                }
            }
            if cut > 2 {
                break;
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    fs::write(&path, &whole).expect("writes");
    assert_eq!(content_id(&path).expect("hashes"), ContentId::of(&whole));
}

/// A caller's threads may all be waiting for what hashing is to bring.
#[test]
fn hashing_needs_no_thread_of_the_callers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("large");
    let bytes = vec![7; 5 << 20];
    fs::write(&path, &bytes).expect("writes");
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
    rayon::spawn_broadcast(move |_| drop(wait.lock().map(|wait| wait.recv())));
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(content_id(&path)));
    let id = is_done.recv_timeout(std::time::Duration::from_secs(60));
    drop(go);
    assert_eq!(id.expect("hashing waits for threads that wait").expect("hashes"), ContentId::of(&bytes));
}
