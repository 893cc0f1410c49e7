//! Building a model over weights in files, so that it can be managed afterwards.
//!
//! While a model is built its weights are really there, group by group: a block's memory leaves when
//! the next block begins, so building holds at most the rest and one group.

use crate::{
    home::{Filled, Home, plan_dtype},
    lora::layout::Base,
    quantized::{building, bytes_asked, words},
    spans::Survey,
};
use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use mm_cache::{TensorSlice, Weights};
use mm_engine::{AnyDevice, Module, Place, Reservation, Slab, align, can_cast, dtype_of};
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
    slabs: Vec<(Slab, Arc<Home>)>,
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
    /// The group whose weights are there, where spans tell the groups.
    open: Option<usize>,
    /// What was handed out, and for whom.
    given: HashMap<(String, DType), (Option<usize>, Tensor)>,
    /// A tensor that two groups asked for: it belongs to the rest, and building starts over.
    shared: Option<String>,
}

/// A weight as it was handed out, and where it lies.
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    pub(crate) place: Place,
}

/// A model that was built, and what a module is made of it with.
pub(crate) struct Built<M> {
    pub(crate) model: M,
    pub(crate) base: Base,
    pub(crate) targets: Vec<Target>,
    pub(crate) link: Link,
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
    /// Bytes of all weights, at the widest: no home becomes longer.
    longest: u64,
    /// Who hears of weights, and may know the groups they belong to.
    survey: Option<Survey>,
    state: Mutex<State>,
    link: Link,
}

