//! The driver's entry points: those that mm-engine reaches through cudarc.

use crate::{
    driver::{
        self, CURRENT, Code, DEVICES, Event, HOST_WAITS, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, Locked,
        NOT_INITIALIZED, NOT_READY, OUT_OF_MEMORY, PAGE, SUCCESS, call, lock, misuse, release,
    },
    order::{Handle, Uses},
    stream::{Record, Stream, Work},
};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// Flag of an event that does not keep when it was reached.
const DISABLE_TIMING: c_uint = 2;

/// Attributes of a pool: what it holds, and what of that is used.
const RESERVED_NOW: c_uint = 5;
const USED_NOW: c_uint = 7;

/// Gives an answer where the caller wants it.
fn answer<T>(place: *mut T, value: T) {
    // SAFETY: CUDA asks of whoever calls an entry point that each place it names for an answer can be written to.
    unsafe { place.write(value) };
}

fn waited() {
    HOST_WAITS.set(HOST_WAITS.get() + 1);
}

/// The texts of the codes that this driver, or a test, returns.
fn texts(code: Code) -> (&'static CStr, &'static CStr) {
    match code {
        SUCCESS => (c"CUDA_SUCCESS", c"no error"),
        INVALID_VALUE => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        NOT_INITIALIZED => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
        INVALID_HANDLE => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        INVALID_DEVICE => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        NOT_READY => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        700 => (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
        _ => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(code: Code, text: *mut *const c_char) -> Code {
    answer(text, texts(code).0.as_ptr());
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(code: Code, text: *mut *const c_char) -> Code {
    answer(text, texts(code).1.as_ptr());
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> Code {
    call(|driver| {
        if !driver.initialized {
            driver.initialized = true;
            // SAFETY: what runs at exit is a function of this library, which is never unloaded.
            unsafe { libc::atexit(driver::at_exit) };
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    call(|driver| {
        driver.initialized.then_some(()).ok_or(NOT_INITIALIZED)?;
        answer(count, DEVICES);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    call(|driver| {
        driver.initialized.then_some(()).ok_or(NOT_INITIALIZED)?;
        (0..DEVICES).contains(&ordinal).then_some(()).ok_or(INVALID_DEVICE)?;
        answer(device, ordinal);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, _attribute: c_uint, _device: c_int) -> Code {
    call(|_| {
        // What cudarc asks: whether there are memory pools.
        answer(value, 1);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetMemPool(pool: *mut Handle, device: c_int) -> Code {
    call(|_| {
        (0..DEVICES).contains(&device).then_some(()).ok_or(INVALID_DEVICE)?;
        answer(pool, device as Handle + 1);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolTrimTo(_pool: Handle, keep: usize) -> Code {
    call(|driver| {
        let least = driver.pool.used.saturating_add(driver.pool.stuck).max(keep as u64);
        driver.pool.held = driver.pool.held.min(least);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolGetAttribute(_pool: Handle, attribute: c_uint, value: *mut u64) -> Code {
    call(|driver| match attribute {
        RESERVED_NOW => {
            answer(value, driver.pool.held);
            Ok(())
        }
        USED_NOW => {
            answer(value, driver.pool.used);
            Ok(())
        }
        _ => Err(INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) -> Code {
    call(|driver| {
        driver.retained[device as usize] += 1;
        answer(context, device as Handle + 1);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Code {
    release(|driver| {
        let count = &mut driver.retained[device as usize];
        *count = count.checked_sub(1).unwrap_or_else(|| misuse("a context released more often than retained"));
        if *count > 0 {
            return;
        }
        let context = device as Handle + 1;
        let lives = [
            (driver.streams.values().filter(|s| s.context == context).count(), "streams"),
            (driver.events.values().filter(|e| e.context == context).count(), "events"),
            (driver.memory.values().filter(|m| m.context == context).count(), "device allocations"),
            (driver.locked.values().filter(|l| l.context == context).count(), "page-locked blocks"),
        ];
        if let Some((count, what)) = lives.into_iter().find(|(count, _)| *count > 0) {
            misuse(&format!("a context was released before what belongs to it: {count} {what}"));
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> Code {
    call(|_| {
        answer(context, CURRENT.get());
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: Handle) -> Code {
    call(|driver| {
        CURRENT.set(context);
        driver.current();
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Code {
    waited();
    call(|driver| {
        let context = driver.current();
        let streams: Vec<Handle> =
            driver.streams.iter().filter(|(_, s)| s.context == context).map(|(handle, _)| *handle).collect();
        streams.into_iter().for_each(|stream| driver.synchronize(stream));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    call(|driver| {
        let context = driver.current();
        answer(free, driver.free(context) as usize);
        answer(total, driver.capacity as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, _flags: c_uint) -> Code {
    call(|driver| {
        let (context, handle) = (driver.current(), driver.handle());
        driver.streams.insert(handle, Stream { context, ..Stream::default() });
        answer(stream, handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Code {
    release(|driver| {
        if !driver.stream(stream).queue.is_empty() {
            misuse("a stream was destroyed with work pending");
        }
        driver.streams.remove(&stream);
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: Handle) -> Code {
    waited();
    call(|driver| {
        driver.stream(stream);
        driver.synchronize(stream);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) -> Code {
    call(|driver| {
        driver.stream(stream);
        // An event that was never recorded is waited for by nobody.
        if let Some(record) = driver.event(event).last {
            let clock = driver.records[&record].clock.clone();
            driver.stream(stream).clock.join(&clock);
            driver.enqueue(stream, Work::Wait { record });
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut Handle, flags: c_uint) -> Code {
    call(|driver| {
        let is_timed = flags & DISABLE_TIMING == 0;
        if is_timed {
            driver.times()?;
        }
        let (context, handle) = (driver.current(), driver.handle());
        driver.events.insert(handle, Event { context, is_timed, last: None });
        answer(event, handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Handle) -> Code {
    release(|driver| {
        let context = driver.event(event).context;
        driver.in_context(context);
        driver.events.remove(&event);
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> Code {
    call(|driver| {
        if driver.stream(stream).context != driver.event(event).context {
            misuse("an event of one device recorded on a stream of another");
        }
        driver.times_with(event)?;
        let record = driver.handle();
        driver.enqueue(stream, Work::Record { record });
        let clock = driver.streams[&stream].clock.clone();
        driver.records.insert(record, Record { clock, time: 0, done: false });
        driver.event(event).last = Some(record);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: Handle) -> Code {
    call(|driver| {
        let context = driver.event(event).context;
        driver.in_context(context);
        driver.times_with(event)?;
        let Some(record) = driver.event(event).last else { return Ok(()) };
        if !driver.records[&record].done {
            return Err(NOT_READY);
        }
        driver.seen(record);
        Ok(())
    })
}

/// Both events must be timed, recorded and done: else it is an error, as the driver's is, and no misuse.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) -> Code {
    call(|driver| {
        driver.times()?;
        let (start, end) = (driver.reached(start)?, driver.reached(end)?);
        answer(milliseconds, ((end as f64 - start as f64) / 1e6) as f32);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Handle) -> Code {
    waited();
    call(|driver| {
        let context = driver.event(event).context;
        driver.in_context(context);
        let Some(record) = driver.event(event).last else { return Ok(()) };
        driver.run_until(|driver| driver.records[&record].done);
        driver.seen(record);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    call(|driver| {
        let context = driver.current();
        (bytes > 0).then_some(()).ok_or(INVALID_VALUE)?;
        let allocated = driver.allocate(context, bytes as u64).ok_or(OUT_OF_MEMORY)?;
        answer(address, allocated);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> Code {
    release(|driver| {
        let Some(memory) = driver.memory.remove(&address) else {
            misuse("device memory freed that does not exist, or no longer");
        };
        driver.in_context(memory.context);
        if !memory.uses.lie_before(&driver.host, true) {
            misuse("device memory freed before the host has seen the end of the work that uses it");
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, _flags: c_uint) -> Code {
    call(|driver| {
        let context = driver.current();
        (bytes > 0).then_some(()).ok_or(INVALID_VALUE)?;
        let need =
            (bytes as u64).checked_next_multiple_of(PAGE).and_then(|need| need.checked_add(driver.page_locked()));
        need.is_some_and(|need| need <= driver.page_lock_limit).then_some(()).ok_or(OUT_OF_MEMORY)?;
        let mut memory = vec![0xDD; bytes].into_boxed_slice();
        let start = memory.as_mut_ptr();
        driver.allocations += 1;
        driver.locked.insert(start as usize, Locked { context, memory, uses: Uses::default() });
        answer(pointer, start.cast());
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(pointer: *mut c_void) -> Code {
    release(|driver| {
        let Some(block) = driver.locked.remove(&(pointer as usize)) else {
            misuse("page-locked memory freed that does not exist, or no longer");
        };
        driver.in_context(block.context);
        if !block.uses.lie_before(&driver.host, true) {
            misuse("page-locked memory freed before the host has seen the end of the copies that use it");
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(into: u64, from: *const c_void, length: usize, stream: Handle) -> Code {
    call(|driver| {
        let is_locked = driver.is_page_locked(from as usize, length);
        if !is_locked && !driver.pageable {
            misuse("an asynchronous copy from memory that is not page-locked");
        }
        // SAFETY: it lies in a block of this driver's, asked just above, which nobody frees while the driver is locked; or the caller
        // promised CUDA that it can be read.
        let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), length) }.to_vec();
        let work = Work::ToDevice { into, from: from as usize, bytes, is_locked };
        driver.use_memory(stream, (into, length), is_locked.then_some(from as usize), true, work);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(into: *mut c_void, from: u64, length: usize, stream: Handle) -> Code {
    call(|driver| {
        let work = Work::ToHost { into: into as usize, from, length };
        driver.use_memory(stream, (from, length), Some(into as usize), false, work);
        Ok(())
    })
}

/// A kernel that takes so many nanoseconds. It is no call of CUDA's, as below.
#[unsafe(no_mangle)]
extern "C" fn mm_fake_cuda_spend(stream: Handle, ns: u64) {
    let mut driver = lock();
    let context = driver.streams.get(&stream).map_or(0, |s| s.context);
    let bound = CURRENT.replace(context);
    driver.enqueue(stream, Work::Spend { ns });
    CURRENT.set(bound);
}

/// A kernel that reads `length` bytes at `from` and, when it runs, compares them with what `expected` holds now. It is no call of
/// CUDA's: it does not fail when told to, and binds the stream's context while it lasts.
#[unsafe(no_mangle)]
unsafe extern "C" fn mm_fake_cuda_kernel(stream: Handle, from: u64, expected: *const u8, length: usize) {
    let mut driver = lock();
    // SAFETY: the test that calls this gives the address and length of a slice that it holds.
    let expected = unsafe { std::slice::from_raw_parts(expected, length) }.to_vec();
    let context = driver.streams.get(&stream).map_or(0, |s| s.context);
    let bound = CURRENT.replace(context);
    driver.use_memory(stream, (from, length), None, false, Work::Kernel { from, expected });
    CURRENT.set(bound);
}
