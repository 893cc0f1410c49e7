//! A component of plain numbers on a host device.

use mm_cache::TensorSlice;
use mm_engine::{Homes, HostBuffer, HostDevice, Module, ModuleSpec, Place, Slab, StackSpec, timeline::Timeline};
use mm_plan::DType;
use parking_lot::Mutex;
use safetensors::Dtype;
use std::{collections::HashMap, ops::Range, sync::Arc};

type Key = (Option<usize>, usize);

#[derive(Clone, Default)]
pub struct Shelf(Arc<Mutex<HashMap<Key, HostBuffer>>>);

fn key(place: Place, slab: usize) -> Key {
    match place {
        Place::Rest => (None, slab),
        Place::Group(group) => (Some(group), slab),
    }
}

impl Shelf {
    /// Whether a group's only slab is home and holds this number throughout.
    pub fn is_all(&self, group: usize, number: f32) -> bool {
        match self.0.lock().get(&(Some(group), 0)) {
            Some(HostBuffer::F32(values)) => !values.is_empty() && values.iter().all(|value| *value == number),
            _ => false,
        }
    }

    /// The first number of a group's only slab.
    pub fn first(&self, group: usize) -> Option<f32> {
        match self.0.lock().get(&(Some(group), 0)) {
            Some(HostBuffer::F32(values)) => values.first().copied(),
            _ => None,
        }
    }
}

impl Homes<HostBuffer> for Shelf {
    fn put(&self, place: Place, slab: usize, buffer: HostBuffer) -> Result<(), (HostBuffer, String)> {
        self.0.lock().insert(key(place, slab), buffer);
        Ok(())
    }

    fn take(&self, place: Place, slab: usize) -> Result<HostBuffer, String> {
        self.0.lock().remove(&key(place, slab)).ok_or_else(|| "empty".to_owned())
    }
}

pub fn tensor(dtype: Dtype, bytes: Vec<u8>) -> TensorSlice {
    let elements = bytes.len() * 8 / dtype.bitsize();
    TensorSlice::from_bytes("weight", dtype, [elements], bytes).unwrap()
}

/// A slab of one tensor.
pub fn slab(to: DType, stored: Dtype, bytes: Vec<u8>) -> Slab {
    let mut slab = Slab::new(to);
    slab.push(tensor(stored, bytes));
    slab
}

/// Block `i` holds 1024 times the number `i`.
pub fn component(device: &Arc<HostDevice>, timeline: &Arc<Timeline>, blocks: u16) -> (Arc<Module<HostDevice>>, Shelf) {
    numbered(device, timeline, "transformer", None, 0..blocks)
}

/// A block of 1024 times each of these numbers.
pub fn numbered(
    device: &Arc<HostDevice>,
    timeline: &Arc<Timeline>,
    name: &str,
    phase: Option<u32>,
    numbers: Range<u16>,
) -> (Arc<Module<HostDevice>>, Shelf) {
    let block = |i: u16| vec![slab(DType::F32, Dtype::F32, f32::from(i).to_le_bytes().repeat(1024))];
    let shelf = Shelf::default();
    let spec = ModuleSpec {
        name: name.to_owned(),
        phase,
        passes: 28,
        rest: Vec::new(),
        stacks: vec![StackSpec { name: "layers".to_owned(), groups: numbers.map(block).collect() }],
        homes: Box::new(shelf.clone()),
    };
    (Module::new(spec, device.clone(), timeline.clone()), shelf)
}
