//! How much to ask malloc for, so that what is freed goes back to the system.
//!
//! glibc's malloc maps large pieces one by one, and unmaps them when they are freed. But once it has seen a piece freed it takes others of
//! its size for worth keeping, up to 32 MiB: those come out of a heap then, one for each thread that allocates, which hardly ever shrinks. So a piece of a
//! few MiB asks for more than that. What is beyond its length is never written, and so is not there.

use std::{fs, sync::OnceLock};

/// Asked for, malloc always maps it, bytes.
const MAPPED: u64 = (32 << 20) + (64 << 10);
/// What smaller pieces leave behind is little, bytes.
const LEAST: u64 = 4 << 20;

/// Bytes to ask for where `bytes` are needed.
pub(crate) fn room(bytes: u64) -> u64 {
    if (LEAST..MAPPED).contains(&bytes) && is_free_to_ask() { MAPPED } else { bytes }
}

/// Whether nobody counts what is asked for and not there.
fn is_free_to_ask() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let read = |path| fs::read_to_string(path).ok();
        cfg!(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))
            && read("/proc/self/limits").is_some_and(|limits| is_unlimited(&limits))
            // 2: the system counts what was asked for.
            && read("/proc/sys/vm/overcommit_memory").is_some_and(|mode| mode.trim() != "2")
    })
}

fn is_unlimited(limits: &str) -> bool {
    ["Max data size", "Max address space"].into_iter().all(|name| {
        let limit = limits.lines().find_map(|line| line.strip_prefix(name));
        limit.is_some_and(|values| values.split_whitespace().next() == Some("unlimited"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units
Max data size             unlimited            unlimited            bytes
Max address space         unlimited            unlimited            bytes
";

    #[test]
    fn limits_of_what_is_asked_for_are_seen() {
        assert!(is_unlimited(LIMITS));
        assert!(!is_unlimited(&LIMITS.replacen("unlimited ", "1073741824", 1)));
        assert!(!is_unlimited(&LIMITS.replacen("Max address", "Another", 1)));
        assert!(!is_unlimited(""));
    }

    #[test]
    fn small_and_large_pieces_are_as_they_are() {
        for bytes in [0, 256, LEAST - 1, MAPPED, u64::MAX] {
            assert_eq!(room(bytes), bytes);
        }
        assert!([LEAST, MAPPED - 1].into_iter().all(|bytes| [bytes, MAPPED].contains(&room(bytes))));
    }
}
