//! A pass with everything resident, managed and not, in turn; and what is managed of it alone.

use crate::{
    fixture,
    load::{by_candle, roomy},
    median,
    model::{CHANNELS, Shape, Transformer},
};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use mm_cache::Weights;
use mm_candle::LoadSpec;
use std::{hint::black_box, path::Path, time::Instant};

/// Of text or image: few, so that what is managed weighs more than it would.
const TOKENS: usize = 64;

pub fn measure(file: &Path, pairs: usize) -> Result<()> {
    let shape = Shape::of(&*Weights::open(&[file])?).context("no such model")?;
    let (plain, manager) = (Transformer::new(shape, &by_candle(file)?)?, roomy()?);
    let managed = manager.load(&LoadSpec::new("model", [file.to_owned()]), |vb| Transformer::new(shape, &vb))?;
    let x = Tensor::from_vec(fixture::input(TOKENS * CHANNELS), (TOKENS, CHANNELS), &Device::Cpu)?;
    let time = |pass: &dyn Fn() -> Result<()>| {
        let started = Instant::now();
        pass().map(|()| started.elapsed().as_secs_f64())
    };
    let by_candle = || Ok(plain.forward(&x).map(|y| drop(black_box(y)))?);
    let by_us = || Ok(managed.run(|model| model.forward(&x)).map(|y| drop(black_box(y)))?);
    time(&by_candle)?;
    time(&by_us)?;
    let (mut ratios, mut alone) = (Vec::new(), Vec::new());
    for i in 0..pairs {
        let (candle, ours) = if i % 2 == 0 {
            let candle = time(&by_candle)?;
            (candle, time(&by_us)?)
        } else {
            let ours = time(&by_us)?;
            (time(&by_candle)?, ours)
        };
        ratios.push(ours / candle);
        alone.push(candle);
    }
    // Without a kernel: all that is added.
    let added = (0..1000)
        .map(|_| time(&|| Ok(managed.run(|model| model.layers.iter().try_for_each(|block| block.map(drop)))?)))
        .collect::<Result<_>>()?;
    let (pass, added) = (median(alone), median(added));
    println!(
        "a pass of {} resident blocks, {TOKENS} tokens: candle's {:.1} ms, ratio of pairs {:.4}; what is added, alone: {:.1} us, {:.4} %",
        shape.blocks,
        1e3 * pass,
        median(ratios),
        1e6 * added,
        1e2 * added / pass
    );
    Ok(())
}
