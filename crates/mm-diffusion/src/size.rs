//! The size of an image, in latents.

use crate::{Error, Request, latents::noise};
use candle_core::{DType, Device, Tensor};

/// Side of a patch, in latents: what all transformers here take for a token; UNets have none.
pub(crate) const PATCH: usize = 2;

/// Pixels along a side where the model sets no limit: beyond any memory, and yet far from where sizes overflow.
const LARGEST_SIDE: usize = 16_384;

/// Height and width in latents, each a whole number of patches where there are any.
pub(crate) struct Size {
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Size {
    /// Of a request; `factor` pixels are a latent. `positions`: the most patches that the model can count along each side.
    pub(crate) fn of(request: &Request, factor: usize, positions: Option<[usize; 2]>) -> Result<Self, Error> {
        Self::multiple_of(request, factor, PATCH, positions)
    }

    /// Of a request to a model that takes any number of latents.
    pub(crate) fn of_latents(request: &Request, factor: usize) -> Result<Self, Error> {
        Self::multiple_of(request, factor, 1, None)
    }

    fn multiple_of(
        request: &Request,
        factor: usize,
        patch: usize,
        positions: Option<[usize; 2]>,
    ) -> Result<Self, Error> {
        let multiple = factor * patch;
        let latents = |field, pixels: u32, most: Option<usize>| {
            let pixels = pixels as usize;
            if pixels == 0 || !pixels.is_multiple_of(multiple) {
                return Err(Error::request(field, pixels, format!("expected a multiple of {multiple} pixels")));
            }
            if let Some(most) = most.filter(|most| pixels / multiple > *most) {
                let reason = format!("the model has positions for at most {} pixels", most * multiple);
                return Err(Error::request(field, pixels, reason));
            }
            if pixels > LARGEST_SIDE {
                return Err(Error::request(field, pixels, format!("expected at most {LARGEST_SIDE} pixels")));
            }
            Ok(pixels / factor)
        };
        let (rows, columns) = positions.map(|[rows, columns]| (rows, columns)).unzip();
        Ok(Self { height: latents("height", request.height, rows)?, width: latents("width", request.width, columns)? })
    }

    pub(crate) const fn tokens(&self) -> usize {
        (self.height / PATCH) * (self.width / PATCH)
    }

    /// What denoising starts from, in f32: the request's latents, or its seed's.
    pub(crate) fn initial_latents(&self, request: &Request, channels: usize) -> Result<Tensor, Error> {
        let expected = [1, channels, self.height, self.width];
        match &request.initial_latents {
            None => Ok(noise(request.seed, &expected)?),
            Some(latents) if latents.dims() == expected => {
                Ok(latents.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?)
            }
            Some(latents) => {
                let found = format!("{:?}", latents.dims());
                Err(Error::request("initial_latents", found, format!("expected the shape {expected:?}")))
            }
        }
    }
}

/// How strongly a prompt is followed is zero or more.
pub(crate) fn check_guidance(request: &Request) -> Result<(), Error> {
    if request.guidance.is_finite() && request.guidance >= 0.0 {
        return Ok(());
    }
    Err(Error::request("guidance", request.guidance, "expected zero (off) or a positive number"))
}
