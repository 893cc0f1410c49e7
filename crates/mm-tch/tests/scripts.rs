//! A TorchScript file is a component, on the device whole while it runs.
#![cfg(feature = "libtorch")]

mod common;

use common::{bits, manager, save, tensor};
use mm_plan::Strategy;
use mm_tch::{Component, Error, LoadSpec};
use std::path::{Path, PathBuf};
use tch::{CModule, Tensor};

/// Made by `script/make.cpp`: 8,480 parameters, 16 of them under two names, and a buffer.
fn net() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/script/net.pt")
}

fn forward(component: &Component<CModule>, x: &Tensor) -> Vec<u32> {
    bits(&component.run(|net| Ok(net.forward_ts(&[x])?)).unwrap())
}

#[test]
fn two_scripts_take_turns_with_the_bits_of_an_unmanaged_one() {
    let x = tensor(&[3, 16], 7);
    let expected = bits(&tch::no_grad(|| CModule::load(net()).unwrap().forward_ts(&[&x]).unwrap()));
    let one = 2 * 4 * 16 * 256 + 4 * 256 + 2 * 256;
    let manager = manager(one + 256, Strategy::ModelOffload);
    let load = |name: &str| manager.load_script(&LoadSpec::new(name, []), net()).unwrap();
    let (a, b) = (load("a"), load("b"));
    assert_eq!(manager.memory().in_use, 0);
    for _ in 0..3 {
        assert_eq!(forward(&a, &x), expected);
        assert_eq!(forward(&b, &x), expected);
        assert_eq!(
            (manager.memory().in_use, manager.memory().peak),
            (one, one),
            "one at a time, the plan's to the byte"
        );
    }
    // Outside its run it is refused.
    let kept = a.run(|net| Ok(net.named_parameters()?)).unwrap();
    manager.unload("a").unwrap();
    let error = kept[0].1.f_exp().unwrap_err().to_string();
    assert!(error.contains("not on the device"), "{error}");
}

#[test]
fn parameters_come_from_the_files_that_are_given() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    let module = CModule::load(net()).unwrap();
    let zeros: Vec<_> = module.named_parameters().unwrap().into_iter().map(|(n, t)| (n, t.zeros_like())).collect();
    let zeros: Vec<_> = zeros.iter().map(|(name, t)| (name.as_str(), t.shallow_clone())).collect();
    save(&file, &zeros);
    let manager = manager(1 << 20, Strategy::Auto);
    let net = manager.load_script(&LoadSpec::new("net", [file]), net()).unwrap();
    assert!(forward(&net, &tensor(&[3, 16], 7)).iter().all(|bits| *bits == 0));
}

#[test]
fn a_script_that_is_none_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("no.pt");
    let manager = manager(1 << 20, Strategy::Auto);
    let load = || manager.load_script(&LoadSpec::new("no", []), &file).map(|_| ()).unwrap_err();
    for content in [None, Some("no script")] {
        content.iter().for_each(|content| std::fs::write(&file, content).unwrap());
        let error = load();
        assert!(matches!(&error, Error::Script { file: named, .. } if *named == file), "{error}");
    }
    // One whose weights are constants.
    let x = tensor(&[2, 2], 1);
    let traced = CModule::create_by_tracing("m", "forward", &[x], &mut |x| vec![&x[0] + tensor(&[2, 2], 2)]).unwrap();
    traced.save(&file).unwrap();
    let error = load().to_string();
    assert!(error.contains("no parameters"), "{error}");
}
