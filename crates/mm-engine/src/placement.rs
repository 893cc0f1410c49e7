//! A component on the device: its rest, its residents, and the slots its streamed groups take turns in.

use crate::{
    Device, EngineError, Result,
    device::Ticket,
    module::{Layout, Module, Place},
    order::Order,
    slots::Slots,
    tiers,
    timeline::Kind,
};
use mm_plan::ComponentPlan;
use std::sync::Arc;

/// A slab that lies in its home.
type Placed = (Place, usize);

pub(crate) struct Placement<D: Device> {
    layout: Arc<Layout<D::Buffer>>,
    placed: Vec<Placed>,
    resident: Vec<bool>,
    slots: Slots<D>,
    order: Order,
    active: bool,
    /// The pass, as the device's profiler is told of it.
    profiled: Option<Box<dyn Send>>,
    /// The pass, on the device's own clock.
    timed: Option<Ticket>,
    passes: u32,
    /// The pass after which it is expected to leave the device: the last of a request, where the plan does not keep it.
    last: Option<u32>,
    /// The first error of a call that could not return it; the next call reports it.
    deferred: Option<EngineError>,
}

impl<D: Device> Placement<D> {
    /// Allocates what the plan says, fills rest and residents, makes the streamed groups ready to be copied from where the plan
    /// keeps them on the host, and starts the first. Host memory taken for that lives as long as the placement.
    /// On an error everything allocated has been given back.
    pub(crate) fn load(module: &Module<D>, layout: Arc<Layout<D::Buffer>>, plan: &ComponentPlan) -> Result<Self> {
        let resident: Vec<bool> = plan.stacks.iter().flat_map(|s| s.resident.iter().copied()).collect();
        if resident.len() != layout.groups.len() {
            let reason = format!("{}: {} groups, the plan has {}", plan.name, layout.groups.len(), resident.len());
            return Err(EngineError::PlanMismatch { reason });
        }
        let streamed: Vec<usize> = (0..resident.len()).filter(|g| !resident[*g]).collect();
        let slots = Slots::allocate(module, &layout, &streamed, plan.slots as usize)?;
        let mut placement = Self {
            placed: Vec::new(),
            order: Order::new(streamed),
            resident,
            slots,
            active: false,
            profiled: None,
            timed: None,
            passes: 0,
            last: (!plan.keep).then_some(layout.description.passes),
            layout,
            deferred: None,
        };
        match placement.fill(module).and_then(|()| placement.prepare(module, plan)) {
            Ok(()) => {
                placement.prefetch(module);
                Ok(placement)
            }
            Err(error) => {
                // The first error is the one to report.
                let _ = placement.unload(module);
                Err(error)
            }
        }
    }

    fn prepare(&mut self, module: &Module<D>, plan: &ComponentPlan) -> Result<()> {
        let streamed: Vec<usize> = (0..self.resident.len()).filter(|g| !self.resident[*g]).collect();
        let (sources, notes) = tiers::prepare(module, &self.layout, plan, &streamed)?;
        self.slots.copy_from(sources);
        *module.notes.lock() = notes;
        Ok(())
    }

