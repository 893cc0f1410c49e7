//! Which plan is in force, and how another one comes to be.
//!
//! Whatever changes what a plan is made from makes it out of date. The next run, or [`ModelManager::apply`], makes another
//! and puts it in force as one step: what it places differently leaves the device first, the rest stays. Until that is
//! possible, or if it fails, the old plan is in force, and whoever is inside a run goes on by it.

use super::{
    Layouts, ModelManager, State,
    admission::{Answer, Id, Never, Share, Shares, Ticket},
    calibrating, overrides,
    registry::Registry,
    retry, survival,
};
use crate::{Device, EngineError, Result, calibrate::Figures};
use mm_plan::{Component, ComponentPlan, Machine, Plan, Policy, Strategy};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread,
};

/// A plan, and what it says about each module.
pub(super) struct InForce {
    pub(super) plan: Arc<Plan>,
    pub(super) placements: BTreeMap<Id, ComponentPlan>,
}

impl<D: Device> ModelManager<D> {
    /// The plan in force, if nothing changed since it was applied.
    pub fn plan(&self) -> Option<Arc<Plan>> {
        self.gate.read(|state| state.in_force.as_ref().filter(|_| state.current).map(|i| i.plan.clone()))
    }

    /// The strategy of the largest component under the plan applied last; a component registered since then doesn't
    /// change it.
    pub fn applied_strategy(&self) -> Option<Strategy> {
        self.gate.read(|state| state.in_force.as_ref().map(|i| i.plan.strategy))
    }

    /// The strategy of one component under the plan applied last; `None`: that plan is older than the component.
    pub fn component_strategy(&self, name: &str) -> Option<Strategy> {
        self.gate.read(|state| {
            let placements = state.in_force.as_ref().map(|i| &i.placements);
            state.registry.id(name).and_then(|id| placements?.get(&id)).map(|placement| placement.strategy)
        })
    }

    /// The policy that plans are made by.
    pub fn policy(&self) -> Policy {
        self.gate.read(|state| state.policy.clone())
    }

    /// Replaces the policy; the next run plans anew. A given plan is forgotten.
    pub fn set_policy(&self, policy: Policy) {
        self.gate.update(|state| {
            (state.policy, state.given) = (policy, None);
            state.changed();
        });
    }

    /// Under block_pin this component keeps `count` blocks on the device (all of them, if it has fewer), whatever is free. The
    /// component may be registered later.
    pub fn set_block_pin_count(&self, name: &str, count: u32) {
        self.gate.update(|state| {
            state.policy.resident.insert(name.to_owned(), count);
            state.changed();
        });
    }

    /// Plans for what is registered and puts the plan in force. Components whose placement changed leave the device and return
    /// with their next run; the others stay. Waits for runs of other threads that the plan would change. On an
    /// error the plan before is in force.
    ///
    /// # Errors
    /// `Infeasible`: no plan fits. `Misuse`: this thread runs what would change.
    pub fn apply(&self) -> Result<Arc<Plan>> {
        self.gate.queue(thread::current().id(), |state, ticket| {
            let settled = state.refresh(ticket, &self.device)?;
            Ok::<_, EngineError>(settled.then(|| state.in_force.as_ref().map(|i| i.plan.clone())).flatten())
        })
    }

    /// Puts a given plan in force, exactly. It stays the plan until the policy is replaced, or something else is registered,
    /// which it is then refused for.
    ///
    /// # Errors
    /// `PlanMismatch` says where it doesn't fit what is registered, or the device; then nothing changed. Else as
    /// [`ModelManager::apply`].
    pub fn apply_plan(&self, plan: Plan) -> Result<Arc<Plan>> {
        let plan = Arc::new(plan);
        self.gate.queue(thread::current().id(), |state, ticket| {
            let next = state.registry.check(&plan, &self.device)?;
            match state.enforce(ticket, next) {
                Ok(()) => {}
                Err((_, Some(error))) => return Err(error),
                Err((_, None)) => return Ok(None),
            }
            state.given = Some(plan.clone());
            Ok::<_, EngineError>(Some(plan.clone()))
        })
    }
}

impl<D: Device> State<D> {
    /// Something that plans are made from changed.
    pub(super) fn changed(&mut self) {
        let here = thread::current().id();
        (self.current, self.next) = (false, None);
        if !self.changed_by.contains(&here) {
            self.changed_by.push(here);
        }
        self.registry.retitle();
    }

    /// Puts the plan for what is registered now in force. `false`: runs of other threads are in the way.
    pub(super) fn refresh(&mut self, ticket: Ticket, device: &D) -> Result<bool> {
        self.reconsider();
        if self.current {
            return Ok(true);
        }
        let next = match self.next.take() {
            Some(next) => next,
            None => self.plan_for(&self.registry, device)?,
        };
        match self.enforce(ticket, next) {
            Ok(()) => Ok(true),
            Err((next, error)) => {
                self.next = Some(next);
                error.map_or(Ok(false), Err)
            }
        }
    }

