//! A model that is whole is read once: what was read while it was built is there for its first run, unless anything came between.

mod common;

use candle_core::{DType, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear_no_bias};
use common::{bits, manager, spec, tensor};
use mm_candle::{Component, LoadSpec, Manager, load_unmanaged};
use mm_plan::Strategy;

const WIDTH: usize = 64;
const NAMES: [&str; 3] = ["a", "b", "c"];
const WHOLE: u64 = (NAMES.len() * WIDTH * WIDTH * 4) as u64;

struct Case {
    _folder: tempfile::TempDir,
    spec: LoadSpec,
    manager: Manager,
    x: Tensor,
    expected: Vec<u32>,
}

fn build(vb: VarBuilder<'_>) -> candle_core::Result<Vec<Linear>> {
    NAMES.iter().map(|name| linear_no_bias(WIDTH, WIDTH, vb.pp(name))).collect()
}

impl Case {
    /// A device that holds one model.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("layers.safetensors");
        let tensors = NAMES.iter().enumerate().map(|(i, name)| (format!("{name}.weight"), tensor(&[WIDTH, WIDTH], i)));
        candle_core::safetensors::save(&tensors.collect(), &file).unwrap();
        let spec = spec("", &file, DType::F32);
        let plain = load_unmanaged(&spec, build).unwrap();
        let manager = manager(WHOLE, Strategy::Auto);
        let mut case = Self { _folder: folder, spec, manager, x: tensor(&[1, WIDTH], 77), expected: Vec::new() };
        case.expected = case.forward(&plain);
        case
    }

    fn load(&self, name: &str) -> Component<Vec<Linear>> {
        self.manager.load(&LoadSpec { name: name.into(), ..self.spec.clone() }, build).unwrap()
    }

    fn forward(&self, layers: &Component<Vec<Linear>>) -> Vec<u32> {
        let y = layers.run(|layers| layers.iter().try_fold(self.x.clone(), |x, layer| layer.forward(&x)));
        bits(&y.unwrap())
    }

    /// Its output is right, it alone is on the device, and so many bytes were read to put it there.
    fn runs(&self, name: &str, layers: &Component<Vec<Linear>>, read: u64) {
        for _ in 0..2 {
            assert!(self.forward(layers) == self.expected);
            let copied = self.manager.get_component(name).unwrap().stats().copied_bytes;
            assert_eq!((copied, self.manager.memory().in_use), (read, WHOLE), "{name}");
        }
    }
}

#[test]
fn the_first_run_reads_nothing_and_a_later_load_everything() {
    let case = Case::new();
    let one = case.load("one");
    assert_eq!(case.manager.memory().in_use, WHOLE, "it is counted");
    case.runs("one", &one, 0);
    case.manager.unload("one").unwrap();
    assert_eq!(case.manager.memory().in_use, 0);
    case.runs("one", &one, WHOLE);
    drop(one);
    assert_eq!((case.manager.memory().in_use, case.manager.memory().peak), (0, WHOLE));
}

#[test]
fn it_leaves_for_what_is_built_or_run_next() {
    let case = Case::new();
    let (one, two) = (case.load("one"), case.load("two"));
    assert_eq!(case.manager.memory().in_use, WHOLE, "of the second alone");
    case.runs("one", &one, WHOLE);
    case.runs("two", &two, WHOLE);
    assert_eq!(case.manager.memory().peak, WHOLE);
}

#[test]
fn it_leaves_with_its_component_and_when_asked() {
    let case = Case::new();
    drop(case.load("one"));
    assert_eq!(case.manager.memory().in_use, 0);
    let one = case.load("one");
    case.manager.unload("one").unwrap();
    assert_eq!(case.manager.memory().in_use, 0);
    case.runs("one", &one, WHOLE);
}

/// Where no plan fits it is of no use to anybody.
#[test]
fn it_leaves_where_it_can_not_be_run() {
    let case = Case { manager: manager(WHOLE - 1, Strategy::Auto), ..Case::new() };
    let one = case.load("one");
    one.run(|_| Ok(())).unwrap_err();
    assert_eq!(case.manager.memory().in_use, 0);
}