    fn fill(&mut self, module: &Module<D>) -> Result<()> {
        let layout = self.layout.clone();
        let groups = (0..layout.groups.len()).filter(|g| self.resident[*g]).map(Place::Group);
        let resident: Vec<Place> = std::iter::once(Place::Rest).chain(groups).collect();
        let places: Vec<Placed> = resident
            .iter()
            .flat_map(|place| (0..layout.entry(*place).slabs.len()).map(move |slab| (*place, slab)))
            .collect();
        let mut copies = Vec::with_capacity(places.len());
        let mut outcome = Ok(());
        for (place, slab) in places {
            let entry = layout.entry(place);
            let spec = &entry.slabs[slab];
            if let Some(buffer) = layout.homes.built(place, slab)
                && let Ok(buffer) = module.device.adopt(buffer)
            {
                match layout.homes.put(place, slab, buffer) {
                    Ok(()) => self.placed.push((place, slab)),
                    Err((buffer, reason)) => {
                        module.device.free(buffer);
                        outcome = Err(EngineError::Internal(reason));
                        break;
                    }
                }
                continue;
            }
            match module.device.allocate(spec.dtype(), spec.bytes()) {
                Ok(buffer) => {
                    let source = module.device.in_files(spec.clone());
                    copies.push((place, slab, module.copy(entry, spec.bytes(), source, buffer, None)));
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        // Every copy is waited for, whatever failed: its memory must come back.
        for (place, slab, copy) in copies {
            match module.device.finish(copy) {
                Ok(buffer) if outcome.is_ok() => match layout.homes.put(place, slab, buffer) {
                    Ok(()) => self.placed.push((place, slab)),
                    Err((buffer, reason)) => {
                        module.device.free(buffer);
                        outcome = Err(EngineError::Internal(reason));
                    }
                },
                Ok(buffer) => module.device.free(buffer),
                Err(failed) => {
                    if let Some(buffer) = failed.buffer {
                        module.device.free(buffer);
                    }
                    outcome = outcome.and(Err(failed.error));
                }
            }
        }
        outcome.and_then(|()| resident.into_iter().try_for_each(|place| layout.homes.arrived(place)))
    }

    /// Gives everything back; the bytes, or the first error after all was tried.
    pub(crate) fn unload(mut self, module: &Module<D>) -> Result<u64> {
        let deferred = self.deferred.take().map_or(Ok(()), Err);
        let slots = self.slots.free(module);
        let mut outcome = deferred.and(slots);
        for (place, slab) in self.placed.drain(..) {
            match self.layout.homes.take(place, slab) {
                Ok(buffer) => {
                    module.device.free(buffer);
                    outcome = outcome.map(|bytes| bytes + self.layout.entry(place).slabs[slab].bytes());
                }
                Err(reason) => outcome = outcome.and(Err(EngineError::Internal(reason))),
            }
        }
        outcome
    }

    pub(crate) fn streams(&self) -> bool {
        self.resident.contains(&false)
    }

    pub(crate) const fn is_active(&self) -> bool {
        self.active
    }

    pub(crate) fn begin_pass(&mut self, module: &Module<D>) {
        self.active = true;
        self.profiled = module.device.profile(Kind::Pass, &module.whole());
        self.timed = module.time_pass();
        self.passes = self.passes.saturating_add(1);
        // Copies for a pass that never comes would hold up the component that comes instead.
        self.order.begin_pass(self.last == Some(self.passes));
        self.prefetch(module);
    }

    pub(crate) fn end_pass(&mut self, module: &Module<D>, complete: bool) -> Result<()> {
        self.active = false;
        self.profiled = None;
        module.end_timing(self.timed.take(), complete);
        self.order.end_pass(complete);
        if self.last != Some(self.passes) {
            self.prefetch(module);
        }
        self.deferred.take().map_or(Ok(()), Err)
    }

    pub(crate) fn acquire(&mut self, module: &Module<D>, group: usize) -> Result<()> {
        if let Some(error) = self.deferred.take() {
            return Err(error);
        }
        if self.resident[group] {
            return Ok(());
        }
        self.order.visit(group);
        self.slots.acquire(module, group, &self.order)?;
        self.prefetch(module);
        Ok(())
    }

    /// What was acquired is about to be computed with.
    pub(crate) fn settle(&mut self, module: &Module<D>, group: usize) -> Result<()> {
        if self.resident[group] { Ok(()) } else { self.slots.settle(module, group) }
    }

    pub(crate) fn release(&mut self, module: &Module<D>, group: usize) {
        if self.resident[group] {
            return;
        }
        if let Err(error) = self.slots.release(module, group) {
            self.deferred.get_or_insert(error);
        }
        if self.active {
            self.prefetch(module);
        }
    }

    fn prefetch(&mut self, module: &Module<D>) {
        if let Err(error) = self.slots.prefetch(module, &self.order) {
            self.deferred.get_or_insert(error);
        }
    }
}
