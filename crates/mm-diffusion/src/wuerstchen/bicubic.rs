//! Bicubic interpolation as torch does it with `antialias` and `align_corners`, which has no candle twin.

use candle_core::{DType, Device, Result, Tensor};

/// Half the width of the kernel, in pixels of the smaller side.
const SUPPORT: f64 = 2.0;

/// Of the kernel, where it anti-aliases.
const A: f64 = -0.5;

/// `[batch, channels, rows, columns]` in other sides, in f32.
pub(crate) fn resize(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, channels, rows, columns) = x.dims4()?;
    let (down, across) = (weights(rows, height, x.device())?, weights(columns, width, x.device())?);
    let x = x.to_dtype(DType::F32)?.reshape((batch * channels, rows, columns))?;
    let x = down.unsqueeze(0)?.broadcast_matmul(&x)?.broadcast_matmul(&across.t()?.unsqueeze(0)?)?;
    x.reshape((batch, channels, height, width))
}

/// What each of `to` values is made of, `[to, from]`.
fn weights(from: usize, to: usize, device: &Device) -> Result<Tensor> {
    let scale = if to > 1 { (from as f64 - 1.0) / (to as f64 - 1.0) } else { 0.0 };
    let (support, shrink) = if scale >= 1.0 { (SUPPORT * scale, 1.0 / scale) } else { (SUPPORT, 1.0) };
    let mut values = vec![0f32; from * to];
    for (index, row) in values.chunks_exact_mut(from.max(1)).enumerate() {
        let center = scale * (index as f64 + 0.5);
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weight = |i: usize| kernel((i as f64 - center + 0.5) * shrink);
        let sum: f64 = (first..end).map(weight).sum();
        (first..end).for_each(|i| row[i] = (weight(i) / sum) as f32);
    }
    Tensor::from_vec(values, (to, from), device)
}

fn kernel(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.nn.functional.interpolate(…, mode="bicubic", antialias=True, align_corners=True)` of a row.
    #[test]
    fn it_is_torchs() {
        for (from, to) in [
            (&[1.0, 4.0, 2.0][..], &TO_7[..]),
            (&[0.0, 1.0, 4.0, 9.0, 16.0, 25.0, 36.0], &TO_3),
            (&[5.0, 7.0], &[4.75]),
        ] {
            let row = Tensor::new(from, &Device::Cpu).unwrap().reshape((1, 1, 1, ())).unwrap();
            let made = resize(&row, 1, to.len()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let apart = made.iter().zip(to).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{made:?} for {to:?}");
        }
    }

    const TO_7: [f32; 7] = [0.68421, 1.0, 1.89655, 3.17857, 4.0, 3.57143, 2.65517];
    const TO_3: [f32; 3] = [1.41333, 17.71765, 35.51852];
}
