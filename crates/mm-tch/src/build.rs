//! Building a model over weights in files, so that it can be managed.
//!
//! tch makes and fills every variable itself. So a block's variables lose that memory as soon as the block is built:
//! building holds at most the rest and one block, and reads no weights.

use crate::{
    Error, Result,
    home::{Home, Parts, TchHomes},
    kind::{dtype_of_kind, is_float},
    memory::{self, TorchMemory, Variable},
};
use mm_cache::{TensorSlice, Weights};
use mm_engine::{HostDevice, Module, ModuleSpec, Slab, StackSpec, align, can_cast, dtype_of};
use mm_plan::DType;
use parking_lot::Mutex;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};
use tch::{
    Kind, Tensor,
    nn::{self, VarStore},
};

/// The device of this adapter: host memory that libtorch owns.
pub type CpuDevice = HostDevice<TorchMemory>;

/// Set when the model has become a module; blocks reach the engine through it.
pub(crate) type Link = Arc<OnceLock<Arc<Module<CpuDevice>>>>;

/// Where the engine finds a stack's groups: the module, and the index of the first.
pub(crate) type Groups = (Link, usize);

thread_local! {
    static SCOPE: RefCell<Option<Arc<Build>>> = const { RefCell::new(None) };
}

/// A variable whose own memory is gone, with what it is filled from.
struct Adopted {
    tensor: Tensor,
    kind: Kind,
    dtype: DType,
    source: TensorSlice,
}

impl Adopted {
    fn bytes(&self) -> u64 {
        align((self.tensor.numel() as u64).saturating_mul(self.dtype.size()))
    }
}

#[derive(Default)]
struct State {
    /// Inside a block: blocks inside it are part of it.
    in_block: bool,
    /// Names that belong to a group already.
    seen: BTreeSet<String>,
    groups: Vec<Vec<Adopted>>,
    /// Stacks with the number of their groups, in the order of `groups`.
    stacks: Vec<(String, usize)>,
}

/// A model under construction.
pub(crate) struct Build {
    weights: Arc<Weights>,
    kind: Kind,
    variables: Arc<std::sync::Mutex<nn::Variables>>,
    /// Counts what building holds.
    device: Option<Arc<CpuDevice>>,
    state: Mutex<State>,
    link: Link,
}

/// A model that was built, as the engine and its blocks are told of it.
pub(crate) struct Built<M> {
    pub(crate) model: M,
    pub(crate) module: ModuleSpec<TorchMemory>,
    pub(crate) homes: TchHomes,
    pub(crate) link: Link,
}