    /// The plan that was given, which must still fit what is registered; else one by the policy. Overrides set a given
    /// plan aside while they last.
    pub(super) fn plan_for(&self, registry: &Registry<D>, device: &D) -> Result<InForce> {
        if let Some(plan) = self.given.as_ref().filter(|_| self.overrides.is_empty()) {
            return registry.check(plan, device);
        }
        let figures = self.figures(registry);
        let (machine, components) = self.described(registry, figures.as_ref());
        let mut next = self.plan_of(registry, &machine, &components)?;
        if let Some(figures) = figures.filter(|figures| *figures != Figures::default()) {
            Arc::make_mut(&mut next.plan).notes.push(calibrating::used(&figures));
        }
        Ok(next)
    }

    /// A plan by the policy for this machine and these components, which are the registry's.
    pub(super) fn plan_of(
        &self,
        registry: &Registry<D>,
        machine: &Machine,
        components: &[Component],
    ) -> Result<InForce> {
        let policy = overrides::policy(&self.policy, &self.overrides, registry);
        let reserves = self.survival.reserves(|id| registry.names_of(id).into_iter().map(str::to_owned).collect());
        let mut plan = survival::plan(machine, components, &policy, &reserves)?;
        retry::explain(&mut plan, &reserves);
        let placed = plan.components.iter().filter(|c| c.same_as.is_none());
        let placements = placed.filter_map(|c| registry.id(&c.name).map(|id| (id, c.clone()))).collect();
        Ok(InForce { plan: Arc::new(plan), placements })
    }

    /// Takes off the device what the plan places differently and puts it in force. `Err` gives it back: with the error, or
    /// with none where runs of other threads are in the way. Then the plan before is in force.
    fn enforce(&mut self, ticket: Ticket, next: InForce) -> Result<(), (InForce, Option<EngineError>)> {
        let now = |id: &Id| self.applied.get(id).or_else(|| self.in_force.as_ref()?.placements.get(id));
        let layouts: Layouts<D> = self.registry.entries().map(|(id, entry)| (id, entry.module.layout())).collect();
        let is_older = |id: &Id| {
            let module = self.registry.entry(*id).map(|entry| &entry.module);
            module.zip(layouts.get(id)).is_some_and(|(module, layout)| module.is_older_than(layout))
        };
        let differs = |(id, new): &(&Id, &ComponentPlan)| is_older(id) || now(id).is_none_or(|old| !is_same(old, new));
        let touched: BTreeSet<Id> = next.placements.iter().filter(differs).map(|(id, _)| *id).collect();
        let misuse = |text: String| Some(EngineError::Misuse(text));
        match self.admission.change(ticket, touched, next.plan.peak.device) {
            Answer::Granted(leave) => {
                if let Err(error) = self.take_all_off(leave) {
                    return Err((next, Some(error)));
                }
            }
            Answer::Wait => return Err((next, None)),
            Answer::Never(Never::Own(id)) => {
                let name = self.title(id);
                let text = format!("{name} is running; its strategy can't change now: end its run first");
                return Err((next, misuse(text)));
            }
            Answer::Never(_) => return Err((next, misuse(CIRCLE.to_owned()))),
        }
        for (id, placement) in &mut self.applied {
            if let Some(new) = next.placements.get(id) {
                placement.clone_from(new);
            }
        }
        self.admission.put_in_force(self.shares(&next));
        self.planned = self.planned.max(next.plan.peak.device);
        (self.in_force, self.layouts, self.current) = (Some(next), layouts, true);
        self.changed_by.clear();
        // A plan that was given is measured as well.
        self.figures(&self.registry);
        Ok(())
    }

    /// Reports the first error after all was tried.
    pub(super) fn take_all_off(&mut self, ids: Vec<Id>) -> Result<()> {
        let mut outcome = Ok(());
        for id in ids {
            if let Some(module) = self.registry.entry(id).map(|entry| entry.module.clone()) {
                outcome = outcome.and(self.take_off(id, &module).map(drop));
            }
        }
        outcome
    }

    pub(super) fn title(&self, id: Id) -> String {
        self.registry.title(id).map_or_else(|| "a component".to_owned(), |title| title.to_string())
    }

    fn shares(&self, next: &InForce) -> Shares {
        let phases = |id: Id| {
            let names = self.registry.names_of(id);
            let active = next.plan.phases.iter().map(|p| p.components.iter().any(|c| names.contains(&c.as_str())));
            active.enumerate().filter(|(_, active)| *active).map(|(phase, _)| phase).collect()
        };
        let share = |(id, placement): (&Id, &ComponentPlan)| {
            let share = Share { bytes: placement.engine_bytes, keep: placement.keep, phases: phases(*id) };
            (*id, share)
        };
        Shares { capacity: next.plan.peak.device, of: next.placements.iter().map(share).collect() }
    }
}

pub(super) const CIRCLE: &str =
    "threads that each run a component wait for each other's; run one after the other, or outside of each other";

/// Whether it lies on the device the same way; the name and the reasons may differ.
fn is_same(old: &ComponentPlan, new: &ComponentPlan) -> bool {
    let place = |p: &ComponentPlan| (p.rest, p.slots, p.slot_bytes, p.engine_bytes);
    place(old) == place(new) && old.stacks == new.stacks
}
