//! Würstchen: a prior draws a very small image, a decoder its latents, and a VQ model the pixels.

mod bicubic;
mod blocks;
mod config;
mod decoder;
mod pipeline;
mod prior;
mod schedule;
mod text;
mod vq;

pub use pipeline::Wuerstchen;
