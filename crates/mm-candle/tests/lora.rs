//! LoRA: the same bits however the memory is managed, merged weights as computed in f64, and the original bits when it goes.

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::{BLOCKS, DIM, Net, bits, checkpoint, manager, spec, tensor, values};
use mm_candle::{Component, Error, Lora, LoraBackend, LoraError, Manager, load_unmanaged};
use mm_engine::EngineError;
use mm_plan::{Infeasible, Strategy};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

const STRATEGIES: [Strategy; 5] =
    [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];

/// Layers of the net that LoRAs are for, with outputs and inputs; those of the rest too.
fn layers() -> Vec<(String, usize, usize)> {
    let block = |i| [(format!("layers.{i}.up"), 2 * DIM, DIM), (format!("layers.{i}.down"), DIM, 2 * DIM)];
    (0..BLOCKS).flat_map(block).chain([("embed".to_owned(), DIM, DIM)]).collect()
}

/// Writes a LoRA in PEFT's names.
fn write(file: &Path, rank: usize, dtype: DType, seed: usize) -> Lora {
    let mut tensors = HashMap::new();
    for (at, (layer, outputs, inputs)) in layers().into_iter().enumerate() {
        let mut put = |part: &str, shape: &[usize], seed| {
            let factor = (tensor(shape, seed) * 0.5).unwrap().to_dtype(dtype).unwrap();
            tensors.insert(format!("base_model.model.{layer}.{part}.weight"), factor);
        };
        put("lora_A", &[rank, inputs], seed + at);
        put("lora_B", &[outputs, rank], seed + 100 + at);
    }
    candle_core::safetensors::save(&tensors, file).unwrap();
    Lora::open(file).unwrap()
}

struct Case {
    folder: tempfile::TempDir,
    file: PathBuf,
    x: Tensor,
    dtype: DType,
}

impl Case {
    fn new(stored: DType, dtype: DType) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("net.safetensors");
        checkpoint(&file, BLOCKS, stored);
        Self { folder, file, x: tensor(&[3, DIM], 1).to_dtype(dtype).unwrap(), dtype }
    }

    fn lora(&self, name: &str, rank: usize, dtype: DType, seed: usize) -> Lora {
        write(&self.folder.path().join(name), rank, dtype, seed)
    }

    fn plain(&self) -> Component<Net> {
        load_unmanaged(&spec("net", &self.file, self.dtype), |vb| Net::new(BLOCKS, &vb)).unwrap()
    }

    fn managed(&self, manager: &Manager) -> Component<Net> {
        manager.load(&spec("net", &self.file, self.dtype), |vb| Net::new(BLOCKS, &vb)).unwrap()
    }

    fn run(&self, net: &Component<Net>) -> Result<Vec<u32>, Error> {
        net.run(|net| net.forward(&self.x)).map(|y| bits(&y))
    }
}

