//! FLUX.1 whose transformer and T5 are GGUF files: the same bits whatever the memory, in the bytes that the files' headers say.

mod common;
mod random;

use candle_core::DType;
use common::options;
use mm_diffusion::{Folder, Pipeline, Unmanaged, describe};
use mm_fixtures::Quantization;
use mm_plan::{Component, DType as PlanDType, Group, Infeasible, Strategy};
use random::{
    Checkpoint,
    matrix::{bits, described_as_loaded, draw, matrix, unmanaged},
};
use std::fs;

const TRANSFORMER: &str = "transformer/flux-dev-Q4_K.gguf";

#[test]
fn under_every_strategy_and_budget() {
    matrix(&Checkpoint::of_gguf(Quantization::Q4K).folder(), DType::F32);
}

#[test]
fn in_half_precision_in_the_smallest_budget() {
    let folder = Checkpoint::of_gguf(Quantization::Q4_0);
    let folder = folder.folder();
    for dtype in [DType::BF16, DType::F16] {
        let Err(Infeasible::NeverFits { smallest, .. }) = draw(&folder, dtype, 1, Strategy::Auto) else {
            panic!("one byte can't be enough");
        };
        let (image, plan) = draw(&folder, dtype, smallest, Strategy::Auto).unwrap();
        assert!(image == bits(&unmanaged(&folder, dtype).image), "{dtype:?}: other bits");
        assert!(plan.component("transformer").unwrap().streamed_count() > 0);
    }
}

#[test]
fn a_description_from_headers_is_what_loading_finds() {
    described_as_loaded(&Checkpoint::of_gguf(Quantization::Q8_0).folder());
}

fn planned(folder: &Folder, name: &str) -> Component {
    let all = describe(folder, &options(DType::F32)).unwrap();
    all.into_iter().find(|component| component.name == name).unwrap()
}

/// What `mm inspect` says before anything is built is what the model asks for.
#[test]
fn inspecting_agrees_with_the_model() {
    let checkpoint = Checkpoint::of_gguf(Quantization::Q4K);
    let inspected = mm_probe::inspect(checkpoint.path(""), Some(PlanDType::F32)).unwrap();
    for (name, stacks) in [("transformer", &["double_blocks", "single_blocks"][..]), ("text_encoder_2", &["enc.blk"])] {
        let found = inspected.components.iter().find(|component| component.name == name).unwrap();
        let model = planned(&checkpoint.folder(), name);
        let names: Vec<_> = model.stacks.iter().map(|stack| stack.name.as_str()).collect();
        assert_eq!(names, stacks);
        // In which order the model asks, headers don't say.
        let groups = |component: &Component| -> Vec<_> {
            let sorted = |group: &Group| {
                let mut slabs = group.slabs.clone();
                slabs.sort_by_key(|slab| slab.dtype);
                (slabs, group.host_bytes)
            };
            component.groups().map(sorted).collect()
        };
        let first = groups(&found.component);
        // T5's first block has the biases that all share; the model keeps them with the rest.
        let shared = usize::from(name == "text_encoder_2");
        assert_eq!(first[shared..], groups(&model)[shared..], "{name}");
        assert!(first.iter().all(|(slabs, _)| slabs.iter().any(|slab| slab.dtype == PlanDType::Bytes)));
        assert_eq!(found.component.bytes(), model.bytes(), "{name}");
    }
}

#[test]
fn what_is_stored_as_numbers_is_cast_and_the_rest_is_not() {
    let checkpoint = Checkpoint::of_gguf(Quantization::Q4_0);
    let bytes = |dtype| {
        let all = describe(&checkpoint.folder(), &options(dtype)).unwrap();
        let transformer = all.iter().find(|component| component.name == "transformer").unwrap();
        let sum = |of: PlanDType| -> u64 {
            transformer.groups().flat_map(|g| &g.slabs).filter(|s| s.dtype == of).map(|s| s.bytes).sum()
        };
        (sum(PlanDType::Bytes), sum(PlanDType::F32), sum(PlanDType::Bf16))
    };
    let ((quantized, wide, none), (same, zero, narrow)) = (bytes(DType::F32), bytes(DType::BF16));
    assert_eq!((quantized, none, zero), (same, 0, 0));
    assert!(quantized > 0 && narrow > 0 && wide > narrow);
}

#[test]
fn broken_files_are_named() {
    let refused = |change: &dyn Fn(&Checkpoint), parts: &[&str]| {
        let checkpoint = Checkpoint::of_gguf(Quantization::Q4K);
        change(&checkpoint);
        checkpoint.refused(parts);
    };
    let file = |checkpoint: &Checkpoint| checkpoint.path(TRANSFORMER);
    let cut = |checkpoint: &Checkpoint| {
        let whole = fs::read(file(checkpoint)).unwrap();
        fs::write(file(checkpoint), &whole[..whole.len() - 100]).unwrap();
    };
    refused(&cut, &[TRANSFORMER, "truncated"]);
    let twice = |checkpoint: &Checkpoint| {
        fs::copy(file(checkpoint), checkpoint.path("transformer/other.gguf")).unwrap();
    };
    refused(&twice, &["transformer", "flux-dev-Q4_K.gguf, other.gguf", "leave one"]);
    refused(&|checkpoint| fs::remove_file(file(checkpoint)).unwrap(), &["transformer", "is missing"]);
    // A type that nobody has a kernel for here.
    let kind = |checkpoint: &Checkpoint| {
        let mut bytes = fs::read(file(checkpoint)).unwrap();
        let name = b"double_blocks.0.img_attn.qkv.weight";
        let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 16;
        assert_eq!(bytes[at], 12, "q4_k");
        // Of as many elements in fewer bytes, so that it fits where it lies.
        bytes[at] = 23;
        fs::write(file(checkpoint), bytes).unwrap();
    };
    refused(&kind, &[TRANSFORMER, "double_blocks.0.img_attn.qkv.weight", "iq4_xs", "q4_k"]);
    let shape = |checkpoint: &Checkpoint| checkpoint.set("text_encoder_2/config.json", "d_ff", 96.into());
    refused(&shape, &["text_encoder_2", "ffn_gate.weight", "[96, 64]"]);
}

#[test]
fn weights_as_a_loader_expects_them_go_before_a_gguf_file() {
    let checkpoint = Checkpoint::of_gguf(Quantization::Q8_0);
    fs::write(checkpoint.path(random::TRANSFORMER), b"no weights").unwrap();
    assert!(Pipeline::load(&checkpoint.folder(), &options(DType::F32), &Unmanaged).is_err());
    fs::remove_file(checkpoint.path(random::TRANSFORMER)).unwrap();
    Pipeline::load(&checkpoint.folder(), &options(DType::F32), &Unmanaged).unwrap();
}
