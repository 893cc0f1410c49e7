//! Device scopes, per thread.

use mm_engine::{HostDevice, device_scope, scoped_device, scoped_dtype, timeline::Timeline};
use mm_plan::DType;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

fn device() -> Arc<HostDevice> {
    Arc::new(HostDevice::with_workers(0, 1, Arc::new(Timeline::default())))
}

fn is_in(device: &Arc<HostDevice>) -> bool {
    scoped_device::<HostDevice>().is_some_and(|scoped| Arc::ptr_eq(&scoped, device))
}

#[test]
fn the_innermost_scope_counts_with_its_dtype_or_none() {
    let (outer, inner) = (device(), device());
    assert!(scoped_device::<HostDevice>().is_none() && scoped_dtype().is_none());
    let first = device_scope(&outer, Some(DType::Bf16));
    assert!(is_in(&outer));
    {
        let _second = device_scope(&inner, None);
        assert!(is_in(&inner));
        assert_eq!(scoped_dtype(), None);
    }
    assert!(is_in(&outer));
    assert_eq!(scoped_dtype(), Some(DType::Bf16));
    drop(first);
    assert!(scoped_device::<HostDevice>().is_none());
}

#[test]
fn scopes_end_in_any_order_and_by_a_panic() {
    let devices = [(); 3].map(|()| device());
    let [one, two, three] = [0, 1, 2].map(|i| device_scope(&devices[i], None));
    drop(two);
    assert!(is_in(&devices[2]));
    drop(three);
    assert!(is_in(&devices[0]));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _inner = device_scope(&devices[1], Some(DType::F16));
        panic!("inside");
    }));
    assert!(panicked.is_err() && is_in(&devices[0]) && scoped_dtype().is_none());
    drop(one);
}

#[test]
fn other_threads_are_in_no_scope() {
    let device = device();
    let _scope = device_scope(&device, Some(DType::F32));
    thread::scope(|scope| {
        scope.spawn(|| assert!(scoped_device::<HostDevice>().is_none() && scoped_dtype().is_none()));
    });
}