/// Builds a model and describes it as a module. `device` counts what building holds.
pub(crate) fn build<M>(
    name: &str,
    weights: &Arc<Weights>,
    kind: Kind,
    device: Option<&Arc<CpuDevice>>,
    make: impl Fn(&nn::Path<'_>) -> Result<M>,
) -> Result<Built<M>> {
    let mut store = VarStore::new(tch::Device::Cpu);
    // What the variables are made in, and what `path.kind()` tells the model.
    store.set_kind(kind);
    let build = Arc::new(Build {
        weights: weights.clone(),
        kind,
        variables: store.variables_.clone(),
        device: device.cloned(),
        state: Mutex::default(),
        link: Link::default(),
    });
    let outer = SCOPE.with_borrow_mut(|scope| scope.replace(build.clone()));
    let restore = Restore(outer);
    let model = make(&store.root())?;
    drop(restore);
    let rest = build.adopt("")?;
    let held = sum(&rest);
    drop(build.device.as_ref().map(|device| device.reserve(held)));
    let State { groups, stacks, .. } = std::mem::take(&mut *build.state.lock());
    let (module, homes) = spec(name, rest, groups, stacks);
    Ok(Built { model, module, homes, link: build.link.clone() })
}

/// Describes a component of which nothing streams by its named variables.
pub(crate) fn whole(
    name: &str,
    weights: &Weights,
    kind: Option<Kind>,
    variables: Vec<(String, Tensor)>,
) -> Result<(ModuleSpec<TorchMemory>, TchHomes)> {
    let mut seen = BTreeSet::new();
    let variables = variables.into_iter().filter(|(_, tensor)| seen.insert(memory::identity(tensor)));
    let rest = variables.map(|(name, tensor)| adopt(weights, kind, &name, tensor)).collect::<Result<_>>()?;
    memory::trim();
    Ok(spec(name, rest, Vec::new(), Vec::new()))
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
    /// Builds the blocks of one stack, each a group of its own. Returns the index of the first group,
    /// or `None` inside another block: then they are part of it.
    pub(crate) fn stack<B>(
        &self,
        name: &str,
        count: usize,
        mut make: impl FnMut(usize) -> Result<B>,
    ) -> Result<(Vec<B>, Option<Groups>)> {
        if self.state.lock().in_block {
            return Ok(((0..count).map(make).collect::<Result<_>>()?, None));
        }
        let first = self.state.lock().groups.len();
        let mut blocks = Vec::with_capacity(count);
        for index in 0..count {
            self.state.lock().in_block = true;
            let block = make(index);
            self.state.lock().in_block = false;
            blocks.push(block?);
            let group = self.adopt(&format!("{name}.{index}."))?;
            // The rest as far as it is built stays until the end.
            let held = sum(&group).saturating_add(self.pending());
            drop(self.device.as_ref().map(|device| device.reserve(held)));
            self.state.lock().groups.push(group);
        }
        self.state.lock().stacks.push((name.to_owned(), count));
        Ok((blocks, Some((self.link.clone(), first))))
    }

    /// Takes the memory of the variables whose names start like this and that belong to nobody yet.
    fn adopt(&self, prefix: &str) -> Result<Vec<Adopted>> {
        let mut found: Vec<(String, Tensor)> = {
            let state = self.state.lock();
            let named = self.variables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let named = named.named_variables.iter().filter(|(n, _)| n.starts_with(prefix) && !state.seen.contains(*n));
            named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
        };
        // A `VarStore` has no order of its own.
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let adopted =
            found.iter().map(|(name, tensor)| adopt(&self.weights, Some(self.kind), name, tensor.shallow_clone()));
        let adopted = adopted.collect::<Result<_>>()?;
        memory::trim();
        self.state.lock().seen.extend(found.into_iter().map(|(name, _)| name));
        Ok(adopted)
    }

    /// Bytes of the variables that belong to nobody yet.
    fn pending(&self) -> u64 {
        let state = self.state.lock();
        let named = self.variables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let pending = named.named_variables.iter().filter(|(name, _)| !state.seen.contains(*name));
        pending.fold(0u64, |sum, (_, t)| {
            let bytes = t.numel().saturating_mul(t.f_kind().map_or(1, Kind::elt_size_in_bytes));
            sum.saturating_add(align(bytes as u64))
        })
    }
}

fn sum(adopted: &[Adopted]) -> u64 {
    adopted.iter().fold(0u64, |sum, a| sum.saturating_add(a.bytes()))
}

/// Finds what a variable is filled from, and takes its own memory away. `kind`: what floats are computed in; `None`: as built.
fn adopt(weights: &Weights, kind: Option<Kind>, name: &str, tensor: Tensor) -> Result<Adopted> {
    let fail = |reason: String| Error::Variable { variable: name.to_owned(), reason };
    let Some(source) = weights.get(name) else {
        let files: Vec<_> = weights.files().iter().map(|f| f.display().to_string()).collect();
        let twice = match name.rsplit_once("__").is_some_and(|(_, n)| n.parse::<u32>().is_ok()) {
            true => "; a VarStore names so what was asked for twice: share the first, or use `path.entry(..)`",
            false => "",
        };
        return Err(fail(format!("there is no tensor of this name in {}{twice}", files.join(", "))));
    };
    let fail = |reason: String| fail(format!("{}: {reason}", source.file().display()));
    let shape: Vec<i64> = source.shape().iter().map(|d| *d as i64).collect();
    if tensor.size() != shape {
        return Err(fail(format!("the model asks for shape {:?}, stored is {shape:?}", tensor.size())));
    }
    let built = tensor.f_kind()?;
    let kind = kind.filter(|_| is_float(built)).unwrap_or(built);
    let dtype = dtype_of_kind(kind).ok_or_else(|| fail(format!("can't be managed as {kind:?}")))?;
    let stored = dtype_of(source.dtype()).ok_or_else(|| fail(format!("dtype {:?} is not known", source.dtype())))?;
    if !can_cast(stored, dtype) {
        return Err(fail(format!("is stored as {stored} and can't be cast to {dtype}")));
    }
    memory::detach(&tensor, kind).map_err(fail)?;
    Ok(Adopted { tensor, kind, dtype, source: source.clone() })
}

/// Packs each part: one slab per dtype, in the order in which the files have it.
fn spec(
    name: &str,
    rest: Vec<Adopted>,
    groups: Vec<Vec<Adopted>>,
    stacks: Vec<(String, usize)>,
) -> (ModuleSpec<TorchMemory>, TchHomes) {
    // A variable that several parts hold belongs to the rest.
    let mut owners: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (part, adopted) in std::iter::once(&rest).chain(&groups).enumerate() {
        for a in adopted {
            owners.entry(memory::identity(&a.tensor)).or_default().insert(part);
        }
    }
    let is_shared = |a: &Adopted| owners.get(&memory::identity(&a.tensor)).is_some_and(|parts| parts.len() > 1);
    let mut all_rest = rest;
    let mut own_groups = Vec::with_capacity(groups.len());
    for group in groups {
        let (shared, own): (Vec<_>, Vec<_>) = group.into_iter().partition(is_shared);
        all_rest.extend(shared);
        own_groups.push(own);
    }
    let (rest_slabs, rest_homes) = pack(all_rest);
    let (slabs, group_homes): (Vec<_>, Vec<_>) = own_groups.into_iter().map(pack).unzip();
    let mut slabs = slabs.into_iter();
    let stacks = stacks.into_iter().map(|(name, n)| StackSpec { name, groups: slabs.by_ref().take(n).collect() });
    let homes = TchHomes::new(Parts { rest: rest_homes, groups: group_homes });
    let spec = ModuleSpec {
        name: name.to_owned(),
        phase: None,
        passes: 1,
        rest: rest_slabs,
        stacks: stacks.collect(),
        homes: Box::new(homes.clone()),
    };
    (spec, homes)
}

fn pack(mut adopted: Vec<Adopted>) -> (Vec<Slab>, Vec<Home>) {
    adopted.sort_by(|a, b| {
        let at = |a: &Adopted| (a.source.file().to_path_buf(), a.source.file_range().start);
        at(a).cmp(&at(b)).then_with(|| a.source.name().cmp(b.source.name()))
    });
    let mut known = BTreeSet::new();
    let mut slabs: Vec<(Slab, Vec<Variable>)> = Vec::new();
    // Two names of one variable are one home, filled by the first.
    for Adopted { tensor, kind, dtype, source } in adopted {
        if !known.insert(memory::identity(&tensor)) {
            continue;
        }
        let index = slabs.iter().position(|(slab, _)| slab.dtype() == dtype).unwrap_or(slabs.len());
        if index == slabs.len() {
            slabs.push((Slab::new(dtype), Vec::new()));
        }
        let (slab, variables) = &mut slabs[index];
        let offset = slab.push(source);
        variables.push(Variable { elements: tensor.numel() as u64, tensor, kind, offset });
    }
    slabs.into_iter().map(|(slab, variables)| (slab, Home::new(variables))).unzip()
}
