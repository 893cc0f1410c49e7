//! Which device and dtype the code below is meant to use, per thread.

use crate::Device;
use mm_plan::DType;
use std::{any::Any, cell::RefCell, marker::PhantomData, sync::Arc};

struct Scope {
    id: u64,
    device: Arc<dyn Any + Send + Sync>,
    dtype: Option<DType>,
}

thread_local! {
    static SCOPES: RefCell<(u64, Vec<Scope>)> = const { RefCell::new((0, Vec::new())) };
}

/// Until the guard is dropped, this thread is in the scope of a device, and of a dtype or of none. Scopes may be nested, and
/// end in any order; the one opened last counts.
pub fn device_scope<D: Device>(device: &Arc<D>, dtype: Option<DType>) -> DeviceScope {
    SCOPES.with_borrow_mut(|(next, scopes)| {
        *next += 1;
        scopes.push(Scope { id: *next, device: device.clone(), dtype });
        DeviceScope { id: *next, thread_bound: PhantomData }
    })
}

/// The device of the innermost scope; `None` outside of any, and where it is no `D`.
pub fn scoped_device<D: Device>() -> Option<Arc<D>> {
    SCOPES.with_borrow(|(_, scopes)| scopes.last().and_then(|scope| scope.device.clone().downcast().ok()))
}

/// The dtype of the innermost scope; `None` outside of any, and where it has none.
pub fn scoped_dtype() -> Option<DType> {
    SCOPES.with_borrow(|(_, scopes)| scopes.last().and_then(|scope| scope.dtype))
}

/// A scope, while it lives; see [`device_scope`].
#[must_use = "the scope ends when this is dropped"]
pub struct DeviceScope {
    id: u64,
    thread_bound: PhantomData<*const ()>,
}

impl Drop for DeviceScope {
    fn drop(&mut self) {
        // Dropped only after the borrow: what a device does then may open a scope. While the thread ends there is none.
        let ended = SCOPES.try_with(|cell| {
            let (_, scopes) = &mut *cell.borrow_mut();
            scopes.iter().position(|scope| scope.id == self.id).map(|at| scopes.remove(at))
        });
        drop(ended);
    }
}
