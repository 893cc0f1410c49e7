//! What was measured, in the planner's units, and how a plan is made with it.

use mm_plan::{Activation, Basis, Component, DeviceKind, Links, Machine};
use std::collections::BTreeMap;

/// What was measured of one component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComponentFigures {
    /// Per group, in order through all stacks: what computing it takes in a pass, nanoseconds. `None`: unknown.
    pub compute_ns: Vec<Option<u64>>,
    /// What the rest of a pass takes, waiting for copies not counted, nanoseconds. Plans don't use it.
    pub rest_ns: Option<u64>,
    /// The most that computing took on top of the weights, bytes; `None`: nobody told.
    pub activation: Option<u64>,
    /// Complete passes that this comes from.
    pub passes: u64,
}

/// What was measured of a machine and the components that ran on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The links; `None`: nothing was copied. A link that was not used is zero or `None` in it.
    pub links: Option<Links>,
    /// By the name that a component is planned under.
    pub components: BTreeMap<String, ComponentFigures>,
}

impl Figures {
    /// Puts what was measured in place of what was thought before; what was not measured stays.
    pub fn apply(&self, machine: &mut Machine, components: &mut [Component]) {
        if let Some(links) = self.links {
            machine.links = merged(machine.links, links);
        }
        for component in components.iter_mut().filter(|component| component.same_as.is_none()) {
            let Some(figures) = self.components.get(&component.name) else { continue };
            if figures.compute_ns.len() == component.groups().count() {
                let groups = component.stacks.iter_mut().flat_map(|stack| &mut stack.groups);
                for (group, ns) in groups.zip(&figures.compute_ns) {
                    group.compute_ns = ns.or(group.compute_ns);
                }
            }
            // A host device's budget is for weights alone: what computing takes lies beside it.
            if let Some(bytes) = figures.activation.filter(|_| machine.device == DeviceKind::Discrete) {
                component.activation = Some(Activation { bytes, basis: Basis::Measured });
            }
        }
    }
}

/// A link that was not measured keeps its figure; of none that is known nothing is made.
pub(crate) fn merged(before: Option<Links>, now: Links) -> Option<Links> {
    if now.h2d > 0 {
        let before = before.filter(|links| links.h2d > 0);
        return Some(Links {
            staging: now.staging.or(before.and_then(|links| links.staging)),
            disk: now.disk.or(before.and_then(|links| links.disk)),
            ..now
        });
    }
    before.map(|links| Links { staging: now.staging.or(links.staging), disk: now.disk.or(links.disk), ..links })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mm_plan::{Group, Stack};

    const LINKS: Links = Links { h2d: 10, staging: Some(5), disk: Some(2), copy_fixed_ns: 1 };

    fn component(name: &str) -> Component {
        let known = Group { compute_ns: Some(7), ..Group::of_bytes(1) };
        let stacks = vec![Stack { name: "layers".into(), groups: vec![known.clone(), Group::of_bytes(1), known] }];
        Component::blocks(name, 0, stacks)
    }

    fn apply(kind: DeviceKind, figures: &ComponentFigures) -> (Vec<Option<u64>>, Option<Activation>) {
        let mut machine = Machine { device: kind, ..Machine::default() };
        let mut components = [component("a"), component("b")];
        let figures = Figures { components: [("a".to_owned(), figures.clone())].into(), ..Figures::default() };
        figures.apply(&mut machine, &mut components);
        assert_eq!((components[1].clone(), machine.links), (component("b"), None), "only what was measured");
        (components[0].groups().map(|group| group.compute_ns).collect(), components[0].activation)
    }

    #[test]
    fn measured_times_replace_others_and_leave_the_rest() {
        let figures = ComponentFigures { compute_ns: vec![Some(1), Some(2), None], ..ComponentFigures::default() };
        assert_eq!(apply(DeviceKind::Host, &figures).0, [Some(1), Some(2), Some(7)]);
        let other = ComponentFigures { compute_ns: vec![Some(1)], ..ComponentFigures::default() };
        assert_eq!(apply(DeviceKind::Host, &other).0, [Some(7), None, Some(7)], "not of this component");
    }

    #[test]
    fn activations_count_where_they_share_the_device_with_weights() {
        let figures = ComponentFigures { activation: Some(9), ..ComponentFigures::default() };
        let measured = Some(Activation { bytes: 9, basis: Basis::Measured });
        assert_eq!(apply(DeviceKind::Discrete, &figures).1, measured);
        assert_eq!(apply(DeviceKind::Host, &figures).1, None);
    }

    #[test]
    fn a_link_that_was_not_measured_keeps_its_figure() {
        let now = Links { h2d: 20, staging: None, disk: Some(3), copy_fixed_ns: 0 };
        assert_eq!(merged(Some(LINKS), now), Some(Links { staging: Some(5), ..now }));
        assert_eq!(merged(None, now), Some(now));
        let staging = Links { h2d: 0, staging: Some(6), disk: None, copy_fixed_ns: 0 };
        assert_eq!(merged(Some(LINKS), staging), Some(Links { staging: Some(6), ..LINKS }));
        assert_eq!(merged(None, staging), None, "without the link there are no times");
    }
}