/// Builds a model on `device` and describes it as a module. `memory` counts what building holds; `None`: building
/// reads no weights at all, and a model that computes with them while it is built is refused. `survey`: where spans are told of.
pub(crate) fn build<M>(
    name: &str,
    weights: &Arc<Weights>,
    dtype: DType,
    device: &Device,
    memory: Option<&Arc<AnyDevice>>,
    survey: Option<&Survey>,
    make: impl Fn(VarBuilder<'_>) -> Result<M>,
) -> Result<Built<M>> {
    let mut shared = BTreeSet::new();
    loop {
        let mut build = Build::new(weights.clone(), device.clone(), memory.cloned(), shared.clone());
        build.survey = survey.cloned();
        build.begin_outline();
        let build = Arc::new(build);
        let backend: Box<dyn SimpleBackend> = Box::new(Backend(build.clone()));
        let outer = SCOPE.with_borrow_mut(|scope| scope.replace(build.clone()));
        let restore = Restore(outer);
        let made = building(weights, || make(VarBuilder::from_backend(backend, dtype, device.clone())));
        drop(restore);
        let newly_shared = build.state.lock().shared.take();
        match (made, newly_shared) {
            (_, Some(tensor)) if shared.insert(tensor.clone()) => {}
            (Ok(model), _) => {
                let (base, targets) = build.base(name)?;
                return Ok(Built { model, base, targets, link: build.link.clone() });
            }
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
        let (state, link) = (Mutex::default(), Link::default());
        Self { weights, device, memory, shared, longest, survey: None, state, link }
    }

    /// Makes the groups that spans tell of.
    fn begin_outline(&self) {
        if let Some(outline) = self.survey.as_ref().and_then(Survey::outline) {
            let room = |path: &String| Room::Elements(self.elements_under(&format!("{path}.")));
            let mut state = self.state.lock();
            state.stacks.clone_from(&outline.stacks);
            state.groups = outline.paths.iter().map(|path| Part::new(room(path))).collect();
        }
    }

    /// Builds the blocks of one stack, each a group of its own. Returns the index of the first group,
    /// or `None` inside another block, or where spans tell the groups: then they are no groups of their own.
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
                None if self.survey.as_ref().is_some_and(|s| s.outline().is_some()) => None,
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
        bytes_asked(source, shape.as_ref(), dtype)?;
        let stored = Shape::from(source.shape());
        if let Some(expected) = shape.filter(|s| *s != stored) {
            let msg = format!("{name} in {}", source.file().display());
            return Err(Error::UnexpectedShape { msg, expected, got: stored }.bt());
        }
        let mut state = self.state.lock();
        let place = match &self.survey {
            Some(survey) => survey.place(name).or(state.current),
            None => state.current,
        };
        let place = place.filter(|_| !self.shared.contains(name));
        let key = (name.to_owned(), dtype);
        if let Some((owner, tensor)) = state.given.get(&key) {
            if owner.is_none() || *owner == place {
                return Ok(tensor.clone());
            }
            state.shared = Some(key.0);
            bail!("{name} is shared between blocks; building starts over with it in the rest");
        }
        if self.survey.is_some() && place.is_some() && state.open != place && state.current.is_none() {
            if let Some(before) = state.open.take() {
                state.groups[before].leave()?;
            }
            state.open = place;
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

    fn base(&self, name: &str) -> Result<(Base, Vec<Target>)> {
        let mut state = self.state.lock();
        let State { mut rest, mut groups, stacks, given, open, .. } = std::mem::take(&mut *state);
        let built = rest.part()?;
        open.map_or(Ok(()), |group| groups[group].leave())?;
        let place = |owner: Option<usize>| owner.map_or(Place::Rest, Place::Group);
        let target = |((name, _), (owner, tensor))| Target { name, tensor, place: place(owner) };
        let mut targets: Vec<Target> = given.into_iter().map(target).collect();
        targets.sort_by(|a, b| a.name.cmp(&b.name));
        let groups = groups.into_iter().map(|group| group.slabs).collect();
        Ok((
            Base {
                name: name.to_owned(),
                phase: None,
                passes: 1,
                rest: rest.slabs,
                groups,
                stacks,
                built: Arc::new(Mutex::new(built)),
                gate: None,
            },
            targets,
        ))
    }
}

impl Part {
    fn append(&mut self, source: &TensorSlice, dtype: DType, build: &Build) -> Result<Tensor> {
        let fail = |reason: String| {
            Error::Msg(format!("{}: tensor {}: {reason}", source.file().display(), source.name())).bt()
        };
        // A quantized one is taken as the bytes that it is, here as there.
        let quantized = source.quantized().map(|_| mm_plan::DType::Bytes);
        let to = quantized.or_else(|| plan_dtype(dtype));
        let to = to.ok_or_else(|| fail(format!("can't be computed with as {dtype:?}")))?;
        let from = quantized.or_else(|| dtype_of(source.dtype()));
        let from = from.ok_or_else(|| fail(format!("dtype {:?} is not known", source.dtype())))?;
        if !can_cast(from, to) {
            return Err(fail(format!("is stored as {from} and can't be cast to {to}")));
        }
        let bytes = align(elements(source).saturating_mul(to.size()));
        let fits = |slab: &Slab| {
            let grown = slab.bytes().saturating_add(bytes);
            let joins = matches!(self.room, Room::Elements(_)) || (slab.bytes() < CHUNK && grown <= 2 * CHUNK);
            slab.dtype() == to && joins
        };
        // Of the home: that of bytes has words of four.
        let element = dtype.size_in_bytes() as u64;
        let index = match self.slabs.iter().position(|(slab, _)| fits(slab)) {
            Some(index) => index,
            None => {
                self.slabs.push((Slab::new(to), Arc::new(Home::new(dtype, &build.device)?)));
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
        let start = usize::try_from(offset / element).map_err(|e| fail(e.to_string()))?;
        if let Some(memory) = &build.memory {
            home.append(slab, start, room)?;
            match &mut self.reserved {
                Some(reserved) => reserved.grow(grown),
                None => self.reserved = memory.reserve(grown),
            }
        }
        match quantized {
            Some(_) => home.view(start, &[words(source)]),
            None => home.view(start, source.shape()),
        }
    }

    /// The memory by itself, for each slab; the views stay and refuse.
    fn part(&mut self) -> Result<Vec<Option<Filled>>> {
        let mut built = Vec::with_capacity(self.slabs.len());
        for (slab, home) in &self.slabs {
            let buffer = home.part(slab.bytes())?.filter(|buffer| !buffer.is_empty() && buffer.len() == slab.bytes());
            let counted = self.reserved.as_mut().map(|reserved| reserved.split(slab.bytes()));
            built.push(buffer.map(|buffer| Filled { buffer, counted }));
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
