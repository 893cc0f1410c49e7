//! Whatever is done with components, their weights and their threads: no crash, no other output, an error where one is due.

mod common;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear_no_bias};
use common::{BLOCKS, DIM, Net, bits, checkpoint, manager, spec, tensor};
use mm_candle::{Component, Error, LoadSpec, Manager};
use mm_engine::EngineError;
use mm_plan::Strategy;
use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Barrier, Mutex},
    thread,
};

/// Bytes of [`Files::layer`]'s weights.
const LAYER: u64 = (DIM * DIM * 4) as u64;

/// Two layers, each of which fills the device.
struct Files {
    _folder: tempfile::TempDir,
    net: PathBuf,
    manager: Manager,
    /// Whether its layers are active together.
    phase: Option<u32>,
    x: Tensor,
}

impl Files {
    fn new(budget: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let net = folder.path().join("net.safetensors");
        checkpoint(&net, BLOCKS, DType::F32);
        Self { _folder: folder, net, manager: manager(budget, Strategy::Auto), phase: None, x: tensor(&[2, DIM], 1) }
    }

    fn layer(&self, name: &str) -> Component<Linear> {
        let build = |vb: VarBuilder<'_>| linear_no_bias(DIM, DIM, vb.pp("embed"));
        let spec = LoadSpec { phase: self.phase, ..spec(name, &self.net, DType::F32) };
        self.manager.load(&spec, build).unwrap()
    }

    fn rows(&self, layer: &Component<Linear>) -> Vec<u32> {
        bits(&layer.run(|layer| layer.forward(&self.x)).unwrap())
    }

    fn kept(layer: &Component<Linear>) -> Tensor {
        layer.run(|layer| Ok(layer.weight().clone())).unwrap()
    }
}

fn is_misuse<T>(outcome: std::result::Result<T, Error>, why: &str) {
    match outcome {
        Err(Error::Engine(EngineError::Misuse(text))) => assert!(text.contains(why), "{text}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is no error"),
    }
}

#[test]
fn a_weight_that_was_kept_refuses_while_it_is_away_and_is_itself_again_when_it_is_back() {
    let files = Files::new(LAYER);
    let (one, two) = (files.layer("one"), files.layer("two"));
    let weight = Files::kept(&one);
    let (there, expected) = (bits(&weight), files.rows(&two));
    for _ in 0..3 {
        assert_eq!(files.rows(&two), expected);
        assert!(files.x.matmul(&weight).is_err() && weight.to_vec2::<f32>().is_err() && (&weight + 1.0).is_err());
        assert_eq!(files.rows(&one), expected);
        assert_eq!(bits(&weight), there);
    }
    // Last of all, and elsewhere.
    drop((one, two));
    assert_eq!(files.manager.memory().in_use, 0);
    drop(files);
    thread::spawn(move || assert!(weight.sum_all().is_err())).join().unwrap();
}

#[test]
fn a_weight_of_a_block_that_streams_is_never_that_of_another() {
    let files = Files::new(1 << 20);
    let manager = manager(40 << 10, Strategy::GroupOffload);
    let net = manager.load(&spec("net", &files.net, DType::F32), |vb| Net::new(BLOCKS, &vb)).unwrap();
    let refused = net.run(|net| {
        let mut kept = Vec::new();
        let mut refused = 0;
        for block in net.layers.iter() {
            let weight = block?.up.weight().clone();
            refused += kept.iter().filter(|kept: &&Tensor| kept.sum_all().is_err()).count();
            kept.push(weight);
        }
        Ok(refused)
    });
    assert_eq!(refused.unwrap(), BLOCKS * (BLOCKS - 1) / 2);
}

struct Negate;

impl InplaceOp1 for Negate {
    fn name(&self) -> &'static str {
        "negate"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        match storage {
            CpuStorage::F32(values) => values.iter_mut().for_each(|value| *value = -*value),
            _ => candle_core::bail!("no f32"),
        }
        Ok(())
    }
}

