//! The fixed buffers that streamed groups take turns in.
//!
//! A slot is empty, loading, ready, or leased. A copy into a slot starts after the compute that last
//! used it; nothing is allocated here after [`Slots::allocate`].

use crate::{
    Device, EngineError, Result,
    module::{Layout, Module, Place},
    order::Order,
    tiers::Sources,
};
use mm_plan::DType;
use std::{collections::BTreeMap, sync::Arc};

/// One slab of a group on its way into one of the slot's buffers.
struct Flight<D: Device> {
    buffer: usize,
    copy: D::Copy,
}

enum State<D: Device> {
    Empty,
    Loading { group: usize, copies: Vec<Flight<D>> },
    Ready { group: usize },
    Leased { group: usize, leases: usize },
}

struct Slot<D: Device> {
    /// One buffer per dtype of [`Slots::dtypes`]; `None` while it is in a copy or in a home.
    buffers: Vec<Option<D::Buffer>>,
    state: State<D>,
    /// The end of the compute that used it last. Every later copy waits for it, also after a copy that
    /// failed before it could.
    used: Option<D::Event>,
    /// Compute used it, and the end of that could not be recorded yet.
    unmarked: bool,
    /// What it holds was copied and not been in its homes since.
    fresh: bool,
}

impl<D: Device> Slot<D> {
    const fn holds(&self) -> Option<usize> {
        match &self.state {
            State::Empty => None,
            State::Loading { group, .. } | State::Ready { group } | State::Leased { group, .. } => Some(*group),
        }
    }

    const fn is_leased(&self) -> bool {
        matches!(self.state, State::Leased { .. })
    }
}

pub(crate) struct Slots<D: Device> {
    layout: Arc<Layout<D::Buffer>>,
    dtypes: Vec<DType>,
    /// Bytes of the buffer of each.
    sizes: Vec<u64>,
    slots: Vec<Slot<D>>,
    sources: Sources<D>,
}

impl<D: Device> Slots<D> {
    /// `count` slots, each with a buffer per dtype as large as the largest slab of that dtype.
    pub(crate) fn allocate(
        module: &Module<D>,
        layout: &Arc<Layout<D::Buffer>>,
        streamed: &[usize],
        count: usize,
    ) -> Result<Self> {
        let mut sizes = BTreeMap::new();
        for slab in streamed.iter().flat_map(|g| &layout.groups[*g].slabs) {
            let size = sizes.entry(slab.dtype()).or_insert(0);
            *size = slab.bytes().max(*size);
        }
        let (dtypes, bytes) = (sizes.keys().copied().collect(), sizes.values().copied().collect());
        let mut this = Self { layout: layout.clone(), dtypes, sizes: bytes, slots: Vec::new(), sources: Vec::new() };
        if !streamed.is_empty() && count == 0 {
            let reason = format!("{}: groups stream, but the plan has no slot", module.title());
            return Err(EngineError::PlanMismatch { reason });
        }
        for _ in 0..count {
            let mut buffers = Vec::new();
            for (dtype, bytes) in &sizes {
                match module.device.allocate(*dtype, *bytes) {
                    Ok(buffer) => buffers.push(Some(buffer)),
                    Err(error) => {
                        buffers.into_iter().flatten().for_each(|buffer| module.device.free(buffer));
                        // Nothing is under way in these slots; giving them back can't fail.
                        let _ = this.free(module);
                        return Err(error);
                    }
                }
            }
            this.slots.push(Slot { buffers, state: State::Empty, used: None, unmarked: false, fresh: false });
        }
        Ok(this)
    }

    /// What streamed groups are copied from, from now on.
    pub(crate) fn copy_from(&mut self, sources: Sources<D>) {
        self.sources = sources;
    }

    /// Waits for what is under way and gives all buffers back; their bytes.
    pub(crate) fn free(&mut self, module: &Module<D>) -> Result<u64> {
        let mut outcome = Ok(());
        for index in 0..self.slots.len() {
            if let State::Leased { group, .. } = self.slots[index].state {
                outcome = outcome.and(self.take_home(index, group));
            }
            // A copy nobody waits for any more: that it failed is of no interest.
            let _ = self.land(module, index);
        }
        let mut bytes = 0;
        for (buffer, size) in self.slots.drain(..).flat_map(|slot| slot.buffers.into_iter().zip(&self.sizes)) {
            if let Some(buffer) = buffer {
                module.device.free(buffer);
                bytes += size;
            }
        }
        outcome.map(|()| bytes)
    }

