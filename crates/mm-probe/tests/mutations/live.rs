//! Files that are truncated, grown, replaced and removed while they are looked at.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mm_plan::DType;

use crate::checkpoint::{Checkpoint, Node, Specials};
use crate::mutate::Fault;
use crate::random::Random;

const ROUNDS: usize = 100;

/// Looks at the checkpoint until the thread that changes it is done: each look ends in a plan or a named error.
pub(crate) fn check(
    checkpoint: &Checkpoint,
    place: &Path,
    specials: &Specials,
    random: &mut Random,
) -> Result<(), String> {
    let files: Vec<(&str, &Vec<u8>)> = checkpoint
        .nodes
        .iter()
        .filter_map(|(path, node)| match node {
            Node::File(bytes, size) if *size <= bytes.len() as u64 => Some((path.as_str(), bytes)),
            _ => None,
        })
        .collect();
    if files.is_empty() {
        return Ok(());
    }
    let changes: Vec<(usize, usize, usize)> =
        (0..ROUNDS).map(|_| (random.below(files.len()), random.below(6), random.below(1 << 20))).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for (file, what, at) in changes {
                let (path, bytes) = files[file];
                change(&place.join(path), bytes, what, at, specials);
            }
            done.store(true, Ordering::Release);
        });
        let weights: Vec<_> = files.iter().filter(|(path, _)| path.ends_with(".safetensors")).collect();
        while !done.load(Ordering::Acquire) {
            match mm_probe::inspect(place.join(&checkpoint.root), Some(DType::Bf16)) {
                Ok(found) => crate::plans(&found.to_plan())?,
                Err(error) => crate::names(&error.to_string(), place, &Fault::Somewhere)?,
            }
            for (path, _) in &weights {
                crate::read(&[place.join(path)], place, &Fault::Somewhere)?;
            }
            for (path, _) in &files {
                if let Err(error) = mm_cache::content_id(place.join(path)) {
                    crate::names(&error.to_string(), place, &Fault::Somewhere)?;
                }
            }
        }
        Ok(())
    })
}

/// What fails, as the folder is damaged already, changes nothing.
fn change(path: &Path, bytes: &[u8], what: usize, at: usize, specials: &Specials) {
    let open = || OpenOptions::new().write(true).open(path);
    // A pipe would wait for its reader.
    let is_file = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    let replacement = path.with_extension("next");
    let _ = fs::remove_file(&replacement);
    let _ = match what {
        0 if is_file => open().and_then(|file| file.set_len((at % bytes.len().max(1)) as u64)),
        1 if is_file => open().and_then(|file| file.set_len((bytes.len() + at) as u64)),
        2 => fs::write(&replacement, bytes).and_then(|()| fs::rename(&replacement, path)),
        3 => fs::remove_file(path),
        4 => fs::hard_link(&specials.pipe, &replacement).and_then(|()| fs::rename(&replacement, path)),
        _ if is_file => fs::write(path, bytes),
        _ => fs::remove_file(path).and_then(|()| File::create(path)).map(drop),
    };
}
