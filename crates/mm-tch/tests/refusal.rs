//! Computing with an evicted weight is an error from every op, never a crash or an output; so it is with what was made of it.
#![cfg(feature = "libtorch")]

mod common;

use common::{manager, save, spec, tensor};
use mm_engine::EngineError;
use mm_plan::Strategy;
use mm_tch::{Component, Error, Manager};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};
use tch::{
    Device, Kind, TchError, Tensor,
    nn::{self, Init},
};

type Outcome = Result<Tensor, TchError>;
type Op<'a> = Box<dyn Fn() -> Outcome + 'a>;

fn weights(path: &nn::Path<'_>) -> [Tensor; 3] {
    let zero = Init::Const(0.0);
    [path.var("m", &[8, 8], zero), path.var("k", &[8, 8, 3, 3], zero), path.var("v", &[8], zero)]
}

fn stored(folder: &Path) -> std::path::PathBuf {
    let file = folder.join("w.safetensors");
    save(&file, &[("m", tensor(&[8, 8], 1)), ("k", tensor(&[8, 8, 3, 3], 2)), ("v", tensor(&[8], 3))]);
    file
}

/// A component that is its weights, on the device.
fn loaded(kind: Kind) -> (Manager, Component<[Tensor; 3]>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let manager = manager(1 << 20, Strategy::Auto);
    let component = manager.load(&spec("w", &stored(folder.path()), kind), |path| Ok(weights(path))).unwrap();
    component.run(|_| Ok(())).unwrap();
    (manager, component, folder)
}

