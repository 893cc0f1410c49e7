//! Building a model over weights in files, so that it can be managed afterwards.
//!
//! While a model is built its weights are really there, group by group: a block's memory leaves when
//! the next block begins, so building holds at most the rest and one group.

use crate::home::{Built, CandleHomes, Home, plan_dtype};
use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use mm_cache::{TensorSlice, Weights};
use mm_engine::{AnyBuffer, AnyDevice, Module, ModuleSpec, Reservation, Slab, StackSpec, align, can_cast, dtype_of};
use parking_lot::Mutex;
use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    sync::{Arc, OnceLock},
};

/// Set when the model has become a module; blocks reach the engine through it.
pub(crate) type Link = Arc<OnceLock<Arc<Module<AnyDevice>>>>;

/// Where the engine finds a stack's groups: the module, and the index of the first.
pub(crate) type Groups = (Link, usize);

thread_local! {
    static SCOPE: RefCell<Option<Arc<Build>>> = const { RefCell::new(None) };
}

/// Tensors of the rest share a slab until it has this many bytes, or would have more than twice as many. So large a piece malloc gets from the system, and gives back,
/// each by itself, whatever was freed before; of smaller ones it keeps what it likes.
const CHUNK: u64 = 32 << 20;

/// How large a slab may become.
#[derive(Clone, Copy)]
enum Room {
    /// The rest: slabs of a chunk and what the last tensor is longer. How much is asked for isn't known before.
    Chunks,
    /// A group: one slab per dtype for this many elements, as far as the tensors' names tell. Its memory never has to move.
    Elements(u64),
}

/// One group, or the rest, as far as it was asked for.
struct Part {
    room: Room,
    slabs: Vec<(Slab, Home)>,
    reserved: Option<Reservation>,
}

impl Part {
    const fn new(room: Room) -> Self {
        Self { room, slabs: Vec::new(), reserved: None }
    }
}

impl Default for Part {
    fn default() -> Self {
        Self::new(Room::Chunks)
    }
}

#[derive(Default)]
struct State {
    /// The group being built; `None`: the rest.
    current: Option<usize>,
    rest: Part,
    groups: Vec<Part>,
    /// Stacks with the number of their groups, in the order of `groups`.
    stacks: Vec<(String, usize)>,
    /// What was handed out, and for whom.
    given: HashMap<(String, DType), (Option<usize>, Tensor)>,
    /// A tensor that two groups asked for: it belongs to the rest, and building starts over.
    shared: Option<String>,
}

/// A model under construction.
pub(crate) struct Build {
    weights: Arc<Weights>,
    /// Where the model computes.
    device: Device,
    /// What counts the weights that are read; `None`: none are.
    memory: Option<Arc<AnyDevice>>,
    /// Tensors known to be shared between groups.
    shared: BTreeSet<String>,
    /// Bounds the length of any home, bytes.
    longest: u64,
    state: Mutex<State>,
    link: Link,
}

