//! Quantized weights are in memory once: what the plan counts, and on top of that one layer while it computes.

use candle_core::{
    DType, Device, Module, Result, Tensor,
    quantized::{GgmlDType, QMatMul, QTensor, gguf_file},
};
use candle_nn::VarBuilder;
use mm_candle::{Blocks, Linear, LoadSpec, Manager, linear_no_bias};
use mm_plan::{DeviceKind, Machine, Policy, Strategy};
use peak_alloc::PeakAlloc;
use std::fs::File;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const WIDTH: usize = 1024;
const BLOCKS: usize = 12;
/// Bytes of one layer: 256 elements of q4_k are 144 bytes.
const LAYER: usize = WIDTH * WIDTH / 256 * 144;

fn net(vb: VarBuilder<'_>) -> Result<Blocks<Linear>> {
    Blocks::load(&vb, "layers", BLOCKS, |_, vb| linear_no_bias(WIDTH, WIDTH, vb))
}

/// How much more memory than before `run` the process held at the most, and how much it still holds.
fn held<T>(run: impl FnOnce() -> T) -> (usize, usize, T) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let kept = run();
    let peak = MEMORY.peak_usage().saturating_sub(before);
    (peak, MEMORY.current_usage().saturating_sub(before), kept)
}

#[test]
fn a_layer_is_made_when_it_computes_and_gone_right_after() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.gguf");
    let values: Vec<f32> = (0..WIDTH * WIDTH).map(|i| ((i * 7919) % 2003) as f32 / 2003.0 - 0.5).collect();
    let weight = Tensor::from_vec(values, (WIDTH, WIDTH), &Device::Cpu).unwrap();
    let weight = QTensor::quantize(&weight, GgmlDType::Q4K).unwrap();
    let names: Vec<String> = (0..BLOCKS).map(|i| format!("layers.{i}.weight")).collect();
    let tensors: Vec<_> = names.iter().map(|name| (name.as_str(), &weight)).collect();
    gguf_file::write(&mut File::create(&file).unwrap(), &[], &tensors).unwrap();
    let x = Tensor::ones((4, WIDTH), DType::F32, &Device::Cpu).unwrap();
    // What kernels set up once for the process.
    QMatMul::from_qtensor(weight).unwrap().forward(&x).unwrap();

    let budget = Some(4 * LAYER as u64);
    let machine = Machine { device: DeviceKind::Host, vram_free: budget, vram_total: budget, ..Machine::default() };
    let policy = Policy { strategy: Strategy::GroupOffload, working_set: Some(0), ..Policy::default() };
    let manager = Manager::cpu(machine, policy).unwrap();
    let spec = LoadSpec { lazy: true, ..LoadSpec::new("net", [file]) };
    let model = manager.load(&spec, net).unwrap();
    let pass = || model.run(|blocks| blocks.iter().try_fold(x.clone(), |x, block| block?.forward(&x)?.tanh())).unwrap();
    let (peak, kept, _) = held(|| [pass(), pass()]);
    let plan = manager.plan().unwrap().peak.device as usize;
    assert!(plan < 5 * LAYER, "two or three slots of twelve");
    // A copy of the weight, what candle packs it into (a third more), and what is computed.
    let more = 3 * LAYER + (64 << 10);
    println!("the plan counts {plan}, {peak} were held at the most; {} in all", BLOCKS * LAYER);
    assert!(peak <= plan + more, "{peak} of {plan} + {more}");
    assert!(kept <= plan + (64 << 10), "{kept} of {plan} are kept from pass to pass");
}
