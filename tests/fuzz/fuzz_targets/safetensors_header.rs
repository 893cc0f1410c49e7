//! A safetensors file. The first byte says how it is made: as the bytes are; with the right length before the header;
//! or also with a hole of the size that the offsets in the header call for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const FILE: &str = "weights/x.safetensors";

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    if mode % 4 == 0 {
        mm_fuzz::write(FILE, bytes);
    } else {
        let mut file = (bytes.len() as u64).to_le_bytes().to_vec();
        file.extend(bytes);
        let data = if mode % 4 == 1 { 0 } else { end(bytes) };
        mm_fuzz::write_sized(FILE, &file, (file.len() as u64).saturating_add(data));
    }
    mm_fuzz::inspect_and_plan(FILE);
    mm_fuzz::read_weights(&[mm_fuzz::at(FILE)]);
});

/// The largest offset that the header names.
fn end(header: &[u8]) -> u64 {
    let Ok(Value::Object(tensors)) = serde_json::from_slice(header) else { return 0 };
    let ends = tensors.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    ends.max().unwrap_or(0)
}
