//! Guidance as most pipelines have it: one counts from the negative prompt.

use crate::Request;
use candle_core::{Result, Tensor};

/// Whether there is a negative prompt to count from.
pub(crate) fn is_guided(request: &Request) -> bool {
    request.guidance > 1.0
}

/// Leads away from the negative prompt, which is the second of the batch if there is one.
pub(crate) fn guide(out: &Tensor, guidance: f64) -> Result<Tensor> {
    let positive = out.narrow(0, 0, 1)?;
    if out.dim(0)? == 1 {
        return Ok(positive);
    }
    let negative = out.narrow(0, 1, 1)?;
    &negative + ((positive - &negative)? * guidance)?
}
