//! Quantized weights of GGUF files: candle's own numbers bit for bit, in the bytes that the plan says; what can't be computed
//! with is named.

mod common;

use candle_core::{
    DType, Device, Module, Result, Tensor,
    quantized::{GgmlDType, QMatMul, QTensor, gguf_file},
};
use candle_nn::{RmsNorm, VarBuilder, rms_norm};
use common::{bits, manager, spec, tensor};
use mm_candle::{
    Blocks, Component, Embedding, Error, Linear, LoadSpec, describe, embedding, linear, linear_no_bias, load_unmanaged,
};
use mm_engine::EngineError;
use mm_plan::{DType as PlanDType, Infeasible, Strategy};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

const WORDS: usize = 40;
const WIDTH: usize = 256;
const BLOCKS: usize = 5;

const KINDS: [GgmlDType; 10] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

const STRATEGIES: [Strategy; 5] =
    [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];

/// Matrices quantized as `kind`, of which one layer is in half precision as in published files; vectors in f32.
fn checkpoint(file: &Path, kind: GgmlDType) {
    let mut tensors = Vec::new();
    let mut put = |name: String, shape: &[usize], kind: GgmlDType| {
        let values = tensor(shape, name.bytes().map(usize::from).sum());
        tensors.push((name, QTensor::quantize(&values, kind).unwrap()));
    };
    put("embed.weight".into(), &[WORDS, WIDTH], kind);
    for i in 0..BLOCKS {
        put(format!("layers.{i}.up.weight"), &[2 * WIDTH, WIDTH], kind);
        put(format!("layers.{i}.up.bias"), &[2 * WIDTH], GgmlDType::F32);
        put(format!("layers.{i}.down.weight"), &[WIDTH, 2 * WIDTH], kind);
        put(format!("layers.{i}.norm.weight"), &[WIDTH], GgmlDType::F32);
    }
    put("head.weight".into(), &[16, WIDTH], GgmlDType::F16);
    put("head.bias".into(), &[16], GgmlDType::F32);
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(file).unwrap(), &[], &tensors).unwrap();
}

struct Block {
    up: Linear,
    down: Linear,
    norm: RmsNorm,
}

struct Net {
    embed: Embedding,
    layers: Blocks<Block>,
    head: Linear,
}

impl Net {
    fn new(vb: VarBuilder<'_>) -> Result<Self> {
        let block = |_, vb: VarBuilder<'_>| {
            Ok(Block {
                up: linear(WIDTH, 2 * WIDTH, vb.pp("up"))?,
                down: linear_no_bias(2 * WIDTH, WIDTH, vb.pp("down"))?,
                norm: rms_norm(WIDTH, 1e-6, vb.pp("norm"))?,
            })
        };
        Ok(Self {
            embed: embedding(WORDS, WIDTH, vb.pp("embed"))?,
            layers: Blocks::load(&vb, "layers", BLOCKS, block)?,
            head: linear(WIDTH, 16, vb.pp("head"))?,
        })
    }

    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut x = self.embed.forward(ids)?;
        for block in self.layers.iter() {
            let block = block?;
            let h = block.down.forward(&block.up.forward(&block.norm.forward(&x)?)?.silu()?)?;
            x = (x + h)?;
        }
        self.head.forward(&x)
    }
}

fn ids() -> Tensor {
    Tensor::new(&[[3u32, 0, 39, 3, 17, 8, 9]], &Device::Cpu).unwrap()
}

/// The same by candle's own layers.
fn of_candle(file: &Path, dtype: DType) -> Result<Tensor> {
    let mut file = File::open(file)?;
    let content = gguf_file::Content::read(&mut file)?;
    let mut get = |name: &str| content.tensor(&mut file, name, &Device::Cpu);
    let table = get("embed.weight")?.dequantize(&Device::Cpu)?.to_dtype(dtype)?;
    let mut x = candle_nn::Embedding::new(table, WIDTH).forward(&ids())?;
    for i in 0..BLOCKS {
        let mut get = |name: &str| get(&format!("layers.{i}.{name}"));
        let norm = RmsNorm::new(get("norm.weight")?.dequantize(&Device::Cpu)?.to_dtype(dtype)?, 1e-6);
        let h = QMatMul::from_qtensor(get("up.weight")?)?.forward(&norm.forward(&x)?)?;
        let h = h.broadcast_add(&get("up.bias")?.dequantize(&Device::Cpu)?.to_dtype(dtype)?)?.silu()?;
        x = (x + QMatMul::from_qtensor(get("down.weight")?)?.forward(&h)?)?;
    }
    let weight = get("head.weight")?.dequantize(&Device::Cpu)?.to_dtype(dtype)?;
    let bias = get("head.bias")?.dequantize(&Device::Cpu)?.to_dtype(dtype)?;
    QMatMul::Tensor(weight).forward(&x)?.broadcast_add(&bias)
}

