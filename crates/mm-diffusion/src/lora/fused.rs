//! Layers that one set of names keeps apart and another as one, so that a LoRA made under either fits weights under the other.

use mm_candle::Part;

/// What stands before a layer's name, dots as underscores.
const WRAPPERS: &[&str] = &[
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "base_model_model_",
    "model_diffusion_model_",
    "diffusion_model_",
    "transformer_",
    "model_",
];

/// Whether shift and scale change places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halves {
    Kept,
    Swapped,
    /// Swapped where there is nothing but a shift and a scale.
    SwappedIfTwo,
}

/// A layer of the makers' own files, and the same in Diffusers' names; `{}` is a block's number.
pub(crate) struct Row {
    original: &'static str,
    /// Each with its share of the outputs, in their order.
    diffusers: &'static [(&'static str, usize)],
    halves: Halves,
}

const fn row(original: &'static str, diffusers: &'static [(&'static str, usize)]) -> Row {
    Row { original, diffusers, halves: Halves::Kept }
}

pub(crate) const FLUX: &[Row] = &[
    row(
        "double_blocks.{}.img_attn.qkv",
        &[
            ("transformer_blocks.{}.attn.to_q", 1),
            ("transformer_blocks.{}.attn.to_k", 1),
            ("transformer_blocks.{}.attn.to_v", 1),
        ],
    ),
    row(
        "double_blocks.{}.txt_attn.qkv",
        &[
            ("transformer_blocks.{}.attn.add_q_proj", 1),
            ("transformer_blocks.{}.attn.add_k_proj", 1),
            ("transformer_blocks.{}.attn.add_v_proj", 1),
        ],
    ),
    row("double_blocks.{}.img_attn.proj", &[("transformer_blocks.{}.attn.to_out.0", 1)]),
    row("double_blocks.{}.txt_attn.proj", &[("transformer_blocks.{}.attn.to_add_out", 1)]),
    row("double_blocks.{}.img_mlp.0", &[("transformer_blocks.{}.ff.net.0.proj", 1)]),
    row("double_blocks.{}.img_mlp.2", &[("transformer_blocks.{}.ff.net.2", 1)]),
    row("double_blocks.{}.txt_mlp.0", &[("transformer_blocks.{}.ff_context.net.0.proj", 1)]),
    row("double_blocks.{}.txt_mlp.2", &[("transformer_blocks.{}.ff_context.net.2", 1)]),
    row("double_blocks.{}.img_mod.lin", &[("transformer_blocks.{}.norm1.linear", 1)]),
    row("double_blocks.{}.txt_mod.lin", &[("transformer_blocks.{}.norm1_context.linear", 1)]),
    row(
        "single_blocks.{}.linear1",
        &[
            ("single_transformer_blocks.{}.attn.to_q", 1),
            ("single_transformer_blocks.{}.attn.to_k", 1),
            ("single_transformer_blocks.{}.attn.to_v", 1),
            ("single_transformer_blocks.{}.proj_mlp", 4),
        ],
    ),
    row("single_blocks.{}.linear2", &[("single_transformer_blocks.{}.proj_out", 1)]),
    row("single_blocks.{}.modulation.lin", &[("single_transformer_blocks.{}.norm.linear", 1)]),
    row("img_in", &[("x_embedder", 1)]),
    row("txt_in", &[("context_embedder", 1)]),
    row("time_in.in_layer", &[("time_text_embed.timestep_embedder.linear_1", 1)]),
    row("time_in.out_layer", &[("time_text_embed.timestep_embedder.linear_2", 1)]),
    row("guidance_in.in_layer", &[("time_text_embed.guidance_embedder.linear_1", 1)]),
    row("guidance_in.out_layer", &[("time_text_embed.guidance_embedder.linear_2", 1)]),
    row("vector_in.in_layer", &[("time_text_embed.text_embedder.linear_1", 1)]),
    row("vector_in.out_layer", &[("time_text_embed.text_embedder.linear_2", 1)]),
    row("final_layer.linear", &[("proj_out", 1)]),
    Row { original: "final_layer.adaLN_modulation.1", diffusers: &[("norm_out.linear", 1)], halves: Halves::Swapped },
];

pub(crate) const SD3: &[Row] = &[
    row(
        "joint_blocks.{}.x_block.attn.qkv",
        &[
            ("transformer_blocks.{}.attn.to_q", 1),
            ("transformer_blocks.{}.attn.to_k", 1),
            ("transformer_blocks.{}.attn.to_v", 1),
        ],
    ),
    row(
        "joint_blocks.{}.x_block.attn2.qkv",
        &[
            ("transformer_blocks.{}.attn2.to_q", 1),
            ("transformer_blocks.{}.attn2.to_k", 1),
            ("transformer_blocks.{}.attn2.to_v", 1),
        ],
    ),
    row(
        "joint_blocks.{}.context_block.attn.qkv",
        &[
            ("transformer_blocks.{}.attn.add_q_proj", 1),
            ("transformer_blocks.{}.attn.add_k_proj", 1),
            ("transformer_blocks.{}.attn.add_v_proj", 1),
        ],
    ),
    row("joint_blocks.{}.x_block.attn.proj", &[("transformer_blocks.{}.attn.to_out.0", 1)]),
    row("joint_blocks.{}.x_block.attn2.proj", &[("transformer_blocks.{}.attn2.to_out.0", 1)]),
    row("joint_blocks.{}.context_block.attn.proj", &[("transformer_blocks.{}.attn.to_add_out", 1)]),
    row("joint_blocks.{}.x_block.mlp.fc1", &[("transformer_blocks.{}.ff.net.0.proj", 1)]),
    row("joint_blocks.{}.x_block.mlp.fc2", &[("transformer_blocks.{}.ff.net.2", 1)]),
    row("joint_blocks.{}.context_block.mlp.fc1", &[("transformer_blocks.{}.ff_context.net.0.proj", 1)]),
    row("joint_blocks.{}.context_block.mlp.fc2", &[("transformer_blocks.{}.ff_context.net.2", 1)]),
    row("joint_blocks.{}.x_block.adaLN_modulation.1", &[("transformer_blocks.{}.norm1.linear", 1)]),
    Row {
        original: "joint_blocks.{}.context_block.adaLN_modulation.1",
        diffusers: &[("transformer_blocks.{}.norm1_context.linear", 1)],
        halves: Halves::SwappedIfTwo,
    },
    row("x_embedder.proj", &[("pos_embed.proj", 1)]),
    row("t_embedder.mlp.0", &[("time_text_embed.timestep_embedder.linear_1", 1)]),
    row("t_embedder.mlp.2", &[("time_text_embed.timestep_embedder.linear_2", 1)]),
    row("y_embedder.mlp.0", &[("time_text_embed.text_embedder.linear_1", 1)]),
    row("y_embedder.mlp.2", &[("time_text_embed.text_embedder.linear_2", 1)]),
    row("final_layer.linear", &[("proj_out", 1)]),
    Row { original: "final_layer.adaLN_modulation.1", diffusers: &[("norm_out.linear", 1)], halves: Halves::Swapped },
];

/// The weights in Diffusers' names that a layer in original ones is for; `None`: it is not one of these.
pub(crate) fn to_diffusers(rows: &[Row], layer: &str, outputs: usize, inputs: usize) -> Option<Vec<Part>> {
    let (row, number) = rows.iter().find_map(|row| Some((row, number(layer, row.original)?)))?;
    if row.diffusers.len() == 1 {
        return Some(one(row, named(row.diffusers[0].0, &number), outputs, inputs));
    }
    let unit = exact(outputs, row.diffusers.iter().map(|(_, share)| share).sum())?;
    let mut start = 0;
    let part = |(name, share): &(&str, usize)| {
        let from = start..start + share * unit;
        start = from.end;
        Part { layer: named(name, &number), from, at: None }
    };
    Some(row.diffusers.iter().map(part).collect())
}

/// The same the other way round.
pub(crate) fn to_original(rows: &[Row], layer: &str, outputs: usize, inputs: usize) -> Option<Vec<Part>> {
    let found =
        |row: &'_ Row| row.diffusers.iter().enumerate().find_map(|(at, (name, _))| Some((at, number(layer, name)?)));
    let (row, (at, number)) = rows.iter().find_map(|row| Some((row, found(row)?)))?;
    if row.diffusers.len() == 1 {
        return Some(one(row, named(row.original, &number), outputs, inputs));
    }
    let unit = exact(outputs, row.diffusers[at].1)?;
    let before: usize = row.diffusers[..at].iter().map(|(_, share)| share * unit).sum();
    Some(vec![Part { layer: named(row.original, &number), from: 0..outputs, at: Some(before) }])
}

fn one(row: &Row, layer: String, outputs: usize, inputs: usize) -> Vec<Part> {
    let two = inputs.checked_mul(2) == Some(outputs);
    let swapped = row.halves == Halves::Swapped || (row.halves == Halves::SwappedIfTwo && two);
    match exact(outputs, 2).filter(|_| swapped) {
        Some(half) => vec![
            Part { layer: layer.clone(), from: 0..half, at: Some(half) },
            Part { layer, from: half..outputs, at: Some(0) },
        ],
        None => vec![Part { layer, from: 0..outputs, at: None }],
    }
}

fn exact(whole: usize, parts: usize) -> Option<usize> {
    whole.is_multiple_of(parts).then(|| whole / parts)
}

fn named(pattern: &str, number: &str) -> String {
    pattern.replace("{}", number)
}

/// The block's number, where the layer is one of this pattern; nothing where that has none.
fn number(layer: &str, pattern: &str) -> Option<String> {
    let (layer, pattern) = (layer.replace('.', "_"), pattern.replace('.', "_"));
    let mut names = vec![&*layer];
    while let Some(name) = names.pop() {
        match pattern.split_once("{}") {
            None if name == pattern => return Some(String::new()),
            Some((start, end)) => {
                let number = name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
                if let Some(number) = number.filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
                    return Some(number.to_owned());
                }
            }
            None => {}
        }
        names.extend(WRAPPERS.iter().filter_map(|wrapper| name.strip_prefix(wrapper)));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fused_layer_is_cut_as_it_is_put_together() {
        let name = "lora_unet_single_blocks_12_linear1";
        let parts = to_diffusers(FLUX, name, 70, 10).unwrap();
        let ranges: Vec<_> = parts.iter().map(|part| part.from.clone()).collect();
        assert_eq!(ranges, [0..10, 10..20, 20..30, 30..70]);
        for part in parts {
            let back = to_original(FLUX, &part.layer, part.from.len(), 10).unwrap();
            let expected =
                Part { layer: "single_blocks.12.linear1".into(), from: 0..part.from.len(), at: Some(part.from.start) };
            assert_eq!(back, [expected]);
        }
        assert_eq!(to_diffusers(FLUX, name, 71, 10), None);
        for name in
            ["lora_unet_single_blocks_x_linear1", "single_blocks.1.linear", "", "transformer_blocks.0.attn.to_q"]
        {
            assert_eq!(to_diffusers(FLUX, name, 70, 10), None, "{name}");
        }
    }

    #[test]
    fn every_row_is_found_again_in_both_directions() {
        for rows in [FLUX, SD3] {
            for row in rows {
                let name = named(row.original, "3");
                for wrapped in
                    [name.clone(), format!("diffusion_model.{name}"), format!("lora_unet_{}", name.replace('.', "_"))]
                {
                    let parts = to_diffusers(rows, &wrapped, 42, 6).unwrap_or_else(|| panic!("{wrapped} is not found"));
                    assert_eq!(parts[0].layer, named(row.diffusers[0].0, "3"));
                }
                let (theirs, _) = row.diffusers[0];
                let back = to_original(rows, &format!("transformer.{}", named(theirs, "3")), 42, 6).unwrap();
                assert_eq!(back[0].layer, name);
            }
        }
    }

    #[test]
    fn shift_and_scale_change_places() {
        let parts = to_diffusers(SD3, "joint_blocks.1.context_block.adaLN_modulation.1", 8, 4).unwrap();
        assert_eq!(
            parts.iter().map(|p| (p.from.clone(), p.at)).collect::<Vec<_>>(),
            [(0..4, Some(4)), (4..8, Some(0))]
        );
        let whole = to_diffusers(SD3, "joint_blocks.1.context_block.adaLN_modulation.1", 24, 4).unwrap();
        assert_eq!((whole[0].from.clone(), whole[0].at), (0..24, None));
    }
}
