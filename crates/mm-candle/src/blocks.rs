//! `Blocks<B>` in place of `Vec<B>`: blocks that stream.

use crate::build::{Groups, scope};
use crate::error::through_candle;
use candle_core::Result;
use candle_nn::VarBuilder;
use mm_engine::{AnyDevice, EngineError, GroupLease};
use std::ops::Deref;

/// A stack of blocks that may stream. Outside a manager it is a plain vector.
pub struct Blocks<B> {
    blocks: Vec<B>,
    managed: Option<Groups>,
}

impl<B> Blocks<B> {
    /// Builds `count` blocks, block `i` from `vb.pp(name).pp(i)`. Inside
    /// [`Manager::load`](crate::Manager::load) each becomes a group that can be streamed.
    ///
    /// # Errors
    /// Whatever `build` answers.
    pub fn load(
        vb: &VarBuilder<'_>,
        name: &str,
        count: usize,
        build: impl Fn(usize, VarBuilder<'_>) -> Result<B>,
    ) -> Result<Self> {
        let vb = vb.pp(name);
        let make = |i| build(i, vb.pp(i));
        let (blocks, managed) = match scope() {
            Some(scope) => scope.stack(&vb.prefix(), count, make)?,
            None => ((0..count).map(make).collect::<Result<_>>()?, None),
        };
        Ok(Self { blocks, managed })
    }

    /// How many blocks there are.
    pub const fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// A block by index, on the device while its lease lives; `None` past the end.
    ///
    /// # Errors
    /// Outside [`Component::run`](crate::Component::run); with more blocks held than there are slots;
    /// where its weights can't be read.
    pub fn get(&self, index: usize) -> Option<Result<Lease<'_, B>>> {
        let block = self.blocks.get(index)?;
        let lease = self.managed.as_ref().map(|(link, first)| {
            let module =
                link.get().ok_or_else(|| EngineError::Misuse("a block is used while its model is built".into()));
            module.and_then(|module| module.lease(first + index))
        });
        Some(lease.transpose().map(|lease| Lease { block, _lease: lease }).map_err(through_candle))
    }

    /// The blocks in order. Drop each before taking the next: while one is computed with, the next is
    /// being copied.
    pub fn iter(&self) -> impl Iterator<Item = Result<Lease<'_, B>>> {
        (0..self.blocks.len()).map_while(|index| self.get(index))
    }
}

/// Proof that a block is on the device; while it lives the memory is not reused.
pub struct Lease<'a, B> {
    block: &'a B,
    _lease: Option<GroupLease<AnyDevice>>,
}

impl<B> Deref for Lease<'_, B> {
    type Target = B;

    fn deref(&self) -> &B {
        self.block
    }
}
