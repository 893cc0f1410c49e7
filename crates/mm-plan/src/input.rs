//! The components as the planner sees them: checked, sorted, aliases resolved, split into phases.

use crate::{Activation, Basis, Component, Granularity, Infeasible, MAX_GROUPS};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

/// A component, or an alias of one.
pub(crate) struct Entry<'a> {
    pub(crate) component: &'a Component,
    /// Index of the entry that holds the weights; its own index unless it is an alias.
    pub(crate) holder: usize,
}

/// A stretch in which one set of components is active.
pub(crate) struct Phase {
    /// Entries that name this phase.
    pub(crate) own: Vec<usize>,
    /// Entries active in it, the holders of its aliases included, sorted by name.
    pub(crate) entries: Vec<usize>,
    /// Entries among them that hold weights.
    pub(crate) holders: Vec<usize>,
    /// The largest known activation of them, bytes.
    pub(crate) activation: u64,
    /// The same with its basis; `None`: none is known.
    pub(crate) known: Option<Activation>,
}

/// Checked input.
pub(crate) struct Input<'a> {
    /// Sorted by (phase, name), those without a phase last.
    pub(crate) entries: Vec<Entry<'a>>,
    pub(crate) phases: Vec<Phase>,
}

impl<'a> Input<'a> {
    pub(crate) fn new(components: &'a [Component]) -> Result<Self, Infeasible> {
        let mut sorted: Vec<&Component> = components.iter().collect();
        sorted.sort_by_key(|c| (c.phase.is_none(), c.phase, c.name.as_str()));
        let mut names = BTreeMap::new();
        for (index, component) in sorted.iter().enumerate() {
            if component.name.is_empty() {
                return bad(format!("one of the {} components has no name: name it", sorted.len()));
            }
            if names.insert(component.name.as_str(), index).is_some() {
                return bad(format!("two components are named `{}`: rename one", component.name));
            }
        }
        let groups = sorted.iter().flat_map(|c| &c.stacks).fold(0usize, |sum, s| sum.saturating_add(s.groups.len()));
        if groups > MAX_GROUPS {
            return bad(format!("{groups} groups; the planner takes {MAX_GROUPS}: stream larger groups"));
        }
        for component in &sorted {
            check_stacks(component)?;
        }
        let holders = holders(&sorted, &names)?;
        let entries: Vec<Entry<'a>> =
            sorted.into_iter().zip(holders).map(|(component, holder)| Entry { component, holder }).collect();
        let phases = phases(&entries);
        Ok(Self { entries, phases })
    }

    pub(crate) fn is_alias(&self, index: usize) -> bool {
        self.entries[index].holder != index
    }

    /// Entries that hold weights, in order.
    pub(crate) fn holders(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.entries.len()).filter(|i| !self.is_alias(*i))
    }
}

/// Device bytes of a component without saturation.
pub(crate) fn bytes(component: &Component) -> u128 {
    component.groups().flat_map(|g| &g.slabs).fold(u128::from(component.rest), |sum, s| sum + u128::from(s.bytes))
}

/// Whether anything of a component can be streamed.
pub(crate) fn streamable(component: &Component) -> bool {
    component.granularity != Granularity::Whole && component.stacks.iter().any(|s| !s.groups.is_empty())
}

fn bad<T>(text: String) -> Result<T, Infeasible> {
    Err(Infeasible::BadInput { text })
}

fn check_stacks(component: &Component) -> Result<(), Infeasible> {
    let mut names = BTreeSet::new();
    for stack in &component.stacks {
        if !names.insert(stack.name.as_str()) {
            return bad(format!("`{}` has two stacks named `{}`: rename one", component.name, stack.name));
        }
        for (index, group) in stack.groups.iter().enumerate() {
            let mut dtypes = BTreeSet::new();
            if let Some(twice) = group.slabs.iter().find(|slab| !dtypes.insert(slab.dtype)) {
                return bad(format!(
                    "group {index} of `{}` in `{}` has two slabs of {}: merge them, a group has one slab per dtype",
                    stack.name, component.name, twice.dtype
                ));
            }
        }
    }
    Ok(())
}

/// Per component: who holds its weights, chains of aliases followed to their end.
fn holders(sorted: &[&Component], names: &BTreeMap<&str, usize>) -> Result<Vec<usize>, Infeasible> {
    let mut known: Vec<Option<usize>> =
        sorted.iter().enumerate().map(|(i, c)| c.same_as.is_none().then_some(i)).collect();
    for start in 0..sorted.len() {
        let mut chain = Vec::new();
        let mut at = start;
        let holder = loop {
            if let Some(holder) = known[at] {
                break holder;
            }
            chain.push(at);
            // A chain longer than all components walks in a circle.
            if chain.len() > sorted.len() {
                return bad(format!(
                    "`{}` is the same as itself by a circle of `same_as`: one of them must hold the weights",
                    sorted[start].name
                ));
            }
            let target = sorted[at].same_as.as_deref().unwrap_or_default();
            at = match names.get(target) {
                Some(next) => *next,
                None => {
                    return bad(format!(
                        "`{}` is the same as `{target}`, which is no component: add it or drop `same_as`",
                        sorted[at].name
                    ));
                }
            };
        };
        for alias in chain {
            known[alias] = Some(holder);
        }
    }
    Ok(known.into_iter().enumerate().map(|(index, holder)| holder.unwrap_or(index)).collect())
}

fn phases(entries: &[Entry<'_>]) -> Vec<Phase> {
    let mut members: BTreeMap<(bool, Option<u32>, &str), Vec<usize>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let alone = if entry.component.phase.is_none() { entry.component.name.as_str() } else { "" };
        members.entry((entry.component.phase.is_none(), entry.component.phase, alone)).or_default().push(index);
    }
    members.into_values().map(|own| phase(entries, own)).collect()
}

fn phase(entries: &[Entry<'_>], own: Vec<usize>) -> Phase {
    let holders: BTreeSet<usize> = own.iter().map(|i| entries[*i].holder).collect();
    let mut active: Vec<usize> = own.iter().copied().chain(holders.iter().copied()).collect();
    active.sort_by_key(|i| entries[*i].component.name.as_str());
    active.dedup();
    let known = active.iter().filter_map(|i| entries[*i].component.activation).filter(|a| a.basis != Basis::Unknown);
    let known = known.reduce(|most, next| if next.bytes > most.bytes { next } else { most });
    let activation = known.map_or(0, |a| a.bytes);
    Phase { own, entries: active, holders: holders.into_iter().collect(), activation, known }
}
