//! mm-diffusion
