//! Unmodified tch models and TorchScript run whole, bit-identically; what does not go together is an error that names it.
#![cfg(feature = "libtorch")]

mod common;

use common::{bits, linear, manager, save, spec, tensor};
use mm_plan::Strategy;
use mm_tch::{Blocks, Component, Error, Result, load_unmanaged};
use std::{path::Path, sync::Mutex};
use tch::{
    Device, Kind, Tensor,
    nn::{self, Init, Module, ModuleT, VarStore},
};

/// Writes random weights for whatever `build` asks for.
fn random_checkpoint<M>(file: &Path, build: impl Fn(&nn::Path<'_>) -> M) {
    let store = VarStore::new(Device::Cpu);
    let _model = build(&store.root());
    for (seed, (_, mut variable)) in store.variables().into_iter().enumerate() {
        // Variances are among them.
        let values = tensor(&variable.size(), seed).abs() + 0.1;
        tch::no_grad(|| variable.copy_(&values));
    }
    store.save(file).unwrap();
}

/// tch's own: convolutions, batch norms with running statistics, a head.
fn resnet(path: &nn::Path<'_>) -> nn::FuncT<'static> {
    tch::vision::resnet::resnet18(path, 10)
}

fn encoder(path: &nn::Path<'_>) -> nn::Sequential {
    nn::seq()
        .add(nn::embedding(path / "tokens", 40, 32, Default::default()))
        .add(linear(&(path / "up"), 32, 64, true))
        .add_fn(|x| x.gelu("none"))
        .add(nn::layer_norm(path / "norm", vec![64], Default::default()))
}

#[test]
fn an_unmodified_resnet_and_an_encoder_take_turns_on_a_device_that_holds_one() {
    let folder = tempfile::tempdir().unwrap();
    let (resnet_file, encoder_file) = (folder.path().join("resnet.safetensors"), folder.path().join("e.safetensors"));
    random_checkpoint(&resnet_file, resnet);
    random_checkpoint(&encoder_file, encoder);
    let image = tensor(&[1, 3, 32, 32], 5);
    let ids = Tensor::from_slice(&[1i64, 7, 3]);
    let see = |c: &Component<nn::FuncT<'static>>| bits(&c.run(|m| Ok(m.forward_t(&image, false))).unwrap());
    let encode = |c: &Component<nn::Sequential>| bits(&c.run(|m| Ok(m.forward(&ids))).unwrap());
    let (resnet_spec, encoder_spec) =
        (spec("resnet", &resnet_file, Kind::Float), spec("encoder", &encoder_file, Kind::Float));
    let expected = (
        see(&load_unmanaged(&resnet_spec, |p| Ok(resnet(p))).unwrap()),
        encode(&load_unmanaged(&encoder_spec, |p| Ok(encoder(p))).unwrap()),
    );
    // What tch itself makes of the same file.
    let mut store = VarStore::new(Device::Cpu);
    let plain = resnet(&store.root());
    store.load(&resnet_file).unwrap();
    assert_eq!(bits(&tch::no_grad(|| plain.forward_t(&image, false))), expected.0);

    let manager = manager(45 << 20, Strategy::ModelOffload);
    let resnet = manager.load(&resnet_spec, |p| Ok(resnet(p))).unwrap();
    let encoder = manager.load(&encoder_spec, |p| Ok(encoder(p))).unwrap();
    for _ in 0..2 {
        assert_eq!(encode(&encoder), expected.1);
        assert_eq!(see(&resnet), expected.0);
    }
    let plan = manager.plan().unwrap();
    let total: u64 = plan.components.iter().map(|c| c.engine_bytes).sum();
    assert!(plan.peak.device < total, "they never were there together");
    assert_eq!(manager.memory().peak, plan.peak.device);
}

#[test]
fn a_variable_that_two_blocks_hold_belongs_to_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tied.safetensors");
    let names = ["tied", "layers.0.w", "layers.1.w", "layers.0.own", "layers.1.own"];
    let stored: Vec<_> = names.iter().enumerate().map(|(i, name)| (*name, tensor(&[64], i + 1))).collect();
    save(&file, &stored);
    type Pair = Blocks<[Tensor; 3]>;
    let build = |path: &nn::Path<'_>| {
        let zero = Init::Const(0.0);
        let first = Mutex::new(None::<Tensor>);
        Blocks::load(path, "layers", 2, |_, block| {
            // By a path of the whole model; and the first block's own, added once more under the second's name.
            let tied = path.entry("tied").or_var(&[64], zero);
            let mut first = first.lock().unwrap();
            let w = match first.as_ref() {
                Some(w) => block.add("w", w.shallow_clone(), false),
                None => block.var("w", &[64], zero),
            };
            *first = Some(w.shallow_clone());
            Ok([tied, w, block.var("own", &[64], zero)])
        })
    };
    let manager = manager(1024, Strategy::GroupOffload);
    let model = manager.load(&spec("tied", &file, Kind::Float), build).unwrap();
    let sums = model.run(|blocks: &mut Pair| {
        blocks
            .iter()
            .map(|b| b.map(|b| b.iter().map(|t| f64::try_from(t.sum(Kind::Double)).unwrap()).sum::<f64>()))
            .collect()
    });
    let sum = |i: usize| f64::try_from(tensor(&[64], i).sum(Kind::Double)).unwrap();
    let sums: Vec<f64> = sums.unwrap();
    assert_eq!(sums, [sum(1) + sum(2) + sum(4), sum(1) + sum(2) + sum(5)]);
    let module = manager.get_component("tied").unwrap();
    assert_eq!((module.description().rest, module.description().groups().count()), (512, 2));
    assert!(module.description().groups().all(|g| g.bytes() == 256));
}