fn run(net: &Component<Net>) -> std::result::Result<Vec<u32>, Error> {
    net.run(|net| net.forward(&ids())).map(|y| bits(&y))
}

/// In a budget, twice in a row.
fn managed(file: &Path, dtype: DType, budget: u64, strategy: Strategy) -> std::result::Result<Vec<u32>, Infeasible> {
    let manager = manager(budget, strategy);
    let spec = LoadSpec { lazy: true, ..spec("net", file, dtype) };
    let net = manager.load(&spec, Net::new).unwrap();
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        match run(&net) {
            Ok(y) => outcomes.push(y),
            Err(Error::Engine(EngineError::Infeasible(why))) => return Err(why),
            Err(other) => panic!("{strategy} in {budget}: {other}"),
        }
    }
    assert!(outcomes[0] == outcomes[1], "{strategy} in {budget}: the second pass is another");
    let (plan, memory) = (manager.plan().unwrap(), manager.memory());
    assert_eq!(memory.peak, plan.peak.device, "{strategy} in {budget}");
    assert!(memory.peak <= budget);
    Ok(outcomes.remove(0))
}

fn file(kind: GgmlDType) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.gguf");
    checkpoint(&file, kind);
    (folder, file)
}

fn matrix(kind: GgmlDType, dtype: DType) {
    let (_folder, file) = file(kind);
    let expected = bits(&of_candle(&file, dtype).unwrap());
    assert!(expected.iter().all(|x| f32::from_bits(*x).is_finite()));
    let plain = load_unmanaged(&spec("net", &file, dtype), Net::new).unwrap();
    assert!(run(&plain).unwrap() == expected, "{kind:?} {dtype:?}: unmanaged, other bits");
    let all = describe(&spec("net", &file, dtype), Net::new).unwrap().0.bytes();
    let Err(Infeasible::NeverFits { smallest, .. }) = managed(&file, dtype, 1, Strategy::Auto) else {
        panic!("one byte can't be enough")
    };
    assert!(smallest < all);
    for budget in [2 * all, (smallest + all) / 2, smallest] {
        let mut feasible = 0;
        for strategy in STRATEGIES {
            match managed(&file, dtype, budget, strategy) {
                Ok(y) => {
                    assert!(y == expected, "{kind:?} {dtype:?} {strategy} in {budget} of {all}: other bits");
                    feasible += 1;
                }
                Err(why) => {
                    let whole = matches!(strategy, Strategy::NoOffload | Strategy::ModelOffload) && budget < all;
                    assert!(whole, "{kind:?} {strategy} in {budget}: {why}");
                }
            }
        }
        assert!(feasible >= 3, "{kind:?} in {budget}: {feasible}");
    }
}

#[test]
fn every_kind_computes_what_candle_does_under_every_strategy() {
    for kind in KINDS {
        matrix(kind, DType::F32);
    }
}

#[test]
fn so_it_does_in_half_precision() {
    for kind in [GgmlDType::Q4_0, GgmlDType::Q8_0, GgmlDType::Q4K] {
        matrix(kind, DType::BF16);
        matrix(kind, DType::F16);
    }
}

