//! Models as people run them: bytes as in their checkpoints, compute times as on a large card.

use mm_plan::{Activation, Basis, Component, Group, Stack};

const MB: u64 = 1_000_000;
const MILLISECOND: u64 = 1_000_000;

/// Text encoders, then the model that denoises, then the decoder.
const ENCODE: u32 = 0;
const DENOISE: u32 = 1;
const DECODE: u32 = 2;

/// A stack of blocks of the same size, in megabytes.
fn stack(name: &str, count: usize, megabytes: u64) -> Stack {
    uneven(name, &vec![megabytes; count])
}

fn uneven(name: &str, megabytes: &[u64]) -> Stack {
    Stack { name: name.into(), groups: megabytes.iter().map(|mb| Group::of_bytes(mb * MB)).collect() }
}

/// A component whose pass computes for so many milliseconds, in proportion to bytes, and whose activations take so many
/// megabytes.
fn component(
    name: &str,
    phase: u32,
    rest: u64,
    stacks: Vec<Stack>,
    (milliseconds, activation): (u64, u64),
) -> Component {
    let mut component = match stacks.is_empty() {
        true => Component::whole(name, rest * MB),
        false => Component::blocks(name, rest * MB, stacks),
    };
    let all = component.groups().map(Group::bytes).sum::<u64>().max(1);
    for group in component.stacks.iter_mut().flat_map(|s| &mut s.groups) {
        group.compute_ns =
            Some((u128::from(milliseconds * MILLISECOND) * u128::from(group.bytes()) / u128::from(all)) as u64);
    }
    let activation = Some(Activation { bytes: activation * MB, basis: Basis::Declared });
    Component { phase: Some(phase), activation, ..component }
}

fn passes(passes: u32, component: Component) -> Component {
    Component { passes, ..component }
}

fn clip_l() -> Component {
    component("text_encoder", ENCODE, 250, vec![], (2, 20))
}

fn clip_g() -> Component {
    component("text_encoder_2", ENCODE, 130, vec![stack("layers", 32, 40)], (6, 30))
}

fn t5(name: &str) -> Component {
    component(name, ENCODE, 264, vec![stack("block", 24, 386)], (40, 200))
}

fn vae(megabytes: u64) -> Component {
    component("vae", DECODE, megabytes, vec![], (0, 800))
}

pub(crate) fn z_image_turbo() -> Vec<Component> {
    let stacks = vec![stack("noise_refiner", 2, 362), stack("context_refiner", 2, 354), stack("layers", 30, 362)];
    vec![
        component("text_encoder", ENCODE, 778, vec![stack("layers", 36, 202)], (25, 150)),
        passes(9, component("transformer", DENOISE, 30, stacks, (350, 900))),
        vae(170),
    ]
}

pub(crate) fn flux_dev() -> Vec<Component> {
    let stacks = vec![stack("transformer_blocks", 19, 680), stack("single_transformer_blocks", 38, 283)];
    let transformer = component("transformer", DENOISE, 120, stacks, (800, 1200));
    vec![clip_l(), t5("text_encoder_2"), passes(28, transformer), vae(170)]
}

pub(crate) fn sd35_large() -> Vec<Component> {
    // The last block has no second half.
    let blocks = [vec![428; 37], vec![270]].concat();
    let transformer = component("transformer", DENOISE, 190, vec![uneven("transformer_blocks", &blocks)], (700, 1000));
    vec![clip_l(), clip_g(), t5("text_encoder_3"), passes(28, transformer), vae(170)]
}

pub(crate) fn sdxl() -> Vec<Component> {
    let resnets = [4, 4, 13, 16, 52, 66, 66, 66, 125, 105, 92, 40, 29, 24, 12, 8, 6];
    let stacks = vec![
        stack("down_blocks.1.attentions", 4, 14),
        stack("down_blocks.2.attentions", 20, 61),
        stack("mid_block.attentions", 10, 61),
        stack("up_blocks.0.attentions", 30, 61),
        stack("up_blocks.1.attentions", 6, 14),
        uneven("resnets", &resnets),
    ];
    let unet = component("unet", DENOISE, 430, stacks, (120, 1100));
    vec![clip_l(), clip_g(), passes(30, unet), vae(170)]
}

pub(crate) fn wan_14b() -> Vec<Component> {
    let umt5 = component("text_encoder", ENCODE, 2100, vec![stack("block", 24, 386)], (60, 300));
    let transformer = component("transformer", DENOISE, 200, vec![stack("blocks", 40, 710)], (6000, 1500));
    vec![umt5, passes(50, transformer), vae(500)]
}

/// The same with nothing measured: neither compute times nor activations.
pub(crate) fn unmeasured(mut components: Vec<Component>) -> Vec<Component> {
    for component in &mut components {
        component.activation = None;
        component.stacks.iter_mut().flat_map(|s| &mut s.groups).for_each(|group| group.compute_ns = None);
    }
    components
}