/// Every op that a diffusion model uses, and more, on a matrix, a kernel and a vector.
fn every_op(m: &Tensor, k: &Tensor, v: &Tensor, kind: Kind) -> Vec<(&'static str, Result<Tensor, String>)> {
    let x = tensor(&[8, 8], 9).to_kind(kind);
    let image = tensor(&[1, 8, 5, 5], 9).to_kind(kind);
    let line = tensor(&[1, 8, 9], 9).to_kind(kind);
    let heads = tensor(&[1, 2, 8, 8], 9).to_kind(kind);
    let ids = Tensor::from_slice(&[0i64, 3]);
    let grid = Tensor::zeros([8, 8], (Kind::Int64, Device::Cpu));
    let other = if kind == Kind::Float { Kind::BFloat16 } else { Kind::Float };
    let none: Option<&Tensor> = None;
    let read = |t: &Tensor| {
        let mut bytes = vec![0; t.numel() * kind.elt_size_in_bytes()];
        t.f_copy_data_u8(&mut bytes, t.numel()).map(|()| x.shallow_clone())
    };
    let value = |t: &Tensor| t.f_double_value(&[0, 0]).map(Tensor::from);
    let ops: Vec<(&'static str, Op<'_>)> = vec![
        ("matmul right", Box::new(|| x.f_matmul(m))),
        ("matmul left", Box::new(|| m.f_matmul(&x))),
        ("mm transposed", Box::new(|| m.f_transpose(0, 1).and_then(|t| x.f_mm(&t)))),
        ("addmm", Box::new(|| x.f_addmm(&x, m))),
        ("linear", Box::new(|| x.f_linear(m, Some(v)))),
        ("linear bias", Box::new(|| x.f_linear(&x, Some(v)))),
        ("bmm", Box::new(|| x.f_unsqueeze(0).and_then(|x| x.f_bmm(&m.f_unsqueeze(0)?)))),
        ("einsum", Box::new(|| Tensor::f_einsum("ij,jk->ik", &[x.shallow_clone(), m.shallow_clone()], None::<i64>))),
        ("conv2d", Box::new(|| image.f_conv2d(k, none, [1, 1], [1, 1], [1, 1], 1))),
        ("conv transpose 2d", Box::new(|| image.f_conv_transpose2d(k, none, [1, 1], [0, 0], [0, 0], 1, [1, 1]))),
        ("conv1d", Box::new(|| k.f_flatten(2, 3).and_then(|k| line.f_conv1d(&k, none, [1], [1], [1], 1)))),
        ("embedding", Box::new(|| Tensor::f_embedding(m, &ids, -1, false, false))),
        ("index_select", Box::new(|| m.f_index_select(0, &ids))),
        ("gather", Box::new(|| m.f_gather(0, &grid, false))),
        ("layer_norm", Box::new(|| x.f_layer_norm([8], Some(v), Some(v), 1e-5, false))),
        ("group_norm", Box::new(|| image.f_group_norm(2, Some(v), Some(v), 1e-5, false))),
        ("batch_norm", Box::new(|| image.f_batch_norm(Some(v), Some(v), Some(v), Some(v), false, 0.1, 1e-5, false))),
        ("rms_norm", Box::new(|| x.f_rms_norm([8], Some(v), None))),
        ("attention", Box::new(|| Tensor::f_scaled_dot_product_attention(&heads, m, m, none, 0.0, false, None, false))),
        ("softmax", Box::new(|| m.f_softmax(-1, kind))),
        ("sigmoid", Box::new(|| m.f_sigmoid())),
        ("add", Box::new(|| x.f_add(m))),
        ("add to", Box::new(|| m.f_add(&x))),
        ("broadcast mul", Box::new(|| x.f_mul(v))),
        ("sub", Box::new(|| m.f_sub(&x))),
        ("div", Box::new(|| x.f_div(m))),
        ("maximum", Box::new(|| x.f_maximum(m))),
        ("scale", Box::new(|| m.f_mul_scalar(2.0))),
        ("pow", Box::new(|| m.f_pow_tensor_scalar(2.0))),
        ("exp", Box::new(|| m.f_exp())),
        ("silu", Box::new(|| m.f_silu())),
        ("gelu", Box::new(|| m.f_gelu("none"))),
        ("tanh", Box::new(|| m.f_tanh())),
        ("neg", Box::new(|| m.f_neg())),
        ("sum", Box::new(|| m.f_sum(kind))),
        ("mean", Box::new(|| m.f_mean(kind))),
        ("max", Box::new(|| m.f_max())),
        ("argmax", Box::new(|| m.f_argmax(0, false))),
        ("compare", Box::new(|| m.f_gt(0.0))),
        ("where", Box::new(|| x.f_where_self(&x.f_gt(0.0).unwrap(), m))),
        ("cat", Box::new(|| Tensor::f_cat(&[&x, m], 0))),
        ("stack", Box::new(|| Tensor::f_stack(&[&x, m], 0))),
        ("cast", Box::new(|| m.f_to_kind(other))),
        ("copy", Box::new(|| m.f_contiguous().and_then(|c| c.f_mul_scalar(1.0)))),
        ("contiguous transpose", Box::new(|| m.f_transpose(0, 1).and_then(|t| t.f_contiguous()))),
        ("upsample", Box::new(|| k.f_upsample_nearest2d([6, 6], None, None))),
        ("avg_pool", Box::new(|| k.f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>))),
        ("max_pool", Box::new(|| k.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false))),
        ("pad", Box::new(|| m.f_constant_pad_nd([1, 1]))),
        ("roll", Box::new(|| m.f_roll([1], [0]))),
        ("repeat", Box::new(|| m.f_repeat([2, 1]))),
        ("sort", Box::new(|| m.f_sort(-1, false).map(|(sorted, _)| sorted))),
        ("index_add", Box::new(|| m.f_index_add(0, &ids, &x.narrow(0, 0, 2)))),
        ("fill in place", Box::new(|| m.shallow_clone().f_fill_(1.0))),
        (
            "copy from in place",
            Box::new(|| {
                let mut y = x.copy();
                y.f_copy_(m).map(|()| y)
            }),
        ),
        (
            "copy to in place",
            Box::new(|| {
                let mut y = m.shallow_clone();
                y.f_copy_(&x).map(|()| y)
            }),
        ),
        ("norm", Box::new(|| m.f_norm())),
        ("read back", Box::new(|| read(m))),
        ("one value", Box::new(|| value(m))),
        (
            "display",
            Box::new(|| {
                m.f_to_kind(kind).and_then(|t| t.to_string(80)).map(|_| x.shallow_clone()).and_then(|_| m.f_exp())
            }),
        ),
    ];
    ops.into_iter().map(|(name, op)| (name, attempt(op))).collect()
}

/// What shows the same bytes in another way computes nothing: then it is the use of that which refuses. Where an op takes a
/// number, tch panics with libtorch's error instead of returning it.
fn attempt(op: impl Fn() -> Outcome) -> Result<Tensor, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| op().and_then(|y| y.f_logical_not())));
    outcome.map_err(|panic| *panic.downcast::<String>().unwrap())?.map_err(|error| error.to_string())
}

