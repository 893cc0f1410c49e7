//! The index of a sharded model, beside two shards of three tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;

const INDEX: &str = "sharded/model.safetensors.index.json";

fuzz_target!(
    init: {
        mm_fuzz::write_tensors("sharded/1.safetensors", &[("layers.0.w", 8), ("layers.1.w", 8)]);
        mm_fuzz::write_tensors("sharded/2.safetensors", &[("norm", 4)]);
        mm_fuzz::write_tensors("sharded/norm", &[("norm", 4)]);
        mm_fuzz::write("sharded/folder/x", b"");
    },
    |bytes: &[u8]| {
        mm_fuzz::write(INDEX, bytes);
        mm_fuzz::inspect_and_plan(INDEX);
        mm_fuzz::inspect_and_plan("sharded");
    }
);