    /// Puts `group` into its homes, waiting for its copy; starts the copy where nobody had foreseen it.
    pub(crate) fn acquire(&mut self, module: &Module<D>, group: usize, order: &Order) -> Result<()> {
        let held = self.slots.iter().position(|slot| slot.holds() == Some(group));
        let index = match held {
            Some(index) => index,
            None => {
                let index = self.victim(order).ok_or_else(|| {
                    EngineError::Misuse(format!(
                        "{}: {} blocks are held at once, but there are {} slots; drop a block before taking the next",
                        module.title(),
                        self.slots.len() + 1,
                        self.slots.len()
                    ))
                })?;
                self.start(module, index, group)?;
                index
            }
        };
        if let State::Leased { leases, .. } = &mut self.slots[index].state {
            *leases += 1;
            return Ok(());
        }
        match self.land(module, index) {
            // Foreseen copies may have failed long ago, in a pass that is over: what counts is now.
            Err(_) if held.is_some() => {
                self.start(module, index, group)?;
                self.land(module, index)?;
            }
            outcome => outcome?,
        }
        self.put_home(module, index, group)?;
        self.slots[index].state = State::Leased { group, leases: 1 };
        Ok(())
    }

    /// Lets what was copied be added to before it is computed with. On an error the slot is empty, and its lease is over.
    pub(crate) fn settle(&mut self, module: &Module<D>, group: usize) -> Result<()> {
        let fresh = |slot: &Slot<D>| slot.fresh && slot.is_leased() && slot.holds() == Some(group);
        let Some(index) = self.slots.iter().position(fresh) else { return Ok(()) };
        self.slots[index].fresh = false;
        let Err(error) = self.layout.homes.arrived(Place::Group(group)) else { return Ok(()) };
        // What had begun may still compute.
        self.slots[index].unmarked = true;
        let taken = self.take_home(index, group);
        self.slots[index].state = State::Empty;
        // What went wrong first is the one to report.
        let _ = taken.and_then(|()| self.mark(module, index));
        Err(error)
    }

    /// Takes `group` out of its homes once its last lease is gone. Its weights stay in the slot until
    /// another group needs it.
    pub(crate) fn release(&mut self, module: &Module<D>, group: usize) -> Result<()> {
        let Some(index) = self.slots.iter().position(|slot| slot.holds() == Some(group) && slot.is_leased()) else {
            return Ok(());
        };
        if let State::Leased { leases, .. } = &mut self.slots[index].state
            && *leases > 1
        {
            *leases -= 1;
            return Ok(());
        }
        self.slots[index].unmarked = true;
        self.take_home(index, group)?;
        self.mark(module, index)
    }

    /// Records the end of the compute that used the slot, where that is still to do.
    fn mark(&mut self, module: &Module<D>, index: usize) -> Result<()> {
        let slot = &mut self.slots[index];
        if slot.unmarked {
            slot.used = Some(module.device.record()?);
            slot.unmarked = false;
        }
        Ok(())
    }

    /// Starts the copies of the next groups into slots that none of them needs.
    pub(crate) fn prefetch(&mut self, module: &Module<D>, order: &Order) -> Result<()> {
        let free = self.slots.iter().filter(|slot| !slot.is_leased()).count();
        if free == 0 {
            return Ok(());
        }
        let leased = self.slots.len() - free;
        let mut wanted = order.next(free + leased);
        wanted.retain(|g| !self.slots.iter().any(|slot| slot.is_leased() && slot.holds() == Some(*g)));
        wanted.truncate(free);
        for group in &wanted {
            if self.slots.iter().any(|slot| slot.holds() == Some(*group)) {
                continue;
            }
            let idle = self.slots.iter().position(|slot| match &slot.state {
                State::Empty => true,
                State::Ready { group } => !wanted.contains(group),
                State::Loading { .. } | State::Leased { .. } => false,
            });
            let Some(index) = idle else { break };
            self.start(module, index, *group)?;
        }
        Ok(())
    }

    /// The slot whose content is needed last: empty, or ready, or (a wrong guess) still loading.
    fn victim(&self, order: &Order) -> Option<usize> {
        let upcoming = order.next(self.slots.len());
        let rank = |slot: &Slot<D>| match &slot.state {
            State::Empty => Some((0, 0)),
            State::Ready { group } | State::Loading { group, .. } => {
                let loading = usize::from(matches!(slot.state, State::Loading { .. }));
                Some(match upcoming.iter().position(|g| g == group) {
                    None => (1, loading),
                    Some(position) => (2 + upcoming.len() - position, loading),
                })
            }
            State::Leased { .. } => None,
        };
        (0..self.slots.len()).filter_map(|i| rank(&self.slots[i]).map(|r| (r, i))).min().map(|(_, i)| i)
    }

