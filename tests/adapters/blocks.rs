//! Blocks stream bit-identically under every strategy and budget, in exactly the bytes planned.

use crate::common::{
    BF16, BLOCKS, DIM, Error, F16, F32, NORM_WEIGHTS, Result, bits, cast, checkpoint, load_unmanaged, manager, net_of,
    own_error, spec, tensor,
};
use mm_engine::EngineError;
use mm_plan::{Infeasible, Strategy};

#[test]
fn every_strategy_and_budget_gives_the_unmanaged_bits() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    for (stored, dtype) in [(BF16, F32), (BF16, BF16), (F32, F16)] {
        checkpoint(&file, BLOCKS, stored);
        let x = cast(&tensor(&[3, DIM], 1), dtype);
        let spec = spec("net", &file, dtype);
        let plain = load_unmanaged(&spec, net_of(BLOCKS)).unwrap();
        let expected = bits(&plain.run(|net| net.forward(&x)).unwrap());
        let mut tried = 0;
        for strategy in
            [Strategy::Auto, Strategy::NoOffload, Strategy::ModelOffload, Strategy::BlockPin, Strategy::GroupOffload]
        {
            for kib in [1, 8, 12, 16, 24, 40, 64, 128, 256] {
                let manager = manager(kib << 10, strategy);
                let net = manager.load(&spec, net_of(BLOCKS)).unwrap();
                for pass in 0..3 {
                    match net.run(|net| net.forward(&x)) {
                        Ok(y) => assert_eq!(bits(&y), expected, "{strategy} {dtype:?} {kib} KiB pass {pass}"),
                        Err(Error::Engine(EngineError::Infeasible(_))) => break,
                        Err(other) => panic!("{strategy} {dtype:?} {kib} KiB: {other}"),
                    }
                    let plan = manager.plan().unwrap();
                    assert_eq!(manager.memory().in_use, plan.peak.device);
                    assert_eq!(manager.memory().peak, plan.peak.device);
                    assert!(plan.peak.device <= kib << 10);
                    tried += 1;
                }
                drop(net);
                assert_eq!(manager.memory().in_use, 0);
            }
        }
        assert!(tried >= 50, "most budgets are feasible: {tried}");
    }
}

#[test]
fn the_smallest_budget_named_by_the_refusal_works_and_one_byte_less_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    checkpoint(&file, BLOCKS, F32);
    let spec = spec("net", &file, F32);
    let x = tensor(&[1, DIM], 2);
    let attempt = |budget: u64| {
        let manager = manager(budget, Strategy::Auto);
        let net = manager.load(&spec, net_of(BLOCKS)).unwrap();
        net.run(|net| net.forward(&x)).map(|y| bits(&y))
    };
    let Err(Error::Engine(EngineError::Infeasible(Infeasible::NeverFits { component, smallest, .. }))) = attempt(1)
    else {
        panic!("one byte can't be enough");
    };
    assert_eq!(component, "net");
    assert!(attempt(smallest).is_ok());
    assert!(attempt(smallest - 1).is_err());
}

#[test]
fn what_the_model_never_asks_for_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    checkpoint(&file, BLOCKS, F32);
    let manager = manager(1 << 20, Strategy::Auto);
    let _net = manager.load(&spec("net", &file, F32), net_of(BLOCKS)).unwrap();
    let module = manager.get_component("net").unwrap();
    let dim = DIM as u64;
    let up = |n: u64| (4 * n).next_multiple_of(256);
    let block = up(2 * dim * dim) * 2 + up(2 * dim) + NORM_WEIGHTS * up(dim);
    assert_eq!(module.description().rest, up(dim * dim) + up(5 * dim) + up(5));
    assert!(module.description().groups().all(|g| g.bytes() == block));
}

#[test]
fn two_blocks_at_once_need_two_slots_and_three_are_misuse() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    checkpoint(&file, BLOCKS, F32);
    let manager = manager(1 << 20, Strategy::GroupOffload);
    let net = manager.load(&spec("net", &file, F32), net_of(BLOCKS)).unwrap();
    let two = net.run(|net| net.layers.iter().take(2).collect::<Result<Vec<_>>>().map(|held| held.len()));
    assert_eq!(two.unwrap(), 2);
    let all = net.run(|net| net.layers.iter().collect::<Result<Vec<_>>>().map(|held| held.len()));
    assert!(matches!(all, Err(Error::Engine(EngineError::Misuse(text))) if text.contains("slots")));
    // The refusal left nothing behind.
    let x = tensor(&[1, DIM], 3);
    let _y = net.run(|net| net.forward(&x)).unwrap();
}

#[test]
fn errors_and_panics_inside_a_run_leave_the_next_run_right() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    checkpoint(&file, BLOCKS, F32);
    let manager = manager(40 << 10, Strategy::GroupOffload);
    let net = manager.load(&spec("net", &file, F32), net_of(BLOCKS)).unwrap();
    let x = tensor(&[2, DIM], 4);
    let expected = bits(&net.run(|net| net.forward(&x)).unwrap());
    let failed: std::result::Result<(), Error> = net.run(|net| {
        let _held = net.layers.get(4).unwrap()?;
        Err(own_error("the caller's own error"))
    });
    assert!(failed.unwrap_err().to_string().contains("the caller's own error"));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        net.run(|net| -> Result<()> {
            let _held = net.layers.get(2).unwrap()?;
            panic!("on purpose")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(bits(&net.run(|net| net.forward(&x)).unwrap()), expected);
    assert_eq!(manager.memory().in_use, manager.plan().unwrap().peak.device);
}

#[test]
fn a_run_inside_its_own_run_is_misuse() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    checkpoint(&file, BLOCKS, F32);
    let manager = manager(1 << 20, Strategy::Auto);
    let net = manager.load(&spec("net", &file, F32), net_of(BLOCKS)).unwrap();
    let inner = net.run(|_| Ok(net.run(|_| Ok(())).is_err())).unwrap();
    assert!(inner);
}
