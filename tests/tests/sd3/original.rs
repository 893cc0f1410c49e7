//! The names and the form of Stability AI's own files.

use crate::random::{joined, swapped};
use candle_core::Tensor;
use std::collections::HashMap;

/// The transformer's weights, renamed; files with more than a transformer have a prefix.
pub(crate) fn named(prefix: &str, mut from: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let mut to = HashMap::new();
    let names: Vec<_> = from.keys().cloned().collect();
    let last = names.iter().filter_map(|name| name.strip_suffix(".attn.add_q_proj.bias")?.split('.').nth(1)).max();
    let last = format!("transformer_blocks.{}.norm1_context.linear", last.unwrap());
    for name in &names {
        for (first, fused) in [
            ("attn.to_q", "x_block.attn.qkv"),
            ("attn2.to_q", "x_block.attn2.qkv"),
            ("attn.add_q_proj", "context_block.attn.qkv"),
        ] {
            let Some((block, kind)) = name.split_once(first) else { continue };
            let parts = ["q", "k", "v"].map(|letter| {
                let part = first.replace("_q", &format!("_{letter}"));
                format!("{block}{part}{kind}")
            });
            to.insert(
                format!("{}{fused}{kind}", block.replace("transformer_blocks", "joint_blocks")),
                joined(&from, &parts),
            );
            parts.iter().for_each(|part| drop(from.remove(part)));
        }
    }
    for (name, tensor) in from {
        let swap = name.starts_with("norm_out.linear") || name.starts_with(&last);
        to.insert(original(&name), if swap { swapped(&tensor) } else { tensor });
    }
    to.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
}

/// The name in the original files of a tensor that is one there too.
fn original(name: &str) -> String {
    let pairs = [
        ("transformer_blocks", "joint_blocks"),
        ("norm1_context.linear", "context_block.adaLN_modulation.1"),
        ("norm1.linear", "x_block.adaLN_modulation.1"),
        ("attn.norm_added_q", "context_block.attn.ln_q"),
        ("attn.norm_added_k", "context_block.attn.ln_k"),
        ("attn.norm_q", "x_block.attn.ln_q"),
        ("attn.norm_k", "x_block.attn.ln_k"),
        ("attn2.norm_q", "x_block.attn2.ln_q"),
        ("attn2.norm_k", "x_block.attn2.ln_k"),
        ("attn.to_out.0", "x_block.attn.proj"),
        ("attn2.to_out.0", "x_block.attn2.proj"),
        ("attn.to_add_out", "context_block.attn.proj"),
        ("ff.net.0.proj", "x_block.mlp.fc1"),
        ("ff.net.2", "x_block.mlp.fc2"),
        ("ff_context.net.0.proj", "context_block.mlp.fc1"),
        ("ff_context.net.2", "context_block.mlp.fc2"),
        ("norm_out.linear", "final_layer.adaLN_modulation.1"),
        ("pos_embed.proj", "x_embedder.proj"),
        ("pos_embed.pos_embed", "pos_embed"),
        ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
        ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
        ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
        ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ];
    let renamed =
        if name.starts_with("proj_out.") { name.replace("proj_out", "final_layer.linear") } else { name.into() };
    pairs.iter().fold(renamed, |name: String, (from, to)| name.replace(from, to))
}
