//! One harness for all models: unmanaged by candle's own loader, against every strategy that has a plan, in three budgets.

use super::{
    bits, manager,
    random::{checkpoint_of, lora_for},
    tensor,
};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use mm_candle::{Component, Error, LoadSpec, Lora, Manager, load_unmanaged};
use mm_engine::EngineError;
use mm_plan::{Infeasible, Strategy};
use std::path::{Path, PathBuf};

pub const STRATEGIES: [Strategy; 5] =
    [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload];

/// How a model is stored, computed and built.
pub struct Case {
    pub stored: DType,
    pub dtype: DType,
    /// What the model finds in its checkpoint where it looks before it asks: ends of names.
    pub present: &'static [&'static str],
    /// Whether it only keeps its weights while it is built; then both ways of loading are tried.
    pub lazy: bool,
    /// Runs of one request, each with its number. Another component runs after each.
    pub steps: usize,
}

impl Default for Case {
    fn default() -> Self {
        Self { stored: DType::F32, dtype: DType::F32, present: &[], lazy: true, steps: 1 }
    }
}

impl Case {
    /// Two requests in a row give the bits that candle's own loader gives, under every feasible strategy in three budgets: the
    /// least that any plan needs, half way, and more than enough.
    pub fn check<M: Send + 'static>(
        &self,
        build: impl Fn(VarBuilder<'_>) -> Result<M>,
        step: impl Fn(&mut M, usize) -> Result<Tensor>,
    ) {
        self.check_by(&build, &step, |manager, spec| manager.load(spec, &build));
        self.check_lora(&build, &step);
    }

    /// With a LoRA on, unmanaged and managed make the same bits; off, the original ones.
    fn check_lora<M: Send + 'static>(
        &self,
        build: &impl Fn(VarBuilder<'_>) -> Result<M>,
        step: &impl Fn(&mut M, usize) -> Result<Tensor>,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let files = checkpoint_of(folder.path(), self.stored, self.present, build);
        let lora = Lora::open(lora_for(&files, folder.path())).unwrap();
        let request = |model: &Component<M>| -> Vec<Vec<u32>> {
            (0..self.steps).map(|n| bits(&model.run(|model| step(model, n)).unwrap())).collect()
        };
        let spec = LoadSpec { dtype: self.dtype, lazy: self.lazy, ..LoadSpec::new("model", files) };
        let plain = load_unmanaged(&spec, build).unwrap();
        let original = request(&plain);
        let matched = plain.apply_lora(&lora, 0.5).unwrap();
        assert!(
            matched.weights > 0 && request(&plain) != original,
            "it changes {} weights and nothing",
            matched.weights
        );
        let expected = request(&plain);
        for (turn, strategy) in STRATEGIES.into_iter().enumerate() {
            let manager = manager(1 << 30, strategy);
            // What was read while it was built serves the first run, which has the LoRA already.
            let spec = LoadSpec { lazy: self.lazy && turn % 2 == 0, ..spec.clone() };
            let model = manager.load(&spec, build).unwrap();
            model.apply_lora(&lora, 0.5).unwrap();
            assert!(request(&model) == expected && request(&model) == expected, "{strategy}: other bits with a LoRA");
            model.remove_lora(lora.file()).unwrap();
            assert!(request(&model) == original, "{strategy}: not the original bits");
        }
    }

