//! `Blocks<B>` in place of `Vec<B>`: blocks that stream.

use candle_core::Result;
use candle_nn::VarBuilder;
use std::ops::Deref;

/// A stack of equal blocks that may stream. Without a manager a plain vector.
pub struct Blocks<B> {
    blocks: Vec<B>,
}

impl<B> Blocks<B> {
    /// Builds `count` blocks from `vb.pp(name).pp(i)`.
    pub fn load(
        vb: &VarBuilder<'_>,
        name: &str,
        count: usize,
        build: impl Fn(usize, VarBuilder<'_>) -> Result<B>,
    ) -> Result<Self> {
        let vb = vb.pp(name);
        Ok(Self { blocks: (0..count).map(|i| build(i, vb.pp(i))).collect::<Result<_>>()? })
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The blocks in order, each usable while its lease lives.
    pub fn iter(&self) -> impl Iterator<Item = Result<Lease<'_, B>>> {
        self.blocks.iter().map(|block| Ok(Lease { block }))
    }
}

/// Proof that a block is on the device; while it lives the memory is not reused.
pub struct Lease<'a, B> {
    block: &'a B,
}

impl<B> Deref for Lease<'_, B> {
    type Target = B;
    fn deref(&self) -> &B {
        self.block
    }
}