/// As with candle alone the model sees what is written; once it was away it is what its file says.
#[test]
fn writing_to_a_weight_that_was_kept() {
    let files = Files::new(LAYER);
    let (one, two) = (files.layer("one"), files.layer("two"));
    let expected = files.rows(&one);
    let weight = Files::kept(&one);
    weight.inplace_op1(&Negate).unwrap();
    let negated = files.rows(&one);
    assert!(negated.iter().zip(&expected).all(|(n, e)| f32::from_bits(*n) == -f32::from_bits(*e)));
    files.rows(&two);
    assert!(weight.inplace_op1(&Negate).is_err());
    assert!(weight.slice_set(&Tensor::ones((DIM, DIM), DType::F32, &Device::Cpu).unwrap(), 0, 0).is_err());
    assert!(weight.zero_set().is_err());
    assert_eq!(files.rows(&two), expected);
    assert_eq!(files.rows(&one), expected);
}

/// Puts other memory under a weight.
struct Replace(Mutex<Option<CpuStorage>>);

impl InplaceOp1 for Replace {
    fn name(&self) -> &'static str {
        "replace"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        if let Some(new) = self.0.lock().unwrap().take() {
            *storage = new;
        }
        Ok(())
    }
}

#[test]
fn memory_that_was_put_under_a_weight_by_somebody_else_harms_nobody() {
    for storage in [CpuStorage::F32(vec![1.0; 3]), CpuStorage::F32(vec![1.0; 1 << 16]), CpuStorage::U8(vec![1; 5])] {
        let files = Files::new(LAYER);
        let (one, two) = (files.layer("one"), files.layer("two"));
        let expected = files.rows(&two);
        Files::kept(&one).inplace_op1(&Replace(Mutex::new(Some(storage)))).unwrap();
        assert_eq!(files.rows(&two), expected);
        assert_eq!(files.rows(&one), expected);
        drop((one, two));
        assert_eq!(files.manager.memory().in_use, 0);
    }
}

#[test]
fn threads_share_a_model_that_others_drive_out() {
    let files = Files::new(LAYER);
    let (one, two) = (files.layer("one"), files.layer("two"));
    let expected = files.rows(&one);
    thread::scope(|scope| {
        for component in [&one, &one, &two] {
            let (files, expected) = (&files, &expected);
            scope.spawn(move || {
                for _ in 0..50 {
                    assert_eq!(files.rows(component), *expected);
                }
            });
        }
    });
}

#[test]
fn threads_stream_one_model() {
    let files = Files::new(1 << 20);
    let manager = manager(40 << 10, Strategy::GroupOffload);
    let net = manager.load(&spec("net", &files.net, DType::F32), |vb| Net::new(BLOCKS, &vb)).unwrap();
    let expected = bits(&net.run(|net| net.forward(&files.x)).unwrap());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(bits(&net.run(|net| net.forward(&files.x)).unwrap()), expected);
                }
            });
        }
    });
    assert_eq!(manager.memory().peak, manager.plan().unwrap().peak.device);
}

#[test]
fn a_component_moves_between_threads_and_ends_on_any() {
    let files = Files::new(2 * LAYER);
    let expected = files.rows(&files.layer("one"));
    for runs_first in [true, false] {
        let one = files.layer("one");
        if runs_first {
            files.rows(&one);
        }
        thread::scope(|scope| {
            let one = scope.spawn(|| (files.rows(&one), one).1).join().unwrap();
            assert_eq!(files.rows(&one), expected);
            scope.spawn(|| drop(one));
        });
        assert_eq!(files.manager.memory().in_use, 0);
    }
}

/// The thread's own data is being destroyed then, that of everybody else too.
#[test]
fn a_component_kept_by_a_thread_ends_with_it() {
    thread_local! {
        static KEPT: RefCell<Option<Component<Linear>>> = const { RefCell::new(None) };
    }
    let files = Files::new(LAYER);
    thread::scope(|scope| {
        let kept = scope.spawn(|| {
            KEPT.set(Some(files.layer("one")));
            KEPT.with_borrow(|kept| files.rows(kept.as_ref().unwrap()));
        });
        kept.join().unwrap();
    });
    assert_eq!(files.manager.memory().in_use, 0);
    assert!(files.manager.component_names().is_empty());
}