/// Builds a model on `device` and describes it as a module. `memory` counts what building holds; `None`: building
/// reads no weights at all, and a model that computes with them while it is built is refused.
pub(crate) fn build<M>(
    name: &str,
    weights: &Arc<Weights>,
    dtype: DType,
    device: &Device,
    memory: Option<&Arc<AnyDevice>>,
    make: impl Fn(VarBuilder<'_>) -> Result<M>,
) -> Result<(M, ModuleSpec<AnyBuffer>, Link)> {
    let mut shared = BTreeSet::new();
    loop {
        let build = Arc::new(Build::new(weights.clone(), device.clone(), memory.cloned(), shared.clone()));
        let backend: Box<dyn SimpleBackend> = Box::new(Backend(build.clone()));
        let outer = SCOPE.with_borrow_mut(|scope| scope.replace(build.clone()));
        let restore = Restore(outer);
        let made = make(VarBuilder::from_backend(backend, dtype, device.clone()));
        drop(restore);
        let newly_shared = build.state.lock().shared.take();
        match (made, newly_shared) {
            (_, Some(tensor)) if shared.insert(tensor.clone()) => {}
            (Ok(model), _) => return Ok((model, build.spec(name)?, build.link.clone())),
            (Err(error), _) => return Err(error),
        }
    }
}

/// Brings the enclosing scope back, also when building panics.
struct Restore(Option<Arc<Build>>);

impl Drop for Restore {
    fn drop(&mut self) {
        SCOPE.set(self.0.take());
    }
}

/// The scope in which this thread is building, if it is.
pub(crate) fn scope() -> Option<Arc<Build>> {
    SCOPE.with_borrow(Clone::clone)
}

impl Build {
    fn new(weights: Arc<Weights>, device: Device, memory: Option<Arc<AnyDevice>>, shared: BTreeSet<String>) -> Self {
        // Eight bytes for the widest element.
        let longest = (weights.names().filter_map(|n| weights.get(n)))
            .fold(0u64, |sum, t| sum.saturating_add(align(8 * elements(t))));
        Self { weights, device, memory, shared, longest, state: Mutex::default(), link: Link::default() }
    }

    /// Builds the blocks of one stack, each a group of its own. Returns the index of the first group,
    /// or `None` inside another block: then they are part of it.
    pub(crate) fn stack<B>(
        &self,
        name: &str,
        count: usize,
        mut make: impl FnMut(usize) -> Result<B>,
    ) -> Result<(Vec<B>, Option<Groups>)> {
        let first = {
            let mut state = self.state.lock();
            match state.current {
                Some(_) => None,
                None => {
                    let first = state.groups.len();
                    state.stacks.push((name.to_owned(), count));
                    let room = |i| Room::Elements(self.elements_under(&format!("{name}.{i}.")));
                    state.groups.extend((0..count).map(|i| Part::new(room(i))));
                    Some(first)
                }
            }
        };
        let mut blocks = Vec::with_capacity(count);
        for index in 0..count {
            if let Some(first) = first {
                self.state.lock().current = Some(first + index);
            }
            let block = make(index);
            if let Some(first) = first {
                let mut state = self.state.lock();
                state.current = None;
                state.groups[first + index].leave()?;
            }
            blocks.push(block?);
        }
        Ok((blocks, first.map(|first| (self.link.clone(), first))))
    }

    /// Hands out a weight: a view into the home of whoever is being built.
    fn give(&self, name: &str, shape: Option<Shape>, dtype: DType) -> Result<Tensor> {
        let source = self.weights.get(name).ok_or_else(|| Error::CannotFindTensor { path: name.to_owned() }.bt())?;
        let stored = Shape::from(source.shape());
        if let Some(expected) = shape.filter(|s| *s != stored) {
            let msg = format!("{name} in {}", source.file().display());
            return Err(Error::UnexpectedShape { msg, expected, got: stored }.bt());
        }
        let mut state = self.state.lock();
        let place = state.current.filter(|_| !self.shared.contains(name));
        let key = (name.to_owned(), dtype);
        if let Some((owner, tensor)) = state.given.get(&key) {
            if owner.is_none() || *owner == place {
                return Ok(tensor.clone());
            }
            state.shared = Some(key.0);
            bail!("{name} is shared between blocks; building starts over with it in the rest");
        }
        let part = match place {
            Some(group) => &mut state.groups[group],
            None => &mut state.rest,
        };
        let tensor = part.append(source, dtype, self)?;
        state.given.insert(key, (place, tensor.clone()));
        Ok(tensor)
    }

    /// Elements of all tensors whose names start like this, alignment included for every dtype.
    fn elements_under(&self, prefix: &str) -> u64 {
        let tensors = self.weights.names().filter(|n| n.starts_with(prefix)).filter_map(|n| self.weights.get(n));
        tensors.fold(0u64, |sum, t| sum.saturating_add(align(elements(t))))
    }

    fn spec(&self, name: &str) -> Result<ModuleSpec<AnyBuffer>> {
        let mut state = self.state.lock();
        let State { mut rest, groups, stacks, .. } = std::mem::take(&mut *state);
        let built = rest.part()?;
        let (rest_slabs, rest_homes) = rest.slabs.into_iter().unzip();
        let (mut slabs, homes): (Vec<Vec<Slab>>, Vec<Vec<Home>>) =
            groups.into_iter().map(|g| g.slabs.into_iter().unzip()).unzip();
        let mut slabs = slabs.drain(..);
        let stacks = stacks.into_iter().map(|(name, n)| StackSpec { name, groups: slabs.by_ref().take(n).collect() });
        Ok(ModuleSpec {
            name: name.to_owned(),
            phase: None,
            passes: 1,
            rest: rest_slabs,
            stacks: stacks.collect(),
            homes: Box::new(CandleHomes { rest: rest_homes, groups: homes, built: Mutex::new(built) }),
        })
    }
}

impl Part {
    fn append(&mut self, source: &TensorSlice, dtype: DType, build: &Build) -> Result<Tensor> {
        let fail = |reason: String| {
            Error::Msg(format!("{}: tensor {}: {reason}", source.file().display(), source.name())).bt()
        };
        let to = plan_dtype(dtype).ok_or_else(|| fail(format!("can't be computed with as {dtype:?}")))?;
        let from = dtype_of(source.dtype()).ok_or_else(|| fail(format!("dtype {:?} is not known", source.dtype())))?;
        if !can_cast(from, to) {
            return Err(fail(format!("is stored as {from} and can't be cast to {to}")));
        }
        let bytes = align(elements(source).saturating_mul(to.size()));
        let fits = |slab: &Slab| {
            let grown = slab.bytes().saturating_add(bytes);
            let joins = matches!(self.room, Room::Elements(_)) || (slab.bytes() < CHUNK && grown <= 2 * CHUNK);
            slab.dtype() == to && joins
        };
        let index = match self.slabs.iter().position(|(slab, _)| fits(slab)) {
            Some(index) => index,
            None => {
                let bound = usize::try_from(build.longest / to.size()).map_err(|e| fail(e.to_string()))?;
                self.slabs.push((Slab::new(to), Home::new(dtype, bound, &build.device)?));
                self.slabs.len() - 1
            }
        };
        let room = match self.room {
            // A chunk's memory need not grow, where there is about a chunk to read; what is not used of it is not there, and given back.
            Room::Chunks if build.longest >= 2 * CHUNK => 2 * CHUNK,
            Room::Chunks => bytes,
            Room::Elements(count) => bytes.max(count.saturating_mul(to.size())),
        };
        let (slab, home) = &mut self.slabs[index];
        let before = slab.bytes();
        let offset = slab.push(source.clone());
        let grown = slab.bytes() - before;
        let start = usize::try_from(offset / to.size()).map_err(|e| fail(e.to_string()))?;
        if let Some(memory) = &build.memory {
            home.append(slab, start, room)?;
            match &mut self.reserved {
                Some(reserved) => reserved.grow(grown),
                None => self.reserved = memory.reserve(grown),
            }
        }
        home.view(start, source.shape())
    }

    /// The memory by itself, for each slab; the views stay and refuse.
    fn part(&mut self) -> Result<Vec<Option<Built>>> {
        let mut built = Vec::with_capacity(self.slabs.len());
        for (slab, home) in &self.slabs {
            let buffer = home.part(slab.bytes())?.filter(|buffer| !buffer.is_empty() && buffer.len() == slab.bytes());
            let counted = self.reserved.as_mut().map(|reserved| reserved.split(slab.bytes()));
            built.push(buffer.map(|buffer| Built { buffer, counted }));
        }
        self.reserved = None;
        Ok(built)
    }

    /// The memory leaves; the views stay and refuse.
    fn leave(&mut self) -> Result<()> {
        for (_, home) in &self.slabs {
            home.leave()?;
        }
        self.reserved = None;
        Ok(())
    }
}

fn elements(tensor: &TensorSlice) -> u64 {
    tensor.shape().iter().fold(1u64, |product, d| product.saturating_mul(*d as u64))
}

/// What a model's `VarBuilder` asks.
struct Backend(Arc<Build>);

impl SimpleBackend for Backend {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        self.0.give(name, Some(shape), dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> Result<Tensor> {
        self.0.give(name, None, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.weights.get(name).is_some()
    }
}
