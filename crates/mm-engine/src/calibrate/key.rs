//! What a component's figures are kept under: what it is made of, wherever it lies.

use crate::{Device, Module, module::GroupEntry};
use mm_cache::{Key, component_hash};
use std::fmt::Write;

/// Two components of the same groups, tensors, shapes and dtypes, stored and on the device, have the same key.
pub(crate) fn component_key<D: Device>(module: &Module<D>) -> Key {
    let (mut text, layout) = (String::new(), module.layout());
    let stacks = layout.description.stacks.iter().map(|stack| (&stack.name, stack.groups.len()));
    let mut say = |args: std::fmt::Arguments<'_>| {
        // Writing to a string can't fail.
        let _ = text.write_fmt(args);
    };
    stacks.for_each(|stack| say(format_args!("{stack:?}\n")));
    let mut place = |entry: &GroupEntry| {
        say(format_args!("place\n"));
        for slab in &entry.slabs {
            say(format_args!("slab {:?} {}\n", slab.dtype(), slab.bytes()));
            for tensor in slab.tensors() {
                // Names are written as Rust would, so that none can look like two lines.
                say(format_args!("{:?} {:?} {:?}\n", tensor.name(), tensor.dtype(), tensor.shape()));
            }
        }
    };
    place(&layout.rest);
    layout.groups.iter().for_each(&mut place);
    component_hash(&text)
}
