//! A CUDA driver for tests: the entry points that mm-engine reaches through cudarc, over host memory.
//!
//! Load the shared library by its path; its name inside is `libcuda.so`, so cudarc then finds it and no other.
//!
//! - **Late and out of order**: enqueued work runs only when somebody waits for it, or now and then during other calls;
//!   which stream goes next is drawn from a seed. Seed 0: nothing runs before it is waited for.
//! - **Strict**: what a program may not do aborts it with a message: a copy from memory that is not page-locked, that was
//!   freed, or that changed before the copy ran; memory used on one stream without an order (events, or a wait of the host)
//!   after its use on another; memory, streams or events freed before the host has seen the end of the work that uses them;
//!   calls with no context bound, or a wrong one; handles that are not alive; anything left at exit.
//! - **Failing on demand**: a capacity, a limit of page-locked bytes, and an error at the Nth call, once or from there on. A call
//!   that releases something does so even where it reports an error, as the driver's do.
//! - **Timed**: a byte moved is a nanosecond, and a timed event keeps when its stream came to it by that.
//!
//! It is also NVIDIA's library of ranges for profilers, where it is loaded under that name.
//!
//! `mm_fake_cuda_*` in `control.rs` are its own entry points: settings, counters, and a kernel that compares bytes.
//!
//! It is a double for tests, so `unsafe` is not confined here as it is elsewhere.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]

mod control;
mod driver;
mod entry;
mod nvtx;
mod order;
mod stream;
