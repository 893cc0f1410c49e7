//! Components whose compute times are known, under a manager that measures.

use super::{Rack, Shape, TestDevice, build_for};
use mm_engine::{ModelManager, Module, Registration, calibrate::Figures, timeline::Timeline};
use mm_plan::{Component, Machine, Policy};
use std::sync::Arc;

/// A transformer of these blocks, an encoder and a decoder, each active alone, and their passes.
pub fn shapes(blocks: Vec<(usize, usize)>) -> Vec<(Shape, u32)> {
    let transformer = Shape { name: "transformer", phase: Some(1), rest: 500, stacks: vec![blocks] };
    let encoder = Shape { name: "encoder", phase: Some(0), rest: 900, stacks: vec![vec![(2000, 0); 6]] };
    let decoder = Shape { name: "vae", phase: Some(2), rest: 4000, stacks: vec![] };
    vec![(encoder, 1), (transformer, 20), (decoder, 1)]
}

/// What computing a group takes: of some more than their copies, of others less.
pub fn compute_ns(component: &str, group: usize) -> u64 {
    if component == "encoder" { 2_000 } else { 4_000 + 1_500 * (group as u64 % 5) }
}

/// A component, and where its weights go.
pub type Built<D> = (Arc<Module<D>>, Arc<Rack<D>>);

pub struct Measured<D: TestDevice> {
    pub manager: Arc<ModelManager<D>>,
    pub modules: Vec<Built<D>>,
    _registrations: Vec<Registration<D>>,
}

impl<D: TestDevice> Measured<D> {
    pub fn new(
        device: &D,
        timeline: &Arc<Timeline>,
        machine: Machine,
        policy: Policy,
        shapes: &[(Shape, u32)],
    ) -> Self {
        let shared = Arc::new(device.clone());
        let manager = ModelManager::new(shared.clone(), timeline.clone(), machine, policy).unwrap();
        let modules: Vec<_> =
            shapes.iter().map(|(shape, passes)| build_for(&shared, timeline, shape, *passes)).collect();
        let registrations =
            modules.iter().map(|(module, _)| manager.register(module.name(), module).unwrap()).collect();
        Self { manager, modules, _registrations: registrations }
    }

    pub fn module(&self, name: &str) -> &Built<D> {
        self.modules.iter().find(|(module, _)| module.name() == name).unwrap()
    }

    pub fn figures(&self) -> Figures {
        self.manager.calibration().unwrap().figures
    }

    pub fn codes(&self) -> Vec<String> {
        self.manager.calibration().unwrap().notes.into_iter().map(|note| note.code).collect()
    }

    /// The components as the planner would know them if it knew the truth.
    pub fn truth(&self) -> Vec<Component> {
        let mut components: Vec<Component> =
            self.modules.iter().map(|(module, _)| module.description().clone()).collect();
        for component in &mut components {
            let name = component.name.clone();
            let groups = component.stacks.iter_mut().flat_map(|stack| &mut stack.groups);
            groups.enumerate().for_each(|(i, group)| group.compute_ns = Some(compute_ns(&name, i)));
        }
        components
    }
}
