//! What the index costs: `cargo run --release -p mm-cache --example index_speed [FOLDER]`, where the index is made.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mm_cache::Index;

const TENSORS: u64 = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder)?;
    let database = folder.path().join("index.sqlite3");
    let files: Vec<PathBuf> = (0..1000).map(|i| folder.path().join(i.to_string())).collect();
    for file in &files {
        fs::write(file, [7; TENSORS as usize])?;
    }
    std::thread::sleep(Duration::from_millis(2100));

    let index = Index::at(&database);
    median("hash and remember a small file", files.iter(), |file| index.content_id(file).map(drop))?;
    median("look up a file", files.iter(), |file| index.content_id(file).map(drop))?;
    median("open the index and look up a file", files.iter(), |file| Index::at(&database).content_id(file).map(drop))?;
    median("hash a small file, with no index", files.iter(), |file| Index::none().content_id(file).map(drop))?;
    let ranges: Vec<_> = (0..TENSORS).map(|i| i..i + 1).collect();
    median("remember 1000 tensors", files.iter().take(20), |file| {
        index.tensor_ids(&File::open(file)?, &ranges).map(drop)
    })?;
    median("look up 1000 tensors", files.iter().take(20), |file| {
        index.tensor_ids(&File::open(file)?, &ranges).map(drop)
    })?;
    println!("{:?}, {:?}, {} bytes", index.stats(), index.problem(), fs::metadata(&database)?.len());
    Ok(())
}

fn median<T, E>(what: &str, over: impl Iterator<Item = T>, mut run: impl FnMut(T) -> Result<(), E>) -> Result<(), E> {
    let mut times = Vec::new();
    for each in over {
        let begun = Instant::now();
        run(each)?;
        times.push(begun.elapsed());
    }
    times.sort();
    let at = |permille: usize| times.get(times.len() * permille / 1000).copied().unwrap_or_default();
    println!("{what}: median {:?}, 99 % within {:?}", at(500), at(990));
    Ok(())
}