#[test]
fn what_a_block_keeps_of_another_block_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kept.safetensors");
    let stored: Vec<_> = (0..4).map(|i| (format!("layers.{i}.w"), tensor(&[64], i))).collect();
    Tensor::write_safetensors(&stored, &file).unwrap();
    let build = |path: &nn::Path<'_>| {
        let first = Mutex::new(None::<Tensor>);
        Blocks::load(path, "layers", 4, |_, block| {
            let w = block.var("w", &[64], Init::Const(0.0));
            let mut first = first.lock().unwrap();
            Ok((w.shallow_clone(), first.get_or_insert(w).shallow_clone()))
        })
    };
    let manager = manager(512, Strategy::GroupOffload);
    let model = manager.load(&spec("kept", &file, Kind::Float), build).unwrap();
    model
        .run(|blocks| {
            assert!(blocks.get(0).unwrap()?.1.f_exp().is_ok());
            let other = blocks.get(1).unwrap()?;
            assert!(other.0.f_exp().is_ok());
            let error = other.1.f_exp().unwrap_err().to_string();
            assert!(error.contains("not on the device"), "{error}");
            Ok(())
        })
        .unwrap();
}

#[test]
fn floats_are_cast_and_other_kinds_stay() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mixed.safetensors");
    let ids = Tensor::from_slice(&[3i64, 1, 2]);
    let mask = Tensor::from_slice(&[true, false, true]);
    save(&file, &[("w", tensor(&[8], 1)), ("ids", ids.shallow_clone()), ("mask", mask.shallow_clone())]);
    let build = |path: &nn::Path<'_>| {
        let of = |kind| Tensor::zeros([3], (kind, Device::Cpu));
        let w = path.zeros_no_train("w", &[8]);
        Ok([w, path.add("ids", of(Kind::Int64), false), path.add("mask", of(Kind::Bool), false)])
    };
    let manager = manager(1 << 20, Strategy::Auto);
    let model = manager.load(&spec("mixed", &file, Kind::BFloat16), build).unwrap();
    model
        .run(|[w, i, m]| {
            assert_eq!([w.kind(), i.kind(), m.kind()], [Kind::BFloat16, Kind::Int64, Kind::Bool]);
            assert_eq!(bits(w), bits(&tensor(&[8], 1).to_kind(Kind::BFloat16)));
            assert!(i.equal(&ids) && m.equal(&mask));
            Ok(())
        })
        .unwrap();
    assert_eq!(manager.get_component("mixed").unwrap().description().rest, 3 * 256);
}

#[test]
fn wrong_shapes_missing_variables_and_missing_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.safetensors");
    save(&file, &[("a", tensor(&[2, 3], 1)), ("i", Tensor::from_slice(&[1i64]))]);
    let manager = manager(1 << 20, Strategy::Auto);
    let load = |make: fn(&nn::Path<'_>) -> Tensor| -> Result<()> {
        manager.load(&spec("w", &file, Kind::Float), |path| Ok(make(path))).map(|_| ())
    };
    let text = |make| load(make).unwrap_err().to_string();
    let wrong = text(|path| path.var("a", &[3, 2], Init::Const(0.0)));
    assert!(wrong.contains("w.safetensors") && wrong.contains("[3, 2]") && wrong.contains("[2, 3]"), "{wrong}");
    let missing = text(|path| (path / "b").var("c", &[1], Init::Const(0.0)));
    assert!(missing.contains("b.c") && missing.contains("w.safetensors"), "{missing}");
    let twice = text(|path| {
        let _first = path.var("a", &[2, 3], Init::Const(0.0));
        path.var("a", &[2, 3], Init::Const(0.0))
    });
    assert!(twice.contains("asked for twice"), "{twice}");
    let kind = text(|path| path.var("i", &[1], Init::Const(0.0)));
    assert!(kind.contains("can't be cast"), "{kind}");
    let absent = spec("w", &folder.path().join("no.safetensors"), Kind::Float);
    let absent = manager.load(&absent, |_| Ok(())).map(|_| ());
    assert!(matches!(&absent, Err(Error::Weights(e)) if e.to_string().contains("no.safetensors")), "{absent:?}");
    // None of them left the name taken.
    load(|path| path.var("a", &[2, 3], Init::Const(0.0))).unwrap();
}

#[test]
fn a_weight_that_was_reshaped_or_cast_in_a_run_is_an_error_and_not_other_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.safetensors");
    save(&file, &[("a", tensor(&[2, 3], 1))]);
    for change in [|w: &mut Tensor| drop(w.resize_([1, 2])), |w: &mut Tensor| w.set_data(&w.to_kind(Kind::Half))] {
        let manager = manager(1 << 20, Strategy::Auto);
        let component = manager.load(&spec("w", &file, Kind::Float), |p| Ok(p.var("a", &[2, 3], Init::Const(0.0))));
        let component = component.unwrap();
        component
            .run(|w| {
                change(w);
                Ok(())
            })
            .unwrap();
        manager.unload("w").unwrap();
        let error = component.run(|_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("was changed"), "{error}");
        assert_eq!(manager.memory().in_use, 0);
    }
}