#[test]
fn every_strategy_and_budget_gives_the_unmanaged_bits_and_the_original_ones_when_it_goes() {
    for (stored, dtype, factors) in [
        (DType::BF16, DType::F32, DType::F32),
        (DType::BF16, DType::BF16, DType::BF16),
        (DType::F32, DType::F16, DType::F32),
    ] {
        let case = Case::new(stored, dtype);
        let (one, two) = (case.lora("one", 4, factors, 5), case.lora("two", 3, DType::F16, 9));
        let plain = case.plain();
        let steps: [(&Lora, Option<f64>); 6] =
            [(&one, Some(1.0)), (&two, Some(-0.5)), (&one, Some(0.25)), (&two, Some(0.0)), (&two, None), (&one, None)];
        let change = |net: &Component<Net>, (lora, scale): (&Lora, Option<f64>)| match scale {
            Some(scale) => assert_eq!(net.apply_lora(lora, scale).unwrap().weights, 2 * BLOCKS + 1),
            None => assert!(net.remove_lora(lora.file()).unwrap()),
        };
        let mut expected = vec![case.run(&plain).unwrap()];
        for step in steps {
            change(&plain, step);
            expected.push(case.run(&plain).unwrap());
        }
        assert_eq!(expected[0], expected[6], "off is as if it never had been");
        assert_eq!(expected[3], expected[4 - 1]);
        assert_eq!(expected[4], expected[5], "at zero it adds nothing");
        for two in [(0, 1), (1, 2), (2, 3), (3, 4)] {
            assert_ne!(expected[two.0], expected[two.1], "{two:?}");
        }
        let mut tried = 0;
        for strategy in STRATEGIES {
            for kib in [40, 64, 512] {
                let manager = manager(kib << 10, strategy);
                let net = case.managed(&manager);
                let mut check = |at: usize| {
                    for pass in 0..2 {
                        match case.run(&net) {
                            Ok(found) => {
                                assert_eq!(found, expected[at], "{strategy} {dtype:?} {kib} KiB step {at} pass {pass}")
                            }
                            Err(Error::Engine(EngineError::Infeasible(_))) => return,
                            Err(other) => panic!("{strategy} {dtype:?} {kib} KiB: {other}"),
                        }
                        let plan = manager.plan().unwrap();
                        assert_eq!(manager.memory().in_use, plan.peak.device);
                        tried += 1;
                    }
                };
                check(0);
                for (at, step) in steps.into_iter().enumerate() {
                    change(&net, step);
                    check(at + 1);
                }
                drop(net);
                assert_eq!(manager.memory().in_use, 0);
            }
        }
        assert!(tried >= 100, "most budgets are feasible: {tried}");
    }
}

/// Merged in f64, the weights are those that a streamed pass computes with: read back, not only their effect.
#[test]
fn merged_weights_are_those_of_f64() {
    for rank in [1, 16, 128] {
        let case = Case::new(DType::F32, DType::F32);
        let lora = case.lora("lora", rank, DType::F32, 3);
        let manager = manager(1 << 20, Strategy::GroupOffload);
        let build = |vb: VarBuilder<'_>| {
            mm_candle::Blocks::load(&vb, "layers", BLOCKS, |_, vb| vb.get((2 * DIM, DIM), "up.weight"))
        };
        let net = manager.load(&spec("net", &case.file, DType::F32), build).unwrap();
        net.apply_lora(&lora, 0.7).unwrap();
        let base = candle_core::safetensors::load(&case.file, &Device::Cpu).unwrap();
        let factors = candle_core::safetensors::load(lora.file(), &Device::Cpu).unwrap();
        let exact = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        for _ in 0..2 {
            for index in 0..BLOCKS {
                let found = net.run(|blocks| blocks.get(index).unwrap()?.copy()).unwrap();
                let factor = |part| exact(&factors[&format!("base_model.model.layers.{index}.up.{part}.weight")]);
                let delta = (factor("lora_B").matmul(&factor("lora_A")).unwrap() * 0.7).unwrap();
                let expected = (exact(&base[&format!("layers.{index}.up.weight")]) + delta).unwrap();
                let norm = |t: Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
                let error = norm((exact(&found) - &expected).unwrap()) / norm(expected);
                assert!(error < 1e-6, "rank {rank} block {index}: {error}");
            }
        }
    }
}

#[test]
fn a_run_under_way_goes_on_as_it_is() {
    let case = Case::new(DType::F32, DType::F32);
    let lora = case.lora("lora", 4, DType::F32, 3);
    let manager = manager(40 << 10, Strategy::GroupOffload);
    let net = case.managed(&manager);
    let before = case.run(&net).unwrap();
    let during = net.run(|model| {
        net.apply_lora(&lora, 1.0).unwrap();
        model.forward(&case.x)
    });
    assert_eq!(bits(&during.unwrap()), before);
    let after = case.run(&net).unwrap();
    assert_ne!(after, before);
    let plain = case.plain();
    plain.apply_lora(&lora, 1.0).unwrap();
    assert_eq!(case.run(&plain).unwrap(), after);
    // Nobody keeps what an unmanaged one computes with.
    let inside = plain.run(|_| Ok(plain.apply_lora(&lora, 2.0).is_err()));
    assert!(inside.unwrap());
    assert_eq!(plain.loras(), [(lora.file().to_owned(), 1.0)]);
}