#[test]
fn the_device_holds_the_bytes_of_the_file() {
    let (_folder, file) = file(GgmlDType::Q4K);
    let (described, _) = describe(&spec("net", &file, DType::F32), Net::new).unwrap();
    // A block of q4_k is 256 elements in 144 bytes. Vectors are f32; the head is cast to that.
    let block = (2 * 2 * WIDTH * WIDTH / 256 * 144) as u64;
    for group in described.groups() {
        let slabs: Vec<_> = group.slabs.iter().map(|slab| (slab.dtype, slab.bytes)).collect();
        assert_eq!(slabs, [(PlanDType::Bytes, block), (PlanDType::F32, 4 * (2 + 1) * WIDTH as u64)]);
    }
    let table = (WORDS * WIDTH / 256 * 144) as u64;
    assert_eq!(described.rest, table.next_multiple_of(256) + 4 * 16 * WIDTH as u64 + 256);
    let manager = manager(described.bytes(), Strategy::NoOffload);
    let net = manager.load(&spec("net", &file, DType::F32), Net::new).unwrap();
    assert!(
        manager.memory().in_use <= described.rest,
        "of what building read nothing but the rest is kept for the first run"
    );
    run(&net).unwrap();
    assert_eq!(manager.memory().in_use, described.bytes());
    assert_eq!(manager.get_component("net").unwrap().description(), &described, "as it was described from headers");
    drop(net);
    assert_eq!(manager.memory().in_use, 0);
}

#[test]
fn a_weight_that_is_not_on_the_device_is_named_and_not_computed_with() {
    let (_folder, file) = file(GgmlDType::Q4_0);
    let manager = manager(1 << 24, Strategy::GroupOffload);
    let layer = |vb: VarBuilder<'_>| {
        let keep = |_, vb: VarBuilder<'_>| linear(WIDTH, 2 * WIDTH, vb.pp("up"));
        Ok((Blocks::load(&vb, "layers", BLOCKS, keep)?, embedding(WORDS, WIDTH, vb.pp("embed"))?))
    };
    let model = manager.load(&spec("net", &file, DType::F32), layer).unwrap();
    let (layer, table) = model
        .run(|(blocks, table)| {
            let block = blocks.get(0).unwrap()?;
            block.forward(&tensor(&[3, WIDTH], 1))?;
            Ok((Linear::clone(&block), table.clone()))
        })
        .unwrap();
    drop(model);
    let error = layer.forward(&tensor(&[3, WIDTH], 1)).unwrap_err().to_string();
    assert!(
        error.contains("net.gguf") && error.contains("layers.0.up.weight") && error.contains("not on the device"),
        "{error}"
    );
    assert!(table.forward(&ids()).is_err());
}

