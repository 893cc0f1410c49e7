//! Two copies of one file, looked at in full, take the memory of one. Alone in its process, as that is what is measured.
#![cfg(target_os = "linux")]

use std::fs;

use mm_cache::{Index, WeightStore, Weights};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const LENGTH: usize = 32 << 20;

/// File pages that are mapped by this process, bytes.
fn mapped() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("reads");
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

fn look_at(weights: &Weights) -> u64 {
    weights.tensors().map(|t| t.bytes().expect("maps").iter().step_by(512).map(|b| u64::from(*b)).sum::<u64>()).sum()
}

#[test]
fn two_copies_take_the_memory_of_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes: Vec<u8> = (0..LENGTH).map(|i| (i % 253) as u8).collect();
    let view = || TensorView::new(Dtype::U8, vec![LENGTH], &bytes).expect("a tensor");
    let file = safetensors::serialize([("a", view())], None).expect("serializes");
    let paths = ["one", "two"].map(|name| folder.path().join(name));
    paths.iter().for_each(|path| fs::write(path, &file).expect("writes"));

    let (store, before) = (WeightStore::new(Index::none()), mapped());
    let held = [&paths[0], &paths[1]].map(|path| store.open(&[path]).expect("opens"));
    let sums = held.each_ref().map(|weights| look_at(weights));
    assert_eq!(sums[0], sums[1]);
    let took = mapped() - before;
    assert!((LENGTH..LENGTH + LENGTH / 4).contains(&took), "{took} bytes are mapped of one file of {LENGTH}");

    let alone = Weights::open(&[&paths[1]]).expect("opens");
    assert_eq!(look_at(&alone), sums[0]);
    assert!(mapped() - before > 2 * LENGTH - LENGTH / 4, "without the store it is two");
}