fn assert_refused(m: &Tensor, k: &Tensor, v: &Tensor, kind: Kind) {
    let outcomes = every_op(m, k, v, kind);
    assert!(outcomes.len() >= 40);
    for (name, outcome) in outcomes {
        let Err(error) = outcome else { panic!("{name} {kind:?} computed with an evicted weight") };
        assert!(error.contains("not on the device"), "{name} {kind:?}: {error}");
    }
}

#[test]
fn every_op_refuses_and_computes_when_the_weight_is_there() {
    for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
        let (manager, component, _folder) = loaded(kind);
        component
            .run(|[m, k, v]| {
                for (name, outcome) in every_op(m, k, v, kind) {
                    // Where the op itself does not work, its refusal would say nothing.
                    assert!(outcome.is_ok(), "{name} {kind:?}: {outcome:?}");
                }
                Ok(())
            })
            .unwrap();
        let [m, k, v] = component.run(|w| Ok(w.each_ref().map(Tensor::shallow_clone))).unwrap();
        manager.unload("w").unwrap();
        assert_refused(&m, &k, &v, kind);
        assert_eq!((m.size(), m.kind()), (vec![8, 8], kind), "shape and kind can be asked for");
    }
}

#[test]
fn weights_never_were_there_before_the_first_run() {
    let folder = tempfile::tempdir().unwrap();
    let manager = manager(1 << 20, Strategy::Auto);
    let kept = parking_lot::Mutex::new(Vec::new());
    let component = manager.load(&spec("w", &stored(folder.path()), Kind::Float), |path| {
        let weights = weights(path);
        *kept.lock() = weights.each_ref().map(|w| w.detach()).into();
        Ok(weights)
    });
    // Aliases that the constructor made of what tch had allocated.
    let kept = kept.into_inner();
    assert_refused(&kept[0], &kept[1], &kept[2], Kind::Float);
    // And they go on refusing while the weights themselves are there.
    component
        .unwrap()
        .run(|[m, ..]| {
            assert!(m.f_exp().is_ok());
            assert_refused(&kept[0], &kept[1], &kept[2], Kind::Float);
            Ok(())
        })
        .unwrap();
}

#[test]
fn views_and_detached_copies_made_in_a_run_refuse_after_it_and_clones_follow_the_weight() {
    let (manager, component, _folder) = loaded(Kind::Float);
    let take = |f: fn(&Tensor) -> Tensor| component.run(|w| Ok(w.each_ref().map(f))).unwrap();
    let detached = take(|w| w.detach());
    let views = take(|w| w.view_as(w));
    let clones = take(|w| w.shallow_clone());
    manager.unload("w").unwrap();
    for [m, k, v] in [&detached, &views, &clones] {
        assert_refused(m, k, v, Kind::Float);
    }
    component
        .run(|_| {
            let sum = |t: &Tensor| f64::try_from(t.sum(Kind::Double)).unwrap();
            assert_eq!(sum(&clones[0]), sum(&tensor(&[8, 8], 1)));
            for [m, k, v] in [&detached, &views] {
                assert_refused(m, k, v, Kind::Float);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_component_gone_its_weights_refuse() {
    let (manager, component, _folder) = loaded(Kind::Float);
    let [m, k, v] = component.run(|w| Ok(w.each_ref().map(Tensor::shallow_clone))).unwrap();
    drop(component);
    assert_eq!(manager.memory().in_use, 0);
    assert_refused(&m, &k, &v, Kind::Float);
}

#[test]
fn training_is_refused_with_a_sentence() {
    let (_manager, component, _folder) = loaded(Kind::Float);
    // Nothing is recorded in a run.
    let y = component.run(|[m, ..]| Ok(m.sum(Kind::Float))).unwrap();
    assert!(!y.requires_grad() && y.f_backward().is_err());
    let _same = component.run(|[m, ..]| Ok(m.set_requires_grad(true))).unwrap();
    for _ in 0..2 {
        let error = component.run(|_| Ok(())).unwrap_err();
        assert!(matches!(&error, Error::Engine(EngineError::Misuse(text)) if text.contains("training")), "{error}");
    }
}
