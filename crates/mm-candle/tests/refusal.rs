//! Computing with an evicted weight is an error from every op, never a crash or an output.

mod common;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::{layer_norm, rms_norm, sigmoid, softmax_last_dim};
use common::{manager, spec, tensor};
use mm_plan::Strategy;
use std::{collections::HashMap, sync::Mutex};

/// Weights as a model holds them, after the manager took their memory away.
fn evicted(dtype: DType) -> (Tensor, Tensor, Tensor) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.safetensors");
    let stored: HashMap<_, _> =
        [("m", tensor(&[8, 8], 1)), ("k", tensor(&[8, 8, 3, 3], 2)), ("v", tensor(&[8], 3))].into();
    candle_core::safetensors::save(&stored, &file).unwrap();
    let manager = manager(1 << 20, Strategy::Auto);
    let kept = Mutex::new(Vec::new());
    let component = manager
        .load(&spec("w", &file, dtype), |vb| {
            let weights = [vb.get((8, 8), "m")?, vb.get((8, 8, 3, 3), "k")?, vb.get(8, "v")?];
            // They are really there while the model is built.
            assert!(weights[0].to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?.is_finite());
            *kept.lock().unwrap() = weights.to_vec();
            Ok(())
        })
        .unwrap();
    component.run(|_| Ok(())).unwrap();
    drop(component);
    let [m, k, v] = <[Tensor; 3]>::try_from(kept.into_inner().unwrap()).unwrap();
    (m, k, v)
}

#[test]
fn every_op_refuses() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let (m, k, v) = evicted(dtype);
        let x = tensor(&[8, 8], 9).to_dtype(dtype).unwrap();
        let image = tensor(&[1, 8, 5, 5], 9).to_dtype(dtype).unwrap();
        let line = tensor(&[1, 8, 9], 9).to_dtype(dtype).unwrap();
        let ids = Tensor::new(&[0u32, 3], &Device::Cpu).unwrap();
        let grid = Tensor::zeros((8, 8), DType::U32, &Device::Cpu).unwrap();
        let other = if dtype == DType::F32 { DType::BF16 } else { DType::F32 };
        type Op<'a> = (&'a str, Box<dyn Fn() -> Result<Tensor> + 'a>);
        let ops: Vec<Op<'_>> = vec![
            ("matmul right", Box::new(|| x.matmul(&m))),
            ("matmul left", Box::new(|| m.matmul(&x))),
            ("matmul transposed", Box::new(|| x.matmul(&m.t()?))),
            ("conv2d", Box::new(|| image.conv2d(&k, 1, 1, 1, 1))),
            ("conv transpose 2d", Box::new(|| image.conv_transpose2d(&k, 1, 0, 1, 1))),
            ("conv1d", Box::new(|| line.conv1d(&k.flatten_from(2)?, 0, 1, 1, 1))),
            ("embedding", Box::new(|| m.embedding(&ids))),
            ("index_select", Box::new(|| m.index_select(&ids, 0))),
            ("gather", Box::new(|| m.gather(&grid, 0))),
            ("layer_norm", Box::new(|| layer_norm(&x, &v, &v, 1e-5))),
            ("rms_norm", Box::new(|| rms_norm(&x, &v, 1e-5))),
            ("softmax", Box::new(|| softmax_last_dim(&m))),
            ("sigmoid", Box::new(|| sigmoid(&m))),
            ("add", Box::new(|| &x + &m)),
            ("add to", Box::new(|| &m + &x)),
            ("broadcast mul", Box::new(|| x.broadcast_mul(&v))),
            ("sub", Box::new(|| &m - &x)),
            ("div", Box::new(|| &x / &m)),
            ("maximum", Box::new(|| x.maximum(&m))),
            ("affine", Box::new(|| m.affine(2.0, 1.0))),
            ("powf", Box::new(|| m.powf(2.0))),
            ("exp", Box::new(|| m.exp())),
            ("silu", Box::new(|| m.silu())),
            ("gelu", Box::new(|| m.gelu())),
            ("neg", Box::new(|| m.neg())),
            ("sqr", Box::new(|| m.sqr())),
            ("elu", Box::new(|| m.elu(1.0))),
            ("sum", Box::new(|| m.sum_all())),
            ("sum dim", Box::new(|| m.sum(0))),
            ("mean", Box::new(|| m.mean(D::Minus1))),
            ("max", Box::new(|| m.max(0))),
            ("argmax", Box::new(|| m.argmax(0))),
            ("compare", Box::new(|| m.gt(&x))),
            ("where", Box::new(|| grid.where_cond(&m, &x))),
            ("cat", Box::new(|| Tensor::cat(&[&x, &m], 0))),
            ("cast", Box::new(|| m.to_dtype(other))),
            ("contiguous transpose", Box::new(|| m.t()?.contiguous()?.sum_all())),
            ("upsample", Box::new(|| k.upsample_nearest2d(6, 6))),
            ("avg_pool", Box::new(|| k.avg_pool2d(2))),
            ("max_pool", Box::new(|| k.max_pool2d(2))),
            ("sort", Box::new(|| m.arg_sort_last_dim(true))),
            ("index_add", Box::new(|| m.index_add(&ids, &x.narrow(0, 0, 2)?, 0))),
            ("read back", Box::new(|| Tensor::new(m.to_dtype(dtype)?.flatten_all()?.to_vec1::<f32>()?, &Device::Cpu))),
        ];
        for (name, op) in ops {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(op));
            let outcome = outcome.unwrap_or_else(|_| panic!("{name} {dtype:?} panicked"));
            assert!(outcome.is_err(), "{name} {dtype:?} computed with an evicted weight");
        }
    }
}

#[test]
fn a_clone_kept_by_the_user_sees_the_weights_only_inside_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.safetensors");
    let stored: HashMap<_, _> = [("m", tensor(&[8, 8], 1))].into();
    candle_core::safetensors::save(&stored, &file).unwrap();
    let manager = manager(1 << 20, Strategy::Auto);
    let kept = Mutex::new(None);
    let component = manager
        .load(&spec("w", &file, DType::F32), |vb| {
            *kept.lock().unwrap() = Some(vb.get((8, 8), "m")?);
            Ok(())
        })
        .unwrap();
    let kept = kept.into_inner().unwrap().unwrap();
    assert!(kept.sum_all().is_err());
    let sum = component.run(|()| kept.sum_all()?.to_scalar::<f32>()).unwrap();
    assert_eq!(sum, tensor(&[8, 8], 1).sum_all().unwrap().to_scalar::<f32>().unwrap());
}