    /// Starts copying `group` into the slot, whatever it held.
    fn start(&mut self, module: &Module<D>, index: usize, group: usize) -> Result<()> {
        // A wrong guess still on its way must end before its buffer is written again; whether it
        // succeeded doesn't matter.
        let _ = self.land(module, index);
        self.mark(module, index)?;
        let layout = self.layout.clone();
        let entry = &layout.groups[group];
        let slot = &mut self.slots[index];
        slot.state = State::Empty;
        let mut copies = Vec::with_capacity(entry.slabs.len());
        for (slab, spec) in entry.slabs.iter().enumerate() {
            let buffer = self.dtypes.iter().position(|dtype| *dtype == spec.dtype());
            let taken = buffer.and_then(|b| slot.buffers[b].take().map(|memory| (b, memory)));
            let Some((buffer, memory)) = taken else {
                // The device kept a buffer of this slot after a failed copy.
                slot.state = State::Loading { group, copies };
                let _ = self.land(module, index);
                self.slots[index].state = State::Empty;
                let reason = format!("a slot of {} has lost its memory", module.title());
                return Err(EngineError::DeviceLost { reason });
            };
            let source = self.sources[group][slab].clone();
            let copy = module.copy(entry, spec.bytes(), source, memory, slot.used.clone());
            copies.push(Flight { buffer, copy });
        }
        slot.state = State::Loading { group, copies };
        Ok(())
    }

    /// Waits for the slot's copy. On an error the slot is empty, and has its buffers back.
    fn land(&mut self, module: &Module<D>, index: usize) -> Result<()> {
        let slot = &mut self.slots[index];
        let State::Loading { group, copies } = std::mem::replace(&mut slot.state, State::Empty) else {
            return Ok(());
        };
        let mut outcome = Ok(());
        for Flight { buffer, copy } in copies {
            match module.finish(&self.layout.groups[group], copy) {
                Ok(memory) => slot.buffers[buffer] = Some(memory),
                Err(failed) => {
                    slot.buffers[buffer] = failed.buffer;
                    outcome = outcome.and(Err(failed.error));
                }
            }
        }
        if outcome.is_ok() {
            (slot.state, slot.fresh) = (State::Ready { group }, true);
        }
        outcome
    }

    fn put_home(&mut self, module: &Module<D>, index: usize, group: usize) -> Result<()> {
        let layout = self.layout.clone();
        for (slab, spec) in layout.groups[group].slabs.iter().enumerate() {
            let lost = || EngineError::Internal(format!("a slot of {} is incomplete", module.title()));
            let buffer = self.dtypes.iter().position(|dtype| *dtype == spec.dtype()).ok_or_else(lost)?;
            let memory = self.slots[index].buffers[buffer].take().ok_or_else(lost)?;
            if let Err((memory, reason)) = layout.homes.put(Place::Group(group), slab, memory) {
                self.slots[index].buffers[buffer] = Some(memory);
                // Slabs already at home come back; this error is the one to report.
                let _ = self.take_slabs(index, group, slab);
                return Err(EngineError::Internal(reason));
            }
        }
        Ok(())
    }

    fn take_home(&mut self, index: usize, group: usize) -> Result<()> {
        let outcome = self.take_slabs(index, group, self.layout.groups[group].slabs.len());
        self.slots[index].state = if outcome.is_ok() { State::Ready { group } } else { State::Empty };
        outcome
    }

    fn take_slabs(&mut self, index: usize, group: usize, count: usize) -> Result<()> {
        let layout = self.layout.clone();
        let mut outcome = Ok(());
        for (slab, spec) in layout.groups[group].slabs.iter().enumerate().take(count) {
            match layout.homes.take(Place::Group(group), slab) {
                Ok(memory) => {
                    if let Some(buffer) = self.dtypes.iter().position(|dtype| *dtype == spec.dtype()) {
                        self.slots[index].buffers[buffer] = Some(memory);
                    }
                }
                Err(reason) => outcome = outcome.and(Err(EngineError::Internal(reason))),
            }
        }
        outcome
    }
}
