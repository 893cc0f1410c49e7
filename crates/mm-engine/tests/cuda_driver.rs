//! The fake driver ends a program at each thing that no CUDA program may do, and a machine without a driver gets an error.
//! Each case is a child process.
#![cfg(target_os = "linux")] // The fake driver is found by its name inside, as glibc's loader does it.

mod common;

use common::fake_cuda::driver;
use mm_engine::{
    CudaDevice, EngineError,
    cudarc::driver::{CudaContext, CudaStream, result, sys},
    timeline::Timeline,
};
use std::{process::Command, sync::Arc};

const CASE: &str = "MM_FAKE_CUDA_CASE";

/// Each misuse, and what the driver says of it.
const MISUSES: &[(&str, &str)] = &[
    ("none", ""),
    ("pageable", "not page-locked"),
    ("changed", "changed before the copy from it ran"),
    ("freed_source", "page-locked memory freed before the host has seen the end"),
    ("freed_target", "device memory freed before the host has seen the end"),
    ("freed_pointer", "device memory that does not exist"),
    ("freed_twice", "device memory freed that does not exist"),
    ("read_early", "device memory is read while its copy on another stream may still run"),
    ("written_early", "device memory is written while earlier work on another stream may still use it"),
    ("wrong_bytes", "other bytes than those expected"),
    ("no_context", "no context is bound"),
    ("other_context", "not that of what it uses"),
    ("other_device", "memory of one device used on a stream of another"),
    ("too_long", "not so much of it"),
    ("dead_stream", "a stream that does not exist"),
    ("dead_event", "an event that does not exist"),
    ("pending_stream", "destroyed with work pending"),
    ("left_memory", "1 device allocations left at exit"),
    ("left_locked", "1 page-locked blocks left at exit"),
    ("left_event", "1 events left at exit"),
    ("left_context", "1 contexts left at exit"),
    ("early_release", "released before what belongs to it"),
];

fn child(test: &str, case: &str) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--ignored", "--nocapture"]).env(CASE, case).output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(text.contains("running 1 test"), "{text}");
    (output.status.success(), text)
}

#[test]
fn each_misuse_ends_the_program() {
    for (case, says) in MISUSES {
        let (passed, text) = child("one_misuse", case);
        let is_right = if says.is_empty() { passed } else { !passed && text.contains(says) };
        assert!(is_right, "{case}: {text}");
    }
}

#[test]
fn without_a_driver_there_is_an_error_that_says_so() {
    let (passed, text) = child("no_driver", "no_driver");
    assert!(passed, "{text}");
}