    /// The same for a model that can't move between threads.
    pub fn check_local<M>(
        &self,
        build: impl Fn(VarBuilder<'_>) -> Result<M>,
        step: impl Fn(&mut M, usize) -> Result<Tensor>,
    ) {
        self.check_by(&build, &step, |manager, spec| manager.load_local(spec, &build));
    }

    fn check_by<M>(
        &self,
        build: impl Fn(VarBuilder<'_>) -> Result<M>,
        step: impl Fn(&mut M, usize) -> Result<Tensor>,
        load: impl Fn(&Manager, &LoadSpec) -> std::result::Result<Component<M>, Error>,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let files = checkpoint_of(folder.path(), self.stored, self.present, &build);
        let expected = self.unmanaged(&files, &build, &step);
        let rival = Rival::of(&files, folder.path());
        let attempt = |strategy, budget, lazy| {
            let manager = manager(budget, strategy);
            let spec = LoadSpec { dtype: self.dtype, lazy, ..LoadSpec::new("model", files.clone()) };
            let model = load(&manager, &spec).unwrap();
            let rival = manager.load(&rival.spec, |vb| vb.get(rival.size, "w")).unwrap();
            let outcome = (0..2).try_for_each(|request| {
                for (number, expected) in expected.iter().enumerate() {
                    let y = model.run(|model| step(model, number))?;
                    let same = bits(&y) == *expected;
                    assert!(
                        same,
                        "{strategy} in {budget}, lazy {lazy}: other bits in step {number} of request {request}"
                    );
                    rival.run(|w| w.sum_all()?.to_scalar::<f32>())?;
                }
                let plan = manager.plan().unwrap();
                assert_eq!(manager.memory().peak, plan.peak.device, "{strategy} in {budget}");
                assert!(plan.peak.device <= budget);
                Ok::<_, Error>(())
            });
            drop((model, rival));
            assert_eq!(manager.memory().in_use, 0);
            outcome
        };
        let Err(Error::Engine(EngineError::Infeasible(Infeasible::NeverFits { smallest, .. }))) =
            attempt(Strategy::Auto, 1, self.lazy)
        else {
            panic!("one byte can't be enough");
        };
        let whole = 2 * (smallest + rival.bytes());
        for lazy in [false, true].into_iter().filter(|lazy| !lazy || self.lazy) {
            for budget in [smallest, (smallest + whole) / 2, whole] {
                let outcomes = STRATEGIES.map(|strategy| (strategy, attempt(strategy, budget, lazy)));
                let feasible = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count();
                for (strategy, outcome) in outcomes {
                    match outcome {
                        Ok(()) | Err(Error::Engine(EngineError::Infeasible(_))) => {}
                        Err(other) => panic!("{strategy} in {budget}, lazy {lazy}: {other}"),
                    }
                }
                assert!(feasible >= if budget == whole { 5 } else { 3 }, "in {budget}: {feasible} feasible");
            }
        }
    }

    /// What candle gives by itself, each step of a request, twice the same.
    fn unmanaged<M>(
        &self,
        files: &[PathBuf],
        build: impl Fn(VarBuilder<'_>) -> Result<M>,
        step: impl Fn(&mut M, usize) -> Result<Tensor>,
    ) -> Vec<Vec<u32>> {
        let tensors = files.iter().flat_map(|file| candle_core::safetensors::load(file, &Device::Cpu).unwrap());
        let vb = VarBuilder::from_tensors(tensors.collect(), self.dtype, &Device::Cpu);
        let mut model = build(vb).unwrap();
        let mut request = || (0..self.steps).map(|n| bits(&step(&mut model, n).unwrap())).collect::<Vec<_>>();
        let expected = request();
        assert!(request() == expected, "it is not repeatable by itself");
        for y in &expected {
            let (first, values) = (y[0], y.iter().map(|y| f32::from_bits(*y)));
            assert!(values.clone().all(f32::is_finite) && y.iter().any(|y| *y != first), "it says nothing: {first}");
        }
        expected
    }
}

/// A component of half the stored model's size: both don't fit where the model just does.
struct Rival {
    spec: LoadSpec,
    size: usize,
}

impl Rival {
    fn of(files: &[PathBuf], folder: &Path) -> Self {
        let stored: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
        let (size, file) = (stored as usize / 8 + 1, folder.join("rival.safetensors"));
        candle_core::safetensors::save(&[("w", tensor(&[size], 3))].into(), &file).unwrap();
        Self { spec: LoadSpec::new("rival", [file]), size }
    }

    fn bytes(&self) -> u64 {
        4 * self.size as u64
    }
}