#[test]
fn what_it_takes_is_planned_to_the_byte_and_a_budget_without_it_is_refused() {
    let case = Case::new(DType::F32, DType::F32);
    let lora = case.lora("lora", 16, DType::F32, 3);
    let smallest = |with: bool| {
        let manager = manager(1, Strategy::Auto);
        let net = case.managed(&manager);
        if with {
            net.apply_lora(&lora, 1.0).unwrap();
        }
        let Err(Error::Engine(EngineError::Infeasible(Infeasible::NeverFits { smallest, .. }))) = case.run(&net) else {
            panic!("one byte can't be enough");
        };
        smallest
    };
    let (without, with) = (smallest(false), smallest(true));
    assert!(with > without);
    let manager = manager(with - 1, Strategy::Auto);
    let net = case.managed(&manager);
    let before = case.run(&net).unwrap();
    net.apply_lora(&lora, 1.0).unwrap();
    assert!(matches!(case.run(&net), Err(Error::Engine(EngineError::Infeasible(_)))));
    net.remove_lora(lora.file()).unwrap();
    assert_eq!(case.run(&net).unwrap(), before);
}

#[test]
fn a_loader_of_ones_own_adds_the_same() {
    for dtype in [DType::F32, DType::BF16] {
        let case = Case::new(DType::BF16, dtype);
        let (one, two) = (case.lora("one", 4, DType::F32, 3), case.lora("two", 2, DType::BF16, 4));
        let plain = case.plain();
        plain.apply_lora(&one, 0.5).unwrap();
        plain.apply_lora(&two, 1.0).unwrap();
        let weights = candle_core::safetensors::load(&case.file, &Device::Cpu).unwrap();
        let backend = LoraBackend::new(Box::new(weights), [(one, 0.5), (two, 1.0)]);
        let net = Net::new(BLOCKS, &VarBuilder::from_backend(Box::new(backend), dtype, Device::Cpu)).unwrap();
        assert_eq!(bits(&net.forward(&case.x).unwrap()), case.run(&plain).unwrap());
    }
}

/// Writes tensors, each of a shape and of zeros, and opens them.
fn made(folder: &Path, tensors: &[(&str, &[usize], DType)]) -> Result<Lora, LoraError> {
    let file = folder.join("made.safetensors");
    let zeros = |(name, shape, dtype): &(&str, &[usize], DType)| {
        let values = Tensor::from_vec(values(shape.iter().product(), 1), *shape, &Device::Cpu).unwrap();
        ((*name).to_owned(), values.to_dtype(*dtype).unwrap())
    };
    let tensors: HashMap<String, Tensor> = tensors.iter().map(zeros).collect();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    Lora::open(&file)
}

