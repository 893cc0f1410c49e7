//! `hash FILE`: its id without an index. `known FILE`: how long the index takes to answer for a file that it knows, as JSON.
//!
//! Run by `cargo xtask bench hash`.
#![allow(missing_docs)]

use mm_cache::{Index, content_id};
use std::{error::Error, path::PathBuf, time::Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let (command, file) = (args.next().unwrap_or_default(), args.next().map(PathBuf::from));
    match (command.to_str(), file) {
        (Some("hash"), Some(file)) => println!("{}", content_id(file)?),
        (Some("known"), Some(file)) => known(file)?,
        // `cargo bench` and `cargo test` run this with arguments of their own.
        _ => println!("index: run by `cargo xtask bench hash`"),
    }
    Ok(())
}

fn known(file: PathBuf) -> Result<(), Box<dyn Error>> {
    let database = file.with_extension("index.sqlite3");
    let expected = Index::at(&database).content_id(&file)?;
    // As a new process has it: nothing open yet.
    let started = Instant::now();
    let index = Index::at(&database);
    let id = index.content_id(&file)?;
    let opening = started.elapsed();
    assert_eq!(id, expected);
    assert_eq!(index.stats().misses, 0, "the index does not know the file: {:?}", index.problem());
    let mut lookups: Vec<u128> = Vec::new();
    for _ in 0..1000 {
        let started = Instant::now();
        index.content_id(&file)?;
        lookups.push(started.elapsed().as_nanos());
    }
    lookups.sort_unstable();
    println!(r#"{{"opening_ns": {}, "lookup_ns": {}}}"#, opening.as_nanos(), lookups[lookups.len() / 2]);
    Ok(())
}
