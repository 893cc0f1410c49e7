//! The same bits whatever the memory: every strategy, three budgets, twice in a row.

use super::{Checkpoint, request};
use crate::common::{manager, options};
use candle_core::{DType, Tensor};
use mm_candle::{Error as CandleError, Lora};
use mm_diffusion::{Error, Folder, Generated, Pipeline, Request, Unmanaged, describe};
use mm_engine::EngineError;
use mm_plan::{Infeasible, Plan, Strategy};

const STRATEGIES: [Strategy; 5] =
    [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];

/// The bits of what two requests in a row make, and the plan, or why there is none.
pub(crate) fn draw(
    folder: &Folder,
    dtype: DType,
    budget: u64,
    strategy: Strategy,
) -> Result<(Vec<u32>, Plan), Infeasible> {
    draw_of(folder, dtype, budget, strategy, &request())
}

pub(crate) fn draw_of(
    folder: &Folder,
    dtype: DType,
    budget: u64,
    strategy: Strategy,
    request: &Request,
) -> Result<(Vec<u32>, Plan), Infeasible> {
    let manager = manager(budget, strategy);
    let pipeline = Pipeline::load(folder, &options(dtype), &manager).unwrap();
    let mut images = Vec::new();
    for _ in 0..2 {
        match pipeline.generate(request, |_| {}) {
            Ok(generated) => images.push(bits(&generated.image)),
            Err(Error::Component { source: CandleError::Engine(EngineError::Infeasible(why)), .. }) => return Err(why),
            Err(other) => panic!("{dtype:?} {strategy} {budget}: {other}"),
        }
    }
    assert!(images[0] == images[1], "{dtype:?} {strategy} in {budget}: the second image is another");
    let (plan, memory) = (manager.plan().unwrap(), manager.memory());
    assert_eq!(memory.peak, plan.peak.device, "{dtype:?} {strategy} {budget}");
    assert!(memory.peak <= budget);
    Ok((images.remove(0), (*plan).clone()))
}

pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// `folder` under every strategy that has a plan.
pub(crate) fn matrix(folder: &Folder, dtype: DType) {
    matrix_of(folder, dtype, &request());
}

pub(crate) fn matrix_of(folder: &Folder, dtype: DType, request: &Request) {
    let weights = weight_bytes(folder, dtype);
    let expected = bits(&unmanaged_of(folder, dtype, request).image);
    let smallest = smallest_of(folder, dtype, request);
    assert!(smallest < weights, "{dtype:?}: {smallest} of {weights}");
    for budget in [2 * weights, (smallest + weights) / 2, smallest] {
        let mut feasible = 0;
        for strategy in STRATEGIES {
            match draw_of(folder, dtype, budget, strategy, request) {
                Ok((image, _)) => {
                    assert!(image == expected, "{dtype:?} {strategy} in {budget} of {weights} bytes: other bits");
                    feasible += 1;
                }
                Err(why) => assert!(
                    matches!(strategy, Strategy::NoOffload | Strategy::ModelOffload) && budget < weights,
                    "{dtype:?} {strategy} in {budget}: {why}"
                ),
            }
        }
        assert!(feasible >= 3, "{dtype:?} in {budget}: {feasible}");
    }
}

/// With a LoRA for what draws, every strategy makes the unmanaged bits, and without it again those of before.
pub(crate) fn lora(checkpoint: &Checkpoint, name: &str, dtype: DType, request: &Request) {
    let (folder, file) = (&checkpoint.folder(), super::lora_for(&checkpoint.path(name)));
    let lora = Lora::open(&file).unwrap();
    let draw = |pipeline: &Pipeline| bits(&pipeline.generate(request, |_| {}).unwrap().image);
    let plain = Pipeline::load(folder, &options(dtype), &Unmanaged).unwrap();
    let original = draw(&plain);
    let adapted = plain.apply_lora(&lora, 0.5).unwrap();
    assert!(adapted.components.len() == 1 && adapted.left.is_empty(), "{adapted:?}");
    let expected = draw(&plain);
    assert!(expected != original, "it changes nothing");
    for strategy in STRATEGIES {
        let manager = manager(4 * weight_bytes(folder, dtype), strategy);
        let pipeline = Pipeline::load(folder, &options(dtype), &manager).unwrap();
        pipeline.apply_lora(&lora, 0.5).unwrap();
        assert!(draw(&pipeline) == expected && draw(&pipeline) == expected, "{strategy}: other bits with a LoRA");
        assert!(pipeline.remove_lora(&file).unwrap());
        assert!(draw(&pipeline) == original, "{strategy}: not the original bits");
    }
}

/// What it is compared with.
pub(crate) fn unmanaged(folder: &Folder, dtype: DType) -> Generated {
    unmanaged_of(folder, dtype, &request())
}

pub(crate) fn unmanaged_of(folder: &Folder, dtype: DType, request: &Request) -> Generated {
    Pipeline::load(folder, &options(dtype), &Unmanaged).unwrap().generate(request, |_| {}).unwrap()
}

/// The least that there is a plan for.
pub(crate) fn smallest_of(folder: &Folder, dtype: DType, request: &Request) -> u64 {
    match draw_of(folder, dtype, 1, Strategy::Auto, request) {
        Err(Infeasible::NeverFits { smallest, .. }) => smallest,
        other => panic!("one byte can't be enough: {:?}", other.map(|_| "an image")),
    }
}

/// Bytes of everything the models ask for.
pub(crate) fn weight_bytes(folder: &Folder, dtype: DType) -> u64 {
    describe(folder, &options(dtype)).unwrap().iter().map(mm_plan::Component::bytes).sum()
}

/// That loading finds what was described from headers.
pub(crate) fn described_as_loaded(folder: &Folder) {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let described = describe(folder, &options(dtype)).unwrap();
        let manager = manager(1 << 40, Strategy::Auto);
        let _pipeline = Pipeline::load(folder, &options(dtype), &manager).unwrap();
        let loaded: Vec<_> =
            described.iter().map(|c| manager.get_component(&c.name).unwrap().description().clone()).collect();
        assert_eq!(described, loaded);
    }
}
