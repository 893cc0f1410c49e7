//! Keys need not be digests.

use std::convert::Infallible;

use mm_cache::{Key, LoadCache};

#[test]
fn keys_that_differ_in_any_one_stretch_of_their_bytes_are_found() {
    for at in (0..32).step_by(8) {
        let cache = LoadCache::new();
        let key = |n: u64| {
            let mut bytes = [0; 32];
            bytes[at..at + 8].copy_from_slice(&n.to_be_bytes());
            Key::from(bytes)
        };
        for n in 0..10_000 {
            cache.get_or_load(key(n), |_| 1, || Ok::<_, Infallible>(n)).expect("loads");
        }
        for n in 0..10_000 {
            assert_eq!(cache.get::<u64>(&key(n)).expect("a u64").as_deref(), Some(&n));
        }
        assert_eq!((cache.stats().entries, cache.stats().bytes), (10_000, 10_000));
    }
}
