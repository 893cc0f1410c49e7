//! The sizes of the published models, and of smaller and larger ones.

use mm_fixtures::{Fixture, Layout, Model, Options};
use std::collections::HashSet;

fn fixture(model: Model, options: Options) -> Fixture {
    Fixture::new(model, &options).unwrap()
}

#[test]
fn full_size_has_the_published_parameters() {
    for (model, component, billions) in [
        (Model::FluxDev, "transformer", 11.9),
        (Model::Sd35Large, "transformer", 8.06),
        (Model::Sd15, "unet", 0.8595),
        (Model::Sd21, "unet", 0.8659),
        (Model::Sd21, "text_encoder", 0.3404),
        (Model::Sdxl, "unet", 2.567),
        (Model::Wan14b, "transformer", 14.3),
        (Model::ZImageTurbo, "transformer", 6.15),
        (Model::FluxDev, "text_encoder_2", 4.76),
        (Model::T5Xxl, "t5-xxl", 4.76),
        (Model::ZImageTurbo, "text_encoder", 4.02),
        (Model::Qwen3_4b, "qwen3-4b", 4.02),
        (Model::Sd35Large, "text_encoder_2", 0.695),
        (Model::FluxDev, "text_encoder", 0.123),
        (Model::Wan14b, "text_encoder", 5.68),
        (Model::Wan14b, "vae", 0.1269),
        (Model::Sdxl, "vae", 0.0837),
    ] {
        let fixture = fixture(model, Options::default());
        let component = fixture.components.iter().find(|c| c.name == component).unwrap();
        // The position table of SD3 is computed, not trained, and not counted.
        let table = component.tensors.iter().find(|t| t.name == "pos_embed.pos_embed");
        let parameters = component.parameters() - table.map_or(0, |t| t.elements().unwrap());
        let published = billions * 1e9;
        let off = (parameters as f64 - published).abs() / published;
        assert!(off < 0.01, "{model} {}: {parameters} parameters for {published}", component.name);
    }
}

#[test]
fn a_single_file_holds_the_same_parameters() {
    for model in Model::ALL {
        let folder = fixture(model, Options::default());
        let single = fixture(model, Options { layout: Layout::Single, ..Options::default() });
        for component in &single.components {
            let same = folder.components.iter().find(|c| c.name == component.name).unwrap();
            assert_eq!(component.parameters(), same.parameters(), "{model} {}", component.name);
        }
    }
}

#[test]
fn bytes_follow_the_scale() {
    for model in Model::ALL {
        let full = fixture(model, Options::default()).bytes() as f64;
        for (scale, tolerance) in [(0.01, 0.2), (0.1, 0.2), (0.5, 0.1), (3.0, 0.1), (30.0, 0.1)] {
            let bytes = fixture(model, Options { scale, ..Options::default() }).bytes() as f64;
            let off = (bytes / full / scale - 1.0).abs();
            assert!(off < tolerance, "{model} at {scale}: {:.3} of what was asked for", bytes / full / scale);
        }
    }
    let flux = fixture(Model::FluxDev, Options { scale: 21.0, ..Options::default() });
    assert!(flux.bytes() > 700_000_000_000);
}

#[test]
fn layers_and_dim_are_for_the_main_model_alone() {
    let full = fixture(Model::FluxDev, Options::default());
    let small = fixture(Model::FluxDev, Options { layers: Some(2), dim: Some(256), ..Options::default() });
    for (full, small) in full.components.iter().zip(&small.components) {
        assert_eq!(full.tensors == small.tensors, full.name != "transformer", "{}", full.name);
    }
    let transformer = small.components.iter().find(|c| c.name == "transformer").unwrap();
    let stacks: HashSet<_> = transformer.tensors.iter().filter_map(|t| t.block.clone()).collect();
    let count = |stack: &str| stacks.iter().filter(|(path, _)| path == stack).count();
    assert_eq!((count("transformer_blocks"), count("single_transformer_blocks"), stacks.len()), (2, 4, 6));
    assert_eq!(transformer.config["attention_head_dim"], 128);
    assert_eq!(transformer.config["num_attention_heads"], 2);

    let qwen = fixture(Model::Qwen3_4b, Options { dim: Some(320), ..Options::default() });
    let query =
        qwen.components[0].tensors.iter().find(|t| t.name.ends_with("layers.0.self_attn.q_proj.weight")).unwrap();
    assert_eq!(query.shape, [512, 320], "an eighth of the published sizes");
}

#[test]
fn names_are_unique_and_lie_in_their_blocks() {
    let options =
        [Layout::Diffusers, Layout::Single].map(|layout| Options { scale: 0.01, layout, ..Options::default() });
    for (model, options) in Model::ALL.iter().flat_map(|m| options.iter().map(move |o| (*m, o.clone()))) {
        let single = options.layout == Layout::Single;
        let fixture = fixture(model, options);
        let mut names = HashSet::new();
        for component in &fixture.components {
            if !single {
                names.clear();
            }
            // Stable Diffusion's first UNets have transformers of one block, each in a step of its own in the original.
            let is_flat = single && matches!(model, Model::Sd15 | Model::Sd21) && component.name == "unet";
            let has_stack = component.tensors.iter().any(|t| t.block.is_some());
            assert!(has_stack || is_flat, "{model} {} has no stack", component.name);
            for tensor in &component.tensors {
                assert!(names.insert(&tensor.name), "{model}: {} is there twice", tensor.name);
                if let Some((stack, index)) = &tensor.block {
                    assert!(tensor.name.starts_with(&format!("{stack}.{index}.")), "{} in {stack}", tensor.name);
                }
            }
        }
    }
}

#[test]
fn the_innermost_stack_is_the_block() {
    let sdxl = fixture(Model::Sdxl, Options::default());
    let block = |name: &str| {
        let mut tensors = sdxl.components.iter().flat_map(|c| &c.tensors);
        tensors.find(|t| t.name == name).unwrap().block.clone()
    };
    let stack = "down_blocks.2.attentions.0.transformer_blocks";
    assert_eq!(block(&format!("{stack}.7.attn2.to_k.weight")), Some((stack.into(), 7)));
    assert_eq!(block("up_blocks.0.resnets.2.conv1.weight"), Some(("up_blocks.0.resnets".into(), 2)));
    assert_eq!(block("down_blocks.2.attentions.0.proj_in.weight"), None);
    assert_eq!(block("text_model.encoder.layers.31.mlp.fc1.bias"), Some(("text_model.encoder.layers".into(), 31)));
}

#[test]
fn what_no_model_loads_is_marked() {
    let single = fixture(Model::Sdxl, Options { layout: Layout::Single, ..Options::default() });
    let strays = single.components.iter().flat_map(|c| &c.tensors).filter(|t| !t.loaded);
    let names: Vec<_> = strays.map(|t| t.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
            "conditioner.embedders.1.model.logit_scale",
            "alphas_cumprod",
            "denoiser.sigmas",
        ]
    );
}
