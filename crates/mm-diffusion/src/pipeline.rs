//! A pipeline of whichever kind.

use crate::{
    Error, Flux, Folder, Generated, LoadOptions, Loader, Progress, Request, Sd3, StableDiffusion, Wuerstchen, ZImage,
    check::Check, lora::Member,
};

/// The pipeline that a folder holds, as its `model_index.json` says.
pub enum Pipeline {
    /// Z-Image.
    ZImage(Box<ZImage>),
    /// FLUX.1.
    Flux(Box<Flux>),
    /// Stable Diffusion 3 and 3.5.
    Sd3(Box<Sd3>),
    /// Stable Diffusion 1.5, 2.1 and XL.
    StableDiffusion(Box<StableDiffusion>),
    /// Würstchen.
    Wuerstchen(Box<Wuerstchen>),
}

/// The classes of these.
const CLASSES: [&str; 6] = [
    "ZImagePipeline",
    "FluxPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "WuerstchenCombinedPipeline",
];

impl Pipeline {
    /// Loads a Diffusers folder.
    ///
    /// # Errors
    /// The pipeline's class is none of those here; else as [`ZImage::load`], [`Flux::load`], [`Sd3::load`],
    /// [`StableDiffusion::load`] and [`Wuerstchen::load`].
    pub fn load(folder: &Folder, options: &LoadOptions, loader: &impl Loader) -> Result<Self, Error> {
        let class = folder.pipeline_class()?;
        match class {
            "FluxPipeline" => Ok(Self::Flux(Box::new(Flux::load(folder, options, loader)?))),
            "StableDiffusion3Pipeline" => Ok(Self::Sd3(Box::new(Sd3::load(folder, options, loader)?))),
            "StableDiffusionPipeline" | "StableDiffusionXLPipeline" => {
                Ok(Self::StableDiffusion(Box::new(StableDiffusion::load(folder, options, loader)?)))
            }
            "WuerstchenCombinedPipeline" => Ok(Self::Wuerstchen(Box::new(Wuerstchen::load(folder, options, loader)?))),
            _ => {
                let index = folder.path("model_index.json");
                Check(&index).supported(CLASSES.contains(&class), "_class_name", class, &CLASSES.join(", "))?;
                Ok(Self::ZImage(Box::new(ZImage::load(folder, options, loader)?)))
            }
        }
    }

    /// Makes an image. `observe` is told after each pass.
    ///
    /// # Errors
    /// `Request`: told before anything is computed. `Component`: memory, or weights that can't be read.
    pub fn generate(&self, request: &Request, observe: impl FnMut(Progress)) -> Result<Generated, Error> {
        match self {
            Self::ZImage(pipeline) => pipeline.generate(request, observe),
            Self::Flux(pipeline) => pipeline.generate(request, observe),
            Self::Sd3(pipeline) => pipeline.generate(request, observe),
            Self::StableDiffusion(pipeline) => pipeline.generate(request, observe),
            Self::Wuerstchen(pipeline) => pipeline.generate(request, observe),
        }
    }

    pub(crate) fn members(&self) -> Vec<Member<'_>> {
        match self {
            Self::ZImage(pipeline) => pipeline.members(),
            Self::Flux(pipeline) => pipeline.members(),
            Self::Sd3(pipeline) => pipeline.members(),
            Self::StableDiffusion(pipeline) => pipeline.members(),
            Self::Wuerstchen(pipeline) => pipeline.members(),
        }
    }

    /// How often `observe` will be told, for this request.
    pub fn passes(&self, request: &Request) -> u64 {
        let encode = match self {
            Self::ZImage(_) if request.guidance > 0.0 => 2,
            Self::ZImage(_) => 1,
            // One prompt, two encoders.
            Self::Flux(_) => 2,
            Self::Sd3(pipeline) => u64::from(pipeline.encode_passes(request)),
            Self::StableDiffusion(pipeline) => u64::from(pipeline.encode_passes(request)),
            Self::Wuerstchen(pipeline) => return pipeline.passes(request),
        };
        let denoise = match self {
            Self::StableDiffusion(pipeline) => pipeline.denoise_passes(request),
            _ => request.steps,
        };
        encode + u64::from(denoise) + 1
    }
}