#[test]
fn a_file_that_makes_no_sense_is_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let pair = |a: &'static [usize], b: &'static [usize], dtype| {
        vec![("x.lora_A.weight", a, dtype), ("x.lora_B.weight", b, dtype)]
    };
    let f = DType::F32;
    for (tensors, part) in [
        (vec![("x.weight", &[2, 2][..], f)], "no tensor is called as"),
        (vec![("x.lora_A.weight", &[2, 2][..], f)], "no pair"),
        (vec![("x.alpha", &[][..], f)], "no pair"),
        (pair(&[2, 3], &[4, 3], f), "no rank in common"),
        (pair(&[0, 3], &[4, 0], f), "no rank in common"),
        (pair(&[2], &[4, 2], f), "no matrices"),
        (pair(&[2, 3], &[4, 2, 3, 3], f), "no rank in common"),
        (pair(&[2, 3], &[4, 2], DType::U32), "no float"),
        ([pair(&[2, 3], &[4, 2], f), vec![("x.alpha", &[2], f)]].concat(), "one number"),
        ([pair(&[2, 3], &[4, 2], f), vec![("x.lora_down.weight", &[2, 3], f)]].concat(), "under another name"),
        ([pair(&[2, 3], &[4, 2], f), vec![("x.dora_scale", &[4], f)]].concat(), "DoRA"),
        (vec![("x.hada_w1_a", &[2, 2][..], f)], "LoHa"),
    ] {
        let error = made(folder.path(), &tensors).err().unwrap_or_else(|| panic!("{tensors:?} is opened"));
        let text = error.to_string();
        assert!(text.contains(part) && text.contains("made.safetensors"), "{text}");
    }
    let missing = Lora::open(folder.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains("none"), "{missing}");
}

#[test]
fn a_lora_for_another_model_is_refused_with_what_is_near_and_one_that_fits_partly_says_what_is_left() {
    let case = Case::new(DType::F32, DType::F32);
    let nets = [case.plain(), case.managed(&manager(1 << 20, Strategy::Auto))];
    let before = case.run(&nets[0]).unwrap();
    let folder = case.folder.path();
    let f = DType::F32;
    for net in &nets {
        let refused = |tensors: &[(&str, &[usize], DType)], parts: &[&str]| {
            let error = net.apply_lora(&made(folder, tensors).unwrap(), 1.0).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::Lora(_)) && parts.iter().all(|part| text.contains(part)), "{text}");
        };
        let misspelt = [
            ("lora_unet_layer_0_up.lora_down.weight", &[2, DIM][..], f),
            ("lora_unet_layer_0_up.lora_up.weight", &[2 * DIM, 2], f),
        ];
        refused(&misspelt, &["none of its 1 layer is", "lora_unet_layer_0_up", "layers.0.up"]);
        let wide =
            [("layers.0.up.lora_A.weight", &[2, DIM + 1][..], f), ("layers.0.up.lora_B.weight", &[2 * DIM, 2], f)];
        refused(&wide, &["does not fit", "layers.0.up.weight", "made.safetensors"]);
        let twice = [
            ("layers.0.up.lora_A.weight", &[2, DIM][..], f),
            ("layers.0.up.lora_B.weight", &[2 * DIM, 2], f),
            ("lora_unet_layers_0_up.lora_down.weight", &[2, DIM], f),
            ("lora_unet_layers_0_up.lora_up.weight", &[2 * DIM, 2], f),
        ];
        refused(&twice, &["ambiguous", "layers.0.up"]);
        let one = case.lora("one", 2, f, 1);
        assert!(net.apply_lora(&one, f64::NAN).unwrap_err().to_string().contains("finite"));
        assert!(net.loras().is_empty() && case.run(net).unwrap() == before, "nothing changed");
        assert!(!net.remove_lora("nothing").unwrap());

        let partly = [
            ("layers.0.up.lora_A.weight", &[2, DIM][..], f),
            ("layers.0.up.lora_B.weight", &[2 * DIM, 2], f),
            ("other.lora_A.weight", &[2, 3], f),
            ("other.lora_B.weight", &[3, 2], f),
        ];
        let matched = net.apply_lora(&made(folder, &partly).unwrap(), 1.0).unwrap();
        assert_eq!((matched.weights, matched.left), (1, vec!["other".to_owned()]));
    }
    assert_eq!(case.run(&nets[0]).unwrap(), case.run(&nets[1]).unwrap());
    let unnamed = Component::unmanaged(());
    assert!(matches!(unnamed.apply_lora(&case.lora("one", 2, f, 1), 1.0), Err(Error::Engine(EngineError::Misuse(_)))));
}