#[test]
fn wrong_shapes_kinds_and_layers_are_named() {
    let (folder, file) = file(GgmlDType::Q4_0);
    let manager = manager(1 << 24, Strategy::Auto);
    let refused = |file: &Path, make: fn(VarBuilder<'_>) -> Result<()>| {
        let managed = manager.load(&spec("net", file, DType::F32), make).map(drop).unwrap_err().to_string();
        let plain = load_unmanaged(&spec("net", file, DType::F32), make).map(drop).unwrap_err().to_string();
        // Where backtraces are on, they differ.
        let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let (managed, plain) = (first(managed), first(plain));
        assert_eq!(managed, plain);
        managed
    };
    let shape = refused(&file, |vb| linear(WIDTH, WIDTH, vb.pp("layers.0.up")).map(drop));
    assert!(
        shape.contains("net.gguf") && shape.contains("layers.0.up.weight") && shape.contains("[512, 256]"),
        "{shape}"
    );
    let layer = refused(&file, |vb| candle_nn::linear(WIDTH, 2 * WIDTH, vb.pp("layers.0.up")).map(drop));
    assert!(layer.contains("net.gguf") && layer.contains("layers.0.up.weight") && layer.contains("q4_0"), "{layer}");
    let missing = refused(&file, |vb| linear(WIDTH, WIDTH, vb.pp("layers.9.up")).map(drop));
    assert!(missing.contains("layers.9.up.weight"), "{missing}");

    // iq4_nl has blocks of the very size of q4_0; only its number tells.
    let mut bytes = fs::read(&file).unwrap();
    let name = b"layers.0.up.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 16;
    assert_eq!(bytes[at], 2, "q4_0");
    bytes[at] = 20;
    let other = folder.path().join("other.gguf");
    fs::write(&other, &bytes).unwrap();
    let kind = refused(&other, |vb| linear(WIDTH, 2 * WIDTH, vb.pp("layers.0.up")).map(drop));
    assert!(kind.contains("other.gguf") && kind.contains("layers.0.up.weight") && kind.contains("iq4_nl"), "{kind}");
    assert!(kind.contains("q4_k"), "what would do: {kind}");

    bytes[at] = 99;
    fs::write(&other, &bytes).unwrap();
    let unknown = refused(&other, |_| Ok(()));
    assert!(
        unknown.contains("other.gguf") && unknown.contains("layers.0.up.weight") && unknown.contains("99"),
        "{unknown}"
    );
    let odd = folder.path().join("odd.gguf");
    let rows = QTensor::quantize(&tensor(&[4, 96], 1), GgmlDType::Q5_1).unwrap();
    gguf_file::write(&mut File::create(&odd).unwrap(), &[], &[("weight", &rows)]).unwrap();
    let odd = refused(&odd, |vb| linear_no_bias(96, 4, vb).map(drop));
    assert!(odd.contains("odd.gguf") && odd.contains("weight") && odd.contains("multiples of 64"), "{odd}");
    let empty = folder.path().join("empty.gguf");
    let none = QTensor::quantize(&tensor(&[0, 64], 1), GgmlDType::Q4_0).unwrap();
    gguf_file::write(&mut File::create(&empty).unwrap(), &[], &[("weight", &none)]).unwrap();
    let empty = refused(&empty, |vb| linear_no_bias(64, 0, vb).map(drop));
    assert!(empty.contains("empty.gguf") && empty.contains("no elements"), "{empty}");
    for length in [0, 3, 4, 20, 200, bytes.len() / 2] {
        fs::write(&other, &fs::read(&file).unwrap()[..length]).unwrap();
        let cut = refused(&other, |_| Ok(()));
        assert!(cut.contains("other.gguf") && (length < 4 || cut.contains("truncated")), "{length}: {cut}");
    }
}

#[test]
fn an_id_beyond_the_table_is_an_error() {
    let (_folder, file) = file(GgmlDType::Q8_0);
    let net = load_unmanaged(&spec("net", &file, DType::F32), Net::new).unwrap();
    let beyond = Tensor::new(&[[WORDS as u32]], &Device::Cpu).unwrap();
    let error = net.run(|net| net.embed.forward(&beyond)).unwrap_err().to_string();
    assert!(error.contains("embed.weight") && error.contains("no row 40"), "{error}");
}

/// That equal bytes of another kind are another one, mm-cache's tests check.
#[test]
fn equal_files_are_one_component() {
    let (folder, file) = file(GgmlDType::Q4_0);
    let copy = folder.path().join("copy.gguf");
    fs::copy(&file, &copy).unwrap();
    let manager = manager(1 << 24, Strategy::Auto);
    let load = |name: &str, file: &Path| {
        let spec = LoadSpec { config: Some("net".into()), lazy: true, ..spec(name, file, DType::F32) };
        manager.load(&spec, Net::new).unwrap()
    };
    let (one, two) = (load("one", &file), load("two", &copy));
    assert!(one.is_same(&two));
    assert_eq!(run(&one).unwrap(), run(&two).unwrap());
    assert_eq!(manager.component_names(), ["one", "two"]);
}

#[test]
fn a_lora_for_a_quantized_layer_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.gguf");
    checkpoint(&file, GgmlDType::Q8_0);
    let lora = folder.path().join("lora.safetensors");
    let factors = [
        ("layers.0.up.lora_A.weight", tensor(&[2, WIDTH], 1)),
        ("layers.0.up.lora_B.weight", tensor(&[2 * WIDTH, 2], 2)),
    ];
    candle_core::safetensors::save(&factors.into(), &lora).unwrap();
    let manager = manager(1 << 30, Strategy::Auto);
    let net = manager.load(&spec("net", &file, DType::F32), Net::new).unwrap();
    let error = net.apply_lora(&mm_candle::Lora::open(&lora).unwrap(), 1.0).unwrap_err().to_string();
    assert!(error.contains("layers.0.up.weight") && error.contains("is quantized"), "{error}");
    assert!(net.loras().is_empty());
}
