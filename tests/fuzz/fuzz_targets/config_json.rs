//! The `config.json` of a lone model, and what it and the tensors' shapes make of an estimate of activations.
//!
//! The first byte chooses the model, the second how many sides of its tensors are changed by three bytes each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mm_fixtures::{Component, Fixture, Layout, Model, Options};
use mm_plan::{DType, DeviceKind};
use mm_probe::Workload;
use serde_json::Value;
use std::sync::LazyLock;

/// Every component of every model, by the names of either library.
static MODELS: LazyLock<Vec<Component>> = LazyLock::new(|| {
    let fixture = |model, layout| {
        let options = Options { layers: Some(2), scale: 1e-6, layout, ..Options::default() };
        Fixture::new(model, &options).expect("a fixture").components
    };
    let both = |model| [Layout::Diffusers, Layout::Single].map(|layout| fixture(model, layout));
    Model::ALL.into_iter().flat_map(both).flatten().collect()
});

fuzz_target!(
    init: {
        let tensors = [
            "shared.weight",
            "encoder.embed_tokens.weight",
            "encoder.block.0.layer.0.w",
            "encoder.block.1.layer.0.w",
            "decoder.block.0.w",
            "model.embed_tokens.weight",
            "lm_head.weight",
            "vision_model.x",
            "text_projection.weight",
            "logit_scale",
            "text_model.embeddings.position_ids",
        ];
        mm_fuzz::write_tensors("model/model.safetensors", &tensors.map(|name| (name, 16)));
    },
    |bytes: &[u8]| {
        let [model, changes, rest @ ..] = bytes else { return };
        let (changes, config) = rest.split_at((usize::from(*changes) * 3).min(rest.len()));
        mm_fuzz::write("model/config.json", config);
        mm_fuzz::inspect_and_plan("model");
        estimate(&MODELS[usize::from(*model) % MODELS.len()], changes, config);
    }
);

fn estimate(component: &Component, changes: &[u8], config: &[u8]) {
    let mut shapes: Vec<(&str, Vec<usize>)> =
        component.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.clone())).collect();
    for change in changes.chunks_exact(3) {
        let at = usize::from(change[0]) * shapes.len() / 256;
        let shape = &mut shapes[at].1;
        match change[1] % 8 {
            7 => shape.clear(),
            6 => shape.push(1),
            side => {
                if let Some(side) = shape.get_mut(usize::from(side)) {
                    *side = 1usize.checked_shl(u32::from(change[2])).unwrap_or(0);
                }
            }
        }
    }
    let config: Option<Value> = serde_json::from_slice(config).ok();
    for (side, device, dtype) in [(1024, DeviceKind::Host, DType::Bf16), (u32::MAX, DeviceKind::Discrete, DType::F64)] {
        let workload = Workload {
            width: side,
            height: side / 2,
            batch: side,
            guided: true,
            pixels_per_latent: config
                .as_ref()
                .and_then(|config| config.get("pixels")?.as_u64())
                .map(|pixels| pixels as u32),
            device,
            dtype,
            ..Workload::default()
        };
        let shapes = shapes.iter().map(|(name, shape)| (*name, shape.as_slice()));
        let known = mm_probe::estimate(shapes, config.as_ref(), Some(component.class.as_str()), &workload);
        assert!(known.is_none_or(|(_, bytes)| bytes > 0));
    }
}
