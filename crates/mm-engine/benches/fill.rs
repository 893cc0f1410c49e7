//! How fast one thread fills a slab from a file in the page cache, casts included; bytes are those of the file.
#![allow(missing_docs)]

use divan::counter::BytesCount;
use mm_cache::Weights;
use mm_engine::{HostBuffer, Slab};
use mm_plan::DType;
use safetensors::{Dtype, tensor::TensorView};

const MIB: usize = 64;

fn main() {
    divan::main();
}

#[divan::bench(args = [
    (Dtype::F32, DType::F32), (Dtype::BF16, DType::Bf16), (Dtype::BF16, DType::F32), (Dtype::F16, DType::F32),
    (Dtype::F32, DType::Bf16), (Dtype::F32, DType::F16), (Dtype::BF16, DType::F16), (Dtype::F8_E4M3, DType::F32),
    (Dtype::F8_E4M3, DType::Bf16),
], sample_count = 20, sample_size = 1)]
fn fill(bencher: divan::Bencher<'_, '_>, (stored, to): (Dtype, DType)) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("weights.safetensors");
    let bytes: Vec<u8> = (0..MIB << 20).map(|i| (i * 7919 / 8) as u8 & 0x3F).collect();
    let view = TensorView::new(stored, vec![bytes.len() * 8 / stored.bitsize()], &bytes).expect("a tensor");
    std::fs::write(&file, safetensors::serialize([("x", view)], None).expect("serializes")).expect("writes");
    let weights = Weights::open(&[&file]).expect("opens");
    let mut slab = Slab::new(to);
    slab.push(weights.get("x").expect("there").clone());
    let mut buffer = HostBuffer::empty(to).expect("computable");
    assert!(buffer.grow(slab.bytes()));
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| slab.fill(buffer.bytes_mut()).expect("fills"));
}
