//! A GGUF file. Where the first byte is odd, a hole of a terabyte lies behind the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

const FILE: &str = "gguf/x.gguf";

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    mm_fuzz::write_sized(FILE, bytes, if mode % 2 == 1 { 1 << 40 } else { 0 });
    mm_fuzz::inspect_and_plan(FILE);
});
