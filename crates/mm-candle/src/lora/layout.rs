//! LoRAs as a part of a managed component: their factors are weights of the group whose weights they change. They lie in its slabs, stream
//! with it, and are counted to the byte; once a group's bytes have arrived what they add is merged into its weights.

use super::{
    Lora, Merge,
    file::{Piece, factor_dtype},
    matching::Index,
    merge::Term,
};
use crate::{
    Error,
    build::Target,
    home::{CandleHomes, Filled, Home, candle_dtype},
    spans::Gate,
};
use candle_core::{Device, Tensor};
use mm_cache::TensorSlice;
use mm_engine::{AnyBuffer, ModuleSpec, Place, Slab, StackSpec};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// Factors in the rest share a slab of at most this many bytes.
const CHUNK: u64 = 64 << 20;

/// A component as it was built: what LoRAs are added to, and what is left when they go.
pub(crate) struct Base {
    pub(crate) name: String,
    pub(crate) phase: Option<u32>,
    pub(crate) passes: u32,
    pub(crate) rest: Vec<(Slab, Arc<Home>)>,
    pub(crate) groups: Vec<Vec<(Slab, Arc<Home>)>>,
    /// Stacks with the number of their groups, in the order of `groups`.
    pub(crate) stacks: Vec<(String, usize)>,
    /// The rest's memory, as far as it was read while the model was built and nobody took it yet.
    pub(crate) built: Arc<Mutex<Vec<Option<Filled>>>>,
    /// Where it streams by its spans.
    pub(crate) gate: Option<Arc<Gate>>,
}

impl Base {
    /// The component with these LoRAs.
    pub(crate) fn with(
        &self,
        device: &Device,
        targets: &[Target],
        loras: &[(Lora, f64)],
    ) -> Result<ModuleSpec<AnyBuffer>, Error> {
        let mut rest = Holder::new(device, &self.rest, Some(CHUNK));
        let mut groups: Vec<Holder<'_>> = self.groups.iter().map(|g| Holder::new(device, g, None)).collect();
        let indices: Vec<(Index<'_>, f64)> = loras.iter().map(|(lora, scale)| (Index::new(lora), *scale)).collect();
        for target in targets {
            let holder = match target.place {
                Place::Rest => &mut rest,
                Place::Group(group) => &mut groups[group],
            };
            let mut terms = Vec::new();
            for (index, scale) in &indices {
                for piece in index.fitting(&target.name, target.tensor.dims())? {
                    terms.push(holder.term(piece, *scale)?);
                }
            }
            if !terms.is_empty() {
                holder.merges.push(Merge::new(&target.tensor, terms)?);
            }
        }
        let (rest, rest_homes, rest_merges) = rest.parts();
        let (mut slabs, mut homes, mut merges) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            let (these, at, merge) = group.parts();
            slabs.push(these);
            homes.push(at);
            merges.push(merge);
        }
        let homes = CandleHomes { rest: rest_homes, groups: homes, rest_merges, merges, built: self.built.clone() };
        let mut slabs = slabs.into_iter();
        let stack = |(name, count): &(String, usize)| StackSpec {
            name: name.clone(),
            groups: slabs.by_ref().take(*count).collect(),
        };
        Ok(ModuleSpec {
            name: self.name.clone(),
            phase: self.phase,
            passes: self.passes,
            rest,
            stacks: self.stacks.iter().map(stack).collect(),
            homes: match &self.gate {
                Some(gate) => gate.guard(homes),
                None => Box::new(homes),
            },
        })
    }
}

/// A group, or the rest, while factors are added to it.
struct Holder<'a> {
    device: &'a Device,
    slabs: Vec<(Slab, Arc<Home>)>,
    /// Slabs of the component's own that are not added to.
    closed: usize,
    /// How large a slab may become; `None`: a group has one of each dtype.
    most: Option<u64>,
    /// Factors that are there already, by file and name.
    known: HashMap<(std::path::PathBuf, String), Tensor>,
    merges: Vec<Merge>,
}

impl<'a> Holder<'a> {
    fn new(device: &'a Device, slabs: &[(Slab, Arc<Home>)], most: Option<u64>) -> Self {
        let closed = if most.is_some() { slabs.len() } else { 0 };
        Self { device, slabs: slabs.to_vec(), closed, most, known: HashMap::new(), merges: Vec::new() }
    }

    fn term(&mut self, piece: &Piece, scale: f64) -> Result<Term, Error> {
        let factors = &piece.factors;
        let columns = factors.inputs().unwrap_or(0);
        let up = self.factor(&factors.up, &[factors.outputs(), factors.rank])?;
        let down = self.factor(&factors.down, &[factors.rank, columns])?;
        let up = up.narrow(0, piece.from.start, piece.from.len())?;
        Ok(Term { up, down, at: piece.at.unwrap_or(0), scale: scale * factors.scale })
    }

    /// A factor's place among the weights, as a view.
    fn factor(&mut self, source: &TensorSlice, shape: &[usize]) -> Result<Tensor, Error> {
        let key = (source.file().to_owned(), source.name().to_owned());
        if let Some(there) = self.known.get(&key) {
            return Ok(there.clone());
        }
        let wrong = || candle_core::Error::Msg(format!("{}: {} can't be computed with", key.0.display(), key.1));
        let dtype = factor_dtype(source).ok_or_else(wrong)?;
        let bytes = mm_engine::align(shape.iter().fold(dtype.size(), |bytes, dim| bytes.saturating_mul(*dim as u64)));
        let fits = |slab: &Slab| {
            let grown = slab.bytes().saturating_add(bytes);
            slab.dtype() == dtype && self.most.is_none_or(|most| grown <= most)
        };
        let open = self.slabs.iter().enumerate().skip(self.closed).find(|(_, (slab, _))| fits(slab));
        let at = match open.map(|(at, _)| at) {
            Some(at) => at,
            None => {
                let home = Home::new(candle_dtype(dtype).ok_or_else(wrong)?, self.device)?;
                self.slabs.push((Slab::new(dtype), Arc::new(home)));
                self.slabs.len() - 1
            }
        };
        let (slab, home) = &mut self.slabs[at];
        let start = usize::try_from(slab.push(source.clone()) / dtype.size()).map_err(|_| wrong())?;
        let view = home.view(start, shape)?;
        self.known.insert(key, view.clone());
        Ok(view)
    }

    fn parts(self) -> (Vec<Slab>, Vec<Arc<Home>>, Vec<Merge>) {
        let (slabs, homes) = self.slabs.into_iter().unzip();
        (slabs, homes, self.merges)
    }
}