#[test]
#[ignore = "a child of without_a_driver_there_is_an_error_that_says_so"]
fn no_driver() {
    // SAFETY: a driver that is here may be loaded.
    #[allow(unsafe_code)]
    if unsafe { libloading::Library::new("libcuda.so.1") }.is_ok() {
        println!("NOT CHECKED: this machine has a CUDA driver");
        return;
    }
    let error = CudaDevice::new(0, None, 1 << 30, Arc::new(Timeline::default())).err().unwrap();
    assert!(matches!(error, EngineError::NoDriver { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("no usable CUDA driver") && text.contains("libcuda.so.1"), "{text}");
}

/// A context, two streams, page-locked and device memory of 64 bytes, made by cudarc's lowest layer.
struct Bench {
    context: Arc<CudaContext>,
    compute: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    locked: *mut std::ffi::c_void,
    memory: u64,
}

#[test]
#[ignore = "a child of each_misuse_ends_the_program"]
#[allow(unsafe_code, clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]
fn one_misuse() {
    let case = std::env::var(CASE).unwrap_or_default();
    driver().seed(0);
    let context = CudaContext::new(0).unwrap();
    // SAFETY: none, and that is the point: each case misuses the driver, a fake one over host memory, which ends this child
    // process instead of carrying the call out.
    unsafe {
        let bench = Bench {
            compute: context.new_stream().unwrap(),
            copies: context.new_stream().unwrap(),
            locked: result::malloc_host(64, 0).unwrap(),
            memory: result::malloc_sync(64).unwrap(),
            context,
        };
        bench.locked.cast::<u8>().write_bytes(7, 64);
        if case.starts_with("left_") {
            // So that what is left is found at exit, and not already with its context.
            std::mem::forget(bench.context.clone());
        }
        misuse(&case, &bench);
        bench.context.bind_to_thread().unwrap();
        bench.copies.synchronize().unwrap();
        bench.compute.synchronize().unwrap();
        if case != "left_memory" {
            result::free_sync(bench.memory).unwrap();
        }
        if case != "left_locked" {
            result::free_host(bench.locked).unwrap();
        }
    }
}

#[allow(unsafe_code, unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
// SAFETY: as where it is called: the fake driver ends the process at the call that is not sound.
unsafe fn misuse(case: &str, bench: &Bench) {
    let Bench { context, compute, copies, locked, memory } = bench;
    let locked_bytes = std::slice::from_raw_parts(locked.cast::<u8>(), 64);
    let copy = || result::memcpy_htod_async(*memory, locked_bytes, copies.cu_stream()).unwrap();
    let kernel = |byte: u8, length| driver().kernel(compute.cu_stream() as u64, *memory, &vec![byte; length]);
    let other = || CudaContext::new(1).unwrap();
    match case {
        "none" => {
            copy();
            compute.join(copies).unwrap();
            kernel(7, 64);
            copies.join(compute).unwrap();
            copy();
        }
        "pageable" => result::memcpy_htod_async(*memory, &[0u8; 64], copies.cu_stream()).unwrap(),
        "changed" => {
            copy();
            locked.cast::<u8>().write_bytes(8, 1);
        }
        "freed_source" => {
            copy();
            result::free_host(*locked).unwrap();
        }
        "freed_target" => {
            copy();
            result::free_sync(*memory).unwrap();
        }
        "freed_pointer" => {
            result::free_sync(*memory).unwrap();
            copy();
        }
        // The bench frees it again.
        "freed_twice" => result::free_sync(*memory).unwrap(),
        "read_early" => {
            copy();
            kernel(7, 64);
        }
        "written_early" => {
            copy();
            compute.join(copies).unwrap();
            kernel(7, 64);
            copy();
        }
        "wrong_bytes" => {
            copy();
            compute.join(copies).unwrap();
            kernel(8, 64);
        }
        "no_context" => std::thread::scope(|scope| {
            let address = *memory;
            // SAFETY: as above; no context is bound on this thread, and so the driver ends the process.
            scope.spawn(move || unsafe { result::free_sync(address) }).join().unwrap().unwrap();
        }),
        "other_context" => {
            let _other = other();
            copy();
        }
        "other_device" => {
            let stream = other().new_stream().unwrap();
            result::memcpy_htod_async(*memory, locked_bytes, stream.cu_stream()).unwrap();
        }
        "too_long" => {
            copy();
            compute.join(copies).unwrap();
            kernel(7, 65);
        }
        "dead_stream" => {
            let stream = context.new_stream().unwrap();
            result::stream::destroy(stream.cu_stream()).unwrap();
            std::mem::forget(stream);
            result::stream::synchronize(0x10 as sys::CUstream).unwrap();
        }
        "dead_event" => {
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap();
            result::event::destroy(event).unwrap();
            result::event::synchronize(event).unwrap();
        }
        "pending_stream" => {
            copy();
            result::stream::destroy(copies.cu_stream()).unwrap();
        }
        "left_event" => std::mem::forget(context.new_event(None).unwrap()),
        "early_release" => result::primary_ctx::release(context.cu_device()).unwrap(),
        "left_memory" | "left_locked" | "left_context" => {}
        unknown => panic!("no case {unknown}"),
    }
}