#[test]
fn a_panic_in_a_run_is_the_runs_alone() {
    let files = Files::new(LAYER);
    let (one, two) = (files.layer("one"), files.layer("two"));
    let expected = files.rows(&one);
    let meet = Barrier::new(2);
    thread::scope(|scope| {
        let panics = scope.spawn(|| {
            one.run(|one| -> Result<()> {
                // It also holds the very memory.
                let _held = one.weight().storage_and_layout();
                meet.wait();
                panic!("on purpose")
            })
        });
        meet.wait();
        // Waits for the one that panics, and then drives it out.
        assert_eq!(files.rows(&two), expected);
        assert!(panics.join().is_err());
    });
    for _ in 0..2 {
        let panicked = catch_unwind(AssertUnwindSafe(|| one.run(|_| -> Result<()> { panic!("on purpose") })));
        assert!(panicked.is_err());
        assert_eq!(files.rows(&one), expected);
        assert_eq!(files.rows(&two), expected);
    }
    assert_eq!(files.manager.memory().in_use, LAYER);
}

#[test]
fn a_panic_while_a_model_is_built_leaves_nothing() {
    let files = Files::new(LAYER);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        files.manager.load(&spec("one", &files.net, DType::F32), |vb| -> Result<Linear> {
            linear_no_bias(DIM, DIM, vb.pp("embed"))?;
            panic!("on purpose")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(files.manager.memory().in_use, 0);
    files.rows(&files.layer("one"));
}

#[test]
fn a_run_inside_a_run_goes_on_where_there_is_room_and_is_misuse_where_not() {
    let roomy = Files { phase: Some(0), ..Files::new(2 * LAYER) };
    let (one, two) = (roomy.layer("one"), roomy.layer("two"));
    let expected = roomy.rows(&one);
    let both = one.run(|one| Ok((roomy.rows(&two), bits(&one.forward(&roomy.x)?)))).unwrap();
    assert_eq!(both, (expected.clone(), expected.clone()));
    is_misuse(one.run(|_| Ok(one.run(|_| Ok(())))).unwrap(), "inside its own run");

    let tight = Files::new(LAYER);
    let (one, two) = (tight.layer("one"), tight.layer("two"));
    tight.rows(&two);
    let (inner, outer) = one.run(|one| Ok((two.run(|_| Ok(())), bits(&one.forward(&tight.x)?)))).unwrap();
    is_misuse(inner, "can't be on the device beside");
    assert_eq!(outer, expected);
    assert_eq!(tight.rows(&two), expected);
}

/// Other components come and go inside a run.
#[test]
fn loading_and_dropping_inside_a_run() {
    let files = Files { phase: Some(0), ..Files::new(2 * LAYER) };
    let one = files.layer("one");
    let expected = files.rows(&one);
    let y = one.run(|one| {
        let two = files.layer("two");
        assert_eq!(files.rows(&two), expected);
        drop(two);
        assert_eq!(files.rows(&files.layer("three")), expected);
        one.forward(&files.x)
    });
    assert_eq!(bits(&y.unwrap()), expected);
    assert_eq!((files.manager.memory().in_use, files.manager.component_names().len()), (LAYER, 1));
}

#[test]
fn a_component_outlives_who_made_its_manager() {
    let files = Files::new(LAYER);
    let (one, two) = (Arc::new(files.layer("one")), files.layer("two"));
    let Files { _folder, manager, x, .. } = files;
    let engine = Arc::downgrade(&manager);
    drop(manager);
    let run = |layer: &Component<Linear>| bits(&layer.run(|layer| layer.forward(&x)).unwrap());
    assert_eq!(run(&one), run(&two));
    assert_eq!(run(&one), run(&two));
    drop((one, two));
    assert!(engine.upgrade().is_none(), "somebody still holds the engine");
}
