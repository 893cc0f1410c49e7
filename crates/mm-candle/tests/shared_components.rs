//! What loads of one manager share where builds are lazy.

mod common;

use candle_nn::VarBuilder;
use common::{DIM, F32, checkpoint, manager, spec};
use mm_candle::LoadSpec;
use mm_plan::Strategy;

/// A lazy build may be of no use to a model that keeps copies of its weights; the other always is.
#[test]
fn a_lazy_build_is_not_given_to_who_asked_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    checkpoint(&file, 1, F32);
    let manager = manager(1 << 20, Strategy::Auto);
    let spec = |name, lazy| LoadSpec { config: Some("{}".to_owned()), lazy, ..spec(name, &file, F32) };
    let copies = |vb: VarBuilder<'_>| vb.get((5, DIM), "head.weight")?.copy();
    let lazy = manager.load(&spec("lazy", true), copies);
    let whole = manager.load(&spec("whole", false), copies).unwrap();
    whole.run(|copy| copy.sum_all()).unwrap();
    drop(lazy);
}
