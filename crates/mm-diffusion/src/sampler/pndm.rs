//! PNDM's linear multistep method: up to four outputs together say where to go.

use super::{Prediction, Sampler};
use candle_core::{Result, Tensor};

/// What it remembers between passes.
#[derive(Default)]
pub(super) struct Pndm {
    passes: usize,
    /// The latest last, at most four.
    outputs: Vec<Tensor>,
    /// What the first step began at: the second pass takes it again.
    first: Option<Tensor>,
}

impl Pndm {
    /// At a timestep, with this many to the next.
    pub(super) fn step(
        &mut self,
        sampler: &Sampler,
        (timestep, stride): (i64, i64),
        sample: &Tensor,
        output: &Tensor,
    ) -> Result<Tensor> {
        let is_again = self.passes == 1;
        let (from, to) = if is_again { (timestep + stride, timestep) } else { (timestep, timestep - stride) };
        if !is_again {
            if self.outputs.len() == 4 {
                self.outputs.remove(0);
            }
            self.outputs.push(output.clone());
        }
        let start = if is_again { self.first.take().unwrap_or_else(|| sample.clone()) } else { sample.clone() };
        if self.passes == 0 {
            self.first = Some(sample.clone());
        }
        self.passes += 1;
        let output = match &self.outputs[..] {
            [before] if is_again => ((output + before)? / 2.0)?,
            [one] => one.clone(),
            [two, one] => (((one * 3.0)? - two)? / 2.0)?,
            [three, two, one] => ((((one * 23.0)? - (two * 16.0)?)? + (three * 5.0)?)? / 12.0)?,
            [.., four, three, two, one] => {
                let newer = ((one * 55.0)? - (two * 59.0)?)?;
                ((newer + ((three * 37.0)? - (four * 9.0)?)?)? / 24.0)?
            }
            [] => output.clone(),
        };
        transfer(sampler, (sampler.alpha(from), sampler.alpha(to)), &start, &output)
    }
}

/// From one share of the image to another.
fn transfer(sampler: &Sampler, (from, to): (f64, f64), sample: &Tensor, output: &Tensor) -> Result<Tensor> {
    let noise = match sampler.config.prediction_type {
        Prediction::Velocity => ((output * from.sqrt())? + (sample * (1.0 - from).sqrt())?)?,
        _ => output.clone(),
    };
    let divisor = from * (1.0 - to).sqrt() + (from * (1.0 - from) * to).sqrt();
    (sample * (to / from).sqrt())? - (noise * ((to - from) / divisor))?
}
