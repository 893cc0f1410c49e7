//! The names and the form of Black Forest Labs' own files.

use crate::random::{joined, swapped};
use candle_core::Tensor;
use std::collections::HashMap;

/// The transformer's weights, renamed.
pub(crate) fn named(mut from: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let mut to = HashMap::new();
    let names: Vec<_> = from.keys().cloned().collect();
    let mut join = |to_name: String, parts: &[String]| {
        to.insert(to_name, joined(&from, parts));
        parts.iter().for_each(|part| drop(from.remove(part)));
    };
    for name in names.iter().filter(|name| name.ends_with("attn.to_q.weight")) {
        let block = name.trim_end_matches("attn.to_q.weight");
        let index = block.split('.').nth(1).unwrap();
        for last in ["weight", "bias"] {
            let part = |part: &str| format!("{block}{part}.{last}");
            let three = |names: [&str; 3]| names.map(part);
            let image = three(["attn.to_q", "attn.to_k", "attn.to_v"]);
            if block.starts_with("single") {
                let all = [&image[..], &[part("proj_mlp")]].concat();
                join(format!("single_blocks.{index}.linear1.{last}"), &all);
            } else {
                join(format!("double_blocks.{index}.img_attn.qkv.{last}"), &image);
                let text = three(["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]);
                join(format!("double_blocks.{index}.txt_attn.qkv.{last}"), &text);
            }
        }
    }
    for (name, tensor) in from {
        let tensor = if name.starts_with("norm_out.linear") { swapped(&tensor) } else { tensor };
        to.insert(original(&name), tensor);
    }
    to
}

/// The name in the original files of a tensor that is one there too.
fn original(name: &str) -> String {
    let single = name.starts_with("single_transformer_blocks.");
    let renamed = match name.starts_with("proj_out.") {
        true => name.replace("proj_out", "final_layer.linear"),
        false => name.replace("proj_out", "linear2"),
    };
    let norms = if single { "norm" } else { "img_attn.norm" };
    let pairs = [
        ("single_transformer_blocks", "single_blocks".to_owned()),
        ("transformer_blocks", "double_blocks".to_owned()),
        ("norm1_context.linear", "txt_mod.lin".to_owned()),
        ("norm1.linear", "img_mod.lin".to_owned()),
        ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale".to_owned()),
        ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale".to_owned()),
        ("attn.norm_q.weight", format!("{norms}.query_norm.scale")),
        ("attn.norm_k.weight", format!("{norms}.key_norm.scale")),
        ("attn.to_out.0", "img_attn.proj".to_owned()),
        ("attn.to_add_out", "txt_attn.proj".to_owned()),
        ("ff.net.0.proj", "img_mlp.0".to_owned()),
        ("ff.net.2", "img_mlp.2".to_owned()),
        ("ff_context.net.0.proj", "txt_mlp.0".to_owned()),
        ("ff_context.net.2", "txt_mlp.2".to_owned()),
        ("norm_out.linear", "final_layer.adaLN_modulation.1".to_owned()),
        ("x_embedder", "img_in".to_owned()),
        ("context_embedder", "txt_in".to_owned()),
        ("time_text_embed.timestep_embedder", "time_in".to_owned()),
        ("time_text_embed.guidance_embedder", "guidance_in".to_owned()),
        ("time_text_embed.text_embedder", "vector_in".to_owned()),
        ("linear_1", "in_layer".to_owned()),
        ("linear_2", "out_layer".to_owned()),
    ];
    let renamed = if single { renamed.replace(".norm.linear", ".modulation.lin") } else { renamed };
    pairs.iter().fold(renamed, |name, (from, to)| name.replace(from, to))
}
