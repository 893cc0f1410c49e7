//! This driver's own entry points: settings and counters.

use crate::{
    driver::{Code, HOST_WAITS, Pool, lock},
    nvtx::RANGES,
};

/// What draws the order of work; 0: nothing runs before it is waited for.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_seed(seed: u64) {
    lock().seed = seed;
}

/// Bytes of each device.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_capacity(bytes: u64) {
    lock().capacity = bytes;
}

/// Of the allocations from now on, `count` after the first `after` find so many bytes taken by others.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_others(after: u64, count: u64, bytes: u64) {
    let mut driver = lock();
    (driver.asked, driver.others) = (0, (after, count, bytes));
    driver.taken = driver.taken_now();
}

/// Allocations on devices asked for since the last `mm_fake_cuda_others`.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_asked() -> u64 {
    lock().asked
}

/// What the pool of each device holds, of it what somebody uses, and what it does not give up though nobody does. Bytes.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_pool(held: u64, used: u64, stuck: u64) {
    lock().pool = Pool { held, used, stuck };
}

/// How much may be page-locked, bytes.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_page_lock_limit(bytes: u64) {
    lock().page_lock_limit = bytes;
}

/// Whether (1) copies from memory that is not page-locked are meant. What they copy is looked at again when they run, as a driver may
/// read such memory in place.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_pageable(meant: u32) {
    lock().pageable = meant != 0;
}

/// Lets the `at`-th call from now on (the first is 0) fail with `code`, and, where `forever` is not 0, all after it. The
/// count of calls begins anew; `at` of `u64::MAX`: none fails.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_fail(at: u64, code: Code, forever: u32) {
    let mut driver = lock();
    driver.calls = 0;
    driver.fault = (at != u64::MAX).then_some((at, code, forever != 0));
}

/// Lets the `at`-th call from now on (the first is 0) that only those who time make fail with `code`; `at` of `u64::MAX`: none
/// fails. Such are those with timed events, and asking what lies between two.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_fail_timing(at: u64, code: Code) {
    let mut driver = lock();
    (driver.timing, driver.timing_fault) = (0, (at != u64::MAX).then_some((at, code)));
}

/// Calls that only those who time make, since the last `mm_fake_cuda_fail_timing`.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_timing_calls() -> u64 {
    lock().timing
}

/// Calls since the last `mm_fake_cuda_fail`.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_calls() -> u64 {
    lock().calls
}

/// Allocations ever made, on devices and page-locked.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_allocations() -> u64 {
    lock().allocations
}

/// Bytes page-locked now: whole pages of each block.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_page_locked() -> u64 {
    lock().page_locked()
}

/// Bytes allocated now, on all devices.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_device_bytes() -> u64 {
    lock().memory.values().map(|memory| memory.bytes.len() as u64).sum()
}

/// Allocations, page-locked blocks, streams and events alive.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_live() -> u64 {
    let driver = lock();
    (driver.memory.len() + driver.locked.len() + driver.streams.len() + driver.events.len()) as u64
}

/// Copies to a device that have run.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_copies() -> u64 {
    lock().copies
}

/// Forgets when which work ran.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_forget() {
    lock().ran.clear();
}

/// What is left at exit is left on purpose.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_forgive() {
    lock().forgiven = true;
}

/// How many copies to a device ran while a kernel, or a copy back, was running: by the time of a machine whose streams wait
/// only for their events.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_overlapped() -> u64 {
    let driver = lock();
    let meets_kernel = |start, end| driver.ran.iter().any(|ran| !ran.is_copy && ran.start < end && start < ran.end);
    driver.ran.iter().filter(|ran| ran.is_copy && meets_kernel(ran.start, ran.end)).count() as u64
}

/// Ranges begun whose text starts with this byte.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_ranges(first: u8) -> u64 {
    RANGES.lock().map_or(0, |ranges| ranges.begun.iter().filter(|begun| **begun == first).count() as u64)
}

/// Ranges begun that have not ended.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_open_ranges() -> u64 {
    RANGES.lock().map_or(0, |ranges| ranges.open.len() as u64)
}

/// How often the calling thread has waited for work to end.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_host_waits() -> u64 {
    HOST_WAITS.get()
}
